"""What is loaded can run no code, and nothing of ours uses the network unless asked."""

from __future__ import annotations

import ast
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import shipped

import mod_vision
from mod_vision.cli import main
from mod_vision.resources import find_shipped
from mod_vision.yolo.images import load_model

SHIPPED = "yolo26n-mod-seg.pt"


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture
def evil(tmp_path) -> Path:
    """A checkpoint that works as any other, and makes a folder when it is unpickled."""
    checkpoint = torch.load(find_shipped(SHIPPED), weights_only=False)
    torch.save({**checkpoint, "note": Evil(tmp_path / "owned")}, tmp_path / "evil.pt")
    return tmp_path / "evil.pt"


@pytest.mark.parametrize("verb", ["val", "heatmap", "report", "convert", "fit", "threshold", "export", "bench"])
def test_a_malicious_checkpoint_runs_nothing(evil, tmp_path, capsys, verb, tiny_data, photos):
    data = {"heatmap": [f"source={photos[0]}"], "export": [], "bench": [], "convert": []}
    out = {"export": []}.get(verb, [f"out={tmp_path / 'out'}" + {"report": ".html"}.get(verb, "")])
    assert main([verb, f"model={evil}", *data.get(verb, [f"data={tiny_data}"]), *out]) == 1
    told = capsys.readouterr().err
    assert f"checkpoint {evil} holds {os.mkdir.__module__}.mkdir" in told
    assert "MOD_VISION_TRUST=1" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "owned").exists()


def test_a_trusted_one_loads(evil, tmp_path, monkeypatch):
    monkeypatch.setenv("MOD_VISION_TRUST", "1")
    assert load_model(evil).task == "segment"
    assert (tmp_path / "owned").exists(), "so the others would have been able to"


def test_a_bare_pickle_runs_nothing(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(tmp_path / "owned")))
    with pytest.raises(ValueError, match=r"evil\.pt is damaged or no checkpoint"):
        load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_our_models_are_known_classes(tmp_path):
    """Without being trusted, in a process that has not imported timm before."""
    names = ("yolo26n-mod-conv.yaml", "yolo12n-mod-seg.yaml", "yolo11n.yaml", "yolo26-mod-vit-t.yaml")
    for name in names:
        load_model(name).save(tmp_path / f"{name}.pt")
    code = "import sys; from mod_vision.yolo.images import load_model; [load_model(f'{n}.pt') for n in sys.argv[1:]]"
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_model_yaml_runs_nothing(tmp_path):
    """Ultralytics evaluates the activation of a YAML."""
    d = shipped() | {"activation": f"__import__('os').mkdir({str(tmp_path / 'owned')!r})"}
    (tmp_path / "yolo26n-evil.yaml").write_text(yaml.safe_dump(d))
    with pytest.raises(ValueError, match="unsupported activation"):
        load_model(tmp_path / "yolo26n-evil.yaml")
    assert not (tmp_path / "owned").exists()


def test_a_data_yaml_runs_nothing(tmp_path, capsys, monkeypatch):
    """Ultralytics runs the `download:` of a YAML whose images are missing."""
    script = f"import os; os.mkdir({str(tmp_path / 'owned')!r})"
    data = {"path": str(tmp_path / "none"), "train": "a", "val": "b", "names": {0: "x"}, "download": script}
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(data))
    words = [f"model={SHIPPED}", f"data={tmp_path}/evil.yaml", "imgsz=64", "threads=1"]
    for verb in ("val", "tune", "fit"):
        assert main([verb, *words, f"out={tmp_path}/out.html"]) == 1
        told = capsys.readouterr().err
        assert "images" in told
        assert "missing" in told
        assert not (tmp_path / "owned").exists()
    monkeypatch.setenv("MOD_VISION_TRUST", "1")
    assert main(["val", *words, f"out={tmp_path}/out"]) == 1
    assert (tmp_path / "owned").exists(), "so the others would have been able to"


@pytest.fixture
def offline(monkeypatch):
    """Any attempt to reach a host fails the test, also where the error is caught."""
    tried = []

    def refuse(self, address, *_):
        if self.family != socket.AF_UNIX:
            tried.append(address)
            raise OSError("the network is blocked")

    def no_names(host, *args, **kwargs):
        tried.append(host)
        raise OSError("the network is blocked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    yield
    assert set(tried) <= {"github.com"}, "where Ultralytics looks for its font, for labels, if there is none"


def test_nothing_uses_the_network(offline, tiny_data, photos, tmp_path, capsys):
    model, small = f"model={tmp_path}/own.pt", ("imgsz=64", "threads=1")
    (tmp_path / "own.pt").write_bytes(find_shipped(SHIPPED).read_bytes())
    for words in (
        ("val", model, f"data={tiny_data}", f"out={tmp_path}/val", *small),
        ("heatmap", model, f"source={photos[0]}", f"out={tmp_path}/heatmap", "imgsz=64"),
        ("report", model, f"data={tiny_data}", "capacity=0.5", "images=1", f"out={tmp_path}/r.html", *small),
        ("export", model, f"data={tiny_data}", "images=2", "format=torchscript", *small),
    ):
        assert main(list(words)) == 0, capsys.readouterr().err


def test_no_eval_no_exec_and_safe_yaml():
    """In all of our code; `model.eval()` is a method."""
    for file in Path(mod_vision.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "pickle.load", "pickle.loads", "os.system"), file
            assert called.partition(".")[0] != "yaml" or called.partition(".")[2].startswith("safe_"), (file, called)
            assert called != "torch.load", (file, "goes through load_model")
