"""A model that computes only a zone of the picture, from a dense or a routed one, without any training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from ultralytics import YOLO

from mod_vision.conversion.windowed import on_windows
from mod_vision.routing.placing import boxed, plan_windows, window_cells
from mod_vision.routing.window_layer import COVERED, CROWDED, WindowedLayer
from mod_vision.routing.window_routers import SURE
from mod_vision.routing.zone import Extent, cells_in, sums_of
from mod_vision.yolo.data.zones import Zone, areas_of, masks_of, zones_of
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.model.zone import set_zone

SIDES = (128, 192, 256, 320, 384, 512, 640)  # px of windows to choose from


class Cost(NamedTuple):
    """What a zone costs.

    Attributes:
        side: Side of a window in px.
        windows: Windows that cover the zone, of the stream that needs most.
        share: Their share of the image's pixels, 1 where the whole image is run instead.
        area: Share of the picture that the zone is, of the same stream.
    """

    side: int
    windows: int
    share: float
    area: float


def zoned(model: YOLO, zone: Any, imgsz: int, size: tuple[int, int]) -> tuple[YOLO, Cost]:
    """Return a model that looks at a zone alone, and what that costs; the one that is given stays as it is.

    A dense model gets windows of the side that covers the zone with the fewest pixels, and the router `zone`. A routed
    one keeps its windows and its router, which looks for objects within the zone, and has no more windows than it takes
    to cover that.

    Args:
        model: A dense model, or one that runs on windows.
        zone: As `set_zone` takes it.
        imgsz: Longer side of the images in px.
        size: (width, height) of the pictures in px.

    Raises:
        ValueError: If it is no zone, or the model does not go with windows.
        FileNotFoundError: If a file does not exist.
    """
    zones = zones_of(zone, size=size)
    if zones is None:
        raise ValueError("zone= is needed: a file, or points such as [[0, 0.5], [1, 0.5], [1, 1], [0, 1]].")
    head = head_of(model.model)
    if head is not None:
        new, sides = copy_model(model), [head.entry.window]
    else:
        new = on_windows(model, WindowSettings(size=SIDES[-1], router="zone"))
        head = head_of(new.model)
        assert head is not None
        sides = [side for side in SIDES if side % head.entry.cell == 0]
    costs = [_cost(zones, side, imgsz, size, head.entry) for side in reversed(sides)]
    cost = min(costs, key=lambda found: found.share)
    if head.entry.window != cost.side:
        new = on_windows(model, WindowSettings(size=cost.side, router="zone"))
    set_zone(new, zones)
    entry: Any = head_of(new.model).entry  # type: ignore[union-attr]
    if entry.threshold is None and entry.capacities[0] > cost.share:
        set_capacity(new, max(round(cost.share, 4), 1e-3))
    return new, cost


def _cost(zones: Sequence[Zone], side: int, imgsz: int, size: tuple[int, int], entry: WindowedLayer) -> Cost:
    """Return what zones cost in windows of a side; one zone can have a window of its own size, see `boxed`."""
    scale, cell = imgsz / max(size), entry.cell
    height, width = (round(length * scale) / cell for length in reversed(size))
    cells = math.ceil(height), math.ceil(width)
    drawn = torch.tensor([[height / cells[0], width / cells[1]]])
    extent = Extent((1 - drawn) / 2, drawn)  # Ultralytics pads both sides
    window, found = window_cells(side, cells, cell), []
    for zone, area in zip(zones, areas_of(zones), strict=True):
        inside = cells_in(sums_of(masks_of([zone])), cells, extent)
        logits, most = torch.full(inside.shape, SURE), inside.shape[1]
        plan = plan_windows(logits, cells, window, most, cell, COVERED, inside, tuple(range(most + 1)), cover=True)
        if entry.router.covers and len(zones) == 1:
            plan = boxed(plan)
        found.append(Cost(side, plan.width, plan.share if plan.share < CROWDED else 1.0, area))
    return max(found, key=lambda cost: cost.share)
