"""The views of an image: a page of panels, or the photo with the depth on it or beside it, or with skips dark.

Of a model that runs on windows they show those: what they saw in its colours, the rest shaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mod_vision.viz.annotators import ConfidenceAnnotator, DepthAnnotator, SkipAnnotator
from mod_vision.viz.layout import blank, caption, gradient, swatches, with_blocks
from mod_vision.viz.lettering import text_size_for
from mod_vision.viz.results import draw_results
from mod_vision.viz.routes import RouteMap, by_windows, skipped_depth, skipped_share, windows_of
from mod_vision.viz.sheet import TEXT, fit_panel, panel_grid
from mod_vision.viz.window_annotator import WindowAnnotator
from mod_vision.yolo.run.images import read_image

COUNTS = "windows that compute a cell"
SCORES = "scores of cells"
SMALLEST_SIDE = 160  # smaller photos are enlarged, or nothing could be read off them


class View(NamedTuple):
    """A view of an image.

    Attributes:
        picture: (H, W, 3) uint8 in BGR.
        legends: What belongs below it.
        summary: Lines that tell the skipped shares, unless the picture does.
        px: Size of the text below it.
    """

    picture: np.ndarray
    legends: list[np.ndarray]
    summary: list[str]
    px: int

    def compose(self) -> np.ndarray:
        """Return the picture with legends and summary below it."""
        blocks = [*self.legends, caption(self.summary, self.px)] if self.summary else self.legends
        return with_blocks(self.picture, blocks, self.px)


def draw_heatmap(image: Any, maps: Sequence[RouteMap], view: str = "page", result: Any = None) -> np.ndarray:
    """Draw the routes of an image.

    Args:
        image: A file, a PIL image or an array, as `read_image` takes it.
        maps: Its route maps.
        view: page, overlay, side or mask.
        result: Ultralytics' `Results` of the image, to be drawn on top.

    Returns:
        The picture (H', W', 3) uint8 in BGR.

    Raises:
        ValueError: If there is no map, the image cannot be read, or the view is unknown.
    """
    return draw_view(read_image(image), maps, view, result).compose()


def draw_view(
    image: np.ndarray, maps: Sequence[RouteMap], view: str, result: Any = None, cmap: str = "viridis"
) -> View:
    """Draw a view of an image (H, W, 3), uint8 in BGR; all images of one shape give views of one shape.

    Raises:
        ValueError: If there is no map, or the view or the colour map is unknown.
    """
    if not maps:
        raise ValueError("there is no route map to draw.")
    views = VIEWS if windows_of(maps) is None else WINDOW_VIEWS
    return views[check_view(view)](image, maps, result, cmap)


def check_view(view: str) -> str:
    """Return the name of a view.

    Raises:
        ValueError: If it is unknown; the message lists the known ones.
    """
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
    return view


def _page(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the photo, the depth in all layers, and the choice and the confidence of each layer."""
    photo = fit_panel(image)
    depth, confidence, skip = DepthAnnotator(cmap), ConfidenceAnnotator(cmap), SkipAnnotator()
    stacks = [
        [
            ("photo", _with_results(photo.copy(), result)),
            (f"depth: skipped {skipped_depth(maps):.0%}", depth.annotate(photo.copy(), maps)),
        ]
    ]
    for layer in maps:
        kept = f"{layer.name}: skipped {skipped_share(layer):.0%}", skip.annotate(photo.copy(), [layer])
        stacks.append([kept, ("router's confidence", confidence.annotate(photo.copy(), layer))])
    legends = [_depth_legend(depth, maps, TEXT), gradient("router's confidence", confidence.legend(), TEXT)]
    return View(panel_grid(stacks), legends, [], TEXT)


def _overlay(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the depth over the photo."""
    depth = DepthAnnotator(cmap)
    return _depth_view(_with_results(depth.annotate(_enlarge(image), maps), result), depth, maps)


def _side(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the photo, and beside it the depth over the photo."""
    depth = DepthAnnotator(cmap)
    return _depth_view(_beside(image, depth.annotate(_enlarge(image), maps), result), depth, maps)


def _depth_view(picture: np.ndarray, depth: DepthAnnotator, maps: Sequence[RouteMap]) -> View:
    """Add the legend of the depth to a picture."""
    px = text_size_for(picture)
    return View(picture, [_depth_legend(depth, maps, px)], _summary(maps), px)


def _mask(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the photo with the patches darkened that no layer computed."""
    scene = _with_results(SkipAnnotator().annotate(_enlarge(image), maps), result)
    px = text_size_for(scene)
    return View(scene, [caption(["dark: skipped in all layers"], px)], _summary(maps), px)


VIEWS: dict[str, Callable[[np.ndarray, Sequence[RouteMap], Any, str], View]] = {
    "page": _page,
    "overlay": _overlay,
    "side": _side,
    "mask": _mask,
}


def _windows_page(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the photo, the windows on it, how often each cell was computed, and the scores that placed them."""
    photo, layer = fit_panel(image), maps[0]
    counted, windows = [by_windows(layer)], windows_of(maps)
    assert windows is not None
    depth, confidence = DepthAnnotator(cmap), ConfidenceAnnotator(cmap)
    seen = WindowAnnotator(cmap, tint=False).annotate(photo.copy(), layer)
    stacks = [
        [("photo", _with_results(photo.copy(), result)), (", ".join(_told(maps)[:2]), _with_results(seen, result))],
        [(COUNTS, depth.annotate(photo.copy(), counted)), (SCORES, confidence.annotate(photo.copy(), layer))],
    ]
    shades = depth.legend(counted)[: windows.most + 1]
    legends = [swatches(COUNTS, shades, TEXT), gradient(SCORES, confidence.legend(), TEXT)]
    return View(panel_grid(stacks), legends, _told(maps)[2:], TEXT)


def _windows_overlay(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the windows on the photo, and where they overlap."""
    seen = WindowAnnotator(cmap)
    return _windows_view(_with_results(seen.annotate(_enlarge(image), maps[0]), result), seen, maps)


def _windows_side(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the photo, and beside it the windows on the photo."""
    seen = WindowAnnotator(cmap)
    return _windows_view(_beside(image, seen.annotate(_enlarge(image), maps[0]), result), seen, maps)


def _windows_view(picture: np.ndarray, seen: WindowAnnotator, maps: Sequence[RouteMap]) -> View:
    """Add the legend of the windows to a picture."""
    px, windows = text_size_for(picture), windows_of(maps)
    assert windows is not None
    return View(picture, [swatches(COUNTS, seen.legend(windows.most), px)], _told(maps), px)


def _windows_mask(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the photo with the cells darkened that no window computed."""
    scene = _with_results(WindowAnnotator(tint=False).annotate(_enlarge(image), maps[0]), result)
    px = text_size_for(scene)
    return View(scene, [caption(["dark: in no window"], px)], _told(maps), px)


WINDOW_VIEWS = {"page": _windows_page, "overlay": _windows_overlay, "side": _windows_side, "mask": _windows_mask}


def _told(maps: Sequence[RouteMap]) -> list[str]:
    """Return in lines what an image's windows are, what they skipped, and what else there is to know of them."""
    windows = windows_of(maps)
    assert windows is not None
    lines = [windows.told(), f"skipped {skipped_share(maps[0]):.0%}, overlap {windows.overlap:.0%}"]
    if windows.besides:
        lines.append(f"besides: {windows.besides}")
    return lines if windows.trained else [*lines, "placed by a router without training"]


def _with_results(scene: np.ndarray, result: Any) -> np.ndarray:
    """Draw what was found on a scene, if anything was looked for."""
    return scene if result is None else draw_results(scene, result)


def _beside(image: np.ndarray, scene: np.ndarray, result: Any) -> np.ndarray:
    """Put the photo to the left of a scene, what was found on both."""
    photo = _enlarge(image)
    between = blank(photo.shape[0], text_size_for(photo))
    return np.hstack((_with_results(photo, result), between, _with_results(scene, result)))


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Copy an image; a tiny one is enlarged by a whole number."""
    factor = -(-SMALLEST_SIDE // max(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else image.copy()


def _depth_legend(depth: DepthAnnotator, maps: Sequence[RouteMap], px: int) -> np.ndarray:
    """Draw the legend of the depth."""
    return swatches("depth: blocks passed in all layers", depth.legend(maps), px)


def _summary(maps: Sequence[RouteMap]) -> list[str]:
    """Return the skipped share of all blocks, and that of the patches of each layer, in lines."""
    layers = [f"{layer.name} {skipped_share(layer):.0%}" for layer in maps]
    lines = [", ".join(layers[i : i + 3]) for i in range(0, len(layers), 3)]
    return [f"skipped {skipped_depth(maps):.0%}", *lines]
