"""Batches in which some images are run on windows and crowded ones as a whole: each part alone, then put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.yolo.blocks.windows import on_full_maps


def apart(run: Callable[[torch.Tensor], Any], entry: WindowedLayer, x: torch.Tensor) -> Any:
    """Run the crowded images of a batch and the others one part after the other, and return the output of the batch.

    Args:
        run: The forward of the model.
        entry: Its entry, which has placed the windows of the batch; its plan is the same afterwards.
        x: Images (B, C, H, W).
    """
    plan = entry.plan
    whole = plan.whole
    crowded, others = (_some(run, entry, x, which) for which in (whole, ~whole))
    entry.plan = plan
    return _together(crowded, others, whole)


def _some(run: Callable[[torch.Tensor], Any], entry: WindowedLayer, x: torch.Tensor, which: torch.Tensor) -> Any:
    """Return the output of some images of a batch, on full maps."""
    with entry.some_images(which):
        return on_full_maps(run(x[which]))


def _together(crowded: Any, others: Any, whole: torch.Tensor) -> Any:
    """Return the outputs of two parts of a batch as those of the batch; shorter lists get empty detections."""
    if isinstance(crowded, torch.Tensor):
        sides = [max(pair) for pair in zip(crowded.shape[1:], others.shape[1:], strict=True)]
        out = crowded.new_zeros(len(whole), *sides)
        for part, which in ((crowded, whole), (others, ~whole)):
            missing = [side - own for side, own in zip(sides, part.shape[1:], strict=True)]
            out[which] = F.pad(part, [n for side in reversed(missing) for n in (0, side)])
        return out
    if isinstance(crowded, dict):
        return {key: _together(crowded[key], others[key], whole) for key in crowded if key in others}
    return type(crowded)(_together(a, b, whole) for a, b in zip(crowded, others, strict=True))
