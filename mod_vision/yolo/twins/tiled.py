"""How Ultralytics' convolution blocks run on tiles: the same parameters, step by step as the blocks themselves do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import singledispatch

import torch
from torch import nn
from ultralytics.nn.modules.block import C3, Bottleneck, C2f, HGBlock, RepC3, RepNCSPELAN4
from ultralytics.nn.modules.conv import Conv, LightConv, RepConv

from mod_vision.nn.tiles import Tiles

PROBE_MARGIN = 64


@singledispatch
def run(block: nn.Module, tiles: Tiles) -> Tiles:
    """Run a block on tiles.

    Raises:
        ValueError: If the block is none that is known to work on a part of a map.
    """
    raise ValueError(f"{type(block).__name__} looks at the whole map, tiles of it cannot be routed")


@run.register
def _(block: nn.Sequential, tiles: Tiles) -> Tiles:
    for part in block:
        tiles = run(part, tiles)
    return tiles


@run.register
def _(block: Conv, tiles: Tiles) -> Tiles:
    tiles = tiles.conv(block.conv, getattr(block, "bn", None))  # fused ones have no norm
    return tiles.become(block.act(tiles.values))


@run.register
def _(block: RepConv, tiles: Tiles) -> Tiles:
    if hasattr(block, "conv"):  # fused
        fused = tiles.conv(block.conv)
        return fused.become(block.act(fused.values))
    wide, narrow = run(block.conv1, tiles), run(block.conv2, tiles)  # neither has an activation
    values = wide.values + narrow.crop(wide.margin).values
    if block.bn is not None:
        values = values + tiles.norm(block.bn).crop(wide.margin).values
    return wide.become(block.act(values))


@run.register
def _(block: Bottleneck, tiles: Tiles) -> Tiles:
    out = run(block.cv2, run(block.cv1, tiles))
    return out.become(tiles.crop(out.margin).values + out.values) if block.add else out


@run.register
def _(block: C3, tiles: Tiles) -> Tiles:
    deep = run(block.m, run(block.cv1, tiles))
    return run(block.cv3, _cat([deep, run(block.cv2, tiles.crop(deep.margin))]))


@run.register
def _(block: C2f, tiles: Tiles) -> Tiles:
    return run(block.cv2, _split_and_chain(block.cv1, list(block.m), tiles))


@run.register
def _(block: RepNCSPELAN4, tiles: Tiles) -> Tiles:
    return run(block.cv4, _split_and_chain(block.cv1, [block.cv2, block.cv3], tiles))


@run.register
def _(block: RepC3, tiles: Tiles) -> Tiles:
    deep = run(block.m, run(block.cv1, tiles))
    out = deep.become(deep.values + run(block.cv2, tiles.crop(deep.margin)).values)
    return out if isinstance(block.cv3, nn.Identity) else run(block.cv3, out)


@run.register
def _(block: LightConv, tiles: Tiles) -> Tiles:
    return run(block.conv2, run(block.conv1, tiles))


@run.register
def _(block: HGBlock, tiles: Tiles) -> Tiles:
    steps = [tiles]
    for part in block.m:
        steps.append(run(part, steps[-1]))
    out = run(block.ec, run(block.sc, _cat(steps)))
    return out.become(out.values + tiles.crop(out.margin).values) if block.add else out


def _split_and_chain(first: nn.Module, chain: list[nn.Module], tiles: Tiles) -> Tiles:
    """Halve the channels after `first`, run the chain on the second half, and return all of its steps side by side."""
    tiles = run(first, tiles)
    steps = [tiles.become(half) for half in tiles.values.chunk(2, 1)]
    for part in chain:
        steps.append(run(part, steps[-1]))
    return _cat(steps)


def _cat(steps: list[Tiles]) -> Tiles:
    """Concatenate the channels of tiles, at the margin of the last one or the narrowest."""
    margin = min(step.margin for step in steps)
    return steps[-1].crop(margin).become(torch.cat([step.crop(margin).values for step in steps], 1))


def first_conv(block: nn.Module) -> nn.Conv2d:
    """Return the convolution that reads the block's input."""
    return next(module for module in block.modules() if isinstance(module, nn.Conv2d))


@contextmanager
def probing(block: nn.Module) -> Iterator[torch.Tensor]:
    """Give an empty batch of maps for the block, which is in eval mode meanwhile: running it costs nothing."""
    weight = first_conv(block).weight
    side = 2 * PROBE_MARGIN + 1
    modes = [(module, module.training) for module in block.modules()]
    block.eval()
    try:
        with torch.no_grad():
            yield weight.new_empty(0, first_conv(block).in_channels, side, side)
    finally:
        for module, training in modes:
            module.training = training


def probe(block: nn.Module) -> tuple[int, int]:
    """Return how many pixels to each side a block reads, and its output channels.

    It is run on a batch of no tiles: what is missing of the margin is what it reads.

    Raises:
        ValueError: If the block looks at the whole map, or has convolutions that tiles cannot run.
    """
    with probing(block) as x:
        tiles = run(block, Tiles(x, PROBE_MARGIN, True, None))
    return PROBE_MARGIN - tiles.margin, tiles.values.shape[1]
