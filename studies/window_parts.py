"""What windows cost beside the network: sides of windows, an image without any, the look, and the parts around it."""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch

from mod_vision.cli.main import run_tool
from mod_vision.eval.cost.latency import as_deployed, paired_latency
from mod_vision.routing.padding import EDGES, Frame
from mod_vision.routing.placing import plan_windows
from mod_vision.routing.shrink import shrunk
from mod_vision.run_settings import RunSettings
from mod_vision.yolo.blocks.windows import Placed, WindowedHead, listed
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.device import start

STRIDES = (8, 16, 32)


def parts(model: str = "yolo26n-mod.yaml", imgsz: int = 1280, capacity: float = 0.125, threads: int = 2) -> None:
    """Time them in turn and print medians in milliseconds."""
    start(RunSettings(imgsz, "cpu", threads))
    image = torch.rand(1, 3, imgsz, imgsz)
    calls: dict[str, Callable[[], Any]] = {"dense": _run(model, 1.0, 192, image)}
    calls |= {f"windows of {side} px": _run(model, capacity, side, image) for side in (128, 192, 256, 320)}
    net, head = _deployed(model, capacity)
    head.entry.set_threshold(1e9)
    calls["no window"] = lambda: net(image)
    size = (imgsz // head.entry.cell,) * 2
    calls["half the image and the look"] = lambda: head.entry.router(shrunk(image, 2), size)
    _show(calls)
    _show(_around(model, torch.rand(1, 3, 512, 640)))


def _deployed(model: str, capacity: float) -> tuple[Any, WindowedHead]:
    """Return a model as it is deployed, and its head."""
    yolo = load_model(model)
    set_capacity(yolo, capacity)
    net = as_deployed(copy.deepcopy(yolo.model), torch.device("cpu"))
    head = head_of(net)
    assert head is not None
    return net, head


def _run(model: str, capacity: float, side: int, image: torch.Tensor) -> Callable[[], Any]:
    """Return a run of a model with windows of a side."""
    net, head = _deployed(model, capacity)
    head.entry.window = side
    return lambda: net(image)


def _around(model: str, image: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return what is done around the network for an image, at a capacity of a quarter."""
    net, head = _deployed(model, 0.25)
    with torch.inference_mode():
        net(image)
    plan: Any = head.windows
    small = shrunk(image, 2)
    places = sum((plan.cell // s) ** 2 for s in STRIDES) * plan.window[0] * plan.window[1]
    raw = {"boxes": torch.rand(plan.width, 4, places), "scores": torch.rand(plan.width, 80, places)}
    return {
        f"placing {plan.width} windows": lambda: plan_windows(plan.logits, plan.size, plan.window, plan.width),
        "taking them": lambda: plan.take(image),
        "owners and places": lambda: listed({**raw, "windows": Placed(plan, STRIDES)}),
        "looking for padding": lambda: Frame(shrunk(small, EDGES // 2)).inside(plan.size),
    }


def _show(calls: dict[str, Callable[[], Any]]) -> None:
    """Time calls in turn and print them."""
    with torch.inference_mode():
        for name, time in paired_latency(calls).items():
            print(f"{name:<32}{time.median:8.2f} ms", flush=True)


if __name__ == "__main__":
    sys.exit(run_tool(parts, str(__doc__)))
