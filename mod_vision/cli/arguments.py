"""What arguments of verbs mean: a model with what it remembers of its training, capacities joined by commas."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mod_vision.cli.keys import as_list, as_value
from mod_vision.run_settings import RunSettings
from mod_vision.text import printable

if TYPE_CHECKING:
    from mod_vision.yolo.data.zones import Zone

_FIRST = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # it can be a list, by level
THREADS = int(_FIRST) if _FIRST.isdecimal() and int(_FIRST) else os.cpu_count() or 1  # Ultralytics would take one
AnySettings = TypeVar("AnySettings", bound=RunSettings)


def opened(model: str, run: AnySettings) -> tuple[Any, AnySettings]:
    """Return the model, and the settings with the size that it was trained at where none is given."""
    from mod_vision.yolo.model.loading import load_model, trained_with

    if "," in model and not Path(model).exists():
        raise FileNotFoundError(f"model={model} does not exist; several models are given as mod-vision val models=...")
    yolo = load_model(model)
    return yolo, replace(run, imgsz=run.imgsz or trained_with(yolo).imgsz)


def data_of(yolo: Any, data: str, verb: str, model: str) -> str:
    """Return the data set that is given, or else the one that the model was trained on."""
    from mod_vision.yolo.model.loading import trained_with

    found = data or trained_with(yolo).data
    if not found:
        raise ValueError(f"mod-vision {verb} needs data=: {model} does not tell what it was trained on.")
    if not data:
        print(f"data={printable(found)}, as in the training of {printable(model)}")
    return found


def shares_of(capacity: Any) -> list[Any]:
    """Return capacities that are joined by commas."""
    return [as_value(c, "capacity") for c in as_list(capacity)]


def milliseconds(value: Any) -> float:
    """Return a time such as 30ms, 0.03s or 30 in milliseconds.

    Raises:
        ValueError: If it is none.
    """
    text = str(value).strip().lower()
    number, scale = (text[:-2], 1.0) if text.endswith("ms") else (text[:-1], 1e3) if text.endswith("s") else (text, 1.0)
    try:
        found = float(number) * scale
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"budget={value} is no time; write milliseconds, such as budget=30ms.")
    return found


def sides_of(imgsz: Any) -> int | list[int]:
    """Return the size of images: one number, or height and width joined by a comma as `yolo export` takes them.

    Raises:
        ValueError: If it is none.
    """
    try:
        sides = [int(str(side)) for side in as_list(imgsz)]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 0:
        raise ValueError(f"imgsz={imgsz} is no size; write pixels, such as imgsz=640, or height,width: imgsz=736,1280.")
    return sides if len(sides) > 1 else sides[0]


def picture_of(size: str) -> tuple[int, int]:
    """Return width and height of `WIDTHxHEIGHT`.

    Raises:
        ValueError: If it is none.
    """
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"size={size} is no size; write width and height in pixels, such as size=1920x1080.")
    return int(parts[0]), int(parts[1])


def zones_in(text: str, size: str) -> list[Zone] | None:
    """Return the zones of points that are written out, of a file, or of files that are joined by commas.

    Args:
        text: The points or files.
        size: `WIDTHxHEIGHT` of the pictures, for points in pixels; empty if it is not given.

    Raises:
        ValueError: If it is no zone, or no size.
        FileNotFoundError: If a file does not exist.
    """
    from mod_vision.yolo.data.zones import zones_of

    given: Any = text
    if text.lstrip().startswith("["):
        given = as_value(text, "zone")
    elif "," in text and not Path(text).exists():
        given = as_list(text)
    return zones_of(given, size=picture_of(size) if size else None)
