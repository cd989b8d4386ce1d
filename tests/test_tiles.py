"""Tiles in plain torch: cutting them out, putting them back, and convolutions that come out as on the whole map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mod_vision.nn.skip import COARSE, CoarseSkip
from mod_vision.nn.tiles import Tiles, conv_reach, cut_tiles
from mod_vision.routing import make_plan
from mod_vision.routing.tiles import gather_tiles, scatter_tiles, tile_tokens


def tile_plan(batch: int, k: int, size: tuple[int, int], tile: int):
    """Route k random tiles of each image."""
    tokens = -(-size[0] // tile) * -(-size[1] // tile)
    return make_plan(torch.rand(batch, tokens), min(k, tokens), size, gated=False, raster=True, tile=tile)


@st.composite
def cases(draw):
    tile = draw(st.integers(2, 5))
    grid, rest = (
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        draw(st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)])),
    )
    size = (grid[0] * tile + rest[0], grid[1] * tile + rest[1])
    return draw(st.integers(1, 3)), draw(st.integers(1, 4)), size, tile, draw(st.integers(0, 4))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_gather_reads_the_true_neighbourhood(case):
    """Each tile equals a slice of the zero-padded map, found by a loop that knows nothing of the fast indices."""
    batch, k, size, tile, margin = case
    x = torch.randn(batch, 3, *size)
    plan = tile_plan(batch, k, size, tile)
    tiles, inside = gather_tiles(x, plan, margin)
    reach = margin + tile
    padded, ones = (F.pad(t, (reach,) * 4) for t in (x, torch.ones_like(x[:, :1])))
    columns = plan.grid[1]
    for number, (image, index) in enumerate((b, i) for b in range(batch) for i in plan.indices[b].tolist()):
        top, left = index // columns * tile + reach - margin, index % columns * tile + reach - margin
        window = slice(top, top + tile + 2 * margin), slice(left, left + tile + 2 * margin)
        assert torch.equal(tiles[number], padded[image, :, window[0], window[1]])
        expected = ones[image, :, window[0], window[1]]
        assert inside is None or torch.equal(inside[number], expected)
        assert inside is not None or expected.all()


@given(cases())
@settings(max_examples=20, deadline=None)
def test_strips_copy_what_pixels_do(case):
    """Tiles that divide the map take a faster way; it is the same one, whatever the memory format."""
    batch, k, size, tile, _ = case
    plan = tile_plan(batch, k, (size[0] // tile * tile, size[1] // tile * tile), tile)
    assert plan.whole
    for memory in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(batch, 3, *plan.size).contiguous(memory_format=memory)
        strips, pixels = gather_tiles(x, plan)[0], gather_tiles(x, plan._replace(whole=False))[0]
        assert torch.equal(strips, pixels)
        changed = (scatter_tiles(x, plan._replace(whole=whole), -strips) for whole in (True, False))
        assert torch.equal(*changed)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_scatter_changes_the_routed_tiles_only(case):
    batch, k, size, tile, _ = case
    x = torch.randn(batch, 3, *size)
    plan = tile_plan(batch, k, size, tile)
    kept = plan.kept()[:, None].expand_as(x)
    assert plan.kept().shape == (batch, *size)
    tiles, _ = gather_tiles(x, plan)
    assert torch.equal(scatter_tiles(x, plan, tiles), x)
    out = scatter_tiles(x, plan, tiles + 10)
    assert torch.equal(out[~kept], x[~kept])
    torch.testing.assert_close(out[kept], x[kept] + 10)
    assert torch.equal(scatter_tiles(x.clone(), plan, tiles + 10, inplace=True), out)


def test_tokens_are_means_of_tiles():
    x = torch.randn(2, 3, 5, 8)
    tokens = tile_tokens(x, 4)
    assert tokens.shape == (2, 4, 3)
    torch.testing.assert_close(tokens[:, 1], x[:, :, :4, 4:].mean((2, 3)))
    torch.testing.assert_close(tokens[:, 2], x[:, :, 4:, :4].mean((2, 3)))


def test_touched_tiles():
    plan = tile_plan(1, 1, (5, 8), 4)
    marks = torch.zeros(1, 5, 8)
    marks[0, 4, 3] = 1
    assert plan.touched(marks).tolist() == [[0, 0, 1, 0]]


@given(cases(), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_two_convolutions_with_a_halo_equal_those_of_the_map(case, kernel, dilation):
    """The activation moves zeros, so the padding of the second convolution must be put back."""
    batch, k, size, tile, _ = case
    first = nn.Conv2d(3, 4, kernel, padding=dilation * (kernel // 2), dilation=dilation).double()
    second = nn.Conv2d(4, 2, 3, padding=1).double()
    x = torch.randn(batch, 3, *size).double()
    plan = tile_plan(batch, k, size, tile)
    margin = conv_reach(first) + conv_reach(second)
    tiles = cut_tiles(x, plan, margin, halo=True).conv(first)
    tiles = tiles.become(tiles.values.cos()).conv(second)
    assert tiles.margin == 0
    whole = second(first(x).cos())
    torch.testing.assert_close(scatter_tiles(whole, plan, tiles.values), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_strided_convolution_equals_that_of_the_map(size):
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()
    x = torch.randn(2, 3, *size).double()
    plan = tile_plan(2, 3, size, 4)
    tiles = cut_tiles(x, plan, 1, halo=True).conv(conv)
    whole = conv(x)
    out = plan._replace(size=tuple(whole.shape[2:]), tile=2)
    torch.testing.assert_close(scatter_tiles(whole, out, tiles.values), whole, rtol=0, atol=1e-12)


def test_padded_tiles_are_images_of_their_own():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 8, 12)
    plan = tile_plan(2, 3, (8, 12), 4)
    tiles = cut_tiles(x, plan, 5, halo=False)
    assert tiles.values.shape == (6, 3, 4, 4)
    torch.testing.assert_close(tiles.conv(conv).values, conv(tiles.values))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("halo", "size"), [(True, (8, 8)), (True, (7, 9)), (False, (8, 8)), (False, (7, 9))])
def test_batch_norm_counts_the_pixels_of_the_tiles_once(halo, size, momentum):
    """Neither the neighbourhood nor what lies beyond the map enters mean, variance and running statistics."""
    x = torch.randn(2, 3, *size).double() * 3 + 1
    plan = tile_plan(2, 3, size, 4)
    norm, reference = (nn.BatchNorm2d(3, momentum=momentum).double().train() for _ in range(2))
    for module in (norm, reference):
        nn.init.constant_(module.weight, 1.5)
        nn.init.constant_(module.bias, -0.5)
    kept = plan.kept()
    pixels = x.permute(0, 2, 3, 1)[kept]  # (n, 3)
    expected = reference(pixels.T[None, :, :, None]).view(3, -1).T
    tiles = cut_tiles(x, plan, 2, halo).norm(norm).crop(0)
    out = scatter_tiles(x, plan, tiles.values).permute(0, 2, 3, 1)[kept]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(norm.state_dict(), reference.state_dict())


def test_gradients():
    """Through the cut with its overlaps, the convolution, the statistics and the way back."""
    conv, norm = nn.Conv2d(2, 2, 3, padding=1).double(), nn.BatchNorm2d(2).double().train()
    plan = tile_plan(1, 2, (5, 4), 2)

    def through(x: torch.Tensor) -> torch.Tensor:
        tiles = cut_tiles(x, plan, 1, halo=True).conv(conv).norm(norm)
        return scatter_tiles(x, plan, tiles.values)

    assert torch.autograd.gradcheck(through, torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 2, (1, 3), padding=(0, 1)),
        nn.Conv2d(2, 2, 2),
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 3, stride=(1, 2), padding=1),
    ],
)
def test_convolutions_that_tiles_cannot_run(conv):
    with pytest.raises(
        ValueError, match=r"tiles need square, odd convolutions padded by as much as they read, not Conv"
    ):
        conv_reach(conv)


def test_margin_too_narrow():
    tiles = Tiles(torch.zeros(1, 2, 6, 6), 1, True, None)
    with pytest.raises(ValueError, match="a margin of 1 pixels does not fit a convolution that reaches 2"):
        tiles.conv(nn.Conv2d(2, 2, 5, padding=2))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 12), (7, 9), (3, 3)])
def test_coarse_skip(stride, size):
    skip = CoarseSkip(3, 5, stride)
    x = torch.randn(2, 3, *size)
    out = skip(skip.pool(x), size)
    assert out.shape == (2, 5, -(-size[0] // stride), -(-size[1] // stride))
    block = COARSE // stride
    corner = x[:, :, :COARSE, :COARSE].mean((2, 3)) @ skip.conv.weight[:, :, 0, 0].T + skip.conv.bias
    torch.testing.assert_close(
        out[:, :, :block, :block],
        corner[..., None, None].expand(-1, -1, block, block)[:, :, : out.shape[2], : out.shape[3]],
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_coarse_skip_is_fitted_in_closed_form(stride):
    """A linear map of the means is found again, and noise is averaged away."""
    x = torch.randn(8, 3, 32, 32)
    true, skip = CoarseSkip(3, 5, stride), CoarseSkip(3, 5, stride)
    y = true(true.pool(x), (32, 32)).detach()
    skip.fit(x, y + 0.01 * torch.randn_like(y))
    torch.testing.assert_close(skip.conv.weight, true.conv.weight, rtol=0.05, atol=0.02)
    torch.testing.assert_close(skip.conv.bias, true.conv.bias, rtol=0.05, atol=0.01)
