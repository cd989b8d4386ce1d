"""Speed of a routed model against its dense twin and others, measured in turn in one process."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mod_vision.eval.backends import EXPORTED, RUNTIMES, check_backend, prepare
from mod_vision.eval.flops import executed_gflops
from mod_vision.eval.latency import Latency, doubts, keep_memory, paired_latency
from mod_vision.eval.memory import peak_megabytes
from mod_vision.files import writable_dir, write_text
from mod_vision.routing import routed_layers, set_capacity
from mod_vision.yolo.backbone import Backbone
from mod_vision.yolo.images import check_routes, load_model, round_imgsz, torch_device


class Row(NamedTuple):
    """One line of the benchmark.

    Attributes:
        name: Model, and capacity where it is routed.
        gflops: Executed GFLOPs of the batch.
        latency: Milliseconds for the batch.
        peak_mb: Megabytes (1e6 bytes) that the forward holds at most beside the weights, None for exports.
    """

    name: str
    gflops: float
    latency: Latency
    peak_mb: float | None = None


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
    dtype: str = "float32",
    by: str = "model",
) -> list[Row]:
    """Measure the dense twin first, then the routed model at each capacity, then the rivals.

    Args:
        model: Routed model: checkpoint or YAML name.
        capacity: Capacities to measure.
        imgsz: Image size in pixels.
        batch: Images per call.
        threads: CPU threads; importing Ultralytics sets one, so it is set here.
        device: As in Ultralytics.
        repeats: Timed rounds.
        rivals: Other models on the same bench.
        backend: eager, compile (torch.compile without graph breaks) or cudagraph, all fused and in channels-last
            memory; or onnx, openvino, torchscript or tensorrt, exported by Ultralytics.
        dtype: Precision of eager, compile and cudagraph: float32, or bfloat16 or float16 by autocast.
        by: "model", or "backbone" for that alone.

    Raises:
        ValueError: If the model routes nothing, a router gives NaN, or the backend cannot run on the device.
    """
    torch.set_num_threads(threads)
    device, imgsz = str(torch_device(device)), round_imgsz(imgsz)
    check_backend(backend, device, dtype)
    if by == "backbone" and backend in EXPORTED:
        raise ValueError(f"by=backbone is not for exports such as {backend}: only whole models are exported.")
    models = load_models(model, capacity, rivals)
    part = Backbone if by == "backbone" else lambda net: net
    image = torch.rand(batch, 3, imgsz, imgsz, device=device)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        calls = {
            name: prepare(backend, yolo, part, image, dtype, writable_dir(Path(folder) / str(i)))
            for i, (name, yolo) in enumerate(models.items())
        }
        times = paired_latency(calls, repeats, device=device)
        allocates = backend not in (*EXPORTED, "cudagraph")  # from torch's allocator, in the call
        memory = {name: peak_megabytes(call, device) if allocates else None for name, call in calls.items()}
    gflops = {
        name: batch * executed_gflops(part(yolo.model.eval().fuse(verbose=False)), imgsz)
        for name, yolo in models.items()
    }
    return [Row(name, gflops[name], times[name], memory[name]) for name in models]


def load_models(model: str, capacity: Sequence[float], rivals: Sequence[str]) -> dict[str, Any]:
    """Return by name, as `YOLO` objects, the dense twin, the model at each capacity, and the rivals.

    Raises:
        ValueError: If the model routes nothing, or a router gives NaN.
    """
    models: dict[str, Any] = {}
    for c in (1.0, *capacity):
        name = f"{model} capacity {c:g}" if c < 1 else f"{model} dense twin"
        models[name] = load_model(model)
        if not any(routed_layers(models[name])):
            raise ValueError(f"{model} has no routed layer, so there is no capacity to benchmark.")
        set_capacity(models[name], c)
        check_routes(models[name].model)
    return models | {name: load_model(name) for name in rivals}


def efficiency(row: Row, dense: Row) -> float:
    """Return the share of the FLOP ratio to the dense twin that the speed-up reaches."""
    return (dense.latency.median / row.latency.median) / (dense.gflops / row.gflops)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, speed and FLOPs as ratios to the first."""
    dense = rows[0]
    lines = [
        f"{'model':<36}{'GFLOPs':>8}{'ratio':>7}   {'median (quartiles)':<28}{'speed-up':>8}{'eff.':>6}{'peak MB':>9}"
    ]
    for row in rows:
        lines.append(
            f"{row.name:<36}{row.gflops:>8.2f}{dense.gflops / row.gflops:>7.2f}   {row.latency!s:<28}"
            f"{dense.latency.median / row.latency.median:>8.2f}{efficiency(row, dense):>6.2f}"
            f"{'-' if row.peak_mb is None else format(row.peak_mb, '.0f'):>9}"
        )
    return "\n".join(lines + doubts({row.name: row.latency.spread for row in rows}))


def conditions(
    imgsz: int, batch: int, threads: int, device: str, repeats: int, backend: str, dtype: str
) -> dict[str, Any]:
    """Return what figures hold for: the settings, the machine, the versions and the date.

    Raises:
        ValueError: If the backend cannot run on the device.
        ImportError: If the backend's runtime is not installed.
    """
    check_backend(backend, str(torch_device(device)), dtype)
    missing = [name for name in RUNTIMES.get(backend, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"backend={backend} needs {missing[0]}: pip install {missing[0]}.")
    packages = ("torch", "ultralytics", *RUNTIMES.get(backend, ()))
    cuda = torch_device(device).type == "cuda"
    return {
        "imgsz": round_imgsz(imgsz),
        "batch": batch,
        "device": torch.cuda.get_device_name(torch_device(device)) if cuda else cpu_name(),
        **({} if cuda else {"threads": threads, "freed memory": "kept" if keep_memory() else "given back"}),
        "backend": backend,
        "dtype": dtype,
        "repeats": repeats,
        "date": date.today().isoformat(),
        **{name: importlib.import_module(name).__version__ for name in packages},
    }


def cpu_name() -> str:
    """Return the CPU's name and the number of its cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor()}, {cores} cores"


def as_figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as plain values for JSON, with their efficiency."""
    return [{**row._asdict(), "latency": row.latency._asdict(), "efficiency": efficiency(row, rows[0])} for row in rows]


def save_figures(figures: Sequence[dict[str, Any]], held: dict[str, Any], path: Path) -> None:
    """Write figures and what they hold for as JSON.

    Raises:
        OSError: If the file cannot be written.
    """
    write_text(path, json.dumps({"conditions": held, "rows": figures}, indent=1) + "\n")
