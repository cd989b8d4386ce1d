"""Routers of tokens: what they score, and the wrapper that routes a block by their scores."""

from __future__ import annotations

import pytest
import torch
from conftest import normal
from helpers import PlusOne
from torch import nn

from mod_vision.nn import TransformerBlock
from mod_vision.routing import ROUTERS, Routed, build_router, gather_tokens, make_plan, num_routed

REPEATABLE = sorted(set(ROUTERS) - {"random"})
LEARNED = sorted(name for name, kind in ROUTERS.items() if kind.learned)


class SmoothBlock(nn.Module):
    """A residual block that mixes the tokens it is given, smooth enough for finite differences."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x)) + x.mean(dim=1, keepdim=True)


def random_router(layer: nn.Module) -> nn.Module:
    """Give a learned router, which starts at zero, weights of its own."""
    nn.init.normal_(layer.router.proj.weight)
    nn.init.normal_(layer.router.proj.bias)
    return layer


# ----------------------------------------------------------------------------------------------------------- wrapper


@pytest.mark.parametrize("router", REPEATABLE)
def test_batched_equals_a_loop_over_images(router):
    torch.manual_seed(0)
    layer = Routed(TransformerBlock(16, 2), 16, 0.4, router).double().eval()
    if router in LEARNED:
        random_router(layer)
    x = normal(1, 4, 15, 16, dtype=torch.float64)
    one_by_one = torch.cat([layer(image[None], (3, 5)) for image in x])
    torch.testing.assert_close(layer(x, (3, 5)), one_by_one, rtol=0, atol=1e-12)
    assert layer.plan.indices.shape == (4, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_skipped_tokens_are_bit_identical(router, dtype):
    torch.manual_seed(0)
    layer = Routed(TransformerBlock(16, 2), 16, 0.5, router).to(dtype)
    x = normal(1, 3, 20, 16).to(dtype)
    out = layer(x, (4, 5))
    kept = layer.plan.kept().flatten(1)
    assert out.dtype == dtype
    assert torch.equal(out[~kept], x[~kept])
    assert (out[kept] != x[kept]).any(dim=-1).all()


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_capacity_one_is_the_block(router):
    torch.manual_seed(0)
    block = TransformerBlock(16, 2)
    x = normal(1, 2, 20, 16)
    assert torch.equal(Routed(block, 16, 1.0, router)(x), block(x))


def test_residual_is_counted_once():
    layer = Routed(PlusOne(), 4, 0.5, "norm")
    x = normal(0, 2, 10, 4).mul(8).round()  # integers, so that x + 1 is exact
    out = layer(x)
    kept = layer.plan.kept().flatten(1)
    assert torch.equal(out[kept], x[kept] + 1)
    assert torch.equal(out[~kept], x[~kept])


def test_gate_scales_the_change_only():
    layer = random_router(Routed(PlusOne(), 4, 0.5, "linear")).double()
    x = normal(0, 2, 10, 4, dtype=torch.float64)
    out = layer(x)
    change = gather_tokens(out - x, layer.plan.indices)
    torch.testing.assert_close(change, layer.plan.gates.expand_as(change))
    assert 0.8 <= change.min() < change.max() <= 1.2


@pytest.mark.parametrize("router", LEARNED)
def test_task_loss_reaches_the_router(router):
    torch.manual_seed(0)
    layer = Routed(TransformerBlock(16, 2), 16, 0.5, router)  # as built: what is learnt is at zero
    optimiser = torch.optim.SGD(layer.router.parameters(), lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        layer(normal(1, 2, 20, 16), (4, 5)).square().mean().backward()
        optimiser.step()
        for name, parameter in layer.router.named_parameters():
            assert parameter.grad.isfinite().all(), name
            if step or "reduce" not in name:  # what is before weights at zero has to wait for them
                assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradient_is_finite_on_uniform_tokens(tokens, value):
    torch.manual_seed(0)
    layer = random_router(Routed(TransformerBlock(16, 2), 16, 0.5, "linear"))
    x = torch.full((2, tokens, 16), value, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad.isfinite().all()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("router", LEARNED)
def test_gradcheck(router):
    torch.manual_seed(0)
    layer = random_router(Routed(SmoothBlock(4), 4, 0.5, router)).double()
    x = normal(3, 2, 6, 4, dtype=torch.float64).requires_grad_()
    names = [*(f"router.{name}" for name, _ in layer.router.named_parameters()), "block.linear.weight"]
    weights = [dict(layer.named_parameters())[name].detach().clone().requires_grad_() for name in names]

    def run(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x, (2, 3)))

    assert torch.autograd.gradcheck(run, (x, *weights))


# ----------------------------------------------------------------------------------------------------------- routers


@pytest.mark.parametrize("name", sorted(ROUTERS))
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (4, 6)])
def test_routers_score_every_token(name, size):
    router = build_router(name, 8)
    n = size[0] * size[1]
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for x in (normal(0, 3, n, 8), torch.zeros(3, n, 8), torch.ones(3, n, 8), 500 * normal(1, 3, n, 8)):
            logits = router.to(dtype)(x.to(dtype), size)
            assert logits.shape == (3, n)
            assert logits.dtype == dtype
            assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["norm", *LEARNED])
def test_large_activations_in_half_precision_are_still_told_apart(name):
    x = torch.arange(1.0, 21.0)[None, :, None].expand(1, 20, 8) * 100  # norms from 283 to 5657
    logits = build_router(name, 8).half()(x.half(), (4, 5))
    assert sorted(make_plan(logits, 5, (4, 5)).indices[0].tolist()) == [15, 16, 17, 18, 19]


def test_norm_router_prefers_strong_tokens():
    x = torch.ones(1, 12, 4)
    x[0, [2, 7]] = -3.0
    assert sorted(make_plan(build_router("norm", 4)(x, (3, 4)), 2, (3, 4)).indices[0].tolist()) == [2, 7]


def test_contrast_router_prefers_the_odd_one_out():
    x = torch.full((1, 25, 4), 5.0)
    x[0, 12] = 0.0  # the weakest token by norm, in the centre of a 5x5 grid
    logits = build_router("contrast", 4)(x, (5, 5))
    assert logits.argmax(dim=1).item() == 12
    near = [6, 7, 8, 11, 13, 16, 17, 18]
    far = sorted(set(range(25)) - {12, *near})
    assert logits[0, near].min() > logits[0, far].max()


def test_grid_router_samples_evenly():
    logits = build_router("grid", 4)(torch.zeros(2, 400, 4), (20, 20))
    assert torch.equal(logits[0], logits[1])
    for capacity in (0.25, 0.5, 0.75):
        kept = make_plan(logits, num_routed(400, capacity), (20, 20)).kept()[0].float()
        share = nn.functional.avg_pool2d(kept[None, None], 5)
        assert (share - capacity).abs().max() < 0.11  # at most 2 off the 25 tokens of every 5x5 patch
        assert (kept.mean(dim=0) - capacity).abs().max() < 0.11
        assert (kept.mean(dim=1) - capacity).abs().max() < 0.11


def test_random_router_varies_per_forward_and_image():
    router = build_router("random", 4)
    x = torch.zeros(2, 200, 4)
    first, second = router(x, (10, 20)), router(x, (10, 20))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("name", LEARNED)
def test_learned_routers_start_as_the_norm_router(name):
    x = normal(0, 2, 30, 8)
    torch.testing.assert_close(build_router(name, 8)(x, (5, 6)), build_router("norm", 8)(x, (5, 6)))


@pytest.mark.parametrize("name", LEARNED)
def test_learned_routers_read_the_neighbourhood_they_should(name):
    torch.manual_seed(0)
    router = random_router(Routed(PlusOne(), 8, 0.5, name)).router.double()
    x = normal(0, 1, 35, 8, dtype=torch.float64).requires_grad_()
    router.prior.data.zero_()  # it compares with the whole image
    router(x, (5, 7))[0, 2 * 7 + 3].backward()
    found = {divmod(int(i), 7) for i in x.grad[0].abs().sum(dim=1).nonzero()[:, 0]}
    reach = 1 if name == "conv" else 0
    assert found == {(y, x) for y in range(2 - reach, 3 + reach) for x in range(3 - reach, 4 + reach)}


@pytest.mark.parametrize("name", ["attention", "", None, ["norm"]])
def test_unknown_router_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"^layer 3: unknown router ") as error:
        build_router(name, 4, "layer 3")
    assert repr(name) in str(error.value)
    assert "conv, linear, norm, contrast, random, grid" in str(error.value)
