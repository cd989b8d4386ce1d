"""Speed of a routed model against its dense twin and others, measured in turn in one process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mod_vision.eval.exported import onnx_session
from mod_vision.eval.flops import executed_gflops
from mod_vision.eval.latency import Latency, as_deployed, paired_latency
from mod_vision.routing import routed_layers, set_capacity
from mod_vision.yolo.images import load_model, round_imgsz, torch_device


class Row(NamedTuple):
    """One line of the benchmark."""

    name: str
    gflops: float
    latency: Latency


def benchmark(
    model: str = "yolo26n-mod.yaml",
    capacity: Sequence[float] = (0.5, 0.25),
    imgsz: int = 640,
    batch: int = 1,
    threads: int = 2,
    device: str = "cpu",
    repeats: int = 15,
    rivals: Sequence[str] = ("yolo26n.yaml",),
    backend: str = "eager",
) -> list[Row]:
    """Measure the dense twin first, then the routed model at each capacity, then the rivals.

    Args:
        model: Routed model: checkpoint or YAML name.
        capacity: Capacities to measure.
        imgsz: Image size in pixels.
        batch: Images per call.
        threads: CPU threads; importing Ultralytics sets one, so it is set here.
        device: Torch device.
        repeats: Timed rounds.
        rivals: Other models on the same bench.
        backend: "eager" (fused, channels-last memory, float32) or "onnx" (Ultralytics' export in ONNX Runtime, CPU).

    Raises:
        ValueError: If the model routes nothing or the backend is unknown.
    """
    if backend not in ("eager", "onnx"):
        raise ValueError(f"backend must be eager or onnx, got {backend!r}.")
    torch.set_num_threads(threads)
    device, imgsz = str(torch_device(device)), round_imgsz(imgsz)
    models = load_models(model, capacity, rivals)
    with tempfile.TemporaryDirectory() as folder:
        if backend == "onnx":
            calls = {
                name: _onnx_call(yolo, imgsz, batch, Path(folder) / f"{i}.pt")
                for i, (name, yolo) in enumerate(models.items())
            }
        else:
            calls = {name: _eager_call(yolo.model, imgsz, batch, device) for name, yolo in models.items()}
        with torch.inference_mode():
            times = paired_latency(calls, repeats, device=device)
    gflops = {
        name: batch * executed_gflops(yolo.model.eval().fuse(verbose=False), imgsz) for name, yolo in models.items()
    }
    return [Row(name, gflops[name], times[name]) for name in models]


def load_models(model: str, capacity: Sequence[float], rivals: Sequence[str]) -> dict[str, Any]:
    """Return by name, as `YOLO` objects, the dense twin, the model at each capacity, and the rivals.

    Raises:
        ValueError: If the model routes nothing.
    """
    models: dict[str, Any] = {}
    for c in (1.0, *capacity):
        name = f"{model} capacity {c:g}" if c < 1 else f"{model} dense twin"
        models[name] = load_model(model)
        if not any(routed_layers(models[name])):
            raise ValueError(f"{model} has no routed layer, so there is no capacity to benchmark.")
        set_capacity(models[name], c)
    return models | {name: load_model(name) for name in rivals}


def _eager_call(net: Any, imgsz: int, batch: int, device: str) -> Callable[[], object]:
    """Return a forward of the fused model."""
    image = torch.rand(batch, 3, imgsz, imgsz, device=device).to(memory_format=torch.channels_last)
    net = as_deployed(net, device)
    return lambda: net(image)


def _onnx_call(yolo: Any, imgsz: int, batch: int, path: Path) -> Callable[[], object]:
    """Return a run of the exported model."""
    yolo.model.pt_path = str(path)  # the exporter writes beside it
    session = onnx_session(Path(yolo.export(format="onnx", imgsz=imgsz, batch=batch, device="cpu")))
    image = torch.rand(batch, 3, imgsz, imgsz).numpy()
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image})


def table(rows: list[Row]) -> str:
    """Return the rows as text, speed and FLOPs as ratios to the first."""
    dense = rows[0]
    lines = [f"{'model':<36}{'GFLOPs':>8}{'ratio':>7}   {'median (quartiles)':<28}{'speed-up':>8}"]
    for row in rows:
        lines.append(
            f"{row.name:<36}{row.gflops:>8.2f}{dense.gflops / row.gflops:>7.2f}   {row.latency!s:<28}"
            f"{dense.latency.median / row.latency.median:>8.2f}"
        )
    return "\n".join(lines)
