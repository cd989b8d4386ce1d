"""What killed runs leave is removed by the next, what living ones write is not, and a lost folder is an error."""

from __future__ import annotations

import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import files_in
from ultralytics import YOLO

from mod_vision.cli.main import main
from mod_vision.leftovers import OLD
from mod_vision.resources import find_shipped

pytestmark = pytest.mark.usefixtures("own_folder")

MODEL = "yolo26n-mod-hybrid.yaml"
SHIPPED = "yolo26n-mod-hybrid-seg.pt"
KILLED = """
import os, signal, sys
from pathlib import Path

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

"""
KILLED_TRAINING = f"""{KILLED}
from ultralytics import YOLO

yolo, replace, seen = YOLO({MODEL!r}), os.replace, []

def second(part, path):
    seen.append(str(path).endswith("last.pt"))
    return killed() if sum(seen) == 2 else replace(part, path)

os.replace = second
yolo.train(**eval(sys.argv[1]))
"""
KILLED_EXPORT = f"""{KILLED}
from mod_vision.cli.main import main
from mod_vision.yolo.export import exporter as export

replace, seen = os.replace, []

def once(*args):
    seen.append(args)
    return killed() if len(seen) > int(sys.argv[1]) else replace(*args)

export.os.replace = once
main(sys.argv[2:])
"""


@pytest.fixture
def words(tiny_data, tmp_path) -> dict[str, Any]:
    still = {"workers": 0, "plots": False, "amp": False, "val": False, "device": "cpu", "name": "run"}
    return {"data": str(tiny_data), "imgsz": 32, "batch": 4, "epochs": 2, "project": str(tmp_path / "p"), **still}


@pytest.fixture
def alive():
    """A process of somebody else."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process.pid
    process.kill()
    process.wait()


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def run_killed(code: str, *args: str) -> None:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.mark.parametrize("anew", [True, False], ids=["in the next folder", "in the same folder"])
def test_the_next_training_removes_what_a_killed_one_left(words, alive, anew):
    run_killed(KILLED_TRAINING, repr(words))
    run = Path(words["project"]) / "run"
    (left,) = (path for path in files_in(run) if path.endswith(".part"))
    assert left.startswith("weights/.last.pt.")
    assert (run / "weights" / "last.pt").is_file()
    living = {f"weights/.best.pt.{alive}.part", f"weights/.x.{alive}.part.mp4"}
    for path in living:
        (run / path).touch()
    other = run.with_name("other") / "weights" / f".last.pt.{dead()}.part"
    other.parent.mkdir(parents=True)
    other.touch()
    yolo = YOLO(MODEL)
    yolo.train(**words | {"epochs": 1}, exist_ok=not anew)
    assert (Path(yolo.trainer.save_dir) != run) == anew
    assert {path for path in files_in(run) if ".part" in path} == living
    assert other.is_file(), "a run of another name is not touched"


def test_a_running_training_of_the_same_name_keeps_its_files(words):
    """Even if the process cannot be seen, as that of another container."""
    first, seen = YOLO(MODEL), []

    def second(trainer: Any) -> None:
        if not seen:
            part = Path(trainer.wdir) / f".last.pt.{dead()}.part"
            part.touch()
            YOLO(MODEL).train(**words | {"epochs": 1})
            seen.append(part.is_file())
            part.unlink()

    first.add_callback("on_train_epoch_start", second)
    first.train(**words)
    assert seen == [True]
    assert {path.name for path in Path(words["project"]).iterdir()} == {"run", "run-2"}


def test_the_next_export_removes_what_a_killed_one_left(tmp_path, alive):
    shutil.copy(find_shipped(SHIPPED), tmp_path / "model.pt")
    export = ("export", "model=model.pt", "format=torchscript", "imgsz=64", "images=1", "threads=1")
    run_killed(KILLED_EXPORT, "0", *export)
    (left,) = tmp_path.glob(".export-*")
    assert files_in(left) == {"model.torchscript"}
    host = platform.node()
    others = {f".export-{host}-{alive}-a", f".export-{host}x-{dead()}-a", ".export-mine"}
    for name in others:
        (tmp_path / name).mkdir()
    assert main(list(export)) == 0
    assert {path.name for path in tmp_path.glob(".export-*")} == others, "of the living, other hosts and strangers"
    assert files_in(tmp_path) == {"model.pt", "model.torchscript"}


def test_an_older_export_comes_back_after_a_kill(tmp_path):
    """A folder, which had made room when the process was killed."""
    shutil.copy(find_shipped(SHIPPED), tmp_path / "model.pt")
    export = ("export", "model=model.pt", "format=openvino", "imgsz=64", "images=1", "threads=1")
    folder = tmp_path / "model_openvino_model"
    folder.mkdir()
    (folder / "older").touch()
    run_killed(KILLED_EXPORT, "1", *export)
    assert not folder.exists()
    (left,) = tmp_path.glob(f".export-*/*{OLD}")
    assert files_in(left) == {"older"}
    assert main([*export[:2], "format=torchscript", *export[3:]]) == 0
    assert files_in(folder) == {"older"}
    assert not list(tmp_path.glob(".export-*"))


@pytest.mark.parametrize("event", ["on_train_epoch_end", "on_train_batch_end", "on_model_save"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_training_whose_folder_vanishes_ends_with_an_error(words, event, epoch):
    """Whenever it does: Ultralytics makes the folder anew, and had ended well with the rest of the figures."""
    yolo = YOLO(MODEL)

    def vanish(trainer: Any) -> None:
        if trainer.epoch == epoch:
            shutil.rmtree(trainer.save_dir, ignore_errors=True)

    yolo.add_callback(event, vanish)
    last = event == "on_model_save" and epoch == 1
    told = "no checkpoint was saved" if last else r"the folder .*run vanished while a training wrote to it"
    with pytest.raises(FileNotFoundError, match=told):
        yolo.train(**words)
