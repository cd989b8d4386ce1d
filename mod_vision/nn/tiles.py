"""Convolutions over a batch of tiles that come out as if the whole map had been convolved."""

from __future__ import annotations

from typing import NamedTuple

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
        inside = None if self.inside is None else _crop(self.inside, cut)
        return self._replace(values=_crop(self.values, cut), margin=margin, inside=inside)

    def become(self, values: torch.Tensor) -> Tiles:
        """Return the tiles with other values, which need not be zero beyond the map."""
        return self._replace(values=values, zeroed=self.inside is None)

    def conv(self, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tiles:
        """Convolve with stride 1, and normalise.

        Raises:
            ValueError: If the convolution does not keep the size of a map, or the margin is used up.
        """
        reach = conv_reach(conv)
        values = self.values
        if reach and not self.zeroed and self.inside is not None:
            values = values * self.inside
        if reach > self.margin and self.halo:
            raise ValueError(f"a margin of {self.margin} pixels is too narrow for a convolution that reaches {reach}.")
        tiles = self.crop(self.margin - reach) if self.halo else self
        padding = 0 if self.halo else conv.padding
        values = F.conv2d(values, conv.weight, conv.bias, 1, padding, conv.dilation, conv.groups)
        return tiles.become(values).norm(norm) if norm is not None else tiles.become(values)

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
        ValueError: If it is not square, odd, of stride 1 and padded to keep the size of a map.
    """
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1) // 2
    same = isinstance(conv.padding, tuple) and set(conv.padding) == {reach} and set(conv.stride) == {1}
    if not same or len(set(conv.kernel_size)) > 1 or len(set(conv.dilation)) > 1 or conv.kernel_size[0] % 2 == 0:
        raise ValueError(f"tiles need square, odd convolutions of stride 1 that keep the size of a map, not {conv}.")
    return reach


def _crop(x: torch.Tensor, cut: int) -> torch.Tensor:
    """Cut `cut` pixels off every side of (T, C, s, s)."""
    return x[:, :, cut:-cut, cut:-cut]


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
