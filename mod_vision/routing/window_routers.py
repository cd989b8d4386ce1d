"""Routers of windows: they score the cells of an image from something cheaper than the network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from mod_vision.routing.labels import Size, label_cells

PRIOR_GRID = 16
WIDTH = 64  # channels of a map of cells
DILATIONS = (1, 2, 4)
UNLIKELY = -3.0  # logit at which routers start: few cells hold an object
SURE = 12.0  # logit of what labels say


class WindowRouter(nn.Module):
    """Base of the routers of windows.

    Attributes:
        reads: What the router is given: the `image` at half its side, the `map` that the windows are taken from, the
            scores of the `coarse` pass, or the `cells`, a map of zeros, where it needs none of them.
        learned: Whether it has parameters that a training sets.
        compares: Whether scores of different images compare, so that a threshold on them means something.
        guesses: Whether a score is a guess of how likely a cell holds an object, which can count in what is found.
        covers: Whether windows shall cover all cells that count, so that nothing is cut between two.
        steps: Batches that it was trained on, a scalar.
    """

    reads: ClassVar[str] = "image"
    learned: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    guesses: ClassVar[bool] = True
    covers: ClassVar[bool] = False
    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    @property
    def trained(self) -> bool:
        """False if it would have to learn and has not; this waits for the device."""
        return not self.learned or bool(self.steps > 0)

    def forward(self, seen: torch.Tensor, size: Size) -> torch.Tensor:
        """Return the logits (B, 1 + classes, h, w) of the cells of a `size` (h, w): of any object, then of each class.

        Args:
            seen: What the router reads, (B, C, H, W).
            size: Rows and columns of cells.
        """
        raise NotImplementedError


def conv(c1: int, c2: int, stride: int = 1, kernel: int = 3, groups: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a convolution with batch norm and SiLU."""
    layer = nn.Conv2d(c1, c2, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03), nn.SiLU())


def told_apart(said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the scores of any object (B, N), and by class (B, classes, N), None of a router that tells no classes.

    Args:
        said: (B, 1 + classes, N), what a router says of the cells.
    """
    return said[:, 0], said[:, 1:] if said.shape[1] > 1 else None


def apart(channels: int, dilation: int = 1) -> nn.Sequential:
    """Return a convolution of each channel by itself, and one over channels."""
    return nn.Sequential(
        conv(channels, channels, groups=channels, dilation=dilation), conv(channels, channels, kernel=1)
    )


def scoring(channels: int, classes: int) -> nn.Conv2d:
    """Return the last layer of a router, which starts at a low score everywhere."""
    layer = nn.Conv2d(channels, 1 + classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, UNLIKELY)
    return layer


class Around(nn.Module):
    """Adds to each cell what lies around it, farther and farther.

    Args:
        channels: Channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(apart(channels, dilation) for dilation in DILATIONS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map (B, C, H, W)."""
        for step in self.steps:
            x = x + step(x)
        return x


class CellHead(nn.Sequential):
    """Scores cells from a map of features: few channels, down to a position for each cell, and what lies around it.

    Args:
        channels: Channels of the map.
        halvings: How often the map is halved on the way to cells.
        classes: Classes that are scored besides any object.
    """

    def __init__(self, channels: int, halvings: int, classes: int) -> None:
        widths = [*[min(channels, 32), 48, *[WIDTH] * halvings][:halvings], WIDTH]
        layers = [conv(channels, widths[0], kernel=1)]
        for before, width in pairwise(widths):
            layers += [conv(before, width, 2), apart(width)]
        super().__init__(*layers, Around(WIDTH), scoring(WIDTH, classes))


class LookRouter(WindowRouter):
    """The network's own first rows, copied, on the image at half its side, and a small head.

    They have learnt what the network looks for, at an eighth to a tenth of its cost.

    Args:
        rows: First rows of the network, each of which reads the one before.
        channels: Channels of the map that they make.
        side: Its positions along a cell, of images at half their side.
        classes: Classes of the network.
    """

    def __init__(self, rows: Sequence[nn.Module], channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.rows = nn.Sequential(*copy.deepcopy(list(rows)))
        self.head = CellHead(channels, side.bit_length() - 1, classes)

    def forward(self, seen: torch.Tensor, size: Size) -> torch.Tensor:
        """Return the logits (B, 1 + classes, h, w) of images at half their side."""
        logits: torch.Tensor = self.head(self.rows(seen))
        return logits

    def copy_rows(self, rows: Sequence[nn.Module]) -> None:
        """Start from the weights of the network's rows."""
        for own, row in zip(self.rows, rows, strict=False):
            own.load_state_dict(row.state_dict(), strict=False)


class ScoutRouter(WindowRouter):
    """A small network of its own on the image at half its side.

    Args:
        cell: Side of a cell in px.
        channels: Channels of an image.
        classes: Classes of the network.
    """

    def __init__(self, cell: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = [16, 32, 64, 96, 96, 96][: (cell // 2).bit_length() - 1]
        layers: list[nn.Module] = []
        for before, width in zip([channels, *widths], widths, strict=False):
            layers += [conv(before, width, 2), conv(width, width, groups=width), conv(width, width, kernel=1)]
        self.layers = nn.Sequential(*layers, scoring(widths[-1], classes))

    def forward(self, seen: torch.Tensor, size: Size) -> torch.Tensor:
        """Return the logits (B, 1 + classes, h, w) of images at half their side."""
        logits: torch.Tensor = self.layers(seen)
        return logits


class StemRouter(WindowRouter):
    """A small head on the map that the windows are taken from: the rows before see the whole image.

    Args:
        channels: Channels of the map.
        side: Positions of the map along a cell.
        classes: Classes of the network.
    """

    reads = "map"

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.head = CellHead(channels, side.bit_length() - 1, classes)

    def forward(self, seen: torch.Tensor, size: Size) -> torch.Tensor:
        """Return the logits (B, 1 + classes, h, w) of a map (B, C, H, W)."""
        logits: torch.Tensor = self.head(seen)
        return logits


class DensityRouter(WindowRouter):
    """Scores of the coarse pass: what it finds at a fraction of the size, and around it."""

    reads = "coarse"
    learned = False

    def forward(self, seen: torch.Tensor, size: Size) -> torch.Tensor:
        """Return the logits (B, 1, h, w) of the coarse pass's highest class scores (B, 1, h, w)."""
        return F.max_pool2d(seen, 3, 1, 1)


class PriorRouter(WindowRouter):
    """Where objects lie in any image of the training split: a map that is learnt, alike for all images."""

    reads = "cells"
    compares = False

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.full((1, 1, PRIOR_GRID, PRIOR_GRID), UNLIKELY))

    def forward(self, seen: torch.Tensor, size: Size) -> torch.Tensor:
        """Return the same logits (B, 1, h, w) for each image."""
        return prior_logits(self.map, size)[:, None].expand(seen.shape[0], -1, -1, -1)


def prior_logits(prior: torch.Tensor, size: Size) -> torch.Tensor:
    """Return the logits (1, h, w) of cells by their position alone, from a map (1, 1, H, W) of any image."""
    return F.interpolate(prior, size=size, mode="bilinear", align_corners=False)[:, 0]


class RandomWindowRouter(WindowRouter):
    """Scores cells at random, anew in each forward: the baseline that every comparison needs."""

    reads = "cells"
    learned = compares = guesses = False

    def forward(self, seen: torch.Tensor, size: Size) -> torch.Tensor:
        """Return random logits (B, 1, h, w)."""
        return torch.randn_like(seen[:, :1])


class ZoneRouter(WindowRouter):
    """Takes all cells of the zone that a model has, or of the picture if it has none: nothing to learn, no look."""

    reads = "cells"
    learned = guesses = False
    covers = True

    def forward(self, seen: torch.Tensor, size: Size) -> torch.Tensor:
        """Return the same high logits (B, 1, h, w)."""
        return torch.full_like(seen[:, :1], SURE)


class OracleRouter(WindowRouter):
    """Scores cells by the labels: what a perfect router would give; for studies, inside `labelled`."""

    reads = "cells"
    learned = guesses = False

    def forward(self, seen: torch.Tensor, size: Size) -> torch.Tensor:
        """Return high logits (B, 1, h, w) where an object is.

        Raises:
            ValueError: If no labels are known.
        """
        cells = label_cells(size)
        if cells is None:
            raise ValueError("router: oracle needs labels; it is for `mod-vision val` on a labelled split.")
        return sure_logits(cells)[:, None].to(seen)


def sure_logits(cells: torch.Tensor) -> torch.Tensor:
    """Return the logits of cells of which labels say how much each counts as an object, 0 where none is."""
    return torch.where(cells > 0, SURE, -SURE)


WINDOW_ROUTERS: dict[str, type[WindowRouter]] = {
    "look": LookRouter,
    "stem": StemRouter,
    "scout": ScoutRouter,
    "density": DensityRouter,
    "prior": PriorRouter,
    "zone": ZoneRouter,
    "random": RandomWindowRouter,
    "oracle": OracleRouter,
}
