"""Limits for what files of others can ask for with a few bytes: beyond them a line tells, instead of gigabytes."""

from __future__ import annotations

import math
from typing import Any

MAX_CLASSES = 20_000  # of a model, a data set or a COCO JSON; the largest data set of boxes has 13,204
MAX_CHANNELS = 1024  # of images
MAX_NUMBER = 20_000  # in the arguments of a row of a model YAML, such as channels; Ultralytics' largest is 2048
MAX_REPEATS = 1000  # of all rows of a model YAML together, at its depth; Ultralytics' largest has 78
MAX_SCALE = 10  # of depth and width; Ultralytics' largest is 1.5
MAX_PARAMETERS = 10**9  # of a model that is built from a YAML: 4 GB
MAX_NODES = 10**6  # values in a YAML, each counted as often as it is referred to
MAX_PIXELS = 2**30  # of an image in a COCO JSON, and what OpenCV reads
MAX_OUTLINE = 4_000_000  # pixels that the polygons of an object pass
MAX_MASKS = 2 * 10**9  # bytes of all masks of a COCO JSON, compressed


def check_classes(count: float, where: str) -> None:
    """Refuse more classes than any data set has.

    Args:
        count: Number of classes.
        where: What has them, for the error.

    Raises:
        ValueError: If there are too many.
    """
    if count > MAX_CLASSES:
        raise ValueError(f"{where} has {count:,.0f} classes, and at most {MAX_CLASSES:,} are taken.")


def check_nodes(content: Any, where: str) -> None:
    """Refuse what is small as a file only because its parts refer to each other, as YAML's aliases do.

    Args:
        content: What a YAML holds, or a checkpoint in place of one.
        where: Where it is from, for the error.

    Raises:
        ValueError: If it would have too many values, or is part of itself.
    """
    try:
        count = _count(content, {})
    except RecursionError:
        count = math.inf
    if count > MAX_NODES:
        raise ValueError(f"{where}: written out it would have more than {MAX_NODES:,} values; its aliases repeat them.")


def _count(value: Any, known: dict[int, float]) -> float:
    """Return how many values there are in a value; `known` has those of containers by their id."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # while it is counted, what refers to it is part of itself
        parts = (*value.keys(), *value.values()) if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]
