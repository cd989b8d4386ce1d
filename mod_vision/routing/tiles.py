"""Moving tiles: squares of a feature map, out of it into a batch of small maps, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mod_vision.routing.gather import put_rows
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


def _planar() -> bool:
    """Return whether the pixels of a channel lie side by side, as in ONNX Runtime, not the channels of a pixel."""
    return torch.onnx.is_in_onnx_export()


def _as_strips(x: torch.Tensor, tile: int, planar: bool) -> torch.Tensor:
    """View maps (B, C, H, W) as a table of strips: `tile` pixels of a row, of one channel if planar, else of all."""
    return x.reshape(-1, tile) if planar else x.permute(0, 2, 3, 1).reshape(-1, tile * x.shape[1])


def _strips(plan: RoutingPlan, planes: int) -> torch.Tensor:
    """Return the strips of the routed tiles in the table of maps with so many planes, (B * k * planes * tile,)."""
    (rows, columns), batch, device = plan.grid, plan.indices.shape[0], plan.indices.device
    strip = torch.div(plan.indices, columns, rounding_mode="floor") * (plan.tile * columns) + plan.indices % columns
    strip = strip[:, :, None, None] + torch.arange(plan.tile, device=device) * columns
    plane = torch.arange(batch * planes, device=device).view(batch, 1, planes, 1) * (rows * plan.tile * columns)
    return (strip + plane).flatten()


def gather_tiles(x: torch.Tensor, plan: RoutingPlan, margin: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cut the routed tiles out of a map, with `margin` pixels of their neighbourhood on every side.

    Without a margin, a tile is copied in strips, which lie in one piece in memory; else pixel by pixel, each a row of
    the channels-last map.

    Args:
        x: (B, C, H, W), fastest in channels-last memory.
        plan: Routing of the map's tiles.
        margin: Width of the neighbourhood.

    Returns:
        Tiles (B * k, C, s, s) with s = tile + 2 * margin, zero outside of the map, and which of their pixels lie on the
        map, (B * k, 1, s, s), 1 or 0 in the dtype of x, or None if all do.
    """
    channels, (height, width) = x.shape[1], plan.size
    if plan.whole and not margin:
        return _gather_strips(x, plan), None
    rows, cols = _pixels(plan, margin)
    side = rows.shape[1]
    flat = x.permute(0, 2, 3, 1).reshape(-1, channels)
    index = _flat(rows.clamp(0, height - 1), cols.clamp(0, width - 1), plan)
    tiles = flat.index_select(0, index).view(-1, side, side, channels).permute(0, 3, 1, 2)
    on_rows, on_cols = (rows >= 0) & (rows < height), (cols >= 0) & (cols < width)
    inside = (on_rows[:, None, :, None] & on_cols[:, None, None, :]).to(x.dtype)
    return tiles.mul_(inside), inside  # a fresh tensor


def _gather_strips(x: torch.Tensor, plan: RoutingPlan) -> torch.Tensor:
    """Cut the routed tiles (B * k, C, tile, tile) out of a map that they divide."""
    channels, tile, planar = x.shape[1], plan.tile, _planar()
    strips = _as_strips(x, tile, planar).index_select(0, _strips(plan, channels if planar else 1))
    if planar:
        return strips.view(-1, channels, tile, tile)
    return strips.view(-1, tile, tile, channels).permute(0, 3, 1, 2)


def scatter_tiles(x: torch.Tensor, plan: RoutingPlan, tiles: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Return the map with its routed tiles overwritten; every other pixel is bit-identical.

    Args:
        x: (B, C, H, W).
        plan: Routing of the map's tiles.
        tiles: (B * k, C, tile, tile), cast to the dtype of x. Pixels beyond the map are dropped.
        inplace: Whether x, in channels-last memory and needed by nobody else, may be overwritten: saves a copy.

    Returns:
        (B, C, H, W), in channels-last memory but in exported graphs.
    """
    batch, channels, height, width = x.shape
    tiles = tiles.to(x.dtype)
    if plan.whole:
        planar = _planar()
        table, strips = (_as_strips(maps, plan.tile, planar) for maps in (x, tiles))
        flat = put_rows(table, _strips(plan, channels if planar else 1), strips, inplace)
        if planar:
            return flat.view(x.shape)
    else:  # pixels beyond the map get a row of their own, which is cut off again
        rows, cols = _pixels(plan, 0)
        on_map = ((rows < height)[:, :, None] & (cols < width)[:, None, :]).flatten()
        flat = x.permute(0, 2, 3, 1).reshape(-1, channels)
        index = torch.where(on_map, _flat(rows, cols, plan), flat.shape[0])
        flat = put_rows(F.pad(flat, (0, 0, 0, 1)), index, tiles.permute(0, 2, 3, 1).reshape(-1, channels))[:-1]
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
