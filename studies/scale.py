"""How cost grows with image size and batch, dense and routed: time, peak memory, and the exponents that fit them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mod_vision.cli.keys import as_list
from mod_vision.cli.main import run_tool
from mod_vision.eval.cost.benchmark import Row, benchmark
from mod_vision.eval.cost.conditions import conditions
from mod_vision.files import writable_dir, write_text
from mod_vision.run_settings import BenchSettings


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return e of the fit cost = a * size^e, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def scale(
    model: str = "yolo26n-mod-hybrid.yaml",
    capacity: float = 0.5,
    imgsz: Any = (320, 640, 1280, 2560),
    batch: Any = (1, 4, 16, 64),
    threads: int = 2,
    device: str = "cpu",
    repeats: int = 3,
    backend: str = "eager",
    dtype: str = "float32",
    out: str | None = None,
) -> None:
    """Measure sizes at batch 1 and batches at 640 px, dense and routed in turn; `out` takes the figures.

    Raises:
        ValueError: If there are fewer than two sizes or batches: nothing to fit.
    """
    imgsz, batch = ([int(value) for value in as_list(values)] for values in (imgsz, batch))
    if min(len(set(imgsz)), len(set(batch))) < 2:
        raise ValueError(f"two sizes and two batches are needed, got imgsz={imgsz} batch={batch}.")
    if out:
        writable_dir(out)
    runs: dict[tuple[int, int], list[Row]] = {}
    for size, number in [*((s, 1) for s in imgsz), *((640, b) for b in batch)]:
        if (size, number) not in runs:
            bench = BenchSettings(size, device, threads, number, repeats, backend, dtype)
            runs[size, number] = rows = benchmark(model, [capacity], bench=bench)
            texts = [f"{r.latency}" + (f", {r.peak_mb:.0f} MB" if r.peak_mb else "") for r in rows]
            print(f"{size:>5} px, batch {number:>2}: dense {texts[0]}; routed {texts[1]}", flush=True)
    fits = {}
    for i, name in enumerate(("dense", "routed")):
        by_size = [runs[size, 1][i] for size in imgsz]
        by_batch = [runs[640, number][i] for number in batch]
        fits[name] = {
            "time over pixels": exponent([s * s for s in imgsz], [r.latency.median for r in by_size]),
            "GFLOPs over pixels": exponent([s * s for s in imgsz], [r.gflops for r in by_size]),
            "time over batch": exponent(batch, [r.latency.median for r in by_batch]),
            **_memory(imgsz, batch, by_size, by_batch),
        }
        print(f"{name}: " + ", ".join(f"{key} ^ {value:.2f}" for key, value in fits[name].items()))
    if out:
        bench = BenchSettings(imgsz[0], device, threads, 1, repeats, backend, dtype)
        held = conditions(bench) | {"model": model, "capacity": capacity, "imgsz": list(imgsz), "batch": list(batch)}
        figures = [
            {"imgsz": size, "batch": number, "rows": [{**r._asdict(), "latency": r.latency._asdict()} for r in rows]}
            for (size, number), rows in runs.items()
        ]
        text = json.dumps({"conditions": held, "exponents": fits, "runs": figures}, indent=1)
        write_text(Path(out) / "scale.json", text + "\n")


def _memory(
    imgsz: Sequence[int], batch: Sequence[int], by_size: Sequence[Row], by_batch: Sequence[Row]
) -> dict[str, float]:
    """Return the exponents of peak memory, where it was measured."""
    if by_size[0].peak_mb is None:
        return {}
    return {
        "peak memory over pixels": exponent([s * s for s in imgsz], [r.peak_mb or 0.0 for r in by_size]),
        "peak memory over batch": exponent(batch, [r.peak_mb or 0.0 for r in by_batch]),
    }


if __name__ == "__main__":
    sys.exit(run_tool(scale, str(__doc__)))
