"""Capacity over the course of a training."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 32  # drawn capacities are rounded up to multiples of 1/32: compiled models and memory allocators see few shapes


@dataclass(frozen=True)
class CapacitySchedule:
    """A dense warm-up, then the model's own capacity, or one drawn per step.

    A schedule has no state: its capacity is a function of epoch, step and seed. So a resumed training goes on as an
    unbroken one would, and all ranks of a distributed training agree without a word.

    Attributes:
        warmup: Share of the training, in [0, 1), at capacity 1, rounded to epochs.
        elastic: Lowest and highest mean capacity to draw from, or None. Of three steps, one takes the lowest, one the
            highest and one a uniform draw (the sandwich rule of slimmable networks, arXiv 1903.05134, section 3.1,
            spread over steps), so that one checkpoint serves every capacity in between. Below their mean, capacities
            shrink in proportion; above it, what each lacks of 1 does.
    """

    warmup: float = 0.0
    elastic: tuple[float, float] | None = None

    @property
    def constant(self) -> bool:
        """True if every step has the model's own capacity."""
        return not self.warmup and self.elastic is None

    def first_routed(self, epochs: int) -> int:
        """Return the first epoch of a training that is routed; the last one always is."""
        return min(round(self.warmup * epochs), epochs - 1)

    def capacities(self, nominal: Sequence[Sequence[float]], step: int, seed: int) -> list[tuple[float, ...]]:
        """Return the capacities of all layers at a training step after the warm-up.

        Args:
            nominal: Capacities of each layer's blocks, as the model has them; blocks at 1 stay dense.
            step: Number of batches trained on so far.
            seed: Seed of the training.
        """
        routed = [c for layer in nominal for c in layer if c < 1]
        if not routed or self.elastic is None:
            return [tuple(layer) for layer in nominal]
        mean, drawn = sum(routed) / len(routed), self._draw(self.elastic, step, seed)

        def at_step(c: float) -> float:
            if c == 1:
                return 1.0
            now = c * drawn / mean if drawn <= mean else 1.0 - (1.0 - c) * (1.0 - drawn) / (1.0 - mean)
            return min(1.0, math.ceil(now * STEPS - 1e-6) / STEPS)

        return [tuple(at_step(c) for c in layer) for layer in nominal]

    @staticmethod
    def _draw(between: tuple[float, float], step: int, seed: int) -> float:
        """Return the lowest, the highest and a drawn capacity in turn."""
        return (*between, random.Random(f"{seed} {step}").uniform(*between))[step % 3]
