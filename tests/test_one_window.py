"""The study of one window of any shape: it holds all that the router sees, and no line of cells more than asked."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.one_window import _one


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 12), st.integers(3, 12), st.integers(0, 2), st.floats(0.5, 0.99))
def test_the_window_bounds_what_the_router_sees(seed, rows, cols, halo, least):
    torch.manual_seed(seed)
    logits = torch.randn(1, rows * cols) * 2
    plan = _one(logits, (rows, cols), (halo, halo), 1, 32, least)
    seen = (logits.sigmoid() >= least).view(rows, cols).nonzero()
    if not len(seen):
        assert plan.share == 0
        return
    low = (seen.amin(0) - halo).clamp(min=0)
    high = (seen.amax(0) + halo).minimum(torch.tensor([rows, cols]) - 1)
    assert plan.corners[0].tolist() == [low.tolist()]
    assert list(plan.window) == (high - low + 1).tolist()
    assert plan.share == plan.window[0] * plan.window[1] / (rows * cols)
