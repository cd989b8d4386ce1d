"""The views of an image: what was computed in its colours, the depth on the photo or beside it, or a page of panels.

Of a model that runs on windows they show those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mod_vision.viz.annotators import MIDDLE, ConfidenceAnnotator, DepthAnnotator, SkipAnnotator, shaded
from mod_vision.viz.layout import blank, caption, gradient, swatches, with_blocks
from mod_vision.viz.lettering import text_size_for
from mod_vision.viz.results import draw_results
from mod_vision.viz.routes import RouteMap, Windows, by_windows, skipped_depth, skipped_share, stage_titles, windows_of
from mod_vision.viz.sheet import TEXT, fit_panel, panel_grid
from mod_vision.viz.window_annotator import ZONE, WindowAnnotator
from mod_vision.yolo.run.images import read_image

COUNTS = "windows that compute a cell"
SCORES = "scores of cells"
BEST, PLACED = "window 1 has most score", "window 1 was placed first"  # no score places those on zones and on motion
UNTRAINED = "router without training"
DEFAULT_VIEW = "mask"  # of pictures, videos and the app
SMALLEST_SIDE = 160  # smaller photos are enlarged, or nothing could be read off them


class View(NamedTuple):
    """A view of an image.

    Attributes:
        picture: (H, W, 3) uint8 in BGR.
        legends: What belongs below it.
        summary: Lines that tell the skipped shares, unless the picture does.
        notes: Lines that tell what else there is to know, in videos too.
        px: Size of the text below it.
    """

    picture: np.ndarray
    legends: list[np.ndarray]
    summary: list[str]
    notes: list[str]
    px: int

    def compose(self, figures: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Return the picture with legends, notes and summary below it, or `figures` in the place of the summary."""
        summary = self.summary if figures is None else []
        lines = [*summary, *self.notes]
        words = [caption(lines, self.px)] if lines else []
        return with_blocks(self.picture, [*self.legends, *words, *(figures or [])], self.px)


def draw_heatmap(image: Any, maps: Sequence[RouteMap], view: str = DEFAULT_VIEW, result: Any = None) -> np.ndarray:
    """Draw the routes of an image.

    Args:
        image: A file, a PIL image or an array, as `read_image` takes it.
        maps: Its route maps.
        view: mask, overlay, side or page.
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
    for layer, title in zip(maps, stage_titles(maps), strict=True):
        kept = f"{title}: skipped {skipped_share(layer):.0%}", skip.annotate(photo.copy(), [layer])
        stacks.append([kept, ("router's confidence", confidence.annotate(photo.copy(), layer))])
    legends = [_depth_legend(depth, maps, TEXT), gradient("router's confidence", confidence.legend(), TEXT)]
    return View(panel_grid(stacks), legends, [], _notes(maps), TEXT)


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
    return View(picture, [_depth_legend(depth, maps, px)], _summary(maps), _notes(maps), px)


def _mask(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the photo with the patches shaded that no layer computed."""
    scene = _with_results(SkipAnnotator().annotate(_enlarge(image), maps), result)
    px = text_size_for(scene)
    return View(scene, [swatches("patches, all stages", _mask_colours(), px)], _summary(maps), _notes(maps), px)


VIEWS: dict[str, Callable[[np.ndarray, Sequence[RouteMap], Any, str], View]] = {
    "mask": _mask,
    "overlay": _overlay,
    "side": _side,
    "page": _page,
}


def _windows_page(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the photo, the windows on it, how often each cell was computed, and the scores that placed them."""
    photo, layer = fit_panel(image), maps[0]
    counted, windows = [by_windows(layer)], windows_of(maps)
    assert windows is not None
    depth, confidence = DepthAnnotator(cmap), ConfidenceAnnotator(cmap)
    seen = WindowAnnotator(cmap, tint=False).annotate(photo.copy(), layer)
    stacks = [
        [("photo", _with_results(photo.copy(), result)), (", ".join(_told(maps)), _with_results(seen, result))],
        [(COUNTS, depth.annotate(photo.copy(), counted)), (SCORES, confidence.annotate(photo.copy(), layer))],
    ]
    colours = _with_zone(depth.legend(counted), windows)
    legends = [swatches(COUNTS, colours, TEXT), gradient(SCORES, confidence.legend(), TEXT)]
    return View(panel_grid(stacks), legends, [], _notes(maps), TEXT)


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
    colours = _with_zone(seen.legend(windows.most), windows)
    return View(picture, [swatches(COUNTS, colours, px)], _told(maps), _notes(maps), px)


def _windows_mask(image: np.ndarray, maps: Sequence[RouteMap], result: Any, cmap: str) -> View:
    """Show the photo with the cells shaded that no window computed."""
    scene = _with_results(WindowAnnotator(tint=False).annotate(_enlarge(image), maps[0]), result)
    windows = windows_of(maps)
    assert windows is not None
    px, colours = text_size_for(scene), _with_zone(_mask_colours(), windows)
    return View(scene, [swatches(BEST if windows.by_score else PLACED, colours, px)], _told(maps), _notes(maps), px)


WINDOW_VIEWS = {"mask": _windows_mask, "overlay": _windows_overlay, "side": _windows_side, "page": _windows_page}


def _told(maps: Sequence[RouteMap]) -> list[str]:
    """Return in lines what an image's windows are, and what they skipped."""
    windows = windows_of(maps)
    assert windows is not None
    return [windows.told(), f"skipped {skipped_share(maps[0]):.0%}, overlap {windows.overlap:.0%}"]


def _notes(maps: Sequence[RouteMap]) -> list[str]:
    """Return in lines what the network ran on besides its windows, and whether it says something where they lie."""
    windows = windows_of(maps)
    besides = [f"besides: {windows.besides}"] if windows is not None and windows.besides else []
    return besides if all(layer.trained for layer in maps) else [*besides, UNTRAINED]


def _mask_colours() -> dict[str, np.ndarray]:
    """Return the names and colours (3,) of a photo of middle gray of which parts are shaded."""
    return {"skipped": shaded()[MIDDLE], "computed": np.full(3, MIDDLE)}


def _with_zone(colours: Mapping[Any, np.ndarray], windows: Windows) -> dict[Any, np.ndarray]:
    """Return names and colours of a legend, with that of the edge of the zone if there is one."""
    return {**colours} if windows.zone is None else {**colours, "zone": np.array(ZONE)}


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
    layers = [f"{title} {skipped_share(layer):.0%}" for title, layer in zip(stage_titles(maps), maps, strict=True)]
    lines = [", ".join(layers[i : i + 3]) for i in range(0, len(layers), 3)]
    return [f"skipped {skipped_depth(maps):.0%}", *lines]
