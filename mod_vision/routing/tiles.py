"""Moving tiles: squares of a feature map, out of it into a batch of small maps, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mod_vision.routing.plan import RoutingPlan


def tile_means(x: torch.Tensor, tile: int) -> torch.Tensor:
    """Return the mean of each tile of a map (B, C, H, W); a tile that reaches beyond it is averaged over its part."""
    return F.avg_pool2d(x, tile, ceil_mode=True, count_include_pad=False)


def tile_tokens(x: torch.Tensor, tile: int) -> torch.Tensor:
    """Return the mean of each tile of a map (B, C, H, W) as tokens (B, N, C), tiles in raster order."""
    return tile_means(x, tile).flatten(2).transpose(1, 2)


def _pixels(plan: RoutingPlan, margin: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return row and column of the pixels of the routed tiles, each (B * k, s) with s = tile + 2 * margin."""
    indices = plan.indices.flatten()
    offsets = torch.arange(-margin, plan.tile + margin, device=indices.device)
    columns = plan.grid[1]
    top = torch.div(indices, columns, rounding_mode="floor") * plan.tile
    left = indices % columns * plan.tile
    return top[:, None] + offsets, left[:, None] + offsets


def _flat(rows: torch.Tensor, cols: torch.Tensor, plan: RoutingPlan) -> torch.Tensor:
    """Return the index of each pixel in the flattened batch of maps, (B * k * s * s,)."""
    (height, width), (batch, k) = plan.size, plan.indices.shape
    image = torch.arange(batch, device=rows.device)[:, None].expand(batch, k).reshape(-1, 1)
    return ((image * height + rows)[:, :, None] * width + cols[:, None, :]).flatten()


def whole_tiles(plan: RoutingPlan) -> bool:
    """Return whether the map divides into tiles, so that no tile reaches beyond it."""
    return plan.size[0] % plan.tile == 0 and plan.size[1] % plan.tile == 0


def gather_tiles(x: torch.Tensor, plan: RoutingPlan, margin: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cut the routed tiles out of a map, with `margin` pixels of their neighbourhood on every side.

    Pixels are rows of the channels-last map, copied whole in one memory-bound step.

    Args:
        x: (B, C, H, W), fastest in channels-last memory.
        plan: Routing of the map's tiles.
        margin: Width of the neighbourhood.

    Returns:
        Tiles (B * k, C, s, s) with s = tile + 2 * margin, zero outside of the map, and which of their pixels lie on the
        map, (B * k, 1, s, s), 1 or 0 in the dtype of x, or None if all do.
    """
    channels, (height, width) = x.shape[1], plan.size
    rows, cols = _pixels(plan, margin)
    side = rows.shape[1]
    flat = x.permute(0, 2, 3, 1).reshape(-1, channels)
    index = _flat(rows.clamp(0, height - 1), cols.clamp(0, width - 1), plan)
    tiles = flat.index_select(0, index).view(-1, side, side, channels).permute(0, 3, 1, 2)
    if not margin and whole_tiles(plan):
        return tiles, None
    on_rows, on_cols = (rows >= 0) & (rows < height), (cols >= 0) & (cols < width)
    inside = (on_rows[:, None, :, None] & on_cols[:, None, None, :]).to(x.dtype)
    return tiles.mul_(inside), inside  # a fresh tensor


def scatter_tiles(x: torch.Tensor, plan: RoutingPlan, tiles: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Return the map with its routed tiles overwritten; every other pixel is bit-identical.

    Args:
        x: (B, C, H, W).
        plan: Routing of the map's tiles.
        tiles: (B * k, C, tile, tile), cast to the dtype of x. Pixels beyond the map are dropped.
        inplace: Whether x, in channels-last memory and needed by nobody else, may be overwritten: saves a copy.

    Returns:
        (B, C, H, W) in channels-last memory.
    """
    batch, channels, height, width = x.shape
    rows, cols = _pixels(plan, 0)
    flat = x.permute(0, 2, 3, 1).reshape(-1, channels)
    values = tiles.permute(0, 2, 3, 1).reshape(-1, channels).to(flat.dtype)
    index = _flat(rows, cols, plan)
    if whole_tiles(plan):
        flat = flat.index_copy_(0, index, values) if inplace else flat.index_copy(0, index, values)
    else:  # pixels beyond the map get a row of their own, which is cut off again
        on_map = ((rows < height)[:, :, None] & (cols < width)[:, None, :]).flatten()
        index = torch.where(on_map, index, flat.shape[0])
        flat = F.pad(flat, (0, 0, 0, 1)).index_copy(0, index, values)[:-1]
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
