"""The contract of all that is measured over images, as torchmetrics and supervision have it."""

from __future__ import annotations

from typing import Any, Protocol


class Measure(Protocol):
    """What is measured over images: `update` for each batch, then `result`; `reset` starts anew."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch."""

    def reset(self) -> None:
        """Forget all that was added."""

    def result(self) -> Any:
        """Return what was measured over all batches since the start or the last reset."""
