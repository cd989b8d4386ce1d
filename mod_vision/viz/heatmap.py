"""Heat maps of the routing: what the model computed, and what it skipped."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mod_vision.files import writable_dir, write_bytes
from mod_vision.viz.routes import RouteMap, read_image, route_maps
from mod_vision.yolo.images import load_model

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

PANEL_HEIGHT = 360
MAX_PANEL_WIDTH = 1080  # a panorama gets a lower panel instead of a wider one
GAP = 20
LINE = 30  # height of a line of text
SWATCH = 36
PAGE_RATIO = 1.8  # width to height that the grid of panels comes close to

FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.6
WHITE, INK, SKIPPED = (255, 255, 255), (40, 40, 40), (24, 24, 24)
SHADE = (64, 40, 32)  # a tint, so that a skipped patch differs from a computed one of a dark photo


def heatmap(model: Any, source: str | Path, imgsz: int = 640, out: str | Path = "runs/heatmap") -> list[Path]:
    """Draw the routing of every image of `source`, one picture each, and print the skipped shares.

    Args:
        model: A `YOLO` object, a .pt file, or a model YAML.
        source: An image, a folder of images, or a glob pattern.
        imgsz: Longer side of the model's input.
        out: Folder of the pictures, made if it does not exist.

    Returns:
        The pictures, named after the images.

    Raises:
        FileNotFoundError: If model or source does not exist, or the source has no image.
        ValueError: If no image can be read, or the model routes nothing.
        OSError: If the folder cannot be written.
    """
    files = find_images(source)
    folder = writable_dir(out)
    model = load_model(model)
    pictures: list[Path] = []
    skipped: dict[str, list[float]] = {}
    for number, file in enumerate(files, 1):
        progress = f"[{number}/{len(files)}] {file}"
        try:
            image = read_image(file)
        except (OSError, ValueError) as error:
            print(f"{progress}: left out, {error}")
            continue
        maps = route_maps(model, image, imgsz)
        picture = _free_name(folder, file.stem, pictures)
        write_bytes(picture, cv2.imencode(picture.suffix, draw_heatmap(image, maps))[1].tobytes())
        pictures.append(picture)
        for layer in maps:
            skipped.setdefault(layer.name, []).append(skipped_share(layer))
        print(f"{progress}: skipped {_shares({m.name: [skipped_share(m)] for m in maps})}, see {picture.name}")
    if not pictures:
        raise ValueError(f"none of the {len(files)} images of {source} can be read.")
    print(f"mean of {len(pictures)} images: skipped {_shares(skipped)}; pictures are in {folder}")
    return pictures


def find_images(source: str | Path) -> list[Path]:
    """Return the images that `source`, a file, a folder or a glob pattern, names, in order.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    found = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(source), recursive=True))
    files = sorted(file for file in found if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(f"{source} is no image, no folder with images, and no pattern that matches one.")
    return files


def draw_heatmap(image: np.ndarray, maps: Sequence[RouteMap]) -> np.ndarray:
    """Compose one picture: the photo, the blocks each patch passed in all layers, and the choice of each layer.

    Args:
        image: (H, W, 3) uint8 in BGR or (H, W) in gray, of any size.
        maps: Its route maps.

    Returns:
        The picture (H', W', 3) uint8 in BGR.

    Raises:
        ValueError: If there is no map or the array is no image.
    """
    if not maps:
        raise ValueError("there is no route map to draw.")
    photo = _fit(read_image(image))
    most = sum(layer.blocks for layer in maps)
    palette = _palette(most)
    total, extent = _total_depth(maps)
    saved = round(100 * (1 - total.mean() / most))
    panels = [("photo", photo), (f"depth: skipped {saved}%", _depth_panel(photo, total, extent, palette))]
    for layer in maps:
        caption = f"{layer.name}: skipped {round(100 * skipped_share(layer))}%"
        panels.append((caption, _kept_panel(photo, layer)))
    return _page(panels, _legend(palette))


def skipped_share(layer: RouteMap) -> float:
    """Return the share of patches that the layer did not compute."""
    return 1.0 - float(layer.kept.mean())


def _shares(skipped: dict[str, list[float]]) -> str:
    """Format the mean skipped share of each layer."""
    return ", ".join(f"{name} {100 * np.mean(shares):.0f}%" for name, shares in skipped.items())


def _free_name(folder: Path, stem: str, taken: list[Path]) -> Path:
    """Name a picture after its image; images of one name from several folders are numbered."""
    name = folder / f"{stem}-heatmap.png"
    number = 2
    while name in taken:
        name = folder / f"{stem}-{number}-heatmap.png"
        number += 1
    return name


def _fit(image: np.ndarray) -> np.ndarray:
    """Scale an image to the height of a panel, or to its greatest width."""
    scale = min(PANEL_HEIGHT / image.shape[0], MAX_PANEL_WIDTH / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _sample(grid: np.ndarray, extent: Sequence[float], ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Look a grid (H_s, W_s) up at rows `ys` (h,) and columns `xs` (w,) given in shares of the image: (h, w)."""
    top, left, height, width = extent
    rows = np.clip(np.floor((ys - top) / height * grid.shape[0]).astype(int), 0, grid.shape[0] - 1)
    cols = np.clip(np.floor((xs - left) / width * grid.shape[1]).astype(int), 0, grid.shape[1] - 1)
    return grid[rows[:, None], cols[None, :]]


def _centres(cells: int, start: float = 0.0, length: float = 1.0) -> np.ndarray:
    """Return the centres (cells,) of equal cells along an axis."""
    return start + (np.arange(cells) + 0.5) / cells * length


def _total_depth(maps: Sequence[RouteMap]) -> tuple[np.ndarray, Sequence[float]]:
    """Sum the passed blocks of all layers on the finest grid: (H_s, W_s) int, and the extent of the grid."""
    finest = max(maps, key=lambda layer: layer.kept.size)
    top, left, height, width = finest.extent
    ys = _centres(finest.kept.shape[0], top, height)
    xs = _centres(finest.kept.shape[1], left, width)
    return np.sum([_sample(layer.depth, layer.extent, ys, xs) for layer in maps], axis=0), finest.extent


def _palette(most: int) -> np.ndarray:
    """Return a colour for 0 to `most` blocks, (most + 1, 3) in BGR: dark, then viridis without its darkest end."""
    levels = np.linspace(48, 255, most).round().astype(np.uint8)[:, None]
    return np.concatenate((np.array([SKIPPED], np.uint8), cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[:, 0]))


def _depth_panel(photo: np.ndarray, total: np.ndarray, extent: Sequence[float], palette: np.ndarray) -> np.ndarray:
    """Paint the number of passed blocks over the photo, in gray so that its colours do not mix with the map's."""
    depth = _sample(total, extent, _centres(photo.shape[0]), _centres(photo.shape[1]))
    gray = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)[..., None]
    skipped = (depth == 0)[..., None]
    lifted = np.where(skipped, gray, 96 + 0.62 * gray)  # black would turn the colours into others than the legend's
    opacity = np.where(skipped, 0.75, 0.6)
    panel = (opacity * palette[depth] + (1 - opacity) * lifted).round().astype(np.uint8)
    panel[_borders(depth)] = SKIPPED
    return panel


def _kept_panel(photo: np.ndarray, layer: RouteMap) -> np.ndarray:
    """Darken and tint the patches that a layer skipped."""
    kept = _sample(layer.kept, layer.extent, _centres(photo.shape[0]), _centres(photo.shape[1]))
    panel = np.where(kept[..., None], photo, (0.2 * photo + SHADE).round().astype(np.uint8))
    panel[_borders(kept)] = WHITE
    return panel


def _borders(labels: np.ndarray) -> np.ndarray:
    """Mark the pixels (h, w) at which the label differs from that of the next pixel to the right or below."""
    marked = np.zeros(labels.shape, bool)
    marked[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    marked[:-1] |= labels[1:] != labels[:-1]
    return marked


def _text_width(text: str) -> int:
    """Return the width of a text in pixels, with a little room: font back ends differ."""
    return int(1.05 * cv2.getTextSize(text, FONT, FONT_SCALE, 1)[0][0]) + 4


def _put_text(page: np.ndarray, text: str, left: int, top: int, colour: Sequence[int] = INK) -> None:
    """Write a line of text into `LINE` pixels below `top`."""
    cv2.putText(page, text, (left, top + LINE - 9), FONT, FONT_SCALE, tuple(map(int, colour)), 1, cv2.LINE_AA)


def _legend(palette: np.ndarray) -> np.ndarray:
    """Draw a numbered swatch for each number of blocks, under a line that says what it is."""
    title = "depth: blocks that a patch passed in all layers"
    width = max(_text_width(title), len(palette) * SWATCH)
    legend = np.full((2 * LINE, width, 3), WHITE, np.uint8)
    _put_text(legend, title, 0, 0)
    for number, colour in enumerate(palette):
        left = number * SWATCH
        legend[LINE:, left : left + SWATCH] = colour
        ink = INK if colour @ (0.114, 0.587, 0.299) > 120 else WHITE
        text_width = cv2.getTextSize(str(number), FONT, FONT_SCALE, 1)[0][0]
        _put_text(legend, str(number), left + (SWATCH - text_width) // 2, LINE, ink)
    return legend


def _page(panels: Sequence[tuple[str, np.ndarray]], legend: np.ndarray) -> np.ndarray:
    """Lay panels (all of one size) out in a grid, each below its caption, and the legend below them."""
    height, photo_width = panels[0][1].shape[:2]
    width = max(photo_width, *(_text_width(caption) for caption, _ in panels))
    columns = _columns(len(panels), width + GAP, height + LINE + GAP)
    rows = math.ceil(len(panels) / columns)
    bottom = GAP // 2 + rows * (height + LINE + GAP)
    page_width = GAP + max(columns * (width + GAP), legend.shape[1] + GAP)
    page = np.full((bottom + legend.shape[0] + GAP, page_width, 3), WHITE, np.uint8)
    for number, (caption, panel) in enumerate(panels):
        left = GAP + number % columns * (width + GAP)
        top = GAP // 2 + number // columns * (height + LINE + GAP)
        _put_text(page, caption, left, top)
        page[top + LINE : top + LINE + height, left : left + photo_width] = panel
    page[bottom : bottom + legend.shape[0], GAP : GAP + legend.shape[1]] = legend
    return page


def _columns(panels: int, width: int, height: int) -> int:
    """Return the number of columns that brings the grid closest to the ratio of a page; half-empty rows count."""

    def distance(columns: int) -> float:
        rows = math.ceil(panels / columns)
        return abs(math.log(columns * width / (rows * height) / PAGE_RATIO)) + (rows * columns - panels) / panels

    return min(range(1, panels + 1), key=distance)
