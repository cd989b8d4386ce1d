"""Pictures of a training: the routes of some images, and how the figures of the routers went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from mod_vision.files import write_bytes, write_figure
from mod_vision.viz.annotators import DepthAnnotator
from mod_vision.viz.layout import blank, swatches, with_blocks
from mod_vision.viz.routes import RouteMap, crop_maps, skipped_depth, windows_of
from mod_vision.viz.sheet import TEXT, fit_into, panel_grid
from mod_vision.viz.traced import trace_net
from mod_vision.viz.views import COUNTS
from mod_vision.viz.window_annotator import WindowAnnotator
from mod_vision.yolo.run.images import read_image

TILE = (320, 240)  # pixels of a photo, width and height
CURVES = {
    "routed": "share of positions that are routed",
    "entropy": "entropy of the positions, 1 if all are routed alike",
    "variance": "variance across images, 0 if all have the same routes",
    "never": "share of positions that are never routed",
}


def draw_mosaic(net: nn.Module, files: Sequence[Path], imgsz: int, path: Path) -> np.ndarray:
    """Draw the depth on some images, and return the picture (H, W, 3) in BGR.

    Args:
        net: A routed model, not an exported one.
        files: The images; those that cannot be read are left out.
        imgsz: Longer side of the model's input in pixels.
        path: The JPEG, written under a temporary name and renamed.

    Raises:
        OSError: If it cannot be written.
        ValueError: If no image can be read, or nothing is routed.
    """
    panels, most = [], 0
    for file in files:
        try:
            image = read_image(file)
        except (OSError, ValueError):
            continue
        maps = crop_maps(trace_net(net, image, imgsz))
        title, scene, depth = _drawn(fit_into(image, *TILE), maps)
        panels.append([(title, _centred(scene))])
        most = max(most, depth)
    if not panels:
        raise ValueError(f"none of {len(files)} images can be read")
    if windows_of(maps) is None:
        legend = swatches("depth: blocks passed in all layers", DepthAnnotator().legend(maps), TEXT)
    else:
        legend = swatches(COUNTS, WindowAnnotator().legend(most), TEXT)
    picture = with_blocks(panel_grid(panels), [legend], TEXT)
    write_bytes(path, cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return picture


def _drawn(scene: np.ndarray, maps: Sequence[RouteMap]) -> tuple[str, np.ndarray, int]:
    """Draw the routes of an image on it; return a title, the scene, and the most windows of a cell."""
    skipped, windows = f"skipped {100 * skipped_depth(maps):.0f}%", windows_of(maps)
    if windows is None:
        return skipped, DepthAnnotator().annotate(scene, maps), 0
    return f"{windows.told()}, {skipped}", WindowAnnotator().annotate(scene, maps[0]), windows.most


def draw_curves(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw the figures of each routed layer over the epochs.

    Args:
        rows: Lines of `routing.csv`.
        path: The PNG, written under a temporary name and renamed.

    Raises:
        OSError: If it cannot be written.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for layer in layers:
            own = [row for row in rows if row["layer"] == layer]
            epochs = [int(row["epoch"]) for row in own]
            axes.plot(epochs, [float(row[name]) for row in own], marker=".", label=layer)
        axes.set(title=title, xlabel="epoch", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    write_figure(path, figure)


def _centred(scene: np.ndarray) -> np.ndarray:
    """Put an image into the middle of a tile."""
    tile = blank(TILE[1], TILE[0])
    top, left = (TILE[1] - scene.shape[0]) // 2, (TILE[0] - scene.shape[1]) // 2
    tile[top : top + scene.shape[0], left : left + scene.shape[1]] = scene
    return tile
