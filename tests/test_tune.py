"""`mod-vision tune`: real sweeps on a few photos, resumed, refused, and on Ray Tune."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mod_vision.cli import main
from mod_vision.eval.pareto import dominates, dominators, pareto_front
from mod_vision.resources import resource_dir
from mod_vision.routing import routed_layers
from mod_vision.yolo.evolution import RoutingTuner
from mod_vision.yolo.images import load_model
from mod_vision.yolo.search import DENSE, Candidate, routed_variant, search_space, share_weights

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)) | st.tuples(st.floats(0, 9), st.floats(0, 1)))
MODEL = "yolo26n-mod.yaml"
RANGES = ["capacity=0.25,0.5", "router=linear,norm", "stages=all,6"]


@pytest.fixture(scope="module")
def words(tiny_data):
    """The smallest sweep."""
    cfg = tiny_data.parent / "train.yaml"
    cfg.write_text("workers: 0\nval: False\n")
    sizes = ["imgsz=64", "epochs=1", "batch=8", "iterations=3", "threads=1"]
    return ["tune", f"model={MODEL}", f"data={tiny_data}", f"cfg={cfg}", *sizes, *RANGES]


def finished(out: Path) -> dict[str, float]:
    """When each trial was recorded, by its folder."""
    return {file.parent.name: file.stat().st_mtime for file in out.glob("*/trial.json")}


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
    trials = results["trials"]
    assert [t["capacity"] for t in trials].count(1.0) == 1
    assert all(t["box_ap"] >= 0 and t["mask_ap"] is None and t["gflops"] > 0 for t in trials)
    assert [t["latency_ms"] for t in trials] == sorted(t["latency_ms"] for t in trials)
    assert "1 threads" in results["latency"]
    points = [(t["latency_ms"], t["box_ap"]) for t in trials]
    assert [i for i, t in enumerate(trials) if t["pareto"]] == pareto_front(points)
    with (swept / "pareto.csv").open() as file:
        assert [row["weights"] for row in csv.DictReader(file)] == [t["weights"] for t in trials if t["pareto"]]
    assert (swept / "pareto.png").read_bytes().startswith(b"\x89PNG")

    table = capsys.readouterr().out.partition("  capacity  router")[2].splitlines()[1:4]
    assert [line.startswith("*") for line in table] == [t["pareto"] for t in trials]
    assert [float(line.split()[-1]) for line in table if "none" in line] == [1.0]


def test_a_trial_trains_what_it_says(swept):
    for file in swept.glob("*/trial.json"):
        trial = json.loads(file.read_text())
        layers = dict(routed_layers(load_model(trial["weights"]).model))
        rows = [int(name.split(".")[1]) for name in layers]
        chosen = {"all": rows, "none": []}.get(trial["stages"]) or trial["stages"].split("+")
        for row, layer in zip(rows, layers.values(), strict=True):
            routed = str(row) in map(str, chosen) and trial["stages"] != "none"
            assert layer.capacities[0] == (trial["capacity"] if routed else 1.0)
            assert trial["router"] in ("none", type(layer.router).__name__.removesuffix("Router").lower())
        assert (file.parent / "results.csv").is_file()


def test_a_killed_sweep_goes_on(words, swept, tmp_path):
    out = tmp_path / "sweep"
    code = "import sys; from mod_vision.cli import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen([sys.executable, "-c", code, *words, f"out={out}"], stdout=subprocess.DEVNULL) as sweep:
        deadline = time.monotonic() + 100
        while not finished(out):  # until the first trial is done, and the second has begun or will soon
            assert sweep.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        sweep.send_signal(signal.SIGKILL)
    before = finished(out)
    assert list(before) == ["dense"]
    assert not (out / "results.json").exists()
    assert main([*words, f"out={out}"]) == 0
    after = finished(out)
    assert len(after) == 3
    assert after["dense"] == before["dense"]


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
        ("use_ray=maybe", "use_ray must be True or False"),
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


def test_ray_has_to_be_there(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    assert main([*words, "use_ray=True", f"out={tmp_path / 'o'}"]) == 1
    assert 'use_ray=True needs Ray Tune: pip install "mod-vision[ray]"' in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_folder_keeps_to_its_settings(swept, words, capsys):
    before = finished(swept)
    assert main([*words, "epochs=2", f"out={swept}"]) == 1
    assert "holds a sweep with epochs=1, not 2" in capsys.readouterr().err
    assert finished(swept) == before


def test_evolution_tries_each_candidate_once_and_the_dense_twin_first(tmp_path):
    yolo = load_model(MODEL)
    space = search_space(yolo, [0.25, 0.5, 1.0], ["linear", "norm"], ["all", "8+6", "6"])
    assert space.stages == ("all", "6")
    assert len(space.candidates()) == 9
    tried: list[Candidate] = []
    args = {"task": "detect", "project": str(tmp_path), "name": "evolution"}
    tuner = RoutingTuner(yolo, space, tried.append, lambda: {c: 1 / (1 + i) for i, c in enumerate(tried)}, args)
    tuner(iterations=100)
    assert tried[0] == DENSE
    assert sorted(tried) == sorted(space.candidates())


def test_variants_start_from_the_weights_of_the_model_and_write_their_yaml(tmp_path):
    d = yaml.safe_load((resource_dir("cfg") / "models" / "yolo26-mod.yaml").read_text())
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
    variant = routed_variant(load_model("yolo26n-mod-seg.yaml"), DENSE, classes=3)
    variant.save(tmp_path / "start.pt")
    assert load_model(tmp_path / "start.pt").task == "segment"


def test_copies_for_timing_share_weights_but_not_capacities():
    net = load_model(MODEL).model
    copies = [share_weights(net, candidate) for candidate in (DENSE, Candidate(0.25, "linear", "8"))]
    assert [[layer.capacities[0] for _, layer in routed_layers(copy)] for copy in copies] == [[1.0, 1.0], [1.0, 0.25]]
    assert all(a is b for copy in copies for a, b in zip(net.parameters(), copy.parameters(), strict=True))


def test_a_trial_on_ray_tune(words, swept, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.tune")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    out = tmp_path / "sweep"
    for name in ("dense", *[t for t in finished(swept) if t != "dense"][:1]):  # two of three are there already
        (out / name).mkdir(parents=True)
        (out / name / "trial.json").write_bytes((swept / name / "trial.json").read_bytes())
    before = finished(out)
    assert main([*words, "use_ray=True", f"out={out}"]) == 0
    after = finished(out)
    assert len(after) == 3
    assert before.items() <= after.items()
    assert (out / "ray").is_dir()
    assert not ray.is_initialized()
