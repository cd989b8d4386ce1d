"""What is loaded can run no code, and nothing of ours uses the network unless asked."""

from __future__ import annotations

import ast
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from helpers import Evil, shipped
from ultralytics.data.utils import check_det_dataset

import mod_vision
from mod_vision.cli.main import main
from mod_vision.resources import find_shipped
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.trust import restricted

SHIPPED = "yolo26n-mod-hybrid-seg.pt"


@pytest.fixture
def evil(tmp_path) -> Path:
    """A checkpoint that works as any other, and makes a folder when it is unpickled."""
    checkpoint = torch.load(find_shipped(SHIPPED), weights_only=False)
    torch.save({**checkpoint, "note": Evil(tmp_path / "owned")}, tmp_path / "evil.pt")
    return tmp_path / "evil.pt"


@pytest.mark.parametrize("verb", ["val", "heatmap", "report", "convert", "fit", "threshold", "export", "bench"])
def test_a_malicious_checkpoint_runs_nothing(evil, tmp_path, capsys, verb, tiny_data, photos):
    data = {"heatmap": [f"source={photos[0]}"], "export": [], "bench": []}
    suffix = {"report": ".html", "convert": ".pt", "fit": ".pt", "threshold": ".pt"}.get(verb, "")
    out = [] if verb == "export" else [f"out={tmp_path / 'out'}{suffix}"]
    verbs = ["fit", "thresholds=True"] if verb == "threshold" else [verb]
    assert main([*verbs, f"model={evil}", *data.get(verb, [f"data={tiny_data}"]), *out]) == 1
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
    names = ("yolo26n-mod-hybrid.yaml", "yolo12n-mod-attention-seg.yaml", "yolo11n.yaml", "yolo26-mod-vit-t.yaml")
    for name in names:
        load_model(name).save(tmp_path / f"{name}.pt")
    code = "import sys; from mod_vision.yolo.model.loading import load_model as f; [f(f'{n}.pt') for n in sys.argv[1:]]"
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_model_yaml_runs_nothing(tmp_path):
    """Ultralytics evaluates the activation of a YAML."""
    d = shipped() | {"activation": f"__import__('os').mkdir({str(tmp_path / 'owned')!r})"}
    (tmp_path / "yolo26n-evil.yaml").write_text(yaml.safe_dump(d))
    with pytest.raises(ValueError, match="unsupported activation"):
        load_model(tmp_path / "yolo26n-evil.yaml")
    assert not (tmp_path / "owned").exists()


def test_the_yaml_in_a_checkpoint_runs_nothing(tmp_path, tiny_data, capsys):
    """Where a model is built anew from it: in a sweep, and in a training of ours."""
    yolo = load_model(SHIPPED)
    yolo.model.yaml["activation"] = f"[__import__('os').mkdir({str(tmp_path / 'owned')!r}), torch.nn.SiLU()][1]"
    yolo.save(tmp_path / "evil.pt")
    words = ("capacity=0.5", "iterations=2", "epochs=1", "imgsz=32", f"out={tmp_path}/out")
    assert main(["tune", f"model={tmp_path}/evil.pt", f"data={tiny_data}", *words]) == 1
    assert "unsupported activation" in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()
    with restricted(), pytest.raises(ValueError, match="unsupported activation"):
        load_model(tmp_path / "evil.pt").train(data=str(tiny_data), epochs=1, imgsz=32, project=str(tmp_path))
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def evil_data(tmp_path) -> Path:
    """A data YAML whose `download:` makes a folder; Ultralytics runs it if images are missing."""
    script = f"import os; os.mkdir({str(tmp_path / 'owned')!r})"
    data = {"path": str(tmp_path / "none"), "train": "a", "val": "b", "names": {0: "x"}, "download": script}
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "evil.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "set" / "evil.yaml"


@pytest.mark.parametrize("verb", ["val", "compare", "tune", "fit", "threshold", "report", "export"])
@pytest.mark.parametrize("named", ["file", "bare name", "folder"])
def test_a_data_yaml_runs_nothing(evil_data, tmp_path, capsys, verb, named):
    data = {"file": evil_data, "bare name": evil_data.with_suffix(""), "folder": evil_data.parent}[named]
    model = tmp_path / "own.pt"
    model.write_bytes(find_shipped(SHIPPED).read_bytes())
    words = {"compare": [f"models={SHIPPED},{model}"], "export": [f"model={model}", "format=onnx", "quantize=8"]}
    out = {"report": "out/r.html", "fit": "out/f.pt", "threshold": "out/t.pt"}.get(verb, "out")
    own = words.get(verb, [f"model={model}"]) + ([] if verb == "export" else [f"out={tmp_path}/{out}"])
    verbs = {"compare": ["val"], "threshold": ["fit", "thresholds=True"]}.get(verb, [verb])
    threads = [] if verbs[0] == "fit" else ["threads=1"]
    assert main([*verbs, *own, f"data={data}", "imgsz=64", *threads]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert not (tmp_path / "owned").exists()


def test_a_trusted_data_yaml_runs(evil_data, tmp_path, monkeypatch):
    monkeypatch.setenv("MOD_VISION_TRUST", "1")
    assert main(["val", f"model={SHIPPED}", f"data={evil_data}", "imgsz=64", "threads=1", f"out={tmp_path}/out"]) == 1
    assert (tmp_path / "owned").exists(), "so the others would have been able to"


def test_ultralytics_itself_follows_no_download_while_restricted(evil_data, tmp_path):
    """Whichever split it asks for."""
    with restricted(), pytest.raises(FileNotFoundError, match="images not found"):
        check_det_dataset(str(evil_data), split="train")
    assert not (tmp_path / "owned").exists()
    check_det_dataset(str(evil_data))
    assert (tmp_path / "owned").exists(), "plain Ultralytics is as it was"


def test_a_checkpoint_installs_nothing(tmp_path, monkeypatch):
    """Ultralytics installs what a quantised checkpoint wants."""
    started = []
    for name in ("run", "check_output", "Popen"):
        monkeypatch.setattr(subprocess, name, lambda *args, **_: started.append(args))
    checkpoint = torch.load(find_shipped(SHIPPED), weights_only=False)
    torch.save({**checkpoint, "modelopt": {"modelopt": {}, "ranges": {}}}, tmp_path / "quantised.pt")
    with pytest.raises(ValueError, match=r"quantised\.pt does not load: No module named 'modelopt'"):
        load_model(tmp_path / "quantised.pt")
    assert not started


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(ValueError, match=r"bomb\.pt is damaged or no checkpoint \(it would grow 1014-fold"):
        load_model(tmp_path / "bomb.pt")


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
            if called == "torch.load":
                assert file.name in ("resume.py", "fit_windows.py"), (file, "goes through load_model")
                assert "weights_only=True" in map(ast.unparse, node.keywords)
