"""What a GPU wants of a forward on windows: nothing to wait for, one graph, few operations; tried without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import HostWaits
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mod_vision.routing import plan_windows
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of

SHAPE = (2, 3, 192, 256)
MODELS = [("yolo26n-mod", 0.0), ("yolo26n-mod", 0.25), ("yolo26n-mod-seg", 0.25), ("yolo11n-mod", 0.0)]


def loaded(name: str, coarse: float) -> Any:
    net = load_model(f"{name}.yaml").model.eval()
    net.end2end = "26" in name
    head_of(net).coarse, head_of(net).objectness = coarse, 0.25
    return net.fuse(verbose=False)


class Mixed(TorchDispatchMode):
    """Notes operations on tensors of the host and of the GPU, but for a number that fills a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if len({t.device.type for t in tensors}) > 1 and "fill" not in str(func):
            self.found.append(str(func))
        return out


def onto_fake_gpu(net: Any) -> Any:
    """Give a model parameters that say they are on a GPU, in half precision; within `FakeTensorMode`."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return net._apply(
            lambda t: torch.empty(t.shape, device="cuda", dtype=torch.half if t.is_floating_point() else t.dtype)
        )
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.parametrize(("name", "coarse"), MODELS)
@torch.inference_mode()
def test_nothing_of_a_forward_is_on_the_host(name, coarse):
    """By shapes and devices alone: what mixes devices or asks for a value would fail, or is noted."""
    net = loaded(name, coarse)
    net(torch.rand(SHAPE))  # the head makes the anchors of whole images once, on the host
    with FakeTensorMode(allow_non_fake_inputs=True):
        onto_fake_gpu(net)
        with Mixed() as mixed:
            out = net(torch.empty(SHAPE, device="cuda", dtype=torch.half))
    assert mixed.found == []
    assert {t.device.type for t in tree_leaves(out[0])} == {"cuda"}


def test_what_is_on_the_host_would_be_seen():
    with FakeTensorMode():
        x = torch.ones(3, device="cuda")
        with Mixed() as mixed:
            torch.arange(3).to("cuda")
        with pytest.raises(RuntimeError, match="on the same device"):
            x + torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            float(x[0])
    assert len(mixed.found) == 1


@pytest.mark.parametrize(("name", "coarse"), MODELS)
@torch.no_grad()
def test_the_host_never_waits(name, coarse):
    net = loaded(name, coarse)
    images = torch.rand(SHAPE)
    net(images)
    with HostWaits() as waits:
        net(images)
    assert waits.found == []


@torch.inference_mode()
def test_compiles_into_one_graph_that_runs_windows():
    """Once for all images: nothing depends on where windows are."""
    net = loaded("yolo26n-mod", 0.25)
    images = [torch.rand(2, 3, 6, 8).repeat_interleave(32, 2).repeat_interleave(32, 3) for _ in range(3)]
    router = head_of(net).entry.router.train()
    for module in router.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # its statistics are those of the first image
            module.reset_running_stats()
    torch.nn.init.normal_(router.head[-1].weight)  # windows follow the image
    router(torch.nn.functional.avg_pool2d(images[0], 2), (6, 8))
    router.eval()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    net(images[0])
    compiled(images[0])
    corners = set()
    with torch.compiler.set_stance("fail_on_recompile"):
        for image in images:
            for mine, expected in zip(tree_leaves(compiled(image)[0]), tree_leaves(net(image)[0]), strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-3)
            corners.add(str(head_of(net).windows.corners))
    torch._dynamo.reset()
    assert len(corners) == 3


class Operations(TorchDispatchMode):
    """Counts operations but for views: what a GPU has to start."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_a_window_is_few_operations():
    """On a GPU, each of them takes longer to start than to run."""
    counts = []
    for k in (1, 11):
        with Operations() as placing:
            plan = plan_windows(torch.randn(1, 1600), (40, 40), (6, 6), k)
        with Operations() as owning:
            plan.owned((8, 16, 32))
        counts.append((placing.count, owning.count))
    (first, own), (all_, same) = counts
    assert all_ - first <= 10 * 11
    assert own == same <= 70
