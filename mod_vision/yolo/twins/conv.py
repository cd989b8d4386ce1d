"""Routed twins of Ultralytics' convolution blocks: the map is cut into tiles, and only the best of them are computed.

`scope: inner` routes the chains of residual bottlenecks and leaves the 1x1 convolutions around them dense: skipped
tiles ride the residual, and nothing is added but the router. `scope: block` routes the whole block: skipped tiles take
a coarse 1x1 convolution, which saves more, and works for blocks without a residual. At capacity 1 both are the dense
block. With `border: halo` each tile is convolved with its true neighbourhood, so that a computed tile is exactly what
the dense block gives; with `border: pad` its border is padded with zeros, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules.block import C3, Bottleneck, C2f, C3k2, HGBlock, RepC3, RepNCSPELAN4
from ultralytics.nn.modules.conv import Conv

from mod_vision.nn.skip import COARSE, CoarseSkip
from mod_vision.nn.tiles import conv_reach, cut_tiles
from mod_vision.routing import RoutingPlan
from mod_vision.routing.layer import apply_gates
from mod_vision.routing.tiles import scatter_tiles, tile_tokens
from mod_vision.yolo.twins.base import DenseTwin
from mod_vision.yolo.twins.tiled import first_conv, probe, probing, run

BORDERS, SCOPES = ("pad", "halo"), ("inner", "block")
DEFAULT_TILE, MAX_TILE = 8, 64
RouteChain = Callable[[Sequence[nn.Module], torch.Tensor], list[torch.Tensor]]


@singledispatch
def run_inner(block: nn.Module, x: torch.Tensor, route: RouteChain) -> torch.Tensor:
    """Run a block whose chains of bottlenecks are given to `route`, which returns the map after each of them."""
    raise ValueError(f"{type(block).__name__} looks at the whole map, tiles of it cannot be routed")


@run_inner.register
def _(block: Bottleneck, x: torch.Tensor, route: RouteChain) -> torch.Tensor:
    return route([block], x)[-1]


@run_inner.register
def _(block: C3, x: torch.Tensor, route: RouteChain) -> torch.Tensor:
    return block.cv3(torch.cat((route(list(block.m), block.cv1(x))[-1], block.cv2(x)), 1))


@run_inner.register
def _(block: C2f, x: torch.Tensor, route: RouteChain) -> torch.Tensor:
    steps = list(block.cv1(x).chunk(2, 1))
    if isinstance(block.m[0], Bottleneck):
        steps += route(list(block.m), steps[-1])
    else:
        for part in block.m:
            steps.append(run_inner(part, steps[-1], route))
    return block.cv2(torch.cat(steps, 1))


@run_inner.register
def _(block: RepNCSPELAN4, x: torch.Tensor, route: RouteChain) -> torch.Tensor:
    steps = list(block.cv1(x).chunk(2, 1))
    for csp, conv in (block.cv2, block.cv3):
        steps.append(conv(run_inner(csp, steps[-1], route)))
    return block.cv4(torch.cat(steps, 1))


def find_chains(block: nn.Module) -> list[list[Any]]:
    """Return the chains of bottlenecks of a block, in forward order, by running it on an empty batch."""
    if not any(isinstance(part, Bottleneck) for part in block.modules()):
        return []
    chains: list[list[Any]] = []

    def note(chain: Sequence[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
        chains.append(list(chain))
        return [x] * len(chain)

    with probing(block) as x:
        run_inner(block, x, note)
    return chains


class TileTwin(DenseTwin):
    """Base of twins that route tiles."""

    own_options = ("tile", "border", "scope")
    raster = True  # neighbours in memory are gathered together
    takes_repeats = True
    where: str
    halo: bool
    skip: CoarseSkip | None
    margin: int
    any_size = False  # set in exports that take other sizes than the one they are traced with

    def check_block(
        self, where: str, tile: Any = DEFAULT_TILE, border: Any = "pad", scope: Any = "inner"
    ) -> tuple[int, int]:
        """Set the options, and return channels of the scored map and number of routed blocks.

        Args:
            where: Place of the block, named in errors.
            tile: Side of a tile in pixels of the map.
            border: `pad` or `halo`.
            scope: `inner` or `block`.

        Raises:
            ValueError: If an option is not valid, or the block has no residual to ride and the scope is `inner`.
        """
        if isinstance(tile, bool) or not isinstance(tile, int) or not 2 <= tile <= MAX_TILE:
            raise ValueError(f"{where}: tile must be a whole number of pixels from 2 to {MAX_TILE}, got {tile!r}.")
        for name, value, known in (("border", border, BORDERS), ("scope", scope, SCOPES)):
            if value not in known:
                raise ValueError(f"{where}: unknown {name} {value!r}, choose one of {', '.join(known)}.")
        self.where, self.tile, self.halo, self.skip = where, tile, border == "halo", None
        try:
            return self._check_inner() if scope == "inner" else self._check_whole()
        except ValueError as error:
            raise ValueError(f"{where}: {error}.") from None

    def _check_inner(self) -> tuple[int, int]:
        """Prepare for routing the chains of bottlenecks."""
        chains = find_chains(self)
        depth = sum(len(chain) for chain in chains)
        if not depth or not all(getattr(part, "add", False) for chain in chains for part in chain):
            raise ValueError(
                f"this {self.dense_type.__name__} has no residual to ride past its convolutions (no bottleneck with "
                "shortcut); route the whole block with {scope: block}"
            )
        self.margin = max(probe(nn.Sequential(*chain))[0] for chain in chains)
        return first_conv(chains[0][0]).in_channels, depth

    def _check_whole(self) -> tuple[int, int]:
        """Prepare for routing the whole block."""
        c1 = first_conv(self).in_channels
        self.margin, c2 = probe(self)
        self.skip = CoarseSkip(c1, c2)
        return c1, 1

    @torch.no_grad()
    def calibrate(self, x: torch.Tensor) -> torch.Tensor:
        """Fit the skip path of a whole block to what the dense block gives for maps x (B, C, H, W), and return that."""
        y = super().calibrate(x)
        if self.skip is not None:
            self.skip.fit(x, y)
        return y

    def route_tiles(self, x: torch.Tensor, coarse: torch.Tensor | None = None) -> RoutingPlan:
        """Score the tiles of a map (B, C, H, W) by the mean of their features, and select the best.

        Means over `coarse`, the map at 1/4 of its resolution, are the same, but for cells that the border cuts, and
        cheaper where tiles divide into its pixels.
        """
        size = (x.shape[2], x.shape[3])
        if self.tile > max(size):
            raise ValueError(
                f"{self.where}: a tile of {self.tile} pixels is larger than the {size[0]}x{size[1]} map; use a smaller "
                "`tile` in the row, or a larger image."
            )
        shared = coarse is not None and self.tile % COARSE == 0
        tokens = tile_tokens(coarse, self.tile // COARSE) if shared else tile_tokens(x, self.tile)
        plan = self.route(tokens, size)
        return plan._replace(whole=False) if self.any_size else plan

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map (B, C, H, W)."""
        return self._forward(x)

    def forward_split(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map; Ultralytics' exporters put this in the place of `forward`."""
        return self._forward(x)

    def forward_fuse(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map; Ultralytics' `fuse()` puts this in the place of `forward`."""
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dense:
            return self._forward_dense(x)
        return self._forward_inner(x) if self.skip is None else self._forward_whole(x, self.skip)

    def _forward_dense(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the dense block does."""
        return self.dense_type.forward(self, x)

    def _forward_whole(self, x: torch.Tensor, skip: CoarseSkip) -> torch.Tensor:
        """Compute the routed tiles, the others take the skip path."""
        coarse = skip.pool(x)
        plan = self.route_tiles(x, coarse)
        tiles = run(self, cut_tiles(x, plan, self.margin, self.halo)).values
        if plan.gates is not None:
            tiles = tiles * plan.gates.view(-1, 1, 1, 1).to(tiles.dtype)
        skipped = skip(coarse, size=(x.shape[2], x.shape[3]))
        out_size = (skipped.shape[2], skipped.shape[3])  # a stride shrinks map and tiles
        plan = plan._replace(size=out_size, tile=self.tile // skip.stride)
        return scatter_tiles(skipped, plan, tiles, inplace=True)

    def _forward_inner(self, x: torch.Tensor) -> torch.Tensor:
        """Route the chains of bottlenecks by one plan, scored where the first of them begins."""
        plans: list[RoutingPlan] = []

        def route(chain: Sequence[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
            plan = plans[0] if plans else self.route_tiles(x)
            plans.append(plan)
            return self._run_chain(chain, x, plan)

        return run_inner(self, x, route)

    def _run_chain(self, chain: Sequence[nn.Module], x: torch.Tensor, plan: RoutingPlan) -> list[torch.Tensor]:
        """Run a chain of residual blocks on the routed tiles, and return the map after each of them."""
        tiles = cut_tiles(x, plan, self.margin, self.halo)
        before = tiles.crop(0).values
        gates = None if plan.gates is None else plan.gates.view(-1, 1, 1, 1)
        maps = []
        for part in chain:
            tiles = run(part, tiles)
            maps.append(scatter_tiles(x, plan, apply_gates(before, tiles.crop(0).values, gates)))
        return maps


def prepare_export(exporter: Any) -> None:
    """Tell the layers of a model that Ultralytics is about to export whether its image size is fixed."""
    for module in exporter.model.modules():
        if isinstance(module, TileTwin):
            module.any_size = bool(exporter.args.dynamic)


class MoDConv(TileTwin, Conv):
    """Conv on the routed tiles only; with its stride, a tile on the map it reads gives a smaller one on its output."""

    dense_type = Conv
    own_options = ("tile", "border")

    def check_block(
        self, where: str, tile: Any = DEFAULT_TILE, border: Any = "pad", scope: Any = "block"
    ) -> tuple[int, int]:
        """Set the options; a convolution has no residual, so the whole of it is routed."""
        channels = super().check_block(where, tile, border, scope)
        if self.conv.stride[0] > 2 or tile % self.conv.stride[0]:
            raise ValueError(f"{where}: stride {self.conv.stride[0]} does not divide a tile of {tile}, or is above 2.")
        return channels

    def _check_whole(self) -> tuple[int, int]:
        """Prepare for routing, with the margin that one convolution eats."""
        if self.conv.in_channels <= 4:
            raise ValueError("this Conv reads pixels, which a router cannot tell apart")
        if self.conv.kernel_size == (1, 1):
            raise ValueError("a 1x1 convolution is hardly more work than the way around it; write Conv")
        self.margin = conv_reach(self.conv)
        self.skip = CoarseSkip(self.conv.in_channels, self.conv.out_channels, self.conv.stride[0])
        return self.conv.in_channels, 1

    def _forward_dense(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the dense convolution does."""
        return Conv.forward(self, x) if hasattr(self, "bn") else Conv.forward_fuse(self, x)


class MoDBottleneck(TileTwin, Bottleneck):
    """Bottleneck on the routed tiles only."""

    dense_type = Bottleneck


class MoDC3(TileTwin, C3):
    """C3 on the routed tiles only."""

    dense_type = C3


class MoDC2f(TileTwin, C2f):
    """C2f on the routed tiles only."""

    dense_type = C2f


class MoDC3k2(TileTwin, C3k2):
    """C3k2 on the routed tiles only."""

    dense_type = C3k2


class MoDRepNCSPELAN4(TileTwin, RepNCSPELAN4):
    """RepNCSPELAN4 (YOLOv9) on the routed tiles only."""

    dense_type = RepNCSPELAN4


class MoDRepC3(TileTwin, RepC3):
    """RepC3 (RT-DETR's neck) on the routed tiles only; it has no bottlenecks, so its scope is `block`."""

    dense_type = RepC3


class MoDHGBlock(TileTwin, HGBlock):
    """HGBlock (RT-DETR's backbone) on the routed tiles only; it has no bottlenecks, so its scope is `block`."""

    dense_type = HGBlock
