"""The fused Triton steps equal the plain ones, forward and backward, in every precision, by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mod_vision.nn import MoDStage
from mod_vision.routing import gather_tokens, kernels, scatter_tokens
from mod_vision.routing.layer import apply_gates

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_under_the_interpreter in a process of its own")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.skipif(INTERPRETED, reason="is what runs the others")
def test_under_the_interpreter():
    """Triton decides when it is imported whether it interprets."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", __file__],
        env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert done.stdout.count("skipped") == 1


def inputs(dtype: torch.dtype, shape: tuple[int, int, int], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randn(shape, dtype=torch.float32).to(dtype).requires_grad_()
    return tokens, torch.stack([torch.randperm(shape[1])[:k] for _ in range(shape[0])])


@interpreted
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "k"), [((1, 1, 4), 1), ((2, 12, 24), 5), ((3, 20, 96), 20)])
def test_gather_norm(dtype, shape, k):
    tokens, indices = inputs(dtype, shape, k)
    norm = nn.LayerNorm(shape[2]).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    plain = gather_tokens(tokens, indices)
    expected = [plain, norm(plain)]
    found = kernels.gather_norm(tokens, indices, norm.weight, norm.bias, norm.eps)[:2]
    assert torch.equal(found[0], expected[0])
    compare(found[1], expected[1], dtype)
    weights = [torch.randn_like(t) for t in expected]
    leaves = (tokens, norm.weight, norm.bias)
    for a, b in zip(*(gradients(out, weights, leaves) for out in (found, expected)), strict=True):
        compare(a, b, dtype)


@interpreted
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "k"), [((1, 1, 4), 1), ((2, 12, 24), 5), ((3, 20, 96), 20)])
def test_gated_scatter(dtype, shape, k):
    base, indices = inputs(dtype, shape, k)
    routed, changed = (torch.randn(shape[0], k, shape[2]).to(dtype).requires_grad_() for _ in range(2))
    gates = (1 + 0.2 * torch.randn(shape[0], k, 1)).to(dtype).requires_grad_()
    found = kernels.gated_scatter(base, indices, routed, changed, gates)
    expected = scatter_tokens(base, indices, apply_gates(routed, changed, gates))
    skipped = torch.ones(shape[:2], dtype=torch.bool).scatter(1, indices, False)
    assert torch.equal(found[skipped], base[skipped])
    compare(found, expected, dtype)
    weights = [torch.randn_like(expected)]
    leaves = (base, routed, changed, gates)
    for a, b in zip(*(gradients([out], weights, leaves) for out in (found, expected)), strict=True):
        compare(a, b, dtype)


@interpreted
def test_a_stage_with_the_kernels_equals_one_without(monkeypatch):
    stage = MoDStage(8, 32, 2, [0.5, 0.25])
    nn.init.normal_(stage.router.proj.weight)
    nn.init.normal_(stage.skip.weight, std=0.1)
    x = torch.randn(2, 8, 6, 5)
    results = []
    for fused in (False, True):
        for module in ("mod_vision.nn.stage", "mod_vision.routing.layer"):
            monkeypatch.setattr(f"{module}.use_kernels", lambda _, fused=fused: fused)
        stage.zero_grad()
        out = stage(x)
        out.square().mean().backward()
        results.append([out, *(p.grad.clone() for p in stage.parameters())])
    for plain, kernel in zip(*results, strict=True):
        torch.testing.assert_close(kernel, plain, rtol=1e-4, atol=1e-5)


@interpreted
def test_operators_are_sound():
    """Fake tensors, autograd registration and aliasing, as torch.compile and CUDA graphs need them."""
    tokens, indices = inputs(torch.float32, (2, 12, 8), 5)
    norm = nn.LayerNorm(8)
    torch.library.opcheck(kernels.gather_norm, (tokens, indices, norm.weight, norm.bias, 1e-5))
    rows = [torch.randn(2, 5, 8, requires_grad=True) for _ in range(2)]
    gates = torch.rand(2, 5, 1, requires_grad=True)
    torch.library.opcheck(kernels.gated_scatter, (tokens, indices, *rows, gates))


def test_the_plain_steps_are_used_unless_asked_for(monkeypatch):
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    assert not kernels.use_kernels(torch.zeros(1))
    monkeypatch.setenv(kernels.SWITCH, "1")
    assert not kernels.use_kernels(torch.zeros(1)), "they are for CUDA tensors"


def compare(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == expected.dtype
    found, expected = found.detach().float(), expected.detach().float()
    assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max().clamp(min=1.0)


def gradients(outputs, weights, leaves):
    loss = sum((out.float() * w.float()).sum() for out, w in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, leaves)
