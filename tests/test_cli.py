"""The command line as it is typed: help, versions, values, words of `yolo`, and errors in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import error_text

import mod_vision
from mod_vision.cli.keys import keys_of, parse
from mod_vision.cli.main import main
from mod_vision.cli.verbs import VERBS
from mod_vision.files import fresh_path
from mod_vision.yolo.model.loading import load_model, trained_with
from mod_vision.yolo.run.device import torch_device

pytestmark = pytest.mark.usefixtures("own_folder")


def test_help_and_unknown_words(capsys):
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["fly"]) == 2
    assert "unknown verb 'fly'" in capsys.readouterr().err
    assert "no key 'modle'" in error_text(capsys, "val", "modle=x")
    assert "needs data=" in error_text(capsys, "val", "model=yolo26n-mod-hybrid.yaml")
    assert "imgsz must be a whole number" in error_text(capsys, "heatmap", "model=x.pt", "source=y", "imgsz=big")
    assert "not of the form key=value" in error_text(capsys, "demo", "epochs")


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
    assert error_text(capsys, "check") == f"error: {told}\n"
    monkeypatch.setenv("MOD_VISION_DEBUG", "1")
    with pytest.raises(type(error_)):
        main(["check"])


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["convert", "help"], ["check"]], ids=" ".join)
def test_nobody_reads_on(tmp_path, words, unbuffered):
    """As behind `| head -3`: the end is quiet."""
    read, write = os.pipe()
    os.close(read)
    script = Path(sys.executable).with_name("mod-vision")
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "YOLO_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run([script, *words], stdout=write, stderr=subprocess.PIPE, env=env, text=True, timeout=300)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_that_a_verb_breaks_is_an_error(capsys, monkeypatch):
    def fail() -> None:
        raise BrokenPipeError("the encoder ended")

    monkeypatch.setitem(VERBS, "check", fail)
    assert error_text(capsys, "check") == "error: the encoder ended\n"
    monkeypatch.setenv("MOD_VISION_DEBUG", "1")
    with pytest.raises(BrokenPipeError, match="the encoder ended"):
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
    assert reason in error_text(capsys, *words)


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


def test_version(capsys):
    for word in ("--version", "version"):
        assert main([word]) == 0
        assert capsys.readouterr().out.strip() == mod_vision.__version__


@pytest.mark.parametrize(
    "words", [["val"], ["mode=val"], ["detect", "val"], ["val", "segment"], ["task=detect", "mode=val"]]
)
def test_modes_and_tasks_of_yolo_are_understood(capsys, words):
    assert "checkpoint none.pt does not exist" in error_text(capsys, *words, "model=none.pt", "data=mod-open.yaml")


@pytest.mark.parametrize("mode", ["train", "predict", "track"])
def test_what_yolo_does_is_answered_with_its_command(capsys, mode):
    assert main(["segment", mode, "model=a.pt", "imgsz=64"]) == 2
    assert capsys.readouterr().err == f"error: {mode} is plain Ultralytics: yolo {mode} model=a.pt imgsz=64\n"


def test_typos(capsys):
    assert main(["heatmpa"]) == 2
    assert "unknown verb 'heatmpa', did you mean 'heatmap'?" in capsys.readouterr().err
    assert "no key 'capactiy', did you mean 'capacity'?" in error_text(capsys, "val", "capactiy=0.5")


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
