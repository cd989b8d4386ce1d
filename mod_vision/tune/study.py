"""The Optuna study that keeps the trials of a sweep, and NSGA-II that proposes what to try."""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mod_vision.errors import one_line
from mod_vision.tune.space import Choices, candidate_of, candidates
from mod_vision.yolo.model.variants import DENSE, Candidate

STORAGE = "OPTUNA_STORAGE"  # Optuna's own name for the URL of a database
BEAT, GRACE = 15, 60  # seconds: how often a worker says that it is alive, and the silence after which it is dead
POPULATION = 4  # of NSGA-II: a sweep has a dozen trials
DRAWS = 20

warnings.filterwarnings("ignore", category=ExperimentalWarning)  # of the heartbeats
optuna.logging.set_verbosity(optuna.logging.ERROR)  # trials report themselves


def open_study(folder: Path, settings: dict[str, Any], choices: Choices) -> optuna.Study:
    """Open the study of a sweep, or begin it: minimise the latency relative to the dense baseline's, maximise AP.

    Raises:
        ValueError: If the database cannot be opened, or folder and study are of another sweep.
    """
    try:
        url = os.environ.get(STORAGE) or f"sqlite:///{folder / 'study.db'}"
        storage = optuna.storages.RDBStorage(url, heartbeat_interval=BEAT, grace_period=GRACE)
        study = optuna.create_study(
            study_name=folder.name,
            storage=storage,
            sampler=UntriedSampler(choices),
            directions=["minimize", "maximize"],
            load_if_exists=True,
        )
    except (SQLAlchemyError, ImportError) as error:
        hint = f"{STORAGE} is a URL such as postgresql://user:password@host/name"
        raise ValueError(f"cannot open the database of the study; {hint}: {one_line(error)}") from error
    held, begun = study.user_attrs, (folder / "start.pt").is_file()
    if (begun and not held) or (study.trials and not begun):
        raise ValueError(f"{folder} and the study {folder.name!r} are not of one sweep; choose another out=.")
    for key in held:
        if held[key] != settings.get(key):
            wanted = f"{key}={held[key]}, not {settings.get(key)}"
            raise ValueError(f"{folder} holds a sweep with {wanted}; choose another out=, or delete it.")
    for key in settings:
        study.set_user_attr(key, settings[key])
    return study


def in_state(study: optuna.Study, *states: TrialState) -> set[Candidate]:
    """Return the candidates of all trials in some states."""
    trials = study.get_trials(deepcopy=False, states=states)
    return {candidate_of(trial.params) for trial in trials if len(trial.params) == len(Candidate._fields)}


class UntriedSampler(NSGAIISampler):
    """NSGA-II that proposes the dense baseline first, and nothing that is finished or running."""

    def __init__(self, choices: Choices) -> None:
        super().__init__(population_size=POPULATION)
        self.choices = choices

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all parameters, also for the first trial."""
        return {name: CategoricalDistribution(values) for name, values in self.choices.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of a candidate that is neither finished nor running."""
        taken = in_state(study, TrialState.COMPLETE, TrialState.RUNNING)
        free = [candidate for candidate in candidates(self.choices) if candidate not in taken]
        for _ in range(DRAWS):
            drawn = super().sample_relative(study, trial, search_space)
            if free[0] == DENSE:
                drawn = {name: values[0] for name, values in self.choices.items()}
            for name in search_space.keys() - drawn.keys():  # of the first generation, or to mutate
                drawn[name] = self.sample_independent(study, trial, name, search_space[name])
            if candidate_of(drawn) in free:
                return drawn
        return random.choice(free)._asdict()
