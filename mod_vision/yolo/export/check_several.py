"""Does a folder of graphs for several numbers of windows compute what the model does? Image by image, against eager."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from mod_vision.routing.placing import gains_of, worthy
from mod_vision.yolo.export import runtime
from mod_vision.yolo.export.check import ExportCheck, largest_error
from mod_vision.yolo.export.graphs import tensors
from mod_vision.yolo.export.several import Several


def check_several(done: Several, images: Sequence[torch.Tensor]) -> tuple[ExportCheck, str]:
    """Compare a folder, by what its `run.py` does, with the eager model in threshold mode.

    Args:
        done: The folder and the model.
        images: (1, 3, height, width) each, of the exported size.

    Returns:
        The agreement, and what the images were worth, in words.

    Raises:
        ValueError: If there is no image, or the graphs give other outputs than eager.
    """
    runtime.graph.cache_clear()  # a folder that was there before
    if not images:
        raise ValueError("an export cannot be checked without images.")
    entry, threads = done.eager.model[-1].entry, torch.get_num_threads()
    errors, placed, expected, worth, names = [], [], [], [], []
    for image in images:
        with torch.inference_mode():
            eager = [value.numpy() for value in tensors(done.eager(image))]
            worth.append(int(worthy(gains_of(entry.plan)[None], entry.threshold)))
        ran = runtime.run_image(done.path, done.about, image.numpy(), threads, runtime.FLOAT32)
        own, whole = ran.corners[0], entry.plan.whole is not None
        corners = entry.plan.corners[0, : 0 if whole else None].numpy()
        same = len(own) == len(corners) and whole == (ran.graph == "whole")  # else outputs are of other positions
        errors.append(_error(ran.outputs, eager, done.about["end2end"]) if same else float("inf"))
        placed.append(own)
        expected.append(corners)
        names.append("whole image" if ran.graph == "whole" else len(own))
    pairs = list(zip(placed, expected, strict=True))
    agreed = sum(np.array_equal(a, b) for own, eager in pairs for a, b in zip(own, eager, strict=False))
    windows = sum(max(len(own), len(eager)) for own, eager in pairs)
    differ, should = (len({corners.tobytes() for corners in routes}) > 1 for routes in (placed, expected))
    check = ExportCheck(
        len(images), max(errors), agreed / windows if windows else 1.0, differ if should else None, "windows"
    )
    ran_on = ", ".join(f"{k} on {n}" for k, n in sorted(Counter(names).items(), key=lambda pair: str(pair[0]).zfill(4)))
    most = done.about["k"][-1]
    over = sum(count > most for count in worth)
    return check, f"windows that were run: {ran_on} images; {over} of them worth more than {most}"


def _error(found: Sequence[np.ndarray], eager: Sequence[np.ndarray], end2end: bool) -> float:
    """Return the largest error of the outputs, where there may be none on both sides."""
    return largest_error(found, eager, end2end) if found or eager[0].size else 0.0
