"""`mod-vision bench` by model, backbone, layer, step and profile, with each backend, and what it cannot measure."""

import json

import pytest
from helpers import error_text

from mod_vision.cli.main import main
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.yolo.model.loading import load_model

pytestmark = pytest.mark.usefixtures("own_folder")


def test_bench_by_layer(capsys, tmp_path):
    words = ["model=yolo12n-mod-attention.yaml", "by=layer", "capacity=0.5", "imgsz=128", "repeats=1", "threads=1"]
    assert main(["bench", *words, f"out={tmp_path}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("model.")]
    assert [line[0] for line in lines] == [f"model.{i}" for i in (6, 8)]
    for line in lines:
        assert line[1].startswith("MoD")
        assert 1.0 < float(line[8]) < 2.0, "half of the tokens, and the convolutions around"
        assert float(line[9]) == pytest.approx(float(line[7]) / float(line[8]), abs=0.02)
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["conditions"]["by"] == "layer"
    for row, line in zip(figures["rows"], lines, strict=True):
        assert row["layer"] == line[0]
        assert row["efficiency"] == pytest.approx(float(line[9]), abs=0.006)


@pytest.mark.parametrize("model", ["yolo26n-mod-hybrid.yaml", "yolo26n-mod-hybrid-seg.yaml"])
def test_bench_by_step(capsys, model):
    words = [f"model={model}", "by=step", "capacity=0.5,0.25", "imgsz=96", "batch=2", "repeats=1", "baselines="]
    assert main(["bench", *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(model)]
    saved = [float(line[-1]) for line in lines]  # relative to the dense baseline
    assert saved[0] == 1
    assert saved == sorted(saved, reverse=True)
    assert saved[2] < 0.95


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["batch=[1"], "batch=[1: brackets or quotes are not closed"),
        (["by=block"], "by must be model, backbone, layer, step or profile"),
        (["by=layer", "backend=onnx"], "by=layer measures backend=eager"),
        (["by=profile", "dtype=bfloat16"], "by=profile measures backend=eager in float32"),
        (["by=step", "dtype=bfloat16"], "by=step measures backend=eager"),
        (["by=backbone", "backend=onnx"], "only whole models are exported"),
        (["backend=cudagraph"], "needs an NVIDIA GPU"),
        (["backend=onnx", "dtype=float16"], "an export has the precision it was exported with"),
        (["dtype=int3"], "dtype must be one of"),
    ],
)
def test_bench_by_something_else(capsys, words, reason):
    assert reason in error_text(capsys, "bench", *words)


def test_bench_by_profile(capsys):
    words = ["model=yolo26n-mod-hybrid.yaml", "by=profile", "capacity=0.5", "imgsz=64", "repeats=1", "threads=1"]
    assert main(["bench", *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("model.")]
    assert [line[:2] for line in lines] == [[f"model.{i}", c] for i in (6, 8) for c in ("1", "0.5")]
    routing, gather, block, scatter = ([float(line[i]) for line in lines] for i in (2, 4, 6, 8))
    assert routing[0] == gather[0] == scatter[0] == 0, "the dense baseline routes nothing"
    assert min(routing[1], gather[1], scatter[1]) > 0
    assert min(block) > 0


@pytest.mark.parametrize("backend", ["eager", "onnx", "openvino", "torchscript"])
def test_bench_backends(backend, capsys, tmp_path):
    words = [f"backend={backend}", "capacity=0.5", "imgsz=64", "repeats=2", "threads=1", f"out={tmp_path}"]
    assert main(["bench", "model=yolo26n-mod-hybrid.yaml", *words]) == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["conditions"]["backend"] == backend
    dense, routed, rival = figures["rows"]
    assert routed["gflops"] < dense["gflops"]
    assert dense["efficiency"] == 1.0
    limit = dense["gflops"] / routed["gflops"]
    assert routed["efficiency"] == pytest.approx(dense["latency"]["median"] / routed["latency"]["median"] / limit)
    assert (routed["peak_mb"] is None) == (backend != "eager")
    assert rival["name"] == "yolo26n.yaml"
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_bench_of_the_backbone_in_bfloat16(capsys, tmp_path):
    words = ["by=backbone", "dtype=bfloat16", "capacity=0.5", "imgsz=64", "repeats=1", "threads=1", "baselines="]
    assert main(["bench", "model=yolo26n-mod-hybrid.yaml", *words, f"out={tmp_path}"]) == 0, capsys.readouterr().err
    dense, routed = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert dense["gflops"] < executed_gflops(load_model("yolo26n-mod-hybrid.yaml").model, 64)
    assert routed["gflops"] < 0.75 * dense["gflops"]
    assert routed["peak_mb"] > 0


@pytest.mark.parametrize("word", ["capacity=0.5", "backend=abacus"])
def test_bench_refuses_what_it_cannot_measure(capsys, word):
    model = "yolo26n.yaml" if word.startswith("capacity") else "yolo26n-mod-hybrid.yaml"
    text = error_text(capsys, "bench", f"model={model}", word, "baselines=", "imgsz=64", "repeats=1")
    assert "no routed layer" in text or "backend must be" in text
