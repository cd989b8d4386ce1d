"""The run on a GPU, as far as a CPU can take it: what it checks, in which order it measures, what it says of bars."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_tools import TOOLS, tool

from mod_vision.eval.cost.benchmark import Row
from mod_vision.eval.cost.latency import Latency
from mod_vision.eval.gpu import checks
from mod_vision.eval.gpu.grid import EXPECTED, Combo, Grid, Result, _out_of_memory, run_grid
from mod_vision.eval.gpu.report import Report
from mod_vision.yolo.model.windows import head_of


def test_a_tiny_run(tmp_path):
    words = [sys.executable, str(TOOLS / "gpu.py"), "size=tiny", f"out={tmp_path / 'gpu'}"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "YOLO_OFFLINE": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "gpu").iterdir()) == ["gpu.json", "gpu.md"]
    found = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert {"device", "driver", "cuda", "torch", "ultralytics", "python", "date"} <= found["conditions"].keys()
    assert [check["holds"] for check in found["checks"]] == [True, True, None, True, None, None]
    assert [epoch["steps"] for epoch in found["training"]] == [1, 1]
    assert all(epoch["finite"] and epoch["step_ms"] > 0 for epoch in found["training"])
    assert [(row["imgsz"], row["batch"], row["error"]) for row in found["rows"]] == [(320, 1, None), (256, 2, None)]
    for row in found["rows"]:
        ratio = row["dense"]["gflops"] / row["windows"]["gflops"]
        assert ratio > 1.3
        assert row["speed_up"] == pytest.approx(row["efficiency"] * ratio)
    assert [bar["holds"] for bar in found["bars"]] == [None, None]
    assert "| yolo26n | 320 | 1 | eager |" in (tmp_path / "gpu" / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [({}, "size=full needs an NVIDIA GPU"), ({"size": "huge"}, "full or tiny"), ({"minutes": 0.0}, "above 0, got 0")],
)
def test_what_is_refused(tmp_path, arguments, told):
    with pytest.raises(ValueError, match=told):
        tool("gpu").gpu(out=str(tmp_path / "gpu"), **arguments)
    assert not (tmp_path / "gpu").exists()


@pytest.fixture(scope="module")
def tried():
    """A dense model, the same on windows, and images that get windows of their own."""
    torch.manual_seed(0)
    images = checks._images(320)
    return *checks._pair(images), images


@torch.inference_mode()
def test_checks_see_what_is_wrong(tried):
    dense, windows, images = tried
    assert checks._dense(dense, windows, images, "cpu")[0]
    other = checks._on(dense, "cpu", torch.float32)
    other.model[0].conv.weight.mul_(1.001)
    assert checks._dense(other, windows, images, "cpu")[0] is False
    learning = checks._on(windows, "cpu", torch.float32)
    learning.model[1].train()  # batch statistics
    assert checks._batch(windows, images, "cpu")[0]
    assert checks._batch(learning, images, "cpu")[0] is False
    assert checks._batch(windows, torch.zeros_like(images), "cpu") == (
        False,
        "the images have the same windows, so there is nothing to compare",
    )
    large = checks._on(windows, "cpu", torch.float32)
    large.model[1].conv.weight.mul_(1e6)
    assert checks._half(windows, images, "cpu")[0]
    assert checks._half(large, images, "cpu")[0] is False
    assert checks._tried("x", lambda: 1 / 0) == checks.Check("x", False, "ZeroDivisionError: division by zero")


@torch.inference_mode()
def test_a_model_that_runs_the_whole_image_is_seen(tried):
    dense, windows, images = tried
    whole = checks._on(windows, "cpu", torch.float32)
    head_of(whole).entry.capacities = (1.0,)
    assert checks._dense(dense, whole, images, "cpu") == (False, "at capacity 0.25 the whole image was run")


def full_grid() -> Grid:
    return Grid("nsmx", tool("gpu").PLACES, ("eager", "cudagraph", "compile"), "float16", 15)


def test_the_most_telling_comes_first():
    combos = full_grid().combos()
    assert len(combos) == len(set(combos)) == 4 * 9 * 3
    assert [str(combo) for combo in combos[:5]] == [
        "yolo26n, 1280 px, batch 1, eager",
        "yolo26s, 1280 px, batch 1, eager",
        "yolo26m, 1280 px, batch 1, eager",
        "yolo26x, 1280 px, batch 1, eager",
        "yolo26n, 1280 px, batch 1, cudagraph",
    ]
    assert combos.index(Combo("x", 1280, 8, "cudagraph")) < combos.index(Combo("n", 1280, 1, "compile"))


def test_nothing_starts_that_would_take_too_long():
    """A scale that does not exist fails, which takes as long as the clock says."""
    now = iter([0.0, 30.0, 30.0, 70.0, 70.0, 70.0])
    left_out: list[Combo] = []
    grid = Grid("q", ((64, 1), (64, 2), (64, 3), (64, 4)), ("eager",), "float32", 1)
    done = list(run_grid(grid, "cpu", 80.0, left_out, lambda: next(now)))
    assert [result.combo.batch for result in done] == [1, 2]
    assert all(result.error.startswith("failed, ") and "yolo26q" in result.error for result in done)
    assert [combo.batch for combo in left_out] == [3, 4]
    left_out.clear()
    assert not list(run_grid(full_grid(), "cpu", min(EXPECTED.values()) - 1, left_out, lambda: 0.0))
    assert len(left_out) == 4 * 9 * 3


def test_a_lack_of_memory_is_told_apart():
    def capture(error: Exception) -> Exception:
        try:
            try:
                raise error
            finally:
                raise RuntimeError("the graph is not finished")
        except RuntimeError as both:
            return both

    assert _out_of_memory(torch.OutOfMemoryError("no"))
    assert _out_of_memory(capture(torch.OutOfMemoryError("no")))
    assert not _out_of_memory(capture(ValueError("no")))


def result(combo: Combo, speed_up: float, ratio: float) -> Result:
    times = Latency(10 * speed_up, 9, 11), Latency(10, 9, 11)
    return Result(combo, Row("dense", ratio, times[0], 20.0), Row("windows", 1.0, times[1], 10.0))


def test_bars(tmp_path: Path):
    report = Report({"device": "a GPU"}, "float16", ("eager", "cudagraph", "compile"))
    report.results = [
        result(Combo("n", 1280, 1, "eager"), 0.9, 3),
        result(Combo("s", 1280, 1, "eager"), 1.5, 3),
        result(Combo("n", 640, 1, "eager"), 0.5, 3),  # too small to count
        result(Combo("n", 1280, 8, "eager"), 1.0, 3),  # n does not count
        result(Combo("s", 1280, 8, "eager"), 2.5, 3),
        result(Combo("s", 1280, 8, "cudagraph"), 2.3, 3),
        Result(Combo("x", 1280, 8, "cudagraph"), error="out of memory"),
    ]
    assert [(bar.backend, bar.holds) for bar in report.bars()] == [
        ("eager", False),
        ("eager", True),
        ("cudagraph", None),
        ("cudagraph", False),
        ("compile", None),
        ("compile", None),
    ]
    assert report.bars()[0].said == "1 of 2; not yolo26n, 1280 px, batch 1, eager: 0.90"
    page = report.page()
    assert "| yolo26x | 1280 | 8 | cudagraph | out of memory |" in page
    assert "| 25.0 ms (9.0-11.0) | 10.0 ms (9.0-11.0) | 2.50 | 3.00 | 0.83 | 20, 10 |" in page
    assert not report.failed
    report.results.append(Result(Combo("x", 2560, 8, "compile"), error="failed, RuntimeError: no compiler"))
    assert report.failed
