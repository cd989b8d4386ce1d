"""The routing core: capacity, plan, gather and scatter, the wrapper and the routers."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import FEW, SEEDS, normal
from helpers import routing_order
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mod_vision.nn import MoDStage, TransformerBlock
from mod_vision.routing import (
    ROUTERS,
    Routed,
    build_router,
    capacity_per_depth,
    check_capacity,
    gather_tokens,
    make_plan,
    num_routed,
    routed_layers,
    scatter_tokens,
)
from mod_vision.routing.plan import gate
from mod_vision.yolo.model.capacity import set_capacity

REPEATABLE = sorted(set(ROUTERS) - {"random"})
LEARNED = sorted(name for name, kind in ROUTERS.items() if kind.learned)


class PlusOne(nn.Module):
    """f(x) = x + 1, the residual block whose effect is easiest to see."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


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


# ---------------------------------------------------------------------------------------------------- capacity and k


@FEW
@given(n=st.integers(1, 10_000), capacity=st.floats(1e-4, 1) | st.integers(1, 100).map(lambda i: i / 100))
def test_an_export_routes_as_many_tokens(n, capacity):
    assert int(num_routed(torch.tensor(n), capacity)) == num_routed(n, capacity)


@FEW
@given(
    percent=st.integers(1, 100),
    batch=st.integers(1, 4),
    tokens=st.integers(1, 300),
    router=st.sampled_from(sorted(ROUTERS)),
    seed=SEEDS,
)
def test_k_is_exact(percent, batch, tokens, router, seed):
    expected = -(-percent * tokens // 100)  # ceil in integers
    assert num_routed(tokens, percent / 100) == expected
    layer = Routed(PlusOne(), 4, percent / 100, router)
    layer(normal(seed, batch, tokens, 4))
    if percent == 100:
        assert layer.plan is None
        return
    assert layer.plan.indices.shape == (batch, expected)
    assert layer.plan.kept().sum(dim=(1, 2)).tolist() == [expected] * batch


def test_at_least_one_token_is_routed():
    assert [num_routed(n, 1e-9) for n in (1, 10, 10_000)] == [1, 1, 1]


@pytest.mark.parametrize("value", [0, 0.0, 1.5, -0.1, "half", True, None, math.nan, math.inf])
def test_bad_capacity_names_value_and_range(value):
    for build in (
        lambda: check_capacity(value, "layer 3"),
        lambda: capacity_per_depth(value, 4, "layer 3"),
        lambda: capacity_per_depth([value], 4, "layer 3"),
        lambda: MoDStage(8, 8, capacity=value, where="layer 3"),
    ):
        with pytest.raises(ValueError, match=r"must be a number in \(0, 1\]") as error:
            build()
        assert str(error.value).startswith("layer 3: ")
        assert f"got {value!r}." in str(error.value)


def test_wrapper_error_names_the_block():
    with pytest.raises(ValueError, match=r"^Routed\(PlusOne\): capacity must be .* got 2\."):
        Routed(PlusOne(), 4, 2)


def test_capacity_list_is_stretched_over_the_depth():
    assert capacity_per_depth([0.5, 0.25], 4) == (0.5, 0.5, 0.25, 0.25)
    assert capacity_per_depth((1.0, 0.5, 0.25), 3) == (1.0, 0.5, 0.25)
    assert capacity_per_depth([0.5, 0.5], 3) == (0.5, 0.5, 0.5)
    assert capacity_per_depth(0.3, 3) == (0.3, 0.3, 0.3)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0.3, 0.6], ("must not increase", "[0.3, 0.6]")),
        ([], ("0 capacities for 2 blocks", "between 1 and 2")),
        ([0.5, 0.4, 0.3], ("3 capacities for 2 blocks", "between 1 and 2")),
        ([0.5, 0.0], ("(0, 1]", "got 0.0")),
    ],
)
def test_bad_capacity_list(value, words):
    with pytest.raises(ValueError, match=r"^layer 3: ") as error:
        capacity_per_depth(value, 2, "layer 3")
    for word in words:
        assert word in str(error.value)


# -------------------------------------------------------------------------------------------------------------- plan


@FEW
@given(batch=st.integers(1, 3), tokens=st.integers(1, 60), share=st.floats(0.01, 1), seed=SEEDS, raster=st.booleans())
def test_plan_selects_the_highest_scores(batch, tokens, share, seed, raster):
    logits = normal(seed, batch, tokens)
    k = num_routed(tokens, share)
    plan = make_plan(logits, k, (1, tokens), raster=raster)
    for scores, indices, gates in zip(logits, plan.indices, plan.gates, strict=True):
        best = routing_order(scores)[:k]
        assert indices.tolist() == (sorted(best) if raster else best)
        torch.testing.assert_close(gates, gate(scores[indices]))


@FEW
@given(batch=st.integers(1, 3), tokens=st.integers(1, 40), share=st.floats(0.01, 1), seed=SEEDS)
def test_ties_neither_lose_nor_add_tokens(batch, tokens, share, seed):
    logits = normal(seed, batch, tokens).round()  # few distinct values, so the k-th score is usually shared
    k = num_routed(tokens, share)
    kept = make_plan(logits, k, (1, tokens)).kept()[:, 0]
    assert kept.sum(dim=1).tolist() == [k] * batch
    for scores, mask in zip(logits, kept, strict=True):
        if k < tokens:
            assert scores[mask].min() >= scores[~mask].max()


def test_all_tokens_tied():
    plan = make_plan(torch.zeros(2, 9), 4, (3, 3))
    assert plan.kept().sum(dim=(1, 2)).tolist() == [4, 4]


def test_gate_is_near_identity():
    gates = gate(torch.tensor([[-1e4, 0.0, 1e4]]))
    torch.testing.assert_close(gates, torch.tensor([[[0.8], [1.0], [1.2]]]))


# ------------------------------------------------------------------------------------------------- gather and scatter


@FEW
@given(batch=st.integers(1, 4), tokens=st.integers(1, 50), share=st.floats(0.01, 1), seed=SEEDS)
def test_gather_and_scatter_are_inverse(batch, tokens, share, seed):
    x = normal(seed, batch, tokens, 3)
    indices = make_plan(normal(seed + 1, batch, tokens), num_routed(tokens, share), (1, tokens)).indices
    gathered = gather_tokens(x, indices)
    for image in range(batch):
        assert torch.equal(gathered[image], x[image][indices[image]])
    assert torch.equal(scatter_tokens(x, indices, gathered), x)
    values = normal(seed + 2, *gathered.shape)
    before = x.clone()
    assert torch.equal(gather_tokens(scatter_tokens(x, indices, values), indices), values)
    assert torch.equal(x, before), "scatter must not write into its input"


def test_gather_and_scatter_take_views():
    grid = normal(0, 2, 5, 3, 4)
    tokens = grid.flatten(2).transpose(1, 2)  # not contiguous
    indices = torch.tensor([[11, 0], [3, 7]])
    assert torch.equal(scatter_tokens(tokens, indices, gather_tokens(tokens, indices)), tokens)


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


# ------------------------------------------------------------------------------------------------------ set_capacity


def test_set_capacity_reaches_every_layer():
    model = nn.Sequential(Routed(PlusOne(), 4, 0.5, "norm"), nn.Sequential(Routed(PlusOne(), 4, 1.0, "norm")))
    x = normal(0, 2, 20, 4)
    model(x)
    set_capacity(model, 0.1)
    assert [layer.plan for _, layer in routed_layers(model)] == [None, None]
    model(x)
    assert [layer.plan.indices.shape[1] for _, layer in routed_layers(model)] == [2, 2]
    set_capacity(model, 1)
    assert torch.equal(model(x), x + 1 + 1)


@pytest.mark.parametrize("value", [0, 1.5, "half", True, math.nan])
def test_set_capacity_rejects_bad_values_and_changes_nothing(value):
    model = nn.Sequential(Routed(PlusOne(), 4, 0.5), Routed(PlusOne(), 4, 0.25))
    with pytest.raises(ValueError, match=r"^0 \(Routed\): capacity must be a number in \(0, 1\]") as error:
        set_capacity(model, value)
    assert f"got {value!r}." in str(error.value)
    assert [layer.capacities for _, layer in routed_layers(model)] == [(0.5,), (0.25,)]


def test_set_capacity_is_all_or_nothing():
    model = nn.Sequential(MoDStage(8, 8, 3, 0.5), MoDStage(8, 8, 2, 0.5))
    with pytest.raises(ValueError, match=r"3 capacities for 2 blocks"):
        set_capacity(model, [0.9, 0.6, 0.3])  # fits the first stage only
    assert [layer.capacities for _, layer in routed_layers(model)] == [(0.5,) * 3, (0.5,) * 2]


def test_set_capacity_needs_a_routed_layer():
    with pytest.raises(ValueError, match=r"no routed layer"):
        set_capacity(nn.Linear(2, 2), 0.5)
