"""`mod-vision tune`: real sweeps on a few photos, stopped, resumed, shared by two workers, and refused."""

import json
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from ultralytics.utils.callbacks.base import default_callbacks

from mod_vision.cli.main import main
from mod_vision.eval.pareto import dominates, dominators, pareto_front
from mod_vision.resources import resource_dir
from mod_vision.routing import routed_layers
from mod_vision.tune.space import candidate_of, candidates, check_choices
from mod_vision.tune.study import open_study
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.variants import DENSE, Candidate, routed_variant

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)) | st.tuples(st.floats(0, 9), st.floats(0, 1)))
MODEL = "yolo26n-mod-hybrid.yaml"
RANGES = ["capacity=0.25,0.5", "router=linear,norm", "stages=all,6"]


@pytest.fixture(scope="module")
def words(tiny_data):
    """The smallest sweep."""
    cfg = tiny_data.parent / "train.yaml"
    cfg.write_text("workers: 0\nval: False\n")
    sizes = ["imgsz=64", "epochs=1", "batch=8", "iterations=3", "threads=1"]
    return ["tune", f"model={MODEL}", f"data={tiny_data}", f"cfg={cfg}", *sizes, *RANGES]


def trials(out: Path, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
    """The trials of a sweep in some states, by default all."""
    study = optuna.load_study(study_name=out.name, storage=f"sqlite:///{out}/study.db")
    return study.get_trials(states=states or None)


def finished(out: Path) -> dict[str, datetime]:
    """When each trial was finished, by its folder."""
    return {candidate_of(t.params).slug: t.datetime_complete for t in trials(out, TrialState.COMPLETE)}


def start_sweep(words: list[str], out: Path, folders: int) -> subprocess.Popen:
    """Start a sweep in a process of its own, and return once it trains in as many folders."""
    code = "import sys; from mod_vision.cli.main import main; sys.exit(main(sys.argv[1:]))"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    sweep = subprocess.Popen([sys.executable, "-c", code, *words, f"out={out}"], **quiet)
    deadline = time.monotonic() + 100
    while len(list(out.glob("*/args.yaml"))) < folders:
        assert sweep.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return sweep


@given(POINTS)
def test_the_front_dominates_the_rest_and_is_dominated_by_none(points):
    front = pareto_front(points)
    assert [points[i] for i in front] == sorted(points[i] for i in front)
    rest = set(range(len(points))) - set(front)
    assert not any(dominates(other, points[i]) for i in front for other in points)
    assert all(any(dominates(points[i], points[j]) for i in front) for j in rest)
    assert [i for i, count in enumerate(dominators(points)) if count == 0] == sorted(front)


@pytest.fixture(scope="module")
def swept(words, tmp_path_factory):
    """A finished sweep."""
    out = tmp_path_factory.mktemp("tune") / "sweep"
    assert main([*words, f"out={out}"]) == 0
    return out


def test_a_sweep_gives_dense_and_routed_trials_with_their_front(swept, words, capsys):
    before = finished(swept)
    assert len(before) == 3
    assert main([*words, f"out={swept}"]) == 0  # trains nothing, prints the table again
    assert finished(swept) == before

    results = json.loads((swept / "results.json").read_text())
    rows = results["trials"]
    assert [t["capacity"] for t in rows].count(1.0) == 1
    assert all(t["box_ap"] >= 0 and t["mask_ap"] is None and t["gflops"] > 0 for t in rows)
    assert [t["speed_up"] for t in rows] == sorted((t["speed_up"] for t in rows), reverse=True)
    assert all(t["speed_up"] == pytest.approx(t["dense_latency_ms"][0] / t["latency_ms"][0]) for t in rows)
    assert results["settings"]["threads"] == 1
    points = [(1 / t["speed_up"], t["box_ap"]) for t in rows]
    assert [i for i, t in enumerate(rows) if t["pareto"]] == pareto_front(points)
    assert (swept / "pareto.png").read_bytes().startswith(b"\x89PNG")

    text = capsys.readouterr().out
    assert "1 threads" in text
    table = text.partition("  capacity  router")[2].splitlines()[1:4]
    assert [line.startswith("*") for line in table] == [t["pareto"] for t in rows]
    assert [float(line.split()[-1]) for line in table if "none" in line] == [1.0]


def test_a_trial_trains_what_it_says(swept):
    for trial in json.loads((swept / "results.json").read_text())["trials"]:
        layers = dict(routed_layers(load_model(trial["weights"]).model))
        rows = [int(name.split(".")[1]) for name in layers]
        chosen = {"all": rows, "none": []}.get(trial["stages"]) or trial["stages"].split("+")
        for row, layer in zip(rows, layers.values(), strict=True):
            routed = str(row) in map(str, chosen) and trial["stages"] != "none"
            assert layer.capacities[0] == (trial["capacity"] if routed else 1.0)
            assert trial["router"] in ("none", type(layer.router).__name__.removesuffix("Router").lower())
        assert (Path(trial["weights"]).parents[1] / "results.csv").is_file()


def test_a_stopped_sweep_goes_on(words, tmp_path, monkeypatch, capsys):
    """Stopped by Ctrl-C in the second training, and killed in it when it went on."""
    monkeypatch.setattr("mod_vision.tune.study.GRACE", 2)
    words, out, stopped = [*words, "iterations=2"], tmp_path / "sweep", []

    def stop(trainer: Any) -> None:
        if trainer.args.name != "dense":
            stopped.append(Path(trainer.save_dir))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(default_callbacks, "on_train_batch_end", [stop])
        assert main([*words, f"out={out}"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"
    before = finished(out)
    assert list(before) == ["dense"]
    assert [t.state for t in trials(out)] == [TrialState.COMPLETE, TrialState.FAIL]

    shutil.rmtree(stopped[0])
    with start_sweep(words, out, folders=2) as sweep:
        sweep.kill()
    assert [t.state for t in trials(out)] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]
    assert finished(out) == before, "nothing was done again"
    assert not (out / "results.json").exists()
    assert main([*words, f"out={out}"]) == 0
    after = finished(out)
    assert len(after) == 2
    assert after["dense"] == before["dense"]


def test_two_workers_share_a_sweep(words, tmp_path, capsys):
    words, out = [*words, "iterations=2"], tmp_path / "sweep"
    with start_sweep(words, out, folders=1) as other:
        assert main([*words, f"out={out}"]) == 0
        assert other.wait(100) == 0
    assert capsys.readouterr().out.count(": training for") == 1
    assert [t.state for t in trials(out)] == [TrialState.COMPLETE] * 2
    assert [slug for slug in finished(out) if slug == "dense"] == ["dense"]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("capacity=1.5", "capacity must be a number in (0, 1], got 1.5"),
        ("capacity=0", "capacity must be a number in (0, 1], got 0"),
        ("capacity=half", "got 'half'"),
        ("capacity=1", "at least one share below 1"),
        ("router=linear,best", "router=best: unknown router, choose from conv, linear, norm"),
        ("stages=all,7", "stages=7: give all, or rows of routed layers (6, 8)"),
        ("stages=6+", "stages=6+: give all"),
        ("iterations=1", "iterations=1: give at least 2"),
        ("iterations=0", "iterations must be a whole number"),
        ("threads=many", "threads must be a whole number"),
        ("model=yolo26n.yaml", "no routed layer"),
        ("model=none.pt", "none.pt does not exist"),
        ("data=none.yaml", "none.yaml"),
        ("cfg=none.yaml", "cfg=none.yaml does not exist"),
    ],
)
def test_bad_values_are_refused_before_anything_is_trained(words, tmp_path, monkeypatch, capsys, word, text):
    monkeypatch.chdir(tmp_path)
    key = word.partition("=")[0] + "="
    assert main([*(w for w in words if not w.startswith(key)), word, "out=o"]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert text in error[-1]
    assert not (tmp_path / "o").exists() or not any((tmp_path / "o").iterdir())


def test_unknown_training_arguments_are_refused(words, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("learning_rate: 1\n")
    assert main([*words, f"cfg={tmp_path / 'bad.yaml'}", f"out={tmp_path / 'o'}"]) == 1
    assert "learning_rate" in capsys.readouterr().err


def test_optuna_has_to_be_there(words, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("mod_vision.tune")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main([*words, f"out={tmp_path / 'o'}"]) == 1
    assert 'tune needs Optuna: pip install "mod-vision[tune]"' in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("url", ["secret", "nodb://me:secret@host/name", "sqlite:////none/secret.db"])
def test_a_database_that_does_not_open_is_named(words, tmp_path, monkeypatch, capsys, url):
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    assert main([*words, f"out={tmp_path / 'o'}"]) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "cannot open the database of the study; OPTUNA_STORAGE is a URL such as" in error
    assert "secret" not in error


def test_a_folder_that_is_no_sweep_is_left_alone(words, tmp_path, capsys):
    (tmp_path / "start.pt").write_text("mine")
    assert main([*words, f"out={tmp_path}"]) == 1
    assert "are not of one sweep; choose another out=" in capsys.readouterr().err
    assert (tmp_path / "start.pt").read_text() == "mine"


def test_a_folder_keeps_to_its_settings(swept, words, capsys):
    before = finished(swept)
    assert main([*words, "epochs=2", f"out={swept}"]) == 1
    assert "holds a sweep with epochs=1, not 2" in capsys.readouterr().err
    assert finished(swept) == before


def test_each_candidate_is_tried_once_and_the_dense_baseline_first(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{tmp_path}/shared.db")
    choices = check_choices(load_model(MODEL), [0.25, 0.5, 1.0], ["linear", "norm"], ["all", "8+6", "6"])
    assert choices == {"capacity": [1.0, 0.5, 0.25], "router": ["linear", "norm"], "stages": ["all", "6"]}
    study, tried = open_study(tmp_path, {"threads": 1}, choices), []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        tried.append(candidate_of({name: trial.suggest_categorical(name, values) for name, values in choices.items()}))
        return tried[-1].capacity, tried[-1].capacity / 2

    (tmp_path / "start.pt").touch()
    study.optimize(objective, n_trials=5)
    study = open_study(tmp_path, {"threads": 1}, choices)  # resumed
    study.optimize(objective, n_trials=4)
    assert tried[0] == DENSE
    assert sorted(tried) == sorted(candidates(choices))
    assert len(tried) == 9
    generations = [v for t in study.trials for key, v in t.system_attrs.items() if key.endswith(":generation")]
    assert generations == [0, 0, 0, 0, 1, 1, 1, 1, 2]  # so NSGA-II had parents from the fifth trial on
    assert not (tmp_path / "study.db").exists()


def test_variants_start_from_the_weights_of_the_model_and_write_their_yaml(tmp_path):
    d = yaml.safe_load((resource_dir("cfg") / "models" / "yolo26-mod-hybrid.yaml").read_text())
    d["backbone"][6][3] = [512, [0.5, 0.25], 4, {"router": "norm"}]
    (tmp_path / "yolo26n-own.yaml").write_text(yaml.safe_dump(d))
    yolo = load_model(tmp_path / "yolo26n-own.yaml")
    net = routed_variant(yolo, Candidate(0.75, "grid", "6"), classes=3).model
    assert net.yaml["backbone"][6][3] == [512, 0.75, 4, {"router": "grid"}]
    assert [(set(layer.capacities), layer.router.learned) for _, layer in routed_layers(net)] == [
        ({0.75}, False),
        ({1.0}, False),
    ]
    assert net.model[-1].nc == 3
    old = yolo.model.state_dict()
    assert all(
        torch.equal(old[name], tensor) for name, tensor in net.state_dict().items() if name.startswith("model.6")
    )
    assert yolo.model.yaml["backbone"][6][3][1] == [0.5, 0.25]


def test_a_segmenter_stays_one_in_its_checkpoint(tmp_path):
    variant = routed_variant(load_model("yolo26n-mod-hybrid-seg.yaml"), DENSE, classes=3)
    variant.save(tmp_path / "start.pt")
    assert load_model(tmp_path / "start.pt").task == "segment"
