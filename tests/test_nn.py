"""Blocks in plain torch: the routed stage, attention and the transformer block."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from helpers import random_parameters
from torch import nn
from torch.nn import functional as F

from mod_vision.nn import MoDStage, TransformerBlock
from mod_vision.nn.attention import SelfAttention, rotary_table, rotate
from mod_vision.nn.skip import LinearSkip
from mod_vision.nn.stage import default_heads
from mod_vision.routing import num_routed

ALL = 0.9999999  # below 1, so tokens are gathered, and rounded up to all of them


class CountingBlock(nn.Module):
    """Adds 1 to every token it is given, with the signature of a transformer block."""

    def forward(self, x, rotation, mask=None):
        assert rotation[0].shape[1] == x.shape[1]
        return x + 1


def counting_stage(n: int, capacity: object) -> MoDStage:
    """Build a stage whose output minus input is the number of blocks each token passed."""
    stage = MoDStage(8, 8, n, capacity, router="norm")
    stage.blocks = nn.ModuleList(CountingBlock() for _ in range(n))
    nn.init.zeros_(stage.pos.weight)
    nn.init.zeros_(stage.pos.bias)
    return stage


# ---------------------------------------------------------------------------------------------------------- MoDStage


@pytest.mark.parametrize("channels", [(16, 16), (12, 16)])
@pytest.mark.parametrize("size", [(5, 6), (1, 9), (7, 1)])
def test_gathering_all_tokens_equals_the_dense_stage(channels, size):
    stage = random_parameters(MoDStage(*channels, n=3, capacity=ALL, num_heads=2)).double()
    for parameter in stage.router.parameters():
        nn.init.zeros_(parameter)  # score 0, gate 1
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    routed = stage(x)
    assert stage.plan.indices.shape[1] == size[0] * size[1]
    stage.set_capacity(1.0)
    dense = stage(x)
    assert stage.plan is None
    torch.testing.assert_close(routed, dense, rtol=0, atol=1e-9)


@pytest.mark.parametrize("router", ["norm", "linear", "grid"])
def test_token_order_does_not_matter(router):
    stage = random_parameters(MoDStage(16, 16, n=2, capacity=ALL, num_heads=2, router=router)).double()
    x = torch.randn(2, 16, 4, 5, dtype=torch.float64)
    tokens = stage(x) - (x + stage.pos(x))
    gates = 1.0
    if stage.plan.gates is not None:
        gates = torch.zeros(2, 20, 1, dtype=torch.float64).scatter(1, stage.plan.indices[..., None], stage.plan.gates)
        gates = gates.transpose(1, 2).unflatten(2, (4, 5))
    stage.set_capacity(1.0)
    torch.testing.assert_close(tokens, gates * (stage(x) - (x + stage.pos(x))), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (9, 16)])
@pytest.mark.parametrize("capacity", [1.0, 0.5, [0.8, 0.1]])
def test_any_size_and_shape(size, capacity):
    stage = MoDStage(8, 16, 2, capacity)
    out = stage(torch.randn(2, 8, *size))
    assert out.shape == (2, 16, *size)
    assert out.isfinite().all()
    out.square().mean().backward()
    for name, parameter in stage.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("trained", [False, True])
def test_skipped_tokens_take_the_linear_map(trained):
    stage = random_parameters(MoDStage(8, 16, 2, 0.3))
    if not trained:
        stage.skip = LinearSkip(16)
    x = torch.randn(2, 8, 6, 7)
    out, before = stage(x), stage.proj(x)
    before = before + stage.pos(before)
    skipped = before + F.conv2d(before, stage.skip.weight[:, :, None, None], stage.skip.bias)
    kept = stage.plan.kept()[:, None].expand_as(out)
    torch.testing.assert_close(out[~kept], skipped[~kept])
    assert trained or torch.equal(out[~kept], before[~kept]), "a new stage starts with the residual"
    assert (out[kept] != before[kept]).float().mean() > 0.99


def test_linear_skip_is_fitted_in_closed_form():
    tokens, mix = torch.randn(3, 50, 8), torch.randn(8, 8)
    wanted = tokens + tokens @ mix + 3.0
    skip = LinearSkip(8)
    assert torch.equal(skip(tokens), tokens)
    skip.fit(tokens, wanted)
    assert (skip(tokens) - wanted).norm() < 0.02 * (tokens - wanted).norm(), "up to the ridge"


@pytest.mark.parametrize("capacity", [0.5, [0.75, 0.5, 0.25], [0.9, 0.1], [1.0, 0.5], [1.0, 1.0, 0.2]])
def test_depth_map_tells_what_each_token_passed(capacity):
    n, size = 6, (4, 5)
    stage = counting_stage(n, capacity)
    x = torch.randn(2, 8, *size).mul(4).round()
    passed = stage(x) - x
    depth = stage.depth_map()
    assert depth.shape == (2, *size)
    assert torch.equal(passed, depth[:, None].expand_as(passed).float())
    for block, share in enumerate(stage.capacities, start=1):
        assert ((depth >= block).sum(dim=(1, 2)) == num_routed(20, share)).all()
    for logits, depths in zip(stage.plan.logits, depth.flatten(1), strict=True):
        order = logits.argsort(descending=True)
        assert (depths[order].diff() <= 0).all(), "a token with a higher score must not pass fewer blocks"


def test_depth_map_at_capacity_one():
    stage = counting_stage(3, 1.0)
    x = torch.randn(1, 8, 4, 5).round()
    assert torch.equal(stage(x), x + 3)
    assert stage.depth_map() is None


def test_copies_leave_the_plan_behind():
    stage = MoDStage(8, 16, 2, 0.5)
    x = torch.randn(2, 8, 6, 6)
    expected = stage(x)
    assert stage.plan.logits.requires_grad
    for twin in (copy.deepcopy(stage), pickle.loads(pickle.dumps(stage))):
        assert twin.plan is None
        assert torch.equal(twin(x), expected)
        assert twin.plan is not None
    assert stage.plan is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("capacity", [1.0, 0.5])
def test_low_precision(dtype, capacity):
    stage = MoDStage(8, 32, 2, capacity)
    x = torch.randn(2, 8, 6, 5)
    out = copy.deepcopy(stage).to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()
    if capacity == 1.0:
        torch.testing.assert_close(out.float(), stage(x), rtol=0.1, atol=0.1)


def test_autocast_trains():
    stage = MoDStage(8, 32, 2, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = stage(torch.randn(2, 8, 6, 5))
    out.float().square().mean().backward()
    assert stage.router.proj.weight.grad.abs().max() > 0
    assert all(p.grad.isfinite().all() for p in stage.parameters())


@pytest.mark.parametrize("heads", [3, 8, 0, -1, 2.0, "two"])
def test_heads_that_do_not_fit(heads):
    with pytest.raises(ValueError, match=r"^layer 6: 16 channels do not divide into ") as error:
        MoDStage(8, 16, num_heads=heads, where="layer 6")
    assert f"into {heads!r} heads" in str(error.value)
    assert "try num_heads=1" in str(error.value)
    assert MoDStage(8, 16, num_heads=1).head_dim == 16


def test_channels_without_any_fitting_heads():
    with pytest.raises(ValueError, match=r"^layer 6: 6 channels ") as error:
        MoDStage(8, 6, where="layer 6")
    assert "try num_heads" not in str(error.value)
    assert "use a multiple of 4 channels" in str(error.value)


def test_default_heads_fit():
    for dim in range(4, 600, 4):
        heads = default_heads(dim)
        assert dim % (4 * heads) == 0
        assert heads == 1 or dim // heads >= 32


# --------------------------------------------------------------------------------------------------------- attention


def test_rotary_scores_depend_on_the_difference_of_positions():
    height, width, dim = 5, 4, 16
    like = torch.zeros(1, dtype=torch.float64)
    table = rotary_table((height, width), dim, like)
    q, k = (torch.randn(1, 1, 1, dim, dtype=torch.float64).expand(1, 1, height * width, dim) for _ in range(2))
    scores = (rotate(q, table) @ rotate(k, table).transpose(2, 3))[0, 0]
    by_difference: dict[tuple[int, int], list[float]] = {}
    for i in range(height * width):
        for j in range(height * width):
            key = (i // width - j // width, i % width - j % width)
            by_difference.setdefault(key, []).append(scores[i, j].item())
    assert len(by_difference) == (2 * height - 1) * (2 * width - 1)
    means = []
    for values in by_difference.values():
        assert max(values) - min(values) < 1e-5
        means.append(sum(values) / len(values))
    means.sort()
    assert min(b - a for a, b in itertools.pairwise(means)) > 1e-5, "differences must be told apart"


def test_rotation_keeps_the_norm():
    table = rotary_table((3, 4), 8, torch.zeros(1))
    x = torch.randn(2, 2, 12, 8)
    torch.testing.assert_close(rotate(x, table).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x, table)[:, :, 0], x[:, :, 0])  # position (0, 0)


def test_attention_equals_a_plain_implementation():
    attention = SelfAttention(12, 3).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    mask = torch.rand(2, 1, 7, 7) > 0.5
    mask |= torch.eye(7, dtype=torch.bool)
    q, k, v = (t.reshape(2, 7, 3, 4).transpose(1, 2) for t in attention.qkv(x).chunk(3, dim=-1))
    weights = (q @ k.transpose(2, 3) / 2.0).masked_fill(~mask, -torch.inf).softmax(dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 7, 12))
    torch.testing.assert_close(attention(x, mask=mask), expected)


def test_transformer_block_heads_error():
    with pytest.raises(ValueError, match=r"10 channels are not divisible by 4 heads"):
        TransformerBlock(10, 4)
