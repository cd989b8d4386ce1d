"""What must hold on a GPU as it does on a CPU, tried on small models with random weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from mod_vision.errors import one_line
from mod_vision.eval.cost.backends import captured
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of

WAITED = "called a synchronizing CUDA operation"  # what torch warns of
MODEL = "yolo26n-mod.yaml"
NEEDS_GPU = "needs an NVIDIA GPU"
SPREAD = 2.0  # standard deviation of the router's logits
BLOCK = 32  # px of one colour in the images: windows shall find something to choose


class Check(NamedTuple):
    """One check.

    Attributes:
        name: What must hold.
        holds: Whether it does, None if it was not tried.
        said: Figures, or the error.
    """

    name: str
    holds: bool | None
    said: str


Found = tuple[bool | None, str]


def run_checks(device: str, imgsz: int) -> list[Check]:
    """Run all checks on images of `imgsz` px; one that raises does not hold."""
    torch.manual_seed(0)
    images = _images(imgsz)
    dense, windows = _pair(images)
    checks: dict[str, Callable[[], Found]] = {
        "at capacity 1 the dense model, bit for bit": lambda: _dense(dense, windows, images, device),
        "a batch gives what its images give": lambda: _batch(windows, images, device),
        "as on the CPU": lambda: _as_on_cpu(windows, images, device),
        "half precision is finite": lambda: _half(windows, images, device),
        "a forward never waits for the device": lambda: _waits(images, device),
        "a CUDA graph gives what eager gives": lambda: _graph(windows, images, device),
    }
    return [_tried(name, check) for name, check in checks.items()]


@torch.inference_mode()
def _tried(name: str, check: Callable[[], Found]) -> Check:
    """Run a check."""
    try:
        return Check(name, *check())
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {one_line(error)}")


def _pair(images: torch.Tensor) -> tuple[Any, Any]:
    """Return a dense model and the one on windows, with the same random weights that give each image its own output."""
    dense, windows = (load_model(name).model.eval() for name in ("yolo26n.yaml", MODEL))
    router = _head(windows).entry.router
    for parameter in (p for net in (dense, router) for p in net.parameters() if p.ndim > 1):
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    windows.load(dense, verbose=False)
    dense, windows = dense.float(), windows.float()  # loading makes the weights half
    with torch.no_grad():  # logits that spread
        windows(images)
        std, mean = (float(figure) for figure in torch.std_mean(_head(windows).windows.logits))
        last = router.head[-1]
        last.weight.mul_(SPREAD / std)
        last.bias.sub_(mean).mul_(SPREAD / std)
    return dense, windows


def _images(imgsz: int) -> torch.Tensor:
    """Return three images of blocks of random colours."""
    blocks = torch.rand(3, 3, imgsz // BLOCK, imgsz // BLOCK)
    return blocks.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)


def _head(net: Any) -> Any:
    """Return the head of a model that runs on windows."""
    return head_of(net)


def _on(net: Any, device: str, dtype: torch.dtype) -> Any:
    """Return a copy of a model elsewhere, in a precision."""
    return copy.deepcopy(net).to(device, dtype)


def _detections(net: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the detections of images, on the CPU."""
    like = next(net.parameters())
    return net(images.to(like.device, like.dtype))[0].cpu()


def _run(net: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the detections of images, and the corners of their windows, both on the CPU."""
    return _detections(net, images), _head(net).windows.corners.cpu()


def _dense(dense: Any, windows: Any, images: torch.Tensor, device: str) -> Found:
    """Compare capacity 1 with the dense model, and a smaller one, which must differ."""
    mine = _on(windows, device, torch.float32)
    less = _detections(mine, images)
    set_capacity(mine, 1.0)
    expected, found = _detections(_on(dense, device, torch.float32), images), _detections(mine, images)
    if less.shape == expected.shape:
        return False, "at capacity 0.25 the whole image was run"
    return torch.equal(found, expected), f"largest difference {float((found - expected).abs().max()):.1e}"


def _batch(windows: Any, images: torch.Tensor, device: str) -> Found:
    """Compare a batch with its images, in float64: other kernels may be chosen for one image."""
    net = _on(windows, device, torch.float64)
    together, corners = _run(net, images)
    alone = [_run(net, image[None]) for image in images]
    if len({str(own) for _, own in alone}) == 1:
        return False, "the images have the same windows, so there is nothing to compare"
    return _same(together, corners, torch.cat([out for out, _ in alone]), torch.cat([own for _, own in alone]))


def _as_on_cpu(windows: Any, images: torch.Tensor, device: str) -> Found:
    """Compare the device with the CPU, in float64: in float32, a GPU rounds to ten bits within convolutions."""
    if device == "cpu":
        return None, NEEDS_GPU
    return _same(*_run(_on(windows, device, torch.float64), images), *_run(_on(windows, "cpu", torch.float64), images))


def _same(found: torch.Tensor, corners: torch.Tensor, expected: torch.Tensor, wanted: torch.Tensor) -> Found:
    """Return whether windows are the same, and detections close."""
    if not torch.equal(corners, wanted):
        return False, "windows lie elsewhere"
    apart = float((found - expected).abs().max())
    return torch.allclose(found, expected, rtol=1e-7, atol=1e-6), f"largest difference {apart:.1e} px"


def _half(windows: Any, images: torch.Tensor, device: str) -> Found:
    """Look for numbers in float16 that are none, and compare which cells are computed with those of float32."""
    half, single = _on(windows, device, torch.float16), _on(windows, device, torch.float32)
    out, _ = _detections(half, images), _detections(single, images)
    plan, wanted = _head(half).windows, _head(single).windows.kept()
    finite = bool(out.isfinite().all()) and bool(plan.logits.isfinite().all())
    alike = float((plan.kept() & wanted).sum() / wanted.sum())
    return finite, f"{100 * alike:.0f} % of the cells that float32 computes are computed"


def _waits(images: torch.Tensor, device: str) -> Found:
    """Count what the host waits for in a forward of fixed capacity, also with a coarse pass and with masks."""
    if not device.startswith("cuda"):
        return None, NEEDS_GPU
    if not host_waits(lambda: torch.ones(1, device=device).item()):
        return False, "waits cannot be counted: torch does not warn of one"
    counts = {}
    for name, coarse in (("yolo26n-mod", 0.0), ("yolo26n-mod", 0.25), ("yolo26n-mod-seg", 0.25)):
        net = load_model(f"{name}.yaml").model.eval().to(device).half()
        _head(net).coarse, x = coarse, images.to(device).half()
        for _ in range(2):  # heads make the anchors of whole images once
            net(x)
        counts[f"{name} with a coarse pass" if coarse else name] = host_waits(partial(net, x))
    return not any(counts.values()), ", ".join(f"{name}: {count}" for name, count in counts.items())


def host_waits(call: Callable[[], object]) -> int:
    """Return how often the host waits for a GPU during a call, as torch counts it."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum(WAITED in str(warning.message) for warning in caught)


def _graph(windows: Any, images: torch.Tensor, device: str) -> Found:
    """Capture the forward of an image, and replay it with others."""
    if not device.startswith("cuda"):
        return None, NEEDS_GPU
    net, x = _on(windows, device, torch.float32), images[:1].to(device)
    found: dict[str, torch.Tensor] = {}
    replay = captured(lambda: found.update(out=net(x)[0]))
    apart = []
    for image in images.to(device):
        x.copy_(image[None])
        replay()
        mine = found["out"].clone()
        apart.append(float((mine - net(x)[0]).abs().max()))
    return max(apart) < 1e-2, f"largest difference {max(apart):.1e} px"
