"""What a router of windows is trained on: random parts of images of one shape, scaled, mirrored, brighter or darker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

PART = 1024  # px: a router sees several cells around one, and learns little at the borders of a part
BRIGHTNESS, SCALE = (0.7, 1.3), (0.6, 1.2)


def batches_by_shape(dataset: Any, batch: int) -> Iterator[list[int]]:
    """Yield batches of places in a data set of rectangular images, at random, each of one shape, without end."""
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, group in enumerate(dataset.batch):
        by_shape[tuple(int(side) for side in dataset.batch_shapes[group])].append(i)
    rng = np.random.default_rng(0)
    while True:
        chosen = [
            part.tolist()
            for places in by_shape.values()
            for part in np.array_split(rng.permutation(places), max(1, round(len(places) / batch)))
        ]
        yield from (chosen[i] for i in rng.permutation(len(chosen)))


def random_part(batch: dict[str, Any], cell: int) -> dict[str, Any]:
    """Return a batch with a part of its images at a random scale, by `part_at`: objects are not always of one size."""
    return part_at(batch, float(torch.empty(1).uniform_(*SCALE)), PART, cell)


def part_at(batch: dict[str, Any], factor: float, most: int, cell: int) -> dict[str, Any]:
    """Return a batch with a random part of its images, scaled, and the boxes in it.

    Parts cost a fraction of the time of whole images. A few large ones teach more than many small ones.

    Args:
        batch: Labelled batch: `img` (B, C, H, W), and `bboxes` (n, 4), centre, width and height as shares of an image.
        factor: Scale, from which the whole image is rounded to cells.
        most: Longest side of the part after it is scaled, in px.
        cell: Side of a cell in px; the part is a whole number of them high and wide.
    """
    images, boxes = batch["img"], batch["bboxes"]
    low, high, size = [], [], []
    for side in images.shape[2:]:
        cells = max(round(side * factor / cell), 1)
        taken = min(cells, most // cell)
        first = int(torch.randint(cells - taken + 1, ()))
        low.append(round(first * side / cells))
        high.append(round((first + taken) * side / cells))
        size.append(taken * cell)
    part = images[:, :, low[0] : high[0], low[1] : high[1]]
    if part.device.type != "cpu":  # only CPUs scale uint8
        part = in_unit(part)
    if list(part.shape[2:]) != size:
        part = F.interpolate(part, size, mode="bilinear", antialias=factor < 1)
    own, inside = _boxes_in(boxes, images.shape[2:], low, high)
    return {**batch, "img": part, "bboxes": own} | {key: batch[key][inside] for key in ("batch_idx", "cls")}


def _boxes_in(
    boxes: torch.Tensor, whole: Sequence[int], low: Sequence[int], high: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the boxes of a part of images, as shares of it, cut at its borders, and which of all boxes those are.

    Args:
        boxes: (n, 4) centre, width and height as shares of the whole image.
        whole: Height and width of the image in px.
        low: First row and column of the part.
        high: Those after its last.
    """
    size, start, end = (boxes.new_tensor(list(reversed(pair))) for pair in (whole, low, high))
    centre, half, part = boxes[:, :2] * size, boxes[:, 2:4] * size / 2, end - start
    first, last = (centre - half - start).clamp(min=0), torch.minimum(centre + half - start, part)
    inside = (last > first).all(1)
    return torch.cat(((first + last) / 2 / part, (last - first) / part), 1)[inside], inside


def augmented(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with images mirrored at random, and brighter or darker.

    Args:
        batch: Labelled batch with images (B, C, H, W), uint8 or in [0, 1]; those returned are in [0, 1].
    """
    images = in_unit(batch["img"])
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    images = images * torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(*BRIGHTNESS)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images).clamp_(max=1)
    boxes = batch["bboxes"]
    here = mirrored[batch["batch_idx"].long().to(images.device)].to(boxes.device)
    boxes = torch.cat((torch.where(here, 1 - boxes[:, 0], boxes[:, 0])[:, None], boxes[:, 1:]), 1)
    return {**batch, "img": images, "bboxes": boxes}


def in_unit(images: torch.Tensor) -> torch.Tensor:
    """Return images in [0, 1], also those that data sets give as uint8."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images
