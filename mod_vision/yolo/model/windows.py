"""Routed windows in any Ultralytics model: `mod: {windows: {size: 192, capacity: 0.25}}` in its YAML."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from ultralytics.nn.modules import AIFI, C2PSA, PSA, A2C2f, C2fPSA
from ultralytics.utils import LOGGER

from mod_vision.routing import window_routers as routers
from mod_vision.routing.padding import GRAY
from mod_vision.routing.shrink import shrunk
from mod_vision.routing.window_layer import MixedBatch
from mod_vision.routing.windows import CELL
from mod_vision.yolo.blocks import windows as forms
from mod_vision.yolo.blocks.base import take_place
from mod_vision.yolo.blocks.windows import WindowedHead
from mod_vision.yolo.model.coarse import cell_scores, merge
from mod_vision.yolo.model.mixed import apart
from mod_vision.yolo.model.outside import set_entry, silence_outside
from mod_vision.yolo.model.settings import WindowSettings

LOOK_STRIDE = 8  # the rows of `look` end at the last one before the map is reduced further
ATTENTION = (C2PSA, C2fPSA, PSA, A2C2f, AIFI)
PROBE = 128  # px of a square that is run to find the strides


def add_windows(model: nn.Sequential, settings: WindowSettings, rows: Sequence[Any], channels: int) -> None:
    """Turn a parsed model into one that runs on windows, in place.

    Args:
        model: The rows.
        settings: `mod.windows` of the YAML.
        rows: The rows of the YAML, for errors.
        channels: Channels of an image.

    Raises:
        ValueError: If the head, a row or a setting does not go with windows.
    """
    head: Any = model[-1]
    if type(head) not in forms.WINDOWED_HEADS:
        known = ", ".join(kind.__name__ for kind in forms.HEADS)
        raise ValueError(f"mod.windows: head {type(head).__name__} does not run on windows; there are {known}.")
    first, strides, widths = settings.entry, *probed(model, rows, channels)
    if not first < len(model) - 1 or type(model[first]) not in forms.ENTRIES or not model[first].f == -1:
        raise ValueError(
            f"mod.windows.entry: windows cannot be taken at layer {first}; take 0, or a row of the backbone that reads "
            "the row before."
        )
    cell = max(CELL, *(strides[source] for source in _sources(head, len(model) - 1)))
    if settings.size % cell:
        raise ValueError(
            f"mod.windows.size must be a multiple of {cell} px, the model's largest stride, got {settings.size}."
        )
    router = _router(settings, model, strides, widths, cell, (channels, head.nc))
    entry = forms.form_of(model[first], forms.ENTRIES)
    entry.init_windows(router, settings.size, cell, strides[first - 1] if first else 1, settings.capacity)
    set_entry(entry, settings.zone)
    entry.refresh, entry.budget = settings.refresh, settings.budget
    model[first] = take_place(model[first], entry)
    for i in range(first + 1, len(model) - 1):
        outside = tuple(source < first for source in _sources(model[i], i))
        if any(outside):
            if type(model[i]) not in forms.READERS:
                raise ValueError(f"mod.windows.entry: layer {i}, row {rows[i]} cannot read windows of an earlier map.")
            reader = forms.form_of(model[i], forms.READERS, entry)
            reader.outside = outside
            model[i] = take_place(model[i], reader)
    if any(source < first for source in _sources(head, len(model) - 1)):
        raise ValueError(f"mod.windows.entry: the head reads a row before layer {first}; take an earlier entry.")
    if hasattr(head, "proto"):
        head.proto = forms.form_of(head.proto, forms.WINDOWED_PROTOS, entry)
    new = forms.form_of(head, forms.WINDOWED_HEADS, entry)
    new.coarse, new.objectness, new.doubt = settings.coarse, settings.objectness, settings.doubt
    model[-1] = take_place(head, new)


def _sources(row: Any, i: int) -> list[int]:
    """Return the numbers of the rows that row `i` reads."""
    return [i + f if f < 0 else f for f in ([row.f] if isinstance(row.f, int) else row.f)]


def probed(model: nn.Sequential, rows: Sequence[Any], channels: int) -> tuple[list[int], list[int]]:
    """Return stride and channels of the map that each row but the head makes.

    Raises:
        ValueError: If a row makes no map.
    """
    training = model.training
    with torch.no_grad():
        made = run_rows(model.eval()[:-1], torch.zeros(1, channels, PROBE, PROBE))
    model.train(training)
    for i, x in enumerate(made):
        if not isinstance(x, torch.Tensor) or x.ndim != 4:
            raise ValueError(f"mod.windows: layer {i}, row {rows[i]} makes no map, so it cannot run on windows.")
    return [PROBE // m.shape[2] for m in made], [m.shape[1] for m in made]


def run_rows(rows: Iterable[Any], x: Any) -> list[Any]:
    """Return what each of a model's first rows makes of images, as Ultralytics runs them."""
    made: list[Any] = []
    for row in rows:
        if row.f != -1:
            x = made[row.f] if isinstance(row.f, int) else [x if j == -1 else made[j] for j in row.f]
        x = row(x)
        made.append(x)
    return made


def _router(
    settings: WindowSettings,
    model: nn.Sequential,
    strides: Sequence[int],
    widths: Sequence[int],
    cell: int,
    image: tuple[int, int],
) -> routers.WindowRouter:
    """Build the router.

    Args:
        settings: `mod.windows` of the YAML.
        model: The rows.
        strides: Stride of the map that each row makes.
        widths: Its channels.
        cell: Side of a cell in px.
        image: Channels of an image, and classes of what is found in it.

    Raises:
        ValueError: If it does not go with the entry or the coarse pass.
    """
    name, last = settings.router, settings.entry - 1
    if name == "density" and not settings.coarse:
        raise ValueError("mod.windows: router density reads the coarse pass; set coarse: 0.25.")
    if name == "stem" and not settings.entry:
        raise ValueError("mod.windows: router stem reads the map of the entry; set entry: to a later row, such as 5.")
    if name == "stem":
        return routers.StemRouter(widths[last], cell // strides[last], image[1])
    if name == "look":
        rows = look_rows(model, strides)
        return routers.LookRouter(model[:rows], widths[rows - 1], cell // 2 // strides[rows - 1], image[1])
    kind: Any = routers.WINDOW_ROUTERS[name]
    return kind(cell, *image) if name == "scout" else kind()


def look_rows(model: nn.Sequential, strides: Sequence[int]) -> int:
    """Return how many first rows of a model each read the one before and make maps of at most 8 px a position.

    Raises:
        ValueError: If there is none.
    """
    fits = [row.f == -1 and stride <= LOOK_STRIDE for row, stride in zip(model, strides, strict=False)]
    rows = (*fits, False).index(False)
    if not rows:
        raise ValueError("mod.windows: router look copies the first rows, but the first one reads another; take scout.")
    return rows


def head_of(net: Any) -> WindowedHead | None:
    """Return the head of a model that runs on windows, None of any other."""
    layers = getattr(net, "model", None)
    last = layers[-1] if isinstance(layers, nn.Sequential) and len(layers) else None
    return last if isinstance(last, WindowedHead) else None


def on_windows(predict_once: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the forward of Ultralytics' models: the coarse pass and the placing of windows come before the rows."""

    @functools.wraps(predict_once)
    def predict(self: Any, x: torch.Tensor, profile: bool = False, embed: Any = None) -> Any:
        head = head_of(self)
        if head is None:
            return predict_once(self, x, profile, embed)
        entry, coarse, scores = head.entry, None, None
        finding_strides = head.training and not entry.training
        if entry.dense or embed or finding_strides:  # an embedding is of the whole image
            with entry.whole_image():
                out = predict_once(self, x, profile, embed)
            return out if embed or head.training else silence_outside(out, head, x)
        if head.coarse and not head.training:
            small = overview(x, round(1 / head.coarse), entry.cell)
            with entry.whole_image():
                coarse = predict_once(self, small)
            scores = cell_scores(coarse, head, x.shape[2:])
        try:
            plan = None if entry.router.reads == "map" else entry.route_windows(x, scores)
            empty = plan is not None and not plan.width  # such images cost no row
            out = head.no_windows(x) if empty else predict_once(self, x, profile)
        except MixedBatch:
            return apart(self._predict_once, entry, x)
        if coarse is not None and head.windows is not None:
            out = merge(out, coarse, head)
        return out if head.training else silence_outside(out, head, x)

    return predict


def overview(x: torch.Tensor, factor: int, cell: int) -> torch.Tensor:
    """Return images (B, C, H, W) at 1 / `factor` of their side, padded by gray to whole cells."""
    small = shrunk(x, factor)
    return F.pad(small, (0, -small.shape[3] % cell, 0, -small.shape[2] % cell), value=GRAY)


def say_attention(model: nn.Sequential) -> None:
    """Tell which rows would look at the whole image, and on windows see their window alone."""
    head: Any = model[-1]
    late = list(enumerate(model))[head.entry.i :]
    if rows := [f"{i} ({type(row).__name__})" for i, row in late if isinstance(row, ATTENTION)]:
        LOGGER.info(f"mod_vision: on windows, the attention of layer {', '.join(rows)} is within a window")


def copying_look(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `load` of Ultralytics' models: the rows of `look` start as the first rows of the weights that are loaded."""

    @functools.wraps(load)
    def load_and_copy(self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        out = load(self, weights, *args, **kwargs)
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        if head_of(self) is not None:
            copy_look(self, source)
            forget_training(self, source)
            copy_names(self, source)
        return out

    return load_and_copy


def copy_look(net: Any, source: Any) -> None:
    """Copy the first rows into the router `look`, unless `source`, whose weights were loaded, has one that fits."""
    router = net.model[-1].entry.router
    if isinstance(router, routers.LookRouter):
        prefix = f"model.{net.model[-1].entry.i}.router.rows."
        own = {key: value.shape for key, value in net.state_dict().items() if key.startswith(prefix)}
        theirs = {key: value.shape for key, value in source.state_dict().items() if key in own}
        if theirs != own:
            router.copy_rows(list(net.model))


def forget_training(net: Any, source: Any) -> None:
    """Count a learned router as untrained if `source`, whose weights were loaded, lacks some of its weights."""
    entry = net.model[-1].entry
    prefix = f"model.{entry.i}.router."
    own = {key: value.shape for key, value in net.state_dict().items() if key.startswith(prefix)}
    theirs = {key: value.shape for key, value in source.state_dict().items() if key in own}
    if theirs != own:
        entry.router.steps.zero_()


def copy_names(net: Any, source: Any) -> None:
    """Take the class names of `source` if all its weights were loaded, as Ultralytics does for equal models."""
    theirs = {key: value.shape for key, value in source.state_dict().items()}
    fits = all(theirs.get(key) == value.shape for key, value in net.state_dict().items() if ".router." not in key)
    if fits and net.names == {i: f"{i}" for i in range(len(net.names))} and len(source.names) == len(net.names):
        net.names = source.names
