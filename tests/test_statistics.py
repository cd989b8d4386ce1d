"""Collapse alarms: do the routes depend on the image?"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mod_vision.routing import make_plan, num_routed
from mod_vision.routing.statistics import RouteStatistics


def plans(images: int, size: tuple[int, int], k: int, seed: int, batch: int = 3) -> list:
    logits = torch.randn(images, size[0] * size[1], generator=torch.Generator().manual_seed(seed))
    return [make_plan(part, k, size) for part in logits.split(batch)]


def healthy(found: list):
    statistics = RouteStatistics()
    for plan in found:
        statistics.update(plan)
    return statistics.result()


@settings(max_examples=25, deadline=None)
@given(images=st.integers(1, 9), size=st.tuples(st.integers(1, 6), st.integers(2, 6)), seed=st.integers(0, 999))
def test_equals_a_loop(images, size, seed):
    n = size[0] * size[1]
    k = max(1, n // 3)
    found = plans(images, size, k, seed)
    kept = torch.cat([plan.kept().flatten(1) for plan in found]).tolist()
    share = [sum(image[i] for image in kept) / images for i in range(n)]
    c = k / n
    health = healthy(found)
    assert health.routed == pytest.approx(c)
    biased = sum(p * (1 - p) for p in share) / n / (c * (1 - c))
    unbiased = min(1.0, biased * images / (images - 1)) if images > 1 else 1.0
    assert health.images == images
    assert health.variance == pytest.approx(unbiased, abs=1e-6)
    assert health.never == pytest.approx(sum(p == 0 for p in share) / n)
    places = [p / sum(share) for p in share]
    entropy = -sum(p * math.log(p) for p in places if p > 0) / math.log(n)
    assert health.entropy == pytest.approx(entropy, abs=1e-6)


def test_routes_that_follow_the_image_are_no_alarm():
    health = healthy(plans(300, (8, 8), 32, 0))
    assert health.variance > 0.95
    assert health.never == 0
    assert health.alarm is None


def test_the_same_routes_for_all_images_are_an_alarm():
    plan = make_plan(torch.arange(64.0).expand(5, -1), 16, (8, 8))
    health = healthy([plan] * 8)
    assert (health.images, health.routed, health.variance, health.never) == (40, 0.25, 0, 0.75)
    assert (
        health.alarm == "routes are the same for all images (variance 0.000 of 1, 75 % of the positions never routed)"
    )


def test_few_images_are_no_alarm():
    assert healthy([make_plan(torch.randn(1, 64), 16, (8, 8))]).alarm is None
    plan = make_plan(torch.arange(64.0).expand(5, -1), 16, (8, 8))
    assert healthy([plan]).alarm is None, "5 images, which could be much alike"


def test_a_layer_that_routes_everything_is_no_alarm():
    assert healthy(plans(4, (3, 3), 9, 0)).alarm is None


def test_grids_of_different_sizes_are_counted_apart():
    small, large = plans(6, (4, 4), 8, 1), plans(2, (8, 8), 16, 2)
    both, alone = healthy(small + large), (healthy(small), healthy(large))
    assert both.images == 8
    for name in ("routed", "entropy", "variance", "never"):
        expected = 0.75 * getattr(alone[0], name) + 0.25 * getattr(alone[1], name)
        assert getattr(both, name) == pytest.approx(expected)


def test_nothing_counted():
    assert RouteStatistics().result() is None


@pytest.mark.parametrize("capacity", [0.125, 0.5, 0.875])
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (20, 20)])
def test_alarm_depends_neither_on_grid_nor_capacity(size, capacity):
    n = size[0] * size[1]
    k = num_routed(n, capacity)
    healthy_one = healthy(plans(400, size, k, 3, batch=50))
    assert healthy_one.variance == pytest.approx(1, abs=0.05)
    assert healthy_one.alarm is None
    same = torch.randn(1, n, generator=torch.Generator().manual_seed(4)).expand(50, -1)
    collapsed = healthy([make_plan(same, k, size)] * 8)
    assert collapsed.variance == (1 if k == n else 0)
    assert collapsed.never == pytest.approx(1 - k / n)
    assert (collapsed.alarm is None) == (k == n)


def test_a_collapse_shows_where_the_capacity_changes_between_steps():
    """As in an elastic training: all images have the same routes at each capacity."""
    same = torch.randn(1, 64, generator=torch.Generator().manual_seed(4)).expand(8, -1)
    health = healthy([make_plan(same, k, (8, 8)) for k in (16, 56, 30) * 5])
    assert health.variance < 0.05
    assert health.alarm is not None
