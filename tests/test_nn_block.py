"""The stand-alone MixtureOfDepthsBlock: trains, keeps its shape, and when causal never looks ahead."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import random_parameters
from torch import nn

from mod_vision.nn import MixtureOfDepthsBlock
from mod_vision.routing import make_plan


@pytest.mark.parametrize("causal", [False, True])
def test_block_keeps_the_shape_and_trains(causal):
    block = MixtureOfDepthsBlock(d_model=128, capacity_factor=0.5, causal=causal)
    x = torch.randn(2, 64, 128)
    out = block(x)
    assert out.shape == x.shape
    assert block.plan.indices.shape == (2, 32)
    out.square().mean().backward()
    router = block.router if causal else block.router.proj
    assert router.weight.grad.abs().max() > 0
    assert block.block.mlp[0].weight.grad.abs().max() > 0


def test_block_learns():
    block = MixtureOfDepthsBlock(d_model=32, capacity_factor=0.5)
    x = torch.randn(4, 16, 32)
    optimiser = torch.optim.Adam(block.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (block(x) - x.roll(1, dims=-1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("causal", [False, True])
def test_block_at_capacity_one_is_dense(causal):
    block = MixtureOfDepthsBlock(d_model=16, capacity_factor=1.0, causal=causal)
    x = torch.randn(2, 9, 16)
    assert torch.equal(block(x), block.block(x, causal=causal))
    assert block.plan is None


def causal_block() -> MixtureOfDepthsBlock:
    return random_parameters(MixtureOfDepthsBlock(d_model=16, capacity_factor=0.5, num_heads=2, causal=True)).double()


def test_causal_inference_does_not_look_ahead():
    block = causal_block().eval()
    x = torch.randn(3, 24, 16, dtype=torch.float64)
    picked = block.predictor(x).squeeze(-1) > 0
    assert picked.any()
    assert not picked.all()
    assert len(set(picked.sum(dim=1).tolist())) > 1, "sequences of different lengths are the hard case"
    out = block(x)
    assert torch.equal(out[~picked], x[~picked])
    assert (out[picked] != x[picked]).any(dim=-1).all()
    for t in range(0, 23, 2):
        other = x.clone()
        other[:, t + 1 :] = torch.randn(3, 23 - t, 16, dtype=torch.float64) * 3
        torch.testing.assert_close(block(other)[:, : t + 1], out[:, : t + 1], rtol=0, atol=1e-10)
        torch.testing.assert_close(block(x[:, : t + 1]), out[:, : t + 1], rtol=0, atol=1e-10)  # generation


def test_causal_inference_depends_on_the_past():
    block = causal_block().eval()
    x = torch.randn(1, 24, 16, dtype=torch.float64)
    picked = (block.predictor(x).squeeze(-1) > 0)[0].nonzero().flatten()
    other = x.clone()
    other[0, picked[0]] = torch.randn(16, dtype=torch.float64)  # picked or not, later picks see a change
    assert (block(other)[0, picked[1:]] - block(x)[0, picked[1:]]).abs().max() > 1e-6


def test_causal_inference_keeps_sequences_apart():
    block = causal_block().eval()
    x = torch.randn(4, 20, 16, dtype=torch.float64)
    one_by_one = torch.cat([block(sequence[None]) for sequence in x])
    torch.testing.assert_close(block(x), one_by_one, rtol=0, atol=1e-10)


def test_causal_inference_without_a_pick_is_identity():
    block = causal_block().eval()
    nn.init.zeros_(block.predictor.weight)
    nn.init.constant_(block.predictor.bias, -1.0)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    assert torch.equal(block(x), x)


def test_causal_training_attends_to_earlier_routed_tokens_only():
    block = causal_block().train()
    x = torch.randn(1, 12, 16, dtype=torch.float64, requires_grad=True)
    out = block(x)
    routed = block.plan.kept()[0, 0].tolist()
    assert sum(routed) == 6
    for t in range(12):
        (grad,) = torch.autograd.grad(out[0, t].square().sum(), x, retain_graph=True)
        reached = (grad[0].abs().amax(dim=1) > 0).tolist()
        expected = [s == t or (routed[t] and routed[s] and s < t) for s in range(12)]
        assert reached == expected, f"token {t}"


def test_predictor_loss_trains_the_predictor_only():
    block = causal_block().train()
    x = torch.randn(2, 12, 16, dtype=torch.float64, requires_grad=True)
    block(x)
    block.predictor_loss.backward()
    assert block.predictor.weight.grad.abs().max() > 0
    assert x.grad is None
    assert [name for name, p in block.named_parameters() if p.grad is not None] == [
        "predictor.weight",
        "predictor.bias",
    ]


def test_predictor_learns_the_selection():
    block = MixtureOfDepthsBlock(d_model=16, capacity_factor=0.5, num_heads=2, causal=True).train()
    x = torch.randn(4, 32, 16)
    optimiser = torch.optim.Adam(block.predictor.parameters(), lr=0.05)
    for _ in range(150):
        block(x)
        optimiser.zero_grad()
        block.predictor_loss.backward()
        optimiser.step()
    chosen = make_plan(block.router(x).squeeze(-1), 16, (1, 32)).kept()[:, 0]
    foreseen = block.predictor(x).squeeze(-1) > 0
    assert (chosen == foreseen).float().mean() > 0.9


@pytest.mark.parametrize("causal", [False, True])
def test_block_can_be_copied_after_training(causal):
    block = MixtureOfDepthsBlock(d_model=16, num_heads=2, causal=causal).train()
    x = torch.randn(2, 8, 16)
    expected = block(x)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert twin.plan is None
        assert twin.predictor_loss is None
        assert torch.equal(twin(x), expected)


def test_block_errors():
    with pytest.raises(ValueError, match=r"^MixtureOfDepthsBlock: capacity must be a number in \(0, 1\], got 0\."):
        MixtureOfDepthsBlock(64, capacity_factor=0)
    with pytest.raises(ValueError, match=r"^MixtureOfDepthsBlock: unknown router 'best', choose one of conv"):
        MixtureOfDepthsBlock(64, router="best")
    with pytest.raises(ValueError, match=r"64 channels are not divisible by 5 heads"):
        MixtureOfDepthsBlock(64, num_heads=5)
