"""The gallery as the page's script reads it: plain values, with maps packed into base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from mod_vision.viz.annotators import COVER, OPACITY, depth_palette
from mod_vision.viz.report.data import AtStop, Content, Picture, Stage, describe
from mod_vision.viz.routes import SHADES, RouteMap, skipped_depth, skipped_share, total_depth, windows_of
from mod_vision.viz.window_annotator import NUMBERED, TINT

PHOTO_SIDE = 800  # pixels of the longer side
WEBP_QUALITY = 80
SCORE_STEPS = 2**16 - 1
GRAY = "#808080"  # for the photo
UNTRAINED = "Its router has no training yet, so this says nothing."
WHOLE = (0.0, 0.0, 1.0, 1.0)


def encode(content: Content) -> dict[str, Any]:
    """Return what the script draws; numbers are shares in [0, 1] of images and patches."""
    colours = palette(content.most, content.windowed)
    above = [0.0, *[TINT] * (len(colours) - 2)] if content.windowed else [OPACITY] * (len(colours) - 1)
    return {
        "stops": [
            {"label": stop.label, "words": describe(stop), "verdict": verdict}
            for stop, verdict in zip(content.stops, content.verdicts(), strict=True)
        ],
        "stages": [stage._asdict() for stage in content.stages],
        "palette": colours,
        "opacity": [COVER, *above],
        "numbered": NUMBERED,
        "windowed": content.windowed,
        "images": [_image(picture, content.stages) for picture in content.pictures],
    }


def palette(most: int, windowed: bool = False) -> list[str]:
    """Return the colour of 0 to `most` passed blocks, or windows of a cell: those of a single one show the photo."""
    colours = depth_palette(max(most, SHADES) if windowed else most)[: most + 1]
    named = [f"#{red:02x}{green:02x}{blue:02x}" for blue, green, red in colours]
    return [named[0], GRAY, *named[2:]] if windowed else named


def photo(image: np.ndarray) -> str:
    """Return an image (H, W, 3) in BGR as a data URI, scaled down if it is large."""
    scale = min(1.0, PHOTO_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    webp = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1]
    return f"data:image/webp;base64,{_base64(webp)}"


def depth_of(maps: Sequence[RouteMap], stages: Sequence[Stage]) -> np.ndarray:
    """Return how many blocks of all stages each patch of an image passed, (H_s, W_s) int, or how many windows it has.

    A stage without a map skipped nothing.
    """
    windows = windows_of(maps)
    if windows is not None:
        return windows.counts
    dense = sum(stage.blocks for stage in stages) - sum(layer.blocks for layer in maps)
    return total_depth(maps)[0] + dense if maps else np.full((1, 1), dense)


def _image(picture: Picture, stages: Sequence[Stage]) -> dict[str, Any]:
    """Return a picture with a look at each stop."""
    height, width = picture.image.shape[:2]
    return {
        "name": picture.name,
        "width": width,
        "height": height,
        "looks": [_look(look, stages, width, height) for look in picture.looks],
    }


def _look(look: AtStop, stages: Sequence[Stage], width: int, height: int) -> dict[str, Any]:
    """Return the grid of all stages, that of each stage, and the boxes in shares of the image."""
    depth = depth_of(look.maps, stages)
    by_name = {layer.name: layer for layer in look.maps}
    scale = np.array([width, height, width, height])
    boxes = np.asarray(look.found.box).reshape(-1, 4) / scale
    return {
        "all": {
            **_grid(depth, total_depth(look.maps)[1] if look.maps else WHOLE),
            "skipped": _skipped(look.maps, stages),
            "none": float((depth == 0).mean()),
        },
        "windows": _windows(look.maps),
        "note": "" if all(layer.trained for layer in look.maps) else UNTRAINED,
        "stages": [_stage(by_name.get(stage.name), stage) for stage in stages],
        "boxes": [
            {"name": name, "conf": round(conf, 3), "box": box.round(4).tolist()}
            for name, conf, box in zip(look.found.name, look.found.conf, boxes, strict=True)
        ],
    }


def _windows(maps: Sequence[RouteMap]) -> dict[str, Any] | None:
    """Return the windows of an image in words, and where they are; None where there is none to tell of."""
    windows = windows_of(maps)
    return windows and {"told": windows.told(), "boxes": windows.boxes.round(4).tolist()}


def _skipped(maps: Sequence[RouteMap], stages: Sequence[Stage]) -> float:
    """Return the share of all blocks that the patches did not pass; a stage without a map skipped nothing."""
    routed = sum(layer.blocks for layer in maps)
    return skipped_depth(maps) * routed / sum(stage.blocks for stage in stages) if maps else 0.0


def _stage(layer: RouteMap | None, stage: Stage) -> dict[str, Any]:
    """Return the grid of a stage with its router's scores, in steps from the lowest; without a map, all is computed."""
    if layer is None:
        return {**_grid(np.full((1, 1), stage.blocks), WHOLE), "skipped": 0.0, "scores": None}
    low = float(layer.score.min())
    step = (float(layer.score.max()) - low) / SCORE_STEPS or 1.0
    steps = np.rint((layer.score.astype(np.float64) - low) / step).astype("<u2")
    return {
        **_grid(layer.depth if layer.windows is None else layer.windows.counts, layer.extent),
        "skipped": skipped_share(layer),
        "scores": {"low": low, "step": step, "steps": _base64(steps)},
    }


def _grid(depth: np.ndarray, extent: Sequence[float]) -> dict[str, Any]:
    """Return a grid (H_s, W_s) of passed blocks and where it lies on the image."""
    rows, cols = depth.shape
    return {"rows": rows, "cols": cols, "extent": list(extent), "depth": _base64(depth.astype(np.uint8))}


def _base64(values: np.ndarray) -> str:
    """Return the bytes of an array in row order as base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
