"""Candidates on Ray Tune, through Ultralytics' `run_ray_tune`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ultralytics.cfg import TASK2METRIC

from mod_vision.yolo.search import Candidate


def check_ray() -> None:
    """Check that Ray Tune can be imported, before Ultralytics would try to install it.

    Raises:
        ImportError: If it cannot.
    """
    try:
        importlib.import_module("ray.tune")
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise ImportError(f'use_ray=True needs Ray Tune: pip install "mod-vision[ray]" ({reason}).') from error


@dataclass
class _Trials:
    """What `run_ray_tune` takes for a model: it is copied to the workers, and `train` is called there."""

    run: Callable[[Candidate], float]
    candidates: dict[str, Candidate]
    task: str
    epochs: int
    trainer: Any = None

    def reset_callbacks(self) -> None:
        """Do nothing: a candidate is loaded anew."""

    def train(self, candidate: str, **_: Any) -> SimpleNamespace:
        """Run a candidate and return its AP, as Ultralytics returns metrics."""
        from ultralytics.utils.callbacks import raytune

        raytune.callbacks.clear()  # the scheduler would end the trial after its last epoch, before it is scored
        ap = self.run(self.candidates[candidate])
        return SimpleNamespace(results_dict={TASK2METRIC[self.task]: ap, "epoch": self.epochs})


def run_on_ray(
    candidates: Sequence[Candidate],
    run: Callable[[Candidate], float],
    task: str,
    epochs: int,
    data: str,
    folder: Path,
    gpus: int,
) -> None:
    """Run candidates on Ray Tune: here, or on the cluster that the environment variable RAY_ADDRESS names.

    Each trains to its end. Ray's scheduler could only stop early by accuracy, which would cut the fast end off.

    Args:
        candidates: What to run.
        run: Trains, scores and records a candidate, on a worker, and returns its AP; must be picklable.
        task: `detect` or `segment`.
        epochs: Epochs of each.
        data: Data YAML.
        folder: Absolute path for Ray's own files, which all machines of a cluster must share.
        gpus: GPUs per trial.

    Raises:
        RuntimeError: If a trial fails, after all have run.
    """
    from ray import tune
    from ultralytics.utils.tuner import run_ray_tune

    by_name = {candidate.slug: candidate for candidate in candidates}
    results = run_ray_tune(
        _Trials(run, by_name, task, epochs),
        space={"candidate": tune.grid_search(list(by_name))},
        iterations=1,  # of the whole grid
        search_alg=None,
        gpu_per_trial=gpus,
        data=data,
        epochs=epochs,
        project=str(folder),
        name="ray",
    )
    if results.errors:
        first = str(results.errors[0]).strip().splitlines()[-1]
        raise RuntimeError(f"{len(results.errors)} of {len(candidates)} trials failed: {first} (the others are kept).")
