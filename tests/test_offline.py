"""What a checkpoint or a model YAML makes of a model reaches no host and starts no program."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
import yaml
from conftest import randomise
from helpers import shipped
from ultralytics.cfg import get_cfg
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.modules.block import TorchVision
from ultralytics.nn.tasks import DetectionModel

from mod_vision.resources import find_shipped
from mod_vision.yolo.model.archive import constructed
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.offline import offline
from mod_vision.yolo.model.trust import restricted
from mod_vision.yolo.train.resume import _read

SHIPPED = "yolo26n-mod-hybrid-seg.pt"
VISION = [-1, 1, "TorchVision", [512, "resnet18", "DEFAULT", True, 2]]


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


class Server(HTTPServer):
    """A host that notes what it is asked for, and has nothing."""

    asked: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Nothing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def host() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Nothing) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def checkpoint(folder: Path, function: Any, *args: Any) -> Path:
    """A checkpoint that works as any other, and calls a function when it is loaded."""
    content = torch.load(find_shipped(SHIPPED), weights_only=False)
    args = tuple(content["model"] if arg == "the model" else arg for arg in args)
    torch.save({**content, "note": Call(function, *args)}, folder / "evil.pt")
    return folder / "evil.pt"


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (DistillationModel, ("{}/teacher.pt", "the model")),
        (DetectionModel, ("{}/model.yaml",)),
        (TorchVision, ("resnet18", "DEFAULT")),
        (torch.nn.Linear, (2, 2)),
    ],
)
def test_a_checkpoint_calls_no_constructor(tmp_path, host, monkeypatch, kind, args):
    monkeypatch.chdir(tmp_path)
    made = checkpoint(tmp_path, kind, *(arg.format(host.url) if isinstance(arg, str) else arg for arg in args))
    with pytest.raises(
        ValueError, match=rf"evil\.pt calls {kind.__module__}.{kind.__name__} when .* MOD_VISION_TRUST=1"
    ):
        load_model(made)
    assert not host.asked
    assert {file.name for file in tmp_path.iterdir()} == {"evil.pt"}


def test_a_trusted_one_does(tmp_path, host, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOD_VISION_TRUST", "1")
    with pytest.raises(ValueError, match="does not load"):
        load_model(checkpoint(tmp_path, DistillationModel, f"{host.url}/teacher.pt", "the model"))
    assert "/teacher.pt" in host.asked, "so the others would have been able to"


def test_saved_models_call_none(tmp_path):
    """Ours, and those of Ultralytics, of several tasks, as they are saved within a training."""
    for name in (
        "yolo26n-mod-hybrid.yaml",
        "yolo26-mod-vit-t.yaml",
        "yolo12n-mod-attention-seg.yaml",
        "yolo11n-cls.yaml",
    ):
        net = randomise(load_model(name).model)
        net.args = get_cfg()
        net.criterion = net.init_criterion()
        torch.save({"ema": net, "train_args": vars(net.args)}, tmp_path / "last.pt")
        assert not constructed(tmp_path / "last.pt"), name
        load_model(tmp_path / "last.pt")


def test_a_distillation_calls_none(tmp_path):
    """The trainer saves teacher and student in one."""
    teacher, student = (randomise(load_model(name).model) for name in ("yolo26n.yaml", "yolo26n-mod-hybrid.yaml"))
    student.args = get_cfg(overrides={"imgsz": 64})
    torch.save({"ema": DistillationModel(teacher, student)}, tmp_path / "last.pt")
    assert not constructed(tmp_path / "last.pt")


def test_a_pickle_that_does_not_read(tmp_path):
    """What the look ahead does not understand is not loaded."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2)[:-1] + b"\xff")
        archive.writestr("a/version", "3\n")
    with pytest.raises(ValueError, match=r"a\.pt does not load: its pickle does not read"):
        load_model(tmp_path / "a.pt")


def test_the_state_of_a_resume_calls_none(tmp_path):
    """A checkpoint has made the class known to torch before."""
    torch.serialization.add_safe_globals([TorchVision])
    torch.save({"epoch": Call(TorchVision, "resnet18", None)}, tmp_path / "resume-1.pt")
    with pytest.raises(ValueError, match=r"resume-1\.pt calls ultralytics\.nn\.modules\.block\.TorchVision, it is not"):
        _read(tmp_path / "resume-1.pt")


@pytest.mark.parametrize("rows", [[VISION], [VISION, [-1, 1, "MoDC2PSA", [512]]]])
def test_layers_of_a_model_yaml_fetch_nothing(tmp_path, monkeypatch, rows):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no weights of earlier runs
    d = {"nc": 2, "backbone": rows, "head": [[-1, 1, "Classify", ["nc"]]]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(d))
    with pytest.raises(ValueError, match=r"may not use socket\.getaddrinfo.*MOD_VISION_TRUST=1"):
        load_model(tmp_path / "a.yaml")


def test_pretrained_weights_are_not_fetched_for_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    d = shipped("yolo26-mod-vit-t.yaml")
    d["backbone"][0][3][-1]["pretrained"] = True
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(d))
    with pytest.raises(ConnectionError, match=r"cannot be fetched \(what a file of others builds may not use socket"):
        load_model(tmp_path / "a.yaml")


def test_a_training_of_ours_builds_offline_and_may_use_the_network(tmp_path, host, monkeypatch):
    """A logger of experiments needs it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    d = {"nc": 2, "backbone": [VISION], "head": [[-1, 1, "Classify", ["nc"]]]}
    with restricted():
        with pytest.raises(ValueError, match="may not use"):
            DetectionModel(d, verbose=False)
        with pytest.raises(OSError, match="404"):
            urlopen(f"{host.url}/log")
    assert host.asked == ["/log"]


def test_offline_counts_for_its_thread_alone(host):
    def ask() -> None:
        with pytest.raises(OSError, match="404"):
            urlopen(f"{host.url}/other")

    with offline():
        with pytest.raises(ValueError, match=r"may not use socket\.getaddrinfo"):
            urlopen(f"{host.url}/own")
        with socket.socket() as own, pytest.raises(ValueError, match=r"may not use socket\.connect"):
            own.connect(host.server_address)
        with pytest.raises(ValueError, match=r"may not use subprocess\.Popen"):
            subprocess.run(["true"], check=True)
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    ask()
    assert host.asked == ["/other", "/other"]


def test_plain_ultralytics_is_not_listened_to():
    """What listens to Python's audit stays for the life of the process: it must not come with the plugin."""
    code = """
import sys
from unittest.mock import patch
with patch.object(sys, "addaudithook") as added:
    import mod_vision
    from ultralytics import YOLO
    YOLO("yolo26n-mod-hybrid.yaml")
    assert not added.called
    from mod_vision.yolo.model.loading import load_model
    load_model("yolo26n-mod-hybrid.yaml")
    assert added.called
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
