"""Try routed windows on a machine with one NVIDIA GPU, within some minutes, and say which bars hold.

Checks what must hold on a GPU, trains an epoch dense and on windows, and times yolo26{n,s,m,x}-mod against the same
model at capacity 1, in float16. Writes gpu.json and gpu.md, anew after each step. size=tiny is a trial on any machine,
in half a minute. The exit code is 1 if a check does not hold, or something fails for another reason than memory.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from mod_vision.cli.main import run_tool
from mod_vision.errors import one_line
from mod_vision.files import fresh_path, writable_dir, write_text

TINY_TRAINING = {"imgsz": 64, "batch": 8, "fraction": 0.14, "workers": 0}
TRAINING = {"imgsz": 1280, "batch": 8, "workers": 4}
PLACES = ((1280, 1), (1280, 8), (2560, 1), (640, 1), (2560, 8), (640, 8), (1280, 32), (640, 32), (2560, 32))


def gpu(out: str = "runs/gpu", size: str = "full", minutes: float = 8.0) -> int:
    """Check, train and time routed windows on a GPU.

    Example: python tools/gpu.py out=runs/gpu
    """
    began = time.perf_counter()
    if size not in ("full", "tiny"):
        raise ValueError(f"size must be full or tiny, got {size!r}.")
    if minutes <= 0:
        raise ValueError(f"minutes must be above 0, got {minutes:g}.")
    from mod_vision.eval.gpu.machine import machine
    from mod_vision.eval.gpu.report import Report
    from mod_vision.run_settings import RunSettings
    from mod_vision.yolo.run.device import start

    device = start(RunSettings()).device
    if size == "full" and not device.startswith("cuda"):
        raise ValueError("size=full needs an NVIDIA GPU, and torch finds none; size=tiny is a trial on the CPU.")
    folder = writable_dir(fresh_path(out, "gpu.json"))
    grid = _grid(size)
    report = Report(machine(device), grid.dtype, grid.backends)
    print(", ".join(f"{key} {value}" for key, value in report.machine.items()), flush=True)
    for line in _steps(report, grid, size, device, began + 60 * minutes):
        print(line, flush=True)
        write_text(folder / "gpu.json", json.dumps(report.figures(), indent=1) + "\n")
        write_text(folder / "gpu.md", report.page())
    for bar in report.bars():
        print(f"{bar.backend}: {bar.name}: {'not measured' if bar.holds is None else bar.holds} {bar.said}")
    print(f"{time.perf_counter() - began:.0f} s; figures in {folder}")
    return int(report.failed)


def _grid(size: str) -> Any:
    """Return what is timed."""
    from mod_vision.eval.gpu.grid import Grid

    if size == "tiny":
        return Grid("n", ((320, 1), (256, 2)), ("eager",), "float32", 3)
    tensorrt = ["tensorrt"] if importlib.util.find_spec("tensorrt") else []
    return Grid("nsmx", PLACES, ("eager", "cudagraph", "compile", *tensorrt), "float16", 15)


def _steps(report: Any, grid: Any, size: str, device: str, until: float) -> Iterator[str]:
    """Do one thing after the other, put it into the report, and yield a line on it."""
    from mod_vision.eval.gpu.checks import run_checks
    from mod_vision.eval.gpu.grid import CAPACITY, run_grid
    from mod_vision.eval.gpu.training import train_epoch

    for check in run_checks(device, 256 if size == "tiny" else 640):
        report.checks.append(check)
        yield f"{check.name}: {check.holds}, {check.said}"
    for capacity in (1.0, CAPACITY):
        try:
            report.epochs.append(
                train_epoch("yolo26n-mod.yaml", capacity, device, **TINY_TRAINING if size == "tiny" else TRAINING)
            )
        except Exception as error:
            report.epochs.append(f"training at capacity {capacity:g} failed, {type(error).__name__}: {one_line(error)}")
        yield f"training: {report.epochs[-1]}"
    for result in run_grid(grid, device, until, report.left_out):
        report.results.append(result)
        yield str(result)
    yield f"left out for lack of time: {', '.join(map(str, report.left_out)) or 'nothing'}"


if __name__ == "__main__":
    sys.exit(run_tool(gpu, str(__doc__)))
