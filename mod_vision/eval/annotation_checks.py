"""Annotations of COCO JSONs that pycocotools would crash on, never end with, or score as if they were right.

Its C code takes lengths, sizes and coordinates as they come. What is returned here is safe to hand on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from mod_vision.limits import MAX_OUTLINE, MAX_PIXELS

BITS = 5  # of a character of compressed counts; the next one tells whether another follows
LONGEST = 7  # characters of a count
Size = tuple[int, int]


def refuse(where: str, why: str) -> NoReturn:
    """Refuse an annotation.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{where} {why}")


def check_box(box: Any, where: str) -> list[float]:
    """Return a box x, y, w, h in pixels.

    Raises:
        ValueError: If it is anything but four finite numbers, of which sides are at least 0.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)) or min(box[2:]) < 0:
        refuse(where, f"has bbox={box!r:.200}; it must be x, y, width, height: finite numbers, no side below 0.")
    return box


def check_area(area: Any, where: str) -> float:
    """Return the area of an object in pixels.

    Raises:
        ValueError: If it is no finite number of at least 0.
    """
    if not _is_finite(area) or area < 0:
        refuse(where, f"has area={area!r:.200}; it must be a finite number of at least 0.")
    return float(area)


def check_size(height: Any, width: Any, where: str) -> Size:
    """Return height and width of an image in pixels.

    Raises:
        ValueError: If they are no whole numbers of at least 1, or of more pixels than any image that is read.
    """
    if not all(isinstance(side, int) and side >= 1 for side in (height, width)) or height * width > MAX_PIXELS:
        refuse(
            where,
            f"has height {height!r:.50} and width {width!r:.50}; they must be whole numbers of at least 1, and at "
            f"most {MAX_PIXELS:,} pixels.",
        )
    return height, width


def check_polygons(polygons: Sequence[Any], size: Size, where: str) -> list[list[float]]:
    """Return polygons x, y, x, y, ... in pixels.

    Args:
        polygons: Of one object.
        size: (height, width) of the image.
        where: What has them, for the error.

    Raises:
        ValueError: If a coordinate is no number or far from the image, or drawing them would take gigabytes.
    """
    checked, outline, sides = [], 0.0, np.array([size[1], size[0]])
    for polygon in polygons:
        points = _numbers(polygon)
        if points is None:
            refuse(where, f"has a polygon that is no list of finite numbers: {polygon!r:.200}.")
        points = points[: len(points) // 2 * 2].reshape(-1, 2)
        far = ((points < -sides) | (points > 2 * sides)).any(axis=1)
        if far.any():
            x, y = points[far][0].tolist()
            refuse(where, f"has a polygon with the point ({x:g}, {y:g}), far from its image of {size[1]}x{size[0]}.")
        outline += float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())
        checked.append(points.ravel().tolist())
    if outline > MAX_OUTLINE:
        refuse(where, f"has an outline of {outline:,.0f} pixels, and at most {MAX_OUTLINE:,} are drawn.")
    return checked


def check_runs(mask: dict[str, Any], size: Size, where: str) -> dict[str, Any]:
    """Return run lengths, or compressed ones, as they are.

    Args:
        mask: `size` and `counts` as in COCO: run lengths, down the columns, of 0 and 1 in turn.
        size: (height, width) of the image.
        where: What has them, for the error.

    Raises:
        ValueError: If their size is not that of the image, or they do not fill it.
    """
    own, counts = mask.get("size"), mask.get("counts")
    if not isinstance(own, list) or len(own) != 2:
        refuse(where, f"has a mask of the size {own!r:.200}; it must be [height, width].")
    height, width = check_size(own[0], own[1], f"{where}: its mask")
    if (height, width) != size:
        refuse(where, f"has a mask of {width}x{height}, and its image has {size[1]}x{size[0]}.")
    runs = _decode(counts) if isinstance(counts, str) else _numbers(counts)
    total = height * width
    whole = runs is not None and not (runs % 1).any() and (runs >= 0).all() and (runs <= total).all()
    if runs is None or not whole or runs.sum() != total:
        filled = f"{runs.sum():,.0f}" if runs is not None and whole else "no whole"
        refuse(where, f"has a mask with counts of {filled} pixels, and its size {width}x{height} has {total:,}.")
    return {"size": [height, width], "counts": counts if isinstance(counts, str) else runs.astype(int).tolist()}


def _decode(counts: str) -> np.ndarray | None:
    """Return the run lengths (n,) of compressed counts, None if they are not valid.

    A count has its lowest bits first, a sign in the last character, and from the fourth on is told as the difference
    to the last but one.
    """
    codes = np.frombuffer(counts.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() >= 2 ** (BITS + 1) or codes[-1] >> BITS:
        return None
    ends = np.flatnonzero(codes >> BITS == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > LONGEST:
        return None
    shifts = BITS * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & (2**BITS - 1)) << shifts, starts)
    runs -= np.where(codes[ends] >> (BITS - 1), 1 << BITS * lengths, 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def _numbers(values: Any) -> np.ndarray | None:
    """Return a list as finite numbers (n,), None if it is not one of those."""
    if not isinstance(values, list) or not values or not all(map(_is_finite, values)):
        return None
    return np.array(values, dtype=np.float64)


def _is_finite(value: Any) -> bool:
    """Return whether a value of a JSON is a finite number, which fits into a float."""
    return isinstance(value, (int, float)) and abs(value) < 1e300
