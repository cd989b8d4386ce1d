"""Speed of a routed model against its dense baseline and others, measured in turn in one process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mod_vision.eval.cost.backbone import Backbone
from mod_vision.eval.cost.backends import EXPORTED, check_backend, prepare
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.eval.cost.latency import Latency, doubts, paired_latency
from mod_vision.eval.cost.memory import peak_megabytes
from mod_vision.files import writable_dir, write_text
from mod_vision.routing import routed_layers
from mod_vision.run_settings import BenchSettings
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.device import start
from mod_vision.yolo.run.letterbox import check_routes


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
    model: str,
    capacity: Sequence[float],
    baselines: Sequence[str] = (),
    bench: BenchSettings = BenchSettings(),  # noqa: B008  # frozen
    by: str = "model",
) -> list[Row]:
    """Measure the dense baseline first, then the routed model at each capacity, then other baselines, all in turn.

    Args:
        model: Routed model: checkpoint or YAML name. The dense baseline is the same at capacity 1.
        capacity: Capacities to measure.
        baselines: Other models on the same bench.
        bench: How it is run.
        by: "model", or "backbone" for that alone.

    Raises:
        ValueError: If the model routes nothing, a router gives NaN, or the backend cannot run on the device.
    """
    bench = start(bench)
    check_backend(bench.backend, bench.device, bench.dtype)
    if by == "backbone" and bench.backend in EXPORTED:
        raise ValueError(f"by=backbone is not for exports such as {bench.backend}: only whole models are exported.")
    return measure(load_models(model, capacity, baselines, bench), bench, by)


def measure(models: Mapping[str, Any], bench: BenchSettings, by: str = "model") -> list[Row]:
    """Measure models in turn, as `benchmark` does.

    Args:
        models: `YOLO` objects by name; they are fused, and stay in the precision of the bench.
        bench: How it is run, as `start` returns it.
        by: As in `benchmark`.
    """
    backend, batch = bench.backend, bench.batch
    part = Backbone if by == "backbone" else lambda net: net
    image = torch.rand(batch, 3, bench.imgsz, bench.imgsz, device=bench.device)
    if backend == "compile":
        torch.compiler.reset()  # other models count against the limit of what is compiled
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        calls = {
            name: prepare(backend, yolo, part, image, bench.dtype, writable_dir(Path(folder) / str(i)))
            for i, (name, yolo) in enumerate(models.items())
        }
        times = paired_latency(calls, bench.repeats, device=bench.device)
        allocates = backend not in (*EXPORTED, "cudagraph")  # from torch's allocator, in the call
        memory = {name: peak_megabytes(call, bench.device) if allocates else None for name, call in calls.items()}
    gflops = {
        name: batch * executed_gflops(part(yolo.model.eval().fuse(verbose=False)), bench.imgsz)
        for name, yolo in models.items()
    }
    return [Row(name, gflops[name], times[name], memory[name]) for name in models]


def load_models(
    model: str, capacity: Sequence[float], baselines: Sequence[str], bench: BenchSettings
) -> dict[str, Any]:
    """Return by name, as `YOLO` objects, the dense baseline, the model at each capacity, and the other baselines.

    They are on the device of the bench: large images would take long on a CPU.

    Raises:
        ValueError: If the model routes nothing, or, at the image size of the bench, a router gives NaN or a layer
            cannot compute it.
    """
    models: dict[str, Any] = {}
    for c in (1.0, *capacity):
        name = f"{model} capacity {c:g}" if c < 1 else f"{model} dense baseline"
        models[name] = load_model(model)
        if not any(routed_layers(models[name])):
            raise ValueError(f"{model} has no routed layer, so there is no capacity to benchmark.")
        set_capacity(models[name], c)
        check_routes(models[name].model.to(bench.device), bench.imgsz)
    return models | {name: load_model(name) for name in baselines}


def efficiency(row: Row, dense: Row) -> float:
    """Return the share of the FLOP ratio to the dense baseline that the speed-up reaches."""
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


def as_figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as plain values for JSON, with their efficiency."""
    return [{**row._asdict(), "latency": row.latency._asdict(), "efficiency": efficiency(row, rows[0])} for row in rows]


def save_figures(figures: Sequence[dict[str, Any]], held: dict[str, Any], path: Path) -> None:
    """Write figures and what they hold for as JSON.

    Raises:
        OSError: If the file cannot be written.
    """
    write_text(path, json.dumps({"conditions": held, "rows": figures}, indent=1) + "\n")
