"""Ultralytics' hyperparameter evolution, over routed variants of a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from ultralytics import YOLO
from ultralytics.engine.tuner import Tuner

from mod_vision.yolo.search import Candidate, SearchSpace


class RoutingTuner(Tuner):
    """Parents and mutations are Ultralytics'; the genes are places in lists of choices.

    Ultralytics' own loop hands the genes to `yolo train`, which refuses what is none of its arguments. So the loop is
    replaced by one that trains candidates.
    """

    def __init__(
        self,
        model: YOLO,
        space: SearchSpace,
        run: Callable[[Candidate], object],
        fitness: Callable[[], Mapping[Candidate, float]],
        args: dict[str, Any],
    ) -> None:
        """Prepare an evolution.

        Args:
            model: The model that is tuned.
            space: What to choose from.
            run: Trains and scores a candidate, and remembers it.
            fitness: Returns the fitness of all candidates tried so far, the higher the better a parent.
            args: Training arguments.
        """
        super().__init__({**args, "space": space.ranges(), "mode": "train", "resume": True}, model=model.model)
        for gene in self.space:
            setattr(self.args, gene, 0)  # the first of all is the dense twin
        self.choices, self.run, self.fitness = space, run, fitness

    def __call__(self, iterations: int) -> None:
        """Try candidates until `iterations` of them, or all there are, have been tried."""
        while len(tried := self.fitness()) < iterations and not tried.keys() >= set(self.choices.candidates()):
            self.run(self.propose())

    def propose(self) -> Candidate:
        """Return a candidate that has not been tried yet: a mutation of a fit one, or else any."""
        try:
            return self.choices.candidate(self._mutate())
        except RuntimeError:  # no untried one after many mutations
            tried = self.fitness()
            return random.choice([c for c in self.choices.candidates() if c not in tried])

    def _load_local_results(self) -> list[dict[str, Any]]:
        """Return the history that Ultralytics picks parents from."""
        known = set(self.choices.candidates())
        return [
            {"fitness": fitness, "hyperparameters": self.choices.genes(candidate)}
            for candidate, fitness in self.fitness().items()
            if candidate in known  # a resumed sweep can have other choices
        ]

    def _constrain(self, hyp: dict[str, float]) -> dict[str, int]:
        """Round genes to choices; whatever is at capacity 1 is the dense twin."""
        genes = {gene: min(max(round(hyp[gene]), low), high) for gene, (low, high) in self.space.items()}
        return genes if genes["capacity"] else dict.fromkeys(genes, 0)
