"""What a conversion is asked for: a time, a speed-up, or how much accuracy may be lost."""

from __future__ import annotations

from dataclasses import dataclass

SPEEDUPS = (1.5, 2.0, 3.0)
AROUND = (0.7, 1.0, 1.4)  # of the asked speed-up
MAX_LOSS = 0.5  # AP, where nothing is asked for


@dataclass(frozen=True)
class Wanted:
    """What a conversion is asked for; at most one of budget and speedup.

    Attributes:
        budget: Milliseconds that an image may take, 0 if that is not asked.
        speedup: How many times as fast as the dense model, 0 if that is not asked.
        max_loss: AP that may be lost; None is 0.5 where neither budget nor speed-up is asked, else no bound.
    """

    budget: float = 0.0
    speedup: float = 0.0
    max_loss: float | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one is out of range, or both budget and speed-up are asked.
        """
        if self.budget and self.speedup:
            raise ValueError(f"give budget={self.budget:g}ms or speedup={self.speedup:g}, not both.")
        if self.budget < 0:
            raise ValueError(f"budget must be a positive number of milliseconds, got {self.budget:g}.")
        if self.speedup and self.speedup <= 1:
            raise ValueError(f"speedup must be above 1, such as 2, got {self.speedup:g}.")
        if self.max_loss is not None and not 0 <= self.max_loss <= 100:
            raise ValueError(f"max_loss must be AP in [0, 100], such as 0.3, got {self.max_loss:g}.")

    @property
    def bound(self) -> float | None:
        """AP that may be lost, None if it does not matter."""
        asked = self.budget or self.speedup
        return MAX_LOSS if self.max_loss is None and not asked else self.max_loss

    def allowed(self, dense_ms: float) -> float:
        """Return the milliseconds that an image may take, 0 if that is not asked."""
        asked = self._asked(dense_ms)
        return dense_ms / asked if asked else 0.0

    def speedups(self, dense_ms: float) -> tuple[float, ...]:
        """Return the three speed-ups to choose settings for; the middle one is asked for, if one is."""
        asked = self._asked(dense_ms)
        return tuple(asked * part for part in AROUND) if asked else SPEEDUPS

    def _asked(self, dense_ms: float) -> float:
        """Return the speed-up that is asked for, 0 if none is."""
        return self.speedup or (dense_ms / self.budget if self.budget else 0.0)
