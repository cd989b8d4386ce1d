"""The command line: what a user sees when something is wrong, in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import mod_vision
from mod_vision.cli.keys import keys_of, parse
from mod_vision.cli.main import main
from mod_vision.cli.verbs import VERBS
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.files import fresh_path
from mod_vision.yolo.model.loading import load_model, trained_with
from mod_vision.yolo.run.device import torch_device


def error(capsys, *words: str) -> str:
    assert main(list(words)) == 1
    text = capsys.readouterr().err
    assert text.count("\n") <= 3
    assert "Traceback" not in text
    return text


def test_help_and_unknown_words(capsys):
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["fly"]) == 2
    assert "unknown verb 'fly'" in capsys.readouterr().err
    assert "no key 'modle'" in error(capsys, "val", "modle=x")
    assert "needs data=" in error(capsys, "val", "model=yolo26n-mod-hybrid.yaml")
    assert "imgsz must be a whole number" in error(capsys, "heatmap", "model=x.pt", "source=y", "imgsz=big")
    assert "not of the form key=value" in error(capsys, "demo", "epochs")


@pytest.mark.parametrize(
    ("error_", "told"),
    [
        (KeyError("backbone"), "KeyError: 'backbone'"),
        (OverflowError("too large"), "OverflowError: too large"),
        (ValueError("\x1b[31m\x1b[1mred\x1b[0m\nand\n  long"), "red and long"),
        (AssertionError(), "AssertionError: AssertionError"),
    ],
)
def test_any_error_is_one_line(capsys, monkeypatch, error_, told):
    def fail() -> None:
        raise error_

    monkeypatch.setitem(VERBS, "check", fail)
    assert error(capsys, "check") == f"error: {told}\n"
    monkeypatch.setenv("MOD_VISION_DEBUG", "1")
    with pytest.raises(type(error_)):
        main(["check"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["heatmap", "source=a.jpg", "conf=abc"], "conf=abc: conf must be a number"),
        (["heatmap", "source=a.jpg", "conf=True"], "conf=True: conf must be a number"),
        (["heatmap", "source=a.jpg", "conf=.nan"], "conf=.nan: conf must be a number"),
        (["report", "model=a.pt", "data=b.yaml", "conf=[1]"], "conf=[1]: conf must be a number"),
        (["predict-many", "model=a.pt", "source=b", "conf=abc"], "conf=abc: conf must be a number"),
        (["fit", "model=a.pt", "data=b.yaml", "capacity=half"], "capacity=half: capacity must be a number"),
        (["val", "model=a.pt", "data=b.yaml", "imgsz=-1"], "imgsz must be a whole number of at least 0"),
        (["bench", "capacity=abc"], "capacity must be a number in (0, 1], got 'abc'"),
        (["bench", "capacity=None"], "capacity must be a number in (0, 1], got 'None'"),
        (["bench", "capacity=0.5,2"], "capacity must be a number in (0, 1], got 2"),
        (["val", "model=a.pt", "data=b.yaml", "split=names"], "split=names: split must be one of train, val, test"),
    ],
)
def test_values_that_cannot_be(capsys, words, reason):
    assert reason in error(capsys, *words)


def test_numbers_as_people_write_them():
    words = ["model=a.pt", "data=b.yaml", "capacity=5e-1"]
    assert parse("fit", VERBS["fit"], words)["capacity"] == 0.5
    assert parse("fit", VERBS["fit"], [*words, "capacity=1"])["capacity"] == 1
    assert parse("val", VERBS["val"], ["models=a,b", "imgsz=32"])["run"].imgsz == 32


def test_check_names_versions_layers_and_models(capsys):
    assert main(["check"]) == 0
    text = capsys.readouterr().out
    for word in ("ultralytics", "MoDStage", "yolo26-mod-hybrid-seg.yaml", "mod-open.yaml", "registered"):
        assert word in text


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_missing_model_and_data(capsys, tmp_path):
    out = f"out={tmp_path / 'o'}"
    assert "none.pt does not exist" in error(capsys, "val", "model=none.pt", "data=mod-open.yaml", out)
    missing = error(capsys, "val", "model=yolo26n-mod-hybrid.yaml", f"data={tmp_path}/none.yaml", "imgsz=64", out)
    assert "none.yaml" in missing


def test_empty_data_set(capsys, tmp_path, tiny_data):
    data = yaml.safe_load(tiny_data.read_text())
    (tmp_path / "images" / "val").mkdir(parents=True)
    (tmp_path / "images" / "train").mkdir()
    (tmp_path / "empty.yaml").write_text(yaml.safe_dump({**data, "path": str(tmp_path)}))
    words = ("val", "model=yolo26n-mod-hybrid.yaml", f"data={tmp_path}/empty.yaml", "imgsz=64", f"out={tmp_path / 'o'}")
    assert "no images" in error(capsys, *words).lower()


@pytest.mark.parametrize(
    ("verb", "keys", "reason"),
    [
        ("val", {"stuff": "nope"}, "`stuff: nope` must be a folder for each split, such as `{val: stuff/val}`"),
        ("val", {"stuff": {"val": 5}}, "`stuff: {'val': 5}` must be a folder for each split"),
        ("val", {"stuff": {"val": "stuff"}}, "`stuff_names: None` must be names by the number"),
        ("val", {"stuff": {"val": "stuff"}, "stuff_names": ["sky"]}, "`stuff_names: ['sky']` must be names"),
        ("val", {"annotations": ["x"]}, "`annotations: ['x']` must be a JSON file, or one for each split"),
        ("val", {"annotations": {"val": 5}}, "`annotations: {'val': 5}` must be a JSON file"),
        ("report", {"val": None}, "`val: None` names no images; write the folder, such as `val: images/val`"),
        ("thresholds", {"train": None}, "The YAML has images for: val."),
    ],
)
def test_keys_of_a_data_yaml(capsys, tmp_path, tiny_data, verb, keys, reason):
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(yaml.safe_load(tiny_data.read_text()) | keys))
    out = {"val": "o", "report": "o.html", "thresholds": "o.pt"}[verb]
    words = ["fit", "thresholds=True"] if verb == "thresholds" else [verb]
    told = error(capsys, *words, "model=yolo26n-mod-hybrid.yaml", "data=keys.yaml", "imgsz=32", f"out={out}")
    assert reason in told
    assert "keys.yaml" in told


@pytest.mark.parametrize(("task", "verb"), [("cls", "val"), ("pose", "compare"), ("obb", "val"), ("pose", "fit")])
def test_tasks_that_are_not_scored(capsys, task, verb):
    """Told before the data set is looked for."""
    model = load_model(f"yolo26n-{task}.yaml")
    model.save("other.pt")
    words = ["models=other.pt,yolo26n-mod-hybrid-seg.pt"] if verb == "compare" else ["model=other.pt"]
    verb = "val" if verb == "compare" else verb
    told = error(capsys, verb, *words, "data=none.yaml", "out=o.pt" if verb == "fit" else "out=o")
    assert f"this {'one' if verb == 'fit' else 'model'} is for {model.task!r}" in told


def test_output_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for words in (("demo",), ("val", "model=a.pt", "data=b.yaml")):
        assert "cannot write to the output folder" in error(capsys, *words, f"out={tmp_path / 'file' / 'below'}")


def test_a_damaged_checkpoint_is_refused(capsys, tmp_path):
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    out = f"out={tmp_path / 'o'}"
    assert "half.pt" in error(capsys, "val", f"model={tmp_path}/half.pt", "data=mod-open.yaml", out)


def test_a_checkpoint_of_other_classes(capsys, tmp_path, tiny_data):
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    model = YOLO("yolo26n-mod-hybrid.yaml")
    model.model = DetectionModel("yolo26n-mod-hybrid.yaml", nc=3, verbose=False)
    model.model.args, model.model.names = {}, {0: "x", 1: "y", 2: "z"}
    model.save(tmp_path / "three.pt")
    words = ("val", f"model={tmp_path}/three.pt", f"data={tiny_data}", "imgsz=64", f"out={tmp_path / 'o'}")
    assert "classes" in error(capsys, *words)


def test_a_corrupt_image_is_reported_and_the_rest_scored(capsys, tmp_path, tiny_data):
    root = tmp_path / "data"
    shutil.copytree(tiny_data.parent, root)
    (root / "labels" / "val.cache").unlink(missing_ok=True)
    next((root / "images" / "val").glob("*.jpg")).write_bytes(b"no image")
    data = yaml.safe_load(tiny_data.read_text())
    (root / "tiny.yaml").write_text(yaml.safe_dump({**data, "path": str(root)}))
    words = ["val", "model=yolo26n-mod-hybrid.yaml", f"data={root}/tiny.yaml", "imgsz=64", f"out={tmp_path / 'o'}"]
    assert main(words) == 0, capsys.readouterr().err
    assert "3 images, COCO metrics" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["val", "fit", "thresholds", "report"])
def test_images_without_a_byte(capsys, tmp_path, tiny_data, verb):
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "images" / split / "a.jpg").touch()
    (tmp_path / "zero.yaml").write_text(yaml.safe_dump(yaml.safe_load(tiny_data.read_text()) | {"path": str(tmp_path)}))
    out = {"val": "o", "report": "o.html"}.get(verb, "o.pt")
    first = ["fit", "thresholds=True"] if verb == "thresholds" else [verb]
    words = (*first, "model=yolo26n-mod-hybrid.yaml", "data=zero.yaml", "imgsz=32", f"out={out}")
    assert main([*words, "evaluate=False"] if verb == "report" else list(words)) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert "can be read" in told
    assert ("zero.yaml" if verb != "thresholds" else "a.jpg") in told


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
    assert reason in error(capsys, "bench", *words)


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
    text = error(capsys, "bench", f"model={model}", word, "baselines=", "imgsz=64", "repeats=1")
    assert "no routed layer" in text or "backend must be" in text


# ------------------------------------------------------------------------------------------------- as `yolo` is used


def test_version(capsys):
    for word in ("--version", "version"):
        assert main([word]) == 0
        assert capsys.readouterr().out.strip() == mod_vision.__version__


@pytest.mark.parametrize(
    "words", [["val"], ["mode=val"], ["detect", "val"], ["val", "segment"], ["task=detect", "mode=val"]]
)
def test_modes_and_tasks_of_yolo_are_understood(capsys, words):
    assert "checkpoint none.pt does not exist" in error(capsys, *words, "model=none.pt", "data=mod-open.yaml")


@pytest.mark.parametrize("mode", ["train", "predict", "track"])
def test_what_yolo_does_is_answered_with_its_command(capsys, mode):
    assert main(["segment", mode, "model=a.pt", "imgsz=64"]) == 2
    assert capsys.readouterr().err == f"error: {mode} is plain Ultralytics: yolo {mode} model=a.pt imgsz=64\n"


def test_typos(capsys):
    assert main(["heatmpa"]) == 2
    assert "unknown verb 'heatmpa', did you mean 'heatmap'?" in capsys.readouterr().err
    assert "no key 'capactiy', did you mean 'capacity'?" in error(capsys, "val", "capactiy=0.5")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_describes_its_keys(capsys, verb):
    """A line for each key with its default, and an example whose keys exist."""
    assert main([verb, "help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = keys_of(VERBS[verb])
    first = 1 + next(n for n, line in enumerate(lines) if line.startswith("usage: "))
    described = {line.split("=")[0].strip(): line[37:] for line in lines[first : first + len(keys)]}
    assert described.keys() == keys.keys()
    assert all(len(text.split()) >= 2 for text in described.values()), described
    if keys:
        example = next(line for line in lines if line.startswith("Example: mod-vision "))
        words = example.split()[2:]
        assert words[0] == verb
        assert {word.partition("=")[0] for word in words[1:]} <= keys.keys()


def test_size_and_data_are_those_of_the_training(tmp_path, tiny_data, capsys):
    model = load_model("yolo26n-mod-hybrid.yaml")
    model.train(
        data=str(tiny_data), epochs=1, imgsz=96, batch=4, workers=0, plots=False, val=False, project=str(tmp_path)
    )
    best = Path(model.trainer.save_dir) / "weights" / "last.pt"
    assert trained_with(load_model(best)) == (96, str(tiny_data))
    assert trained_with(load_model("yolo26n-mod-hybrid.yaml")) == (640, None)
    for out in ("o", "o2"):  # the same command twice overwrites nothing
        assert main(["val", f"model={best}", "threads=1", f"out={tmp_path / 'o'}"]) == 0
        assert (tmp_path / out / "evaluation.json").is_file()
    assert not (tmp_path / "o3").exists()


def test_a_taken_name_gets_a_number(tmp_path):
    (tmp_path / "val").mkdir()
    assert fresh_path(tmp_path / "val", "a.json") == tmp_path / "val", "no run has finished there"
    (tmp_path / "val" / "a.json").touch()
    assert fresh_path(tmp_path / "val", "a.json") == tmp_path / "val2"
    (tmp_path / "page.html").touch()
    (tmp_path / "page2.html").touch()
    assert fresh_path(tmp_path / "page.html") == tmp_path / "page3.html"


def test_the_device_is_a_gpu_if_there_is_one():
    assert str(torch_device("")) == ("cuda:0" if torch.cuda.is_available() else "cpu")
