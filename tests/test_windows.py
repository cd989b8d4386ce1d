"""Placing, taking and putting back windows, against loops that do it cell by cell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mod_vision.routing.placing import BUCKETS, LEVELS, plan_windows, window_cells, window_count
from mod_vision.routing.shrink import shrunk
from mod_vision.routing.windows import WindowPlan


@st.composite
def plans(draw: st.DrawFn, adaptive: bool = False) -> WindowPlan:
    size = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    window = window_cells(32 * draw(st.integers(1, 5)), size)
    k, batch = draw(st.integers(0, 5)), draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 1000)))
    logits = 3 * torch.randn(batch, size[0] * size[1])
    if draw(st.booleans()):
        logits = logits.round()  # ties
    return plan_windows(logits, size, window, k, least=draw(st.floats(0.1, 4)) if adaptive else None)


def placed_by_loops(logits: torch.Tensor, size: tuple[int, int], window: tuple[int, int], k: int) -> list[list[int]]:
    left = (logits.sigmoid().square().view(size) * LEVELS).round() + 1
    corners = []
    for _ in range(k):
        best, found = -1.0, [0, 0]
        for y in range(size[0] - window[0] + 1):
            for x in range(size[1] - window[1] + 1):
                part = left[y : y + window[0], x : x + window[1]]
                total = float(part.sum() + (part[1:-1, 1:-1].sum() if min(window) > 2 else 0))
                if total > best:
                    best, found = total, [y, x]
        corners.append(found)
        left[found[0] : found[0] + window[0], found[1] : found[1] + window[1]] = 0
    return corners


@settings(max_examples=60, deadline=None)
@given(plans())
def test_windows_are_placed_where_most_is_left(plan):
    for logits, corners in zip(plan.logits, plan.corners, strict=True):
        assert corners.tolist() == placed_by_loops(logits, plan.size, plan.window, len(corners))


@settings(max_examples=60, deadline=None)
@given(plans(), st.sampled_from((4, 8, 32)), st.booleans())
def test_windows_are_parts_of_the_image(plan, stride, channels_last):
    side = 32 // stride
    x = torch.randn(len(plan.logits), 3, plan.size[0] * side, plan.size[1] * side)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    taken = plan.spread(plan.take(x))
    h, w = (n * side for n in plan.window)
    for image, corners, windows in zip(x, plan.corners, taken, strict=True):
        for (row, col), window in zip(corners.tolist(), windows, strict=True):
            assert torch.equal(window, image[:, row * side : row * side + h, col * side : col * side + w])


def depth(plan: WindowPlan, corner: list[int], y: int, x: int, stride: int) -> float:
    """Px from a position to the nearest border of a window, -1 outside."""
    sides = []
    for at, first, cells, size in zip((y, x), corner, plan.window, plan.size, strict=True):
        start, end = first * 32, (first + cells) * 32
        centre = (at + 0.5) * stride
        if not start < centre < end:
            return -1
        sides += [1e6 if first == 0 else centre - start, 1e6 if first + cells == size else end - centre]
    return min(sides)


@settings(max_examples=40, deadline=None)
@given(plans(), st.sampled_from((0, 8, 24)))
def test_a_position_is_taken_from_the_window_in_which_it_is_deepest(plan, margin):
    """Every position of every map once, or not at all."""
    strides = (8, 16, 32)
    k, per_window = plan.corners.shape[1], sum((32 // s) ** 2 for s in strides) * plan.window[0] * plan.window[1]
    values = torch.arange(1.0, len(plan.logits) * k * per_window + 1).view(-1, 1, per_window)
    full = plan.put(values, strides, -1.0, margin)[:, 0]
    for image, corners in enumerate(plan.corners.tolist()):
        offset, before = 0, 0
        for stride in strides:
            side, (rows, cols) = 32 // stride, (n * 32 // stride for n in plan.size)
            for y in range(rows):
                for x in range(cols):
                    depths = [depth(plan, corner, y, x, stride) for corner in corners]
                    best = max(depths, default=-1)
                    wanted = -1.0
                    if best >= margin and best > 0:
                        n = depths.index(best)
                        at = (y - corners[n][0] * side) * plan.window[1] * side + x - corners[n][1] * side
                        wanted = float(values[image * k + n, 0, before + at])
                    assert full[image, offset + y * cols + x] == wanted
            offset += rows * cols
            before += side * side * plan.window[0] * plan.window[1]


@settings(max_examples=40, deadline=None)
@given(plans(adaptive=True))
def test_adaptive_plans_take_what_is_worth_it(plan):
    """As many windows as gain enough, to the next bucket; each image as if it were alone."""
    assert all(count in (*BUCKETS, 5) for count in plan.counts().tolist())
    x = torch.randn(len(plan.logits), 2, plan.size[0] * 32, plan.size[1] * 32)
    values = plan.take(x)
    assert len(values) == int(plan.counts().sum())
    full = plan.put_map(values)
    for image in range(len(x)):
        count = int(plan.counts()[image])
        alone = plan._replace(
            logits=plan.logits[image : image + 1], corners=plan.corners[image : image + 1, :count], real=None,
        )  # fmt: skip
        assert torch.equal(full[image : image + 1], alone.put_map(alone.take(x[image : image + 1])))
        assert torch.equal(plan.covered()[image : image + 1], alone.covered())


@settings(max_examples=30, deadline=None)
@given(plans(), st.data())
def test_padding_takes_no_window(plan, data):
    """As long as there is anything else."""
    rows = data.draw(st.integers(1, plan.size[0]))
    inside = (torch.arange(plan.size[0]) < rows).repeat_interleave(plan.size[1]).expand(len(plan.logits), -1)
    padded = plan_windows(plan.logits, plan.size, plan.window, plan.corners.shape[1], inside=inside)
    covered = torch.zeros(len(inside), *plan.size, dtype=torch.bool)
    for n in range(padded.corners.shape[1]):
        one = padded._replace(corners=padded.corners[:, n : n + 1])
        new = one.kept() & inside.view(-1, *plan.size) & ~covered
        done = (covered | ~inside.view(-1, *plan.size)).flatten(1).all(1)
        assert bool((new.flatten(1).any(1) | done).all())
        covered |= one.kept()


def test_a_window_as_large_as_the_image_gives_it_back():
    for size in ((4, 6), (1, 1)):
        window = window_cells(640, size)
        assert window == size
        plan = plan_windows(torch.zeros(2, size[0] * size[1]), size, window, window_count(size, window, 0.25))
        x = torch.randn(2, 5, size[0] * 4, size[1] * 4)
        assert torch.equal(plan.take(x), x)
        assert torch.equal(plan.put_map(x), x)


@pytest.mark.parametrize(("capacity", "k"), [(0.25, 11), (0.125, 6), (1.0, 44), (0.001, 1)])
def test_window_count_a_capacity(capacity, k):
    assert window_count((40, 40), window_cells(192, (40, 40)), capacity) == k


def test_gradients_reach_the_windows_that_own():
    plan = plan_windows(torch.randn(2, 30), (5, 6), (3, 3), 3)
    values = torch.randn(6, 2, 9 * 16, requires_grad=True)
    plan.put(values, (8,)).sum().backward()
    owned = plan.owned((8,)).view(6, 1, -1).expand_as(values)
    assert torch.equal(values.grad, owned.float())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_half_an_image_is_the_mean_of_four_pixels(batch, height, width, channels_last):
    """However it is computed."""
    image = torch.rand(batch, 3, 2 * height, 2 * width, dtype=torch.float64)
    image = image.contiguous(memory_format=torch.channels_last) if channels_last else image
    expected = image.view(batch, 3, height, 2, width, 2).mean((3, 5))
    torch.testing.assert_close(shrunk(image, 2), expected)
    traced = torch.jit.trace(lambda x: shrunk(x, 2), image)
    torch.testing.assert_close(traced(image), expected)
