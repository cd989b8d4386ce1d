"""The loss of a router of windows: the labels say which cells hold an object, and of which class."""

from __future__ import annotations

from typing import Any

import torch

from mod_vision.routing.losses import cell_loss
from mod_vision.yolo.blocks.windows import WindowedHead
from mod_vision.yolo.run.objects import object_cells


def windows_loss(
    logits: torch.Tensor,
    classes: torch.Tensor | None,
    batch: dict[str, Any],
    size: tuple[int, int],
    head: WindowedHead,
) -> torch.Tensor:
    """Return the loss of cells that hold any object, plus that of cells that hold one of a class, as a scalar.

    Args:
        logits: (B, N) scores of the cells.
        classes: (B, classes, N) their scores by class, None of a router that tells none.
        batch: Labelled batch.
        size: (h, w), cells of the image: N = h * w.
        head: The model's head.
    """
    loss = cell_loss(logits, object_cells(batch, size, head))
    if classes is None:
        return loss
    return loss + cell_loss(classes.flatten(0, 1), object_cells(batch, size, head, by_class=True).flatten(0, 1))
