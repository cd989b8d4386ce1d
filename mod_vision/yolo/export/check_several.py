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
        images: (1, 3, size, size) each, of the exported size.

    Returns:
        The agreement, and what the images were worth, in words.

    Raises:
        ValueError: If there is no image, or the graphs give other outputs than eager.
    """
    if not images:
        raise ValueError("an export cannot be checked without images.")
    entry, threads = done.eager.model[-1].entry, torch.get_num_threads()
    errors, agreed, expected, routes, wanted, over = [], 0, 0, set(), set(), 0
    ran: Counter[int] = Counter()
    for image in images:
        with torch.inference_mode():
            eager = [value.numpy() for value in tensors(done.eager(image))]
            over += int(worthy(gains_of(entry.plan)[None], entry.threshold)) > done.about["k"][-1]
        corners, found = runtime.outputs(done.path, done.about["k"], image.numpy(), threads)
        placed, own = entry.plan.corners[0].numpy(), corners[0]
        errors.append(largest_error(found, eager, done.about["end2end"]) if found else _missed(eager[0]))
        agreed += sum(np.array_equal(a, b) for a, b in zip(placed, own, strict=False))
        expected += max(len(placed), len(own))
        routes.add(own.tobytes())
        wanted.add(placed.tobytes())
        ran[len(own)] += 1
    distinct = len(routes) > 1 if len(wanted) > 1 else None
    check = ExportCheck(len(images), max(errors), agreed / expected if expected else 1.0, distinct, "windows")
    said = ", ".join(f"{k} on {ran[k]}" for k in sorted(ran))
    return check, f"windows that were run: {said} images; {over} of them worth more than {done.about['k'][-1]}"


def _missed(y: np.ndarray) -> float:
    """Return the error of no output where eager gives detections (1, n, 6 and more) or (1, 4 and more, n)."""
    return 0.0 if not y.size else float("inf")
