"""Nothing is lost where it is written: full disks, folders that vanish, older exports, file systems without locks."""

from __future__ import annotations

import errno
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import error_line, files_in

from mod_vision.cli.main import main
from mod_vision.resources import find_shipped
from mod_vision.yolo.export.exporter import _replace
from mod_vision.yolo.train.run_folder import take

pytestmark = pytest.mark.usefixtures("own_folder")

SHIPPED = "yolo26n-mod-hybrid-seg.pt"


@contextmanager
def full_disk(left: int):
    """No file can grow beyond `left` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def command(verb: str, data: Path, photo: Path, out: Path) -> tuple[str, ...]:
    """A command that writes, in a second or two; `fit` saves as `threshold` does."""
    model = f"model={SHIPPED}"
    words = {
        "heatmap": (f"source={photo}", f"out={out}", "view=page"),  # which takes its time
        "report": (f"data={data}", "capacity=0.5", "images=1", "evaluate=False", f"out={out}/r.html", "threads=1"),
        "val": (f"data={data}", f"out={out}", "threads=1"),
        "threshold": (f"data={data}", f"out={out}/new.pt"),
    }
    verbs = ("fit", "thresholds=True") if verb == "threshold" else (verb,)
    return *verbs, model, "imgsz=64", *words[verb]


VERBS = ("heatmap", "report", "val", "threshold")


@pytest.mark.parametrize("verb", VERBS)
def test_full_disk(tiny_data, photos, tmp_path, capsys, verb):
    out = tmp_path / "out"
    words = command(verb, tiny_data, photos[0], out)
    with full_disk(2048):
        told = error_line(capsys, *words)
    assert f"cannot write to the folder {out}" in told
    assert "large" in told
    assert files_in(out) == set()


@pytest.mark.parametrize("verb", VERBS)
def test_the_output_folder_vanishes(tiny_data, photos, tmp_path, capsys, verb):
    """A file is in its place as soon as it is made, so that no parent can be made again."""
    out, over = tmp_path / "out", threading.Event()
    words = command(verb, tiny_data, photos[0], out)
    before = files_in(tmp_path)

    def vanish() -> None:
        while not over.is_set() and not out.is_dir():
            time.sleep(0.001)
        time.sleep(0.02)  # the check that it can be written is over, the work is not
        shutil.rmtree(out, ignore_errors=True)
        out.touch()

    thread = threading.Thread(target=vanish)
    thread.start()
    try:
        told = error_line(capsys, *words)
    finally:
        over.set()
        thread.join()
    assert str(out) in told
    assert files_in(tmp_path) == before | {"out"}


ON_A_FULL_DISK = """
import resource, signal, sys
from mod_vision.cli.main import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("format", "earlier"),
    [
        ("torchscript", ()),
        ("onnx", ("model.onnx",)),
        ("openvino", ("model_openvino_model/model.bin", "model_openvino_model/old.xml")),
    ],
)
def test_an_export_on_a_full_disk_leaves_what_was_there(tmp_path, capsys, caplog, format, earlier):
    """In a process of its own: some libraries abort it, and what they had begun to write is left in a folder apart."""
    shutil.copy(find_shipped(SHIPPED), tmp_path / "model.pt")
    for name in earlier:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("an older export")
    words = ("export", "model=model.pt", f"format={format}", "imgsz=64", "images=2", "threads=1")
    before = {path: (tmp_path / path).stat().st_mtime_ns for path in files_in(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ON_A_FULL_DISK, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode in (1, -signal.SIGABRT), done.stderr
    assert done.returncode != 1 or done.stderr.splitlines()[-1].startswith("error: ")
    for part in tmp_path.glob(".export-*"):
        assert done.returncode == -signal.SIGABRT
        shutil.rmtree(part)
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in files_in(tmp_path)} == before
    assert main(list(words)) == 0
    name = earlier[0].partition("/")[0] if earlier else f"model.{format}"
    assert f"{name}: equals eager on 2 images" in capsys.readouterr().out
    assert ".export-" not in caplog.text, "nothing names the folder that was only for a while"
    assert not any((tmp_path / path).read_bytes() == b"an older export" for path in files_in(tmp_path))
    assert not list(tmp_path.glob(".export-*"))


def test_an_older_export_comes_back_if_a_new_one_cannot_take_its_place(tmp_path):
    """A folder, which has to make room first."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.xml").touch()
    with pytest.raises(FileNotFoundError):
        _replace(tmp_path / "part" / "new", tmp_path / "old")
    with pytest.raises(FileNotFoundError):
        _replace(tmp_path / "new", tmp_path / "old")
    assert files_in(tmp_path) == {"old/model.xml"}


def test_an_export_of_a_shipped_model_lies_in_the_working_folder(tmp_path):
    package = find_shipped(SHIPPED).parent
    before = files_in(package)
    assert main(["export", f"model={SHIPPED}", "format=torchscript", "imgsz=64", "images=1", "threads=1"]) == 0
    assert files_in(tmp_path) == {"yolo26n-mod-hybrid-seg.torchscript"}
    assert files_in(package) == before


@pytest.mark.parametrize("verb", ["fit", "threshold", "convert"])
@pytest.mark.parametrize(
    ("out", "told"), [("t.txt", "is a .pt file"), ("file/t.pt", "cannot write to the output folder")]
)
def test_where_a_checkpoint_goes_is_checked_before_the_work(tmp_path, capsys, verb, out, told):
    (tmp_path / "file").touch()
    words = ("fit", "thresholds=True") if verb == "threshold" else (verb,)
    assert told in error_line(capsys, *words, "model=none.pt", "data=none.yaml", f"out={tmp_path}/{out}")


def test_a_checkpoint_of_a_shipped_model_is_written_twice(tiny_data, tmp_path):
    for _ in range(2):
        assert main(["fit", "thresholds=True", f"model={SHIPPED}", f"data={tiny_data}", "imgsz=64", "out=t.pt"]) == 0


def test_a_file_system_without_locks_costs_a_line(tmp_path, monkeypatch, caplog):
    """As some network file systems answer."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level("WARNING", logger="ultralytics"):
        take(tmp_path).release()
    assert "No locks available" in caplog.text
