"""Zones: polygons of the picture that are looked at, from lists, GeoJSON, LabelMe and mask pictures.

In the end a zone is a list of polygons, each a list of points [x, y] as shares of the picture's width and height, and
a model has a list of zones: one for all pictures, or one for each stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mod_vision.routing.zone import GRID

Polygon = list[list[float]]
Zone = list[Polygon]
WHOLE: Zone = [[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]
MAX_POINTS = 20_000  # of all zones of a model
MAX_ZONES = 256  # of a model
DIGITS = 5
SPECK = 1e-5  # share of the picture: less in a mask is noise
FINER, COVERED = 4, 0.5  # lines in a square that a polygon is drawn by; share of it that must be inside
SHIFT = 8  # bits of a line behind the point
FORMS = "one polygon [[x, y], ...], a list of polygons, or for streams a list of zones, each a list of polygons"


def zones_of(value: Any, where: str = "zone", size: Sequence[float] | None = None) -> list[Zone] | None:
    """Return zones as a model has them, None for none.

    Args:
        value: Nested lists, see `FORMS`; None in the place of a stream's zone is its whole picture. Or a file, or a
            list of files, one for each stream: see `read_zone`.
        where: What has them, for errors.
        size: (width, height) of the pictures, if points are in their pixels.

    Raises:
        ValueError: If it is of no such form, a point lies outside of the picture, or a polygon has no area.
        FileNotFoundError: If a file does not exist.
    """
    if value is None:
        return None
    if size is not None and not _is_size(size):
        raise ValueError(f"size must be width and height of a picture in px, two numbers above 0, got {size!r}.")
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, (str, Path)):
        return [read_zone(value, size)]
    if isinstance(value, (list, tuple)) and any(isinstance(zone, (str, Path)) for zone in value):
        read = (read_zone(zone, size) if isinstance(zone, (str, Path)) else zone for zone in value)
        return [zone for own in read for zone in (zones_of(own, where, size) or [WHOLE])]
    levels = _levels(value)
    if levels not in (2, 3, 4):
        raise ValueError(f"{where} must be {FORMS}; got {_short(value)}.")
    zones = [[value]] if levels == 2 else [value] if levels == 3 else value
    found = [WHOLE if zone is None else _checked(zone, where, size) for zone in zones]
    if sum(len(polygon) for zone in found for polygon in zone) > MAX_POINTS:
        raise ValueError(f"{where} has more than {MAX_POINTS:,} points; simplify its polygons.")
    for zone, mask in zip(found, masks_of(found), strict=True):
        if not mask.any():
            raise ValueError(f"{where} is thinner than 1/{GRID} of the picture: {_short(zone)}.")
    return found


def _is_size(size: Any) -> bool:
    """Return whether a value is a width and a height."""
    numbers = size if isinstance(size, (list, tuple)) and len(size) == 2 else ()
    return bool(numbers) and all(isinstance(n, (int, float)) and 0 < n < 1e9 for n in numbers)


def read_zone(path: str | Path, size: Sequence[float] | None = None) -> Zone:
    """Read a zone from a file.

    Args:
        path: A mask picture, brighter than half of its brightest where it is looked at, or .json or .geojson: GeoJSON
            polygons, a LabelMe file of polygons and rectangles, or a list of points or polygons.
        size: (width, height) of the pictures, where the file has pixels and does not tell of how many.

    Raises:
        ValueError: If the file holds no zone.
        FileNotFoundError: If it does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"zone={path} does not exist.")
    if path.suffix.lower() not in (".json", ".geojson"):
        return _of_mask(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also of bytes that are no text, and of endless numbers
        raise ValueError(f"zone={path} is no JSON: {error}.") from None
    try:
        polygons, size = _polygons(content, path, size)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(f"zone={path} has not the form of GeoJSON, LabelMe or a list of points.") from None
    if isinstance(polygons, str) or (isinstance(polygons, list) and any(isinstance(p, str) for p in polygons)):
        raise ValueError(f"zone={path} holds text where points should be.")
    if not polygons:
        raise ValueError(f"zone={path} holds no polygon.")
    if (count := count_zones(polygons)) != 1:
        raise ValueError(f"zone={path} must hold one zone, got {count:,}; write a file for each stream.")
    zones = zones_of(polygons, f"zone={path}", size)
    assert zones is not None
    return zones[0]


def masks_of(zones: Sequence[Zone]) -> torch.Tensor:
    """Return the squares of the picture of which zones cover half or more, (S, GRID, GRID) True inside.

    Raises:
        ValueError: If there are more than `MAX_ZONES`.
    """
    if len(zones) > MAX_ZONES:
        raise ValueError(f"a model has {MAX_ZONES} zones at most, one for each stream; got {len(zones):,}.")
    masks = np.zeros((len(zones), GRID, GRID), bool)
    for mask, zone in zip(masks, zones, strict=True):
        drawn = np.zeros((GRID * FINER, GRID * FINER), np.float32)
        for polygon in zone:
            points = (np.array(polygon) * GRID * FINER - 0.5) * (1 << SHIFT)
            cv2.fillPoly(drawn, [points.round().astype(np.int32)], (1.0,), shift=SHIFT)
        mask[:] = cv2.resize(drawn, (GRID, GRID), interpolation=cv2.INTER_AREA) >= COVERED
    return torch.from_numpy(masks)


def count_zones(value: Any) -> int:
    """Return how many zones lists hold, before they are looked at; `zones_of` tells whether they are zones."""
    return len(value) if _levels(value) > 3 else 1


def _levels(value: Any) -> int:
    """Return how deep lists are nested, by their first entry that is no None."""
    if not isinstance(value, (list, tuple)):
        return 0
    return 1 + _levels(next((entry for entry in value if entry is not None), None))


def _checked(zone: Any, where: str, size: Sequence[float] | None) -> Zone:
    """Return a zone as shares of the picture.

    Raises:
        ValueError: As `zones_of`.
    """
    try:
        polygons = [np.array(polygon, float) for polygon in zone]
    except (TypeError, ValueError, OverflowError):
        polygons = [np.zeros(0)]
    if not all(p.ndim == 2 and p.shape[1] == 2 and np.isfinite(p).all() for p in polygons):
        raise ValueError(f"{where}: each point is [x, y], two numbers; got {_short(zone)}.")
    if any(len(p) < 3 for p in polygons):
        raise ValueError(f"{where}: a polygon has three points at least, got {_short(zone)}.")
    if any((p > 1).any() for p in polygons):
        if size is None:
            raise ValueError(
                f"{where}: {max(float(p.max()) for p in polygons):g} is above 1, so points are in pixels; of "
                "which picture? Give its size=WIDTHxHEIGHT, or shares of the picture in [0, 1]."
            )
        polygons = [p / np.array(size, float) for p in polygons]
    if outside := [float(value) for p in polygons for value in p.flatten() if not -1e-6 <= value <= 1 + 1e-6]:
        raise ValueError(f"{where}: a point lies outside of the picture, at {outside[0]:g} of a side; take [0, 1].")
    found = [[[round(min(max(float(n), 0.0), 1.0), DIGITS) for n in point] for point in p] for p in polygons]
    for polygon in found:
        if _area(polygon) <= 0:
            raise ValueError(f"{where}: a polygon has no area: {_short(polygon)}.")
    return found


def _area(polygon: Polygon) -> float:
    """Return the area of a polygon, as a share of the picture's."""
    x, y = np.array(polygon).T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _polygons(content: Any, path: Path, size: Any) -> tuple[Any, Any]:
    """Return the polygons of the content of a file, and the size of the picture that they are in.

    Raises:
        ValueError: If it has none of the forms.
    """
    if not isinstance(content, dict):
        return content, size
    if not isinstance(content.get("shapes"), list):
        return _geojson(content, path), size
    size = content.get("imageWidth"), content.get("imageHeight")
    if not _is_size(size):
        raise ValueError(f"zone={path}: a LabelMe file has imageWidth and imageHeight above 0, got {size}.")
    polygons = [_labelme(shape, path) for shape in content["shapes"]]
    within = [[[min(max(p[0], 0), size[0]), min(max(p[1], 0), size[1]), *p[2:]] for p in points] for points in polygons]
    return within, size


def _labelme(shape: Any, path: Path) -> Any:
    """Return the polygon of a shape of a LabelMe file.

    Raises:
        ValueError: If it is none.
    """
    shape = shape if isinstance(shape, dict) else {}
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    if kind == "rectangle" and isinstance(points, list) and len(points) == 2 and _levels(points) == 2:
        (left, top), (right, bottom) = points
        return [[left, top], [right, top], [right, bottom], [left, bottom]]
    if kind != "polygon":
        raise ValueError(f"zone={path}: shapes must be polygons or rectangles, got {kind!r}.")
    return points


def _geojson(content: dict[str, Any], path: Path) -> list[Any]:
    """Return the polygons of a GeoJSON object.

    Raises:
        ValueError: If it is none, or holds something else.
    """
    kind = content.get("type")
    if kind == "FeatureCollection":
        return [polygon for feature in content.get("features") or () for polygon in _geojson(feature, path)]
    if kind == "Feature":
        return _geojson(content.get("geometry") or {}, path)
    if kind == "GeometryCollection":
        return [polygon for geometry in content.get("geometries") or () for polygon in _geojson(geometry, path)]
    if kind not in ("Polygon", "MultiPolygon") or _levels(content.get("coordinates")) != 3 + (kind == "MultiPolygon"):
        raise ValueError(f"zone={path}: zones are GeoJSON polygons, LabelMe shapes or lists of points, got {kind!r}.")
    polygons = [content["coordinates"]] if kind == "Polygon" else content["coordinates"]
    return [_with_holes(rings[0], rings[1:]) for rings in polygons]


def _of_mask(path: Path) -> Zone:
    """Return the zone of a mask picture.

    Raises:
        ValueError: If it is no picture, or nothing in it is set.
    """
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise ValueError(f"zone={path} is neither a picture nor .json or .geojson.")
    side = GRID * FINER
    mask = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA if max(mask.shape) > side else cv2.INTER_NEAREST)
    white = (mask > mask.max() / 2).astype(np.uint8)
    contours, family = cv2.findContours(_doubled(white), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [np.clip((c[:, 0] + 0.5) / (2 * side), 0, 1).tolist() for c in contours]
    large = [len(ring) >= 3 and _area(ring) > SPECK for ring in rings]
    outer = [i for i in range(len(rings)) if large[i] and family[0][i][3] < 0]
    holes = [[rings[j] for j in range(len(rings)) if large[j] and family[0][j][3] == i] for i in outer]
    zone = [_with_holes(rings[i], own) for i, own in zip(outer, holes, strict=True)]
    if not zone:
        raise ValueError(f"zone={path}: the mask is black; white is what shall be looked at.")
    found = zones_of(zone, f"zone={path}")
    assert found is not None
    return found[0]


def _doubled(mask: np.ndarray) -> np.ndarray:
    """Return a mask of twice the side: contours go through the middle of pixels, and lose half of one."""
    return cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)


def _with_holes(outer: Any, holes: Sequence[Any]) -> Any:
    """Return a polygon with holes as one ring, which goes to each hole, around it and back."""
    return [*outer, *(point for hole in holes for point in [outer[0], *hole, hole[0], outer[0]])]


def _short(value: Any) -> str:
    """Return a value as text of a line."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def areas_of(zones: Sequence[Zone]) -> list[float]:
    """Return the share of the picture that each zone is."""
    return [float(mask.float().mean()) for mask in masks_of(zones)]
