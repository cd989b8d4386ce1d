"""Convolutions over a batch of tiles that come out as if the whole map had been convolved."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mod_vision.routing.plan import RoutingPlan
from mod_vision.routing.tiles import gather_tiles


class Tiles(NamedTuple):
    """Routed tiles on their way through a block.

    With a margin (border `halo`), a convolution pads nothing: it eats its reach of the margin, so what is left is what
    the convolution of the whole map gives. Without one (border `pad`), each tile is padded with zeros, as if it were
    an image of its own.

    Attributes:
        values: (T, C, s, s) with s = tile + 2 * margin, in channels-last memory.
        margin: Pixels of the neighbourhood that are left on every side.
        halo: Whether convolutions eat the margin instead of padding.
        inside: (T, 1, s, s), 1 for pixels of the map and 0 beyond it, or None if all tiles lie on the map.
        zeroed: Whether the values beyond the map are zero, as the padding of the whole map would be.
    """

    values: torch.Tensor
    margin: int
    halo: bool
    inside: torch.Tensor | None
    zeroed: bool = True

    def crop(self, margin: int) -> Tiles:
        """Return the tiles with less margin."""
        cut = self.margin - margin
        if not cut:
            return self
        return self._replace(values=_crop(self.values, cut), margin=margin, inside=_crop(self.inside, cut))

    def become(self, values: torch.Tensor) -> Tiles:
        """Return the tiles with other values, which need not be zero beyond the map."""
        return self._replace(values=values, zeroed=self.inside is None)

    def conv(self, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tiles:
        """Convolve, and normalise. A stride divides side and margin of the tiles.

        Raises:
            ValueError: If the convolution cannot run on tiles, or the margin is too narrow for it.
        """
        reach, stride = conv_reach(conv), conv.stride[0]
        values, inside = self.values, self.inside
        if reach and not self.zeroed and inside is not None:
            values = values * inside
        margin = self.margin
        if self.halo:
            if reach > margin or (margin - reach) % stride:
                raise ValueError(f"a margin of {margin} pixels does not fit a convolution that reaches {reach}")
            margin = (margin - reach) // stride
            inside = _crop(inside, reach)
        if conv.kernel_size == (1, 1) and stride == 1:
            values = _conv_pixels(conv, values)
        else:
            padding = 0 if self.halo else reach
            values = F.conv2d(values, conv.weight, conv.bias, stride, padding, conv.dilation, conv.groups)
        inside = None if inside is None else inside[:, :, ::stride, ::stride]
        tiles = self._replace(values=values, margin=margin, inside=inside, zeroed=inside is None)
        return tiles if norm is None else tiles.norm(norm)

    def norm(self, norm: nn.Module) -> Tiles:
        """Normalise; a BatchNorm in training takes its statistics from the tiles' own pixels on the map, each once."""
        if not isinstance(norm, nn.BatchNorm2d) or not norm.training or self.inside is None:
            return self.become(norm(self.values))
        core = self.crop(0)
        assert core.inside is not None
        return self.become(_batch_norm(norm, self.values, core.values, core.inside))


def cut_tiles(x: torch.Tensor, plan: RoutingPlan, margin: int, halo: bool) -> Tiles:
    """Cut the routed tiles out of a map (B, C, H, W), with a margin if the border is `halo`."""
    margin = margin if halo else 0
    values, inside = gather_tiles(x, plan, margin)
    return Tiles(values, margin, halo, inside)


def conv_reach(conv: nn.Conv2d) -> int:
    """Return how many pixels to each side a convolution reads.

    Raises:
        ValueError: If it is not square and odd, or not padded by as much as it reads.
    """
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1) // 2
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.dilation, conv.stride))
    if not square or conv.kernel_size[0] % 2 == 0 or conv.padding not in ((reach, reach), "same"):
        raise ValueError(f"tiles need square, odd convolutions padded by as much as they read, not {conv}")
    return reach


def _crop(x: torch.Tensor | None, cut: int) -> Any:
    """Cut `cut` pixels off every side of (T, C, s, s)."""
    return x if x is None or not cut else x[:, :, cut:-cut, cut:-cut]


def _conv_pixels(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Run a 1x1 convolution on (T, C, s, s), all pixels in one row: small images are multiplied in small pieces."""
    other_backend = torch.jit.is_tracing() or torch.compiler.is_exporting()  # keeps channels first, would copy
    if other_backend or not len(x):  # no tile is an image, but no pixel is none
        return F.conv2d(x, conv.weight, conv.bias, groups=conv.groups)
    rows = x.permute(0, 2, 3, 1)
    one = F.conv2d(rows.flatten(0, 2)[None, None].permute(0, 3, 1, 2), conv.weight, conv.bias, groups=conv.groups)
    return one.permute(0, 2, 3, 1).reshape(*rows.shape[:3], conv.out_channels).permute(0, 3, 1, 2)


def _batch_norm(norm: nn.BatchNorm2d, x: torch.Tensor, core: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Normalise x (T, C, s, s) by mean and variance of the pixels of `core` that are `inside`, as BatchNorm trains."""
    wide = core.float() if core.dtype in (torch.float16, torch.bfloat16) else core
    inside = inside.to(wide.dtype)
    count = inside.sum()
    mean = (wide * inside).sum((0, 2, 3)) / count
    var = ((wide - mean[:, None, None]).square() * inside).sum((0, 2, 3)) / count
    if norm.track_running_stats:
        _track(norm, mean.detach(), (var * count / (count - 1).clamp(min=1)).detach())
    scale = torch.rsqrt(var + norm.eps) * (1.0 if norm.weight is None else norm.weight)
    shift = (0.0 if norm.bias is None else norm.bias) - mean * scale
    return torch.addcmul(shift[:, None, None].to(x.dtype), x, scale[:, None, None].to(x.dtype))


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: torch.Tensor, var: torch.Tensor) -> None:
    """Update the running statistics as BatchNorm does."""
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / norm.num_batches_tracked.float() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(var.to(norm.running_var.dtype), momentum)
