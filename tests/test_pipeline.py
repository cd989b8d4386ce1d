"""Train, resume, val, predict and export through the real `yolo` entry point, for detect and for segment."""

import csv
from pathlib import Path

import pytest
from ultralytics.nn.autobackend import AutoBackend

from mod_vision.routing import routed_layers
from mod_vision.yolo.export.check import check_export
from mod_vision.yolo.export.exporter import input_tensors
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model


def yolo(run_cli, cwd: Path, *words: str) -> str:
    done = run_cli("yolo", *words, cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module", params=["", "-seg"], ids=["detect", "segment"])
def trained(request, tmp_path_factory, tiny_data, run_cli):
    """A model trained for two epochs by plain `yolo train`."""
    cwd = tmp_path_factory.mktemp(f"run{request.param}")
    words = ["imgsz=96", "epochs=2", "batch=4", "save_period=1", "workers=0", "plots=False", "device=cpu"]
    model = f"model=yolo26n-mod-hybrid{request.param}.yaml"
    yolo(run_cli, cwd, "train", model, f"data={tiny_data}", *words, f"project={cwd}", "name=train")
    return cwd / "train"


def results(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return [{k.strip(): v.strip() for k, v in row.items()} for row in csv.DictReader(file)]


def test_guide_loss_has_columns_of_its_own(trained):
    rows = results(trained)
    assert len(rows) == 2
    assert all(float(row["train/guide"]) > 0 and float(row["val/guide"]) > 0 for row in rows)


def test_resume_goes_on_where_it_stopped(trained, run_cli):
    before = results(trained)
    yolo(run_cli, trained.parent, "train", "resume", f"model={trained / 'weights' / 'epoch0.pt'}")
    after = results(trained)
    assert after[0] == before[0]
    assert [row["epoch"] for row in after] == ["1", "2"]  # the second epoch anew, in the place of the old one
    assert after[1]["time"] != before[1]["time"]
    assert float(after[1]["train/guide"]) > 0


def test_val_and_predict(trained, tiny_data, photos, run_cli):
    best = trained / "weights" / "best.pt"
    words = ("imgsz=96", "device=cpu", f"project={trained.parent}")
    assert "all" in yolo(run_cli, trained.parent, "val", f"model={best}", f"data={tiny_data}", "name=val", *words)
    yolo(run_cli, trained.parent, "predict", f"model={best}", f"source={photos[0]}", "name=predict", *words)
    assert (trained.parent / "predict" / photos[0].name).is_file()


def test_export_keeps_the_routing(trained, photos, run_cli):
    best = trained / "weights" / "best.pt"
    yolo(run_cli, trained.parent, "export", f"model={best}", "format=onnx", "imgsz=96", "device=cpu")
    model = load_model(best).model.float().eval().fuse(verbose=False)
    onnx = best.with_suffix(".onnx")
    check = check_export(onnx, AutoBackend(onnx), model, input_tensors(photos[:4], 96))
    assert check.same_indices == 1.0
    assert check.max_error < 1e-3


def test_mod_vision_val_and_heatmap(trained, tiny_data, photos, run_cli):
    best, cwd = trained / "weights" / "best.pt", trained.parent
    done = run_cli("mod-vision", "val", f"model={best}", f"data={tiny_data}", "imgsz=96", f"out={cwd / 'mv'}", cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    for text in ("box  AP", "executed GFLOPs", "dense baseline", "latency", "objects", "rest", "random"):
        assert text in done.stdout
    assert (cwd / "mv" / "evaluation.json").is_file()
    source = f"source={photos[0]}"
    done = run_cli("mod-vision", "heatmap", f"model={best}", source, "imgsz=96", f"out={cwd / 'maps'}", cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((cwd / "maps").glob("*.png"))) == 1


def test_capacity_set_from_python_is_the_one_that_trains(tiny_data, tmp_path):
    yolo = load_model("yolo26n-mod-hybrid.yaml")
    set_capacity(yolo, 1.0)
    words = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "device": "cpu"}
    yolo.train(data=str(tiny_data), project=str(tmp_path), name="dense", **words)
    assert all(layer.dense for _, layer in routed_layers(load_model(tmp_path / "dense" / "weights" / "best.pt").model))
    assert "train/guide" not in results(tmp_path / "dense")[0]
