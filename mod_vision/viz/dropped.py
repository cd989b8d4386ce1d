"""Files that somebody drops on the page of the app: read, or refused in one line that names no folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mod_vision.yolo.data.zones import Zone, count_zones, zones_of
from mod_vision.yolo.model.trust import restricted
from mod_vision.yolo.run.images import read_image

MAX_PIXELS = 64_000_000  # of a picture: a small file can hold a huge one
MAX_ZONE_BYTES = 10_000_000  # of JSON, which takes many times that in memory
ZONE_FILES = [".json", ".geojson", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"]


def read_picture(file: str) -> np.ndarray:
    """Read a picture (H, W, 3), in BGR.

    Raises:
        ValueError: If it is none, or too large.
    """
    with restricted():
        _check_picture(file)
        try:
            return read_image(file)
        except Exception:  # as in `_check_picture`
            raise _no_picture(file) from None


def read_zones(file: str | None, points: str | None, size: tuple[int, int] | None) -> list[Zone] | None:
    """Read a zone as a model takes it, None if none is given.

    Args:
        file: As `read_zone` takes it; it comes before the points.
        points: JSON: one polygon [[x, y], ...], or a list of polygons.
        size: (width, height) of the picture, for points in its pixels.

    Raises:
        ValueError: If it is no zone, or too large a file.
    """
    text = (points or "").strip()
    if not file and not text:
        return None
    try:
        with restricted():
            given = _checked(file) if file else _points(text)
            if (count := count_zones(given)) > 1:
                raise ValueError(f"a picture has one zone, a list of polygons; got {count:,} zones.")
            return zones_of(given, size=size)
    except (ValueError, OSError, RecursionError) as error:
        told = f"{error}".replace(f"{file}", Path(file).name) if file else f"{error}"
        raise ValueError(told if told.startswith(("zone=", "zone:", "zone ")) else f"zone: {told}") from None


def _checked(file: str) -> str:
    """Return the file of a zone unless it is too large."""
    if Path(file).suffix.lower() not in (".json", ".geojson"):
        _check_picture(file)
    elif Path(file).stat().st_size > MAX_ZONE_BYTES:
        raise ValueError(f"a file of points has {MAX_ZONE_BYTES // 10**6} MB at most; simplify its polygons.")
    return file


def _points(text: str) -> object:
    """Return points that are written out; never a file, which a text in quotes would name."""
    try:
        value = None if '"' in text else json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise ValueError("points are a list such as [[0, 0.3], [1, 0.3], [1, 1], [0, 1]].")
    return value


def _check_picture(file: str) -> None:
    """Refuse what is no picture, and what has too many pixels, before it is decoded."""
    try:
        with Image.open(file) as picture:
            width, height = picture.size  # of the header: nothing is decoded yet
            pages = getattr(picture, "n_frames", 1)  # all of which are decoded
    except Exception:  # Pillow raises anything for what is broken
        raise _no_picture(file) from None
    if width * height * pages > MAX_PIXELS:
        size = f"{width} x {height} pixels" + (f" on {pages} pages" if pages > 1 else "")
        raise ValueError(f"{size} are too many, a picture may have {MAX_PIXELS // 10**6} million.")


def _no_picture(file: str) -> ValueError:
    """Return the error for what is no picture, which names no folder."""
    return ValueError(f"{Path(file).name} is not a picture that can be read.")
