"""Other ways to place windows: by routers that know nothing, by the labels, and by ESOD's rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from ultralytics import YOLO

from mod_vision.routing.labels import label_cells
from mod_vision.routing.losses import tokens_in_boxes
from mod_vision.routing.lost_objects import elsewhere
from mod_vision.routing.placing import plan_windows, window_cells
from mod_vision.routing.window_routers import prior_logits, sure_logits
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.windows import head_of

NEIGHBOURS = 1  # cells around objects that a zone drawn by hand holds


class _Placing:
    """Mixin of entries that place as many windows as the router chose, by other scores.

    Attributes:
        scores: Method of each kind; gives for a plan the scores (B, N) of the cells that its windows are placed by.
    """

    scores: Any

    def route_windows(self, *args: Any, **kwargs: Any) -> WindowPlan:
        """Place the windows of the router, then as many others."""
        own: Any = self
        before: WindowPlan = super().route_windows(*args, **kwargs)  # type: ignore[misc]
        placed = elsewhere(before, self.scores(before))
        own.plan = plan = placed._replace(
            logits=before.logits, classes=before.classes
        )  # in the odds they count as before
        return plan


class Random(_Placing):
    """Windows at random."""

    noise: ClassVar[torch.Generator] = torch.Generator().manual_seed(0)

    def scores(self, plan: WindowPlan) -> torch.Tensor:
        """Return noise."""
        return torch.randn(plan.logits.shape, generator=self.noise)


class Prior(_Placing):
    """Windows where objects lie in training images, of any camera."""

    often: ClassVar[torch.Tensor]

    def scores(self, plan: WindowPlan) -> torch.Tensor:
        """Return how often objects lie at each position."""
        return prior_logits(self.often[None, None], plan.size).flatten(1)


class Oracle(_Placing):
    """Windows by the labels."""

    def scores(self, plan: WindowPlan) -> torch.Tensor:
        """Return what the labels say."""
        cells = label_cells(plan.size)
        assert cells is not None
        return sure_logits(cells).flatten(1)


class Zone:
    """Windows that cover a zone of the camera of the image, as a user would draw it; no router runs.

    Attributes:
        zones: (1, 1, h, w) of each camera, above 0 in its zone.
        camera: That of the image that comes next.
        corners: Windows of each camera and size of an image.
    """

    zones: ClassVar[dict[str, torch.Tensor]]
    camera: ClassVar[str] = ""
    corners: ClassVar[dict[tuple[str, tuple[int, int]], torch.Tensor]] = {}

    def route_windows(self, x: torch.Tensor, coarse: Any = None, reduction: int = 1) -> WindowPlan:
        """Take the windows of the camera."""
        own: Any = self
        size = own.cells(x, reduction)
        window = window_cells(own.window, size, own.cell)
        if (self.camera, size) not in self.corners:
            self.corners[self.camera, size] = self._covering(size, window)
        corners = self.corners[self.camera, size]
        own.plan = plan = WindowPlan(x.new_zeros(1, size[0] * size[1]), corners, size, window, own.cell)
        return plan

    def _covering(self, size: tuple[int, int], window: tuple[int, int]) -> torch.Tensor:
        """Return the corners (1, k, 2) of the windows that cover the zone; the whole image of an unknown camera."""
        zone = self.zones.get(self.camera, torch.ones(1, 1, *size))
        logits = sure_logits(F.adaptive_max_pool2d(zone, size)[:, 0]).flatten(1)
        counts = range(logits.shape[1] + 1)
        return plan_windows(logits, size, window, counts[-1], least=0.5, counts=counts).corners


class Seamless(WindowPlan):
    """A plan whose windows own their positions up to the border: a grid has no other window that could."""

    def owned(self, strides: Sequence[int], margin: int = 0) -> torch.Tensor:
        """Return which positions belong to their window, (B, k, A)."""
        return super().owned(strides, margin)


class Esod:
    """Squares of a fixed grid that hold a cell whose probability is high enough, without overlap or halo, or none.

    After ESOD (Liu et al., arXiv 2407.16424): an object seeker on the map of stride 8, and patches of an eighth of the
    image that it finds something in. Here patches are squares of whole cells, and they are not shifted to the objects.

    Attributes:
        least: Lowest logit of a cell that counts, set on the instance.
        best: Highest logits of the squares of the last image.
    """

    least: float = 0.0
    best: torch.Tensor

    def route_windows(self, x: torch.Tensor, coarse: Any = None, reduction: int = 1) -> WindowPlan:
        """Score the cells and take the squares."""
        own: Any = self
        size = own.cells(x, reduction)
        window = window_cells(own.window, size, own.cell)
        said, _ = own.score(x, size, coarse, reduction)
        corners, self.best = grid_scores(said[0, 0].view(size), window)
        kept = self.best >= self.least
        own.plan = plan = Seamless(said[:, 0], corners[kept][None], size, window, own.cell, classes=said[:, 1:])
        return plan


def grid_scores(cells: torch.Tensor, window: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the corners (n, 2) of a grid of windows over an image, and the highest logit in each, (n,).

    Args:
        cells: (h, w) logits.
        window: Rows and columns of a window.
    """
    rows, cols = (
        torch.tensor(sorted({min(at, size - side) for at in range(0, size, side)}))
        for size, side in zip(cells.shape, window, strict=True)
    )
    best = F.max_pool2d(cells[None], window, 1)[0][rows][:, cols]
    return torch.cartesian_prod(rows, cols), best.flatten()


def placing_by(routed: YOLO, kind: type) -> YOLO:
    """Return a copy of a model that places its windows in another way."""
    yolo = copy_model(routed)
    entry: Any = head_of(yolo.model).entry  # type: ignore[union-attr]
    entry.__class__ = type(f"{kind.__name__}{type(entry).__name__}", (kind, type(entry)), {})
    if kind is Zone:  # it does not know how likely an object is
        entry.crowded = None
        head_of(yolo.model).objectness = 0.0  # type: ignore[union-attr]
    return yolo


def zones_of(boxes: dict[str, list[torch.Tensor]], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return the zone (1, 1, h, w) of each camera: cells that objects of its training images touch, and around them.

    Args:
        boxes: Per camera, the boxes (M, 4) of each image as centre and size, relative to the image.
        size: Rows and columns of cells.
    """
    zones = {}
    for camera, images in boxes.items():
        every = torch.cat(images)
        touched = (tokens_in_boxes(every, torch.zeros(len(every)), 1, size) > 0).float()[:, None]
        zones[camera] = F.max_pool2d(touched, 2 * NEIGHBOURS + 1, 1, NEIGHBOURS)
    return zones
