"""The routing core: capacity, the plan, gather and scatter, and set_capacity."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import FEW, SEEDS, normal
from helpers import PlusOne, routing_order
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mod_vision.nn import MoDStage
from mod_vision.routing import (
    ROUTERS,
    Routed,
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
