"""Model YAMLs that would build gigabytes: refused by their numbers, and by their parameters, counted without memory."""

from __future__ import annotations

import ast
import math
from copy import deepcopy
from typing import Any

import torch
from ultralytics.nn import tasks

from mod_vision.limits import MAX_CHANNELS, MAX_NUMBER, MAX_PARAMETERS, MAX_REPEATS, MAX_SCALE, check_classes


def check_numbers(d: dict[str, Any], name: str) -> None:
    """Check the numbers of a model YAML whose rows have their shape.

    Args:
        d: The YAML.
        name: Its name, for the error.

    Raises:
        ValueError: If it has too many classes, channels or repeats, or a row too large a number.
    """
    check_classes(d["nc"], f"{name}: `nc:`")
    for key in ("ch", "channels"):
        if not _largest(d.get(key)) <= MAX_CHANNELS:
            raise ValueError(f"{name}: `{key}: {d[key]}`, the channels of an image, must be at most {MAX_CHANNELS}.")
    depth = _depth(d, name)
    rows = d["backbone"] + d["head"]
    repeats = sum(round(row[1] * depth) for row in rows if row[1] > 1)
    if repeats > MAX_REPEATS:
        raise ValueError(f"{name} has {repeats:,} repeats at its depth, and at most {MAX_REPEATS:,} are built.")
    for i, row in enumerate(rows):
        if not _largest(row[3]) <= MAX_NUMBER:
            raise ValueError(f"layer {i}, row {row}: a number in its arguments is larger than {MAX_NUMBER:,}.")


def check_parameters(d: dict[str, Any]) -> None:
    """Count the parameters of a model YAML that is checked, without memory for them.

    Args:
        d: The YAML, without weights that its layers would fetch.

    Raises:
        ValueError: If it has too many.
    """
    d = deepcopy(d)
    for row in d["backbone"] + d["head"]:
        if row[2] == "TorchVision":
            row[3][2:3] = [None]  # of [channels, name, weights, ...], which are those of ImageNet by default
    with torch.device("meta"):
        layers, _ = tasks.parse_model(d, d.get("channels", 3), False)
    count = sum(tensor.numel() for tensor in (*layers.parameters(), *layers.buffers()))
    if count > MAX_PARAMETERS:
        raise ValueError(f"{d['yaml_file']} has {count:,} parameters, and at most {MAX_PARAMETERS:,} are built.")


def _depth(d: dict[str, Any], name: str) -> float:
    """Return the factor of repeats after checking the factors of all scales."""
    scales = d.get("scales") or {"": [d.get("depth_multiple", 1.0), d.get("width_multiple", 1.0), 0]}
    factors = list(scales.values()) if isinstance(scales, dict) else [None]
    if not all(isinstance(f, (list, tuple)) and len(f) == 3 and all(map(_is_factor, f[:2])) for f in factors):
        raise ValueError(
            f"{name}: `scales:` must have [depth, width, most channels] for each scale, or the model `depth_multiple:` "
            f"and `width_multiple:`; depth and width are numbers from 0 to {MAX_SCALE}."
        )
    return float(scales.get(d.get("scale"), factors[0])[0])


def _is_factor(value: Any) -> bool:
    """Return whether a value can scale depth or width."""
    return isinstance(value, (int, float)) and 0 < value <= MAX_SCALE


def _largest(value: Any) -> float:
    """Return the largest number in a value of a YAML, with those that Ultralytics reads out of text."""
    if isinstance(value, str):
        try:
            return _largest(ast.literal_eval(value))
        except (ValueError, SyntaxError):  # a name
            return 0
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, (int, float)) and not math.isnan(value) else 0
