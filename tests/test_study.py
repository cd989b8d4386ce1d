"""A study: its opponents, its runs and its report."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from mod_vision.routing import routed_layers
from mod_vision.yolo.model.loading import load_model
from studies.report import read_lines, table, write_report
from studies.rows import ROWS, gflops, iso_flop, mod, read_model
from studies.run import Schedule, study

NAME = "yolo26n-mod-hybrid.yaml"


@pytest.mark.parametrize("capacity", [0.75, 0.25])
def test_isoflop_twin_costs_what_the_routed_model_does(capacity):
    d = read_model(NAME)
    twin = iso_flop(capacity)(d, NAME, 320)
    assert twin["mod"]["capacity"] == 1.0
    target = gflops(mod(capacity=capacity)(d, NAME, 320), NAME, 320)
    assert gflops(twin, NAME, 320) == pytest.approx(target, rel=0.03)
    assert d == read_model(NAME), "the model it is made from stays as it is"


def test_rows_differ_in_what_their_name_says():
    d = read_model(NAME)
    made = {
        name: ROWS[name].make(d, NAME, 64) for name in ("dense", "random-0.25", "no-guide-0.5", "elastic", "yolo-s")
    }
    assert made["dense"]["mod"] == {**d["mod"], "capacity": 1.0}
    assert made["random-0.25"]["mod"] == {**d["mod"], "capacity": 0.25, "router": "random"}
    assert made["no-guide-0.5"]["mod"] == {**d["mod"], "capacity": 0.5, "loss": {"guide": 0}}
    assert made["elastic"]["mod"] == {**d["mod"], "elastic": [0.25, 0.75]}
    assert made["yolo-s"] == {"model": "yolo26s.yaml"}


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """Rows of each kind, trained for an epoch and tuned for one, and the schedule they had."""
    root = tmp_path_factory.mktemp("study")
    schedule = Schedule(
        "yolo26n-mod-hybrid-seg.yaml", str(tiny_data), "tiny", imgsz=64, epochs=1, batch=4, nbs=4, tuning=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        rows = ["fitted-untuned", "random-0.25", "dense"]
        folder = study(schedule, rows, [3], 1, "cpu", root / "results")
    return schedule, folder


def test_each_run_leaves_config_and_figures(finished):
    schedule, folder = finished
    found = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    assert set(found) == {"fitted-untuned-seed3", "random-0.25-seed3", "dense-seed3"}
    for name, figures in found.items():
        trainings = {"train": schedule.train_args(), "tune": schedule.tune_args()}
        if name == "fitted-untuned-seed3":
            del trainings["tune"]
        assert figures["config"]["train"] == trainings
        assert figures["config"]["seed"] == 3
        assert figures["config"]["data"] == "tiny.yaml", "no path of this machine"
        assert set(figures["versions"]) == {"date", "ultralytics", "torch", "torchvision"}
    assert [s["capacity"] for s in found["fitted-untuned-seed3"]["scores"]] == [0.75, 0.5, 0.25]
    (dense,), (routed,) = (found[name]["scores"] for name in ("dense-seed3", "random-0.25-seed3"))
    assert routed["gflops"] < dense["gflops"]
    assert dense["routed_share"] == {}
    assert set(routed["routed_share"]) == {"model.6", "model.8"}
    assert 0 <= routed["mask"]["AP"] <= 1


def test_routed_rows_go_on_from_the_dense_training(finished):
    _, folder = finished
    runs = folder.parent.parent / "runs" / "study" / "tiny"
    assert {run.parent.name for run in runs.glob("*/train")} == {"dense-seed3"}
    dense, start = (
        load_model(runs / file).model for file in ("dense-seed3/train/weights/last.pt", "random-0.25-seed3/start.pt")
    )
    weights = start.state_dict()
    own = {
        key for key, value in dense.state_dict().items() if not torch.equal(weights.get(key, torch.zeros(())), value)
    }
    assert {key.split(".")[2] for key in own} == {"router", "skip"}
    assert start.yaml["mod"]["router"] == "random"
    assert [(type(layer.router).__name__, layer.capacities[0]) for _, layer in routed_layers(start)] == [
        ("RandomRouter", 0.25)
    ] * 2
    assert all(layer.skip.weight.any() for _, layer in routed_layers(start)), "the bypass is fitted for it too"
    tuned = load_model(runs / "random-0.25-seed3" / "tune" / "weights" / "last.pt").model
    assert {layer.capacities[0] for _, layer in routed_layers(tuned)} == {0.25}
    was, now = (net.state_dict()["model.0.conv.weight"] for net in (dense, tuned))
    assert 0 < (now - was).norm() < 0.1 * was.norm(), "a short training does not start again"


def test_what_is_done_is_not_done_again(finished, monkeypatch, capsys):
    schedule, folder = finished
    monkeypatch.chdir(folder.parent.parent)
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    study(schedule, ["dense", "fitted-untuned"], [3], 2, "cpu", folder.parent)
    assert "2 of 2 runs are done" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    (folder / "dense-seed3.json").unlink()
    study(schedule, ["dense", "fitted-untuned"], [3], 1, "cpu", folder.parent)
    assert "1 of 2 runs are done" in capsys.readouterr().out
    assert (folder / "dense-seed3.json").is_file(), "from the trainings that are there"


def test_weights_of_another_schedule_are_not_taken_over(finished, monkeypatch, tmp_path):
    schedule, folder = finished
    monkeypatch.chdir(folder.parent.parent)
    with pytest.raises(ValueError, match=r"dense-seed3.tune was trained with another epochs; remove the folder"):
        study(replace(schedule, tuning=2), ["dense"], [3], 1, "cpu", tmp_path)


def test_trainings_on_the_cpu_compute_in_bfloat16_and_channels_last(tiny_data, tmp_path):
    script = """
        import torch
        from ultralytics.utils.callbacks.base import default_callbacks
        from mod_vision.yolo.train import cpu as cpu_training

        def watch(module, args, output):
            print("saw", output.dtype, output.is_contiguous(memory_format=torch.channels_last))

        default_callbacks["on_train_start"].append(lambda t: t.model.model[3].register_forward_hook(watch))
        cpu_training.main()
    """
    words = f"train model=yolo26n-mod-hybrid.yaml data={tiny_data} imgsz=64 epochs=1 batch=4 device=cpu val=False"
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(script),
        *words.split(),
        "plots=False",
        "workers=0",
        f"project={tmp_path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "saw torch.bfloat16 True" in done.stdout, done.stderr[-2000:]


def test_another_schedule_or_row_is_refused(finished, monkeypatch):
    schedule, folder = finished
    monkeypatch.chdir(folder.parent.parent)
    other = Schedule(schedule.model, schedule.data, schedule.name, imgsz=64, epochs=2, batch=4, nbs=4)
    with pytest.raises(ValueError, match=r"dense-seed3.json was made under another schedule"):
        study(other, ["dense"], [3], 1, "cpu", folder.parent)
    with pytest.raises(ValueError, match=r"unknown row dence; known are dense"):
        study(schedule, ["dence"], [3], 1, "cpu", folder.parent)
    with pytest.raises(ValueError, match=r"yolo12n-mod-attention.yaml has no MoDStage row"):
        read_model("yolo12n-mod-attention.yaml")


def test_report(finished):
    _, folder = finished
    text = write_report(folder)
    names = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert names[0] == "dense"
    fitted = {f"fitted-untuned at {c}" for c in (0.75, 0.5, 0.25)}
    assert set(names) == {"dense", "random-0.25", *fitted}
    assert text == (folder / "table.md").read_text().strip()
    assert (folder / "plot.png").stat().st_size > 10_000


def test_report_has_mean_and_deviation_and_compares_equal_seeds(tmp_path):
    for row, cost, aps in (("dense", 2.0, (0.15, 0.35)), ("routed-0.5", 1.5, (0.1, 0.2, 0.3))):
        for seed, ap in enumerate(aps):
            score = {"capacity": None, "gflops": cost, "box": {"AP": ap}, "mask": None, "routed_share": {}}
            (tmp_path / f"{row}-seed{seed}.json").write_text(json.dumps({"scores": [score]}))
    text = table(read_lines(tmp_path))
    assert "| routed-0.5 | 1.50 | 20.0 ± 10.0 | -10.0 ± 7.1 | 3 |" in text
    assert "| dense | 2.00 | 25.0 ± 14.1 | - | 2 |" in text
    with pytest.raises(FileNotFoundError, match=r"has no results"):
        read_lines(tmp_path / "none")
