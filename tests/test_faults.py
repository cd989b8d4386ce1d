"""Nothing is lost: full disks, vanishing folders, damaged files, NaN, two trainings in one folder."""

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
from typing import Any

import pytest
import torch
import yaml
from helpers import attempt, files_in, layers, read_csv
from ultralytics import YOLO

from mod_vision.cli.main import main
from mod_vision.resources import find_shipped
from mod_vision.yolo.export.exporter import _replace
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.predict import predict_images
from mod_vision.yolo.train.run_folder import take

MODEL = "yolo26n-mod-hybrid.yaml"
SHIPPED = "yolo26n-mod-hybrid-seg.pt"
NAN = "router scores of model.6 are NaN or infinite"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def words(tiny_data, tmp_path) -> dict[str, Any]:
    return training_words(tiny_data, tmp_path)


def training_words(data: Path, project: Path) -> dict[str, Any]:
    still = {"workers": 0, "plots": False, "amp": False, "device": "cpu", "name": "run"}
    return {"data": str(data), "imgsz": 32, "batch": 4, "epochs": 3, "project": str(project), **still}


def error(capsys, *command: str) -> str:
    capsys.readouterr()
    assert main(list(command)) == 1
    text = capsys.readouterr().err
    last = text.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in text
    return last


# ----------------------------------------------------------------------------------------------------------- training


def test_two_trainings_in_one_folder(words):
    """The second is refused, and the first goes on as if nothing had been."""
    yolo, seen = YOLO(MODEL), []

    def again(trainer: Any) -> None:
        if trainer.epoch == 1 and not seen:
            before = files_in(Path(trainer.save_dir))
            with pytest.raises(FileExistsError, match=r"another training runs in .*run, both would write"):
                YOLO(MODEL).train(**words | {"seed": 7}, exist_ok=True)
            seen.append(files_in(Path(trainer.save_dir)) == before)

    yolo.add_callback("on_train_batch_end", again)
    yolo.train(**words)
    run = Path(yolo.trainer.save_dir)
    assert seen == [True]
    assert yaml.safe_load((run / "args.yaml").read_text())["seed"] == 0, "the arguments are those of the first"
    assert [row["epoch"] for row in read_csv(run / "results.csv")] == ["1", "2", "3"]
    YOLO(MODEL).train(**words | {"epochs": 1, "val": False}, exist_ok=True)  # over now, so the folder is free
    assert {row["epoch"] for row in read_csv(run / "routing.csv")} == {"1"}


def break_router(net: Any) -> None:
    """What a bit flip in memory or a step that is too large does."""
    with torch.no_grad():
        next(layers(net)[0].router.parameters()).fill_(float("nan"))


@pytest.mark.parametrize("epoch", [1, 2])
def test_nan_in_training_names_the_layer(words, caplog, epoch):
    """With a checkpoint Ultralytics goes back to it; in the first epoch there is none."""
    yolo, broken = YOLO(MODEL), []

    def break_once(trainer: Any) -> None:
        if trainer.epoch + 1 == epoch and not broken:
            broken.append(break_router(trainer.model))

    yolo.add_callback("on_train_batch_start", break_once)
    if epoch == 1:
        with pytest.raises(RuntimeError, match=rf"epoch 1: {NAN}.*lr0"):
            yolo.train(**words)
        return
    yolo.train(**words)
    lines = [line for line in caplog.messages if "NaN" in line]
    assert f"mod_vision: epoch 2: {NAN}" in lines[0]
    assert "recovering from last.pt" in lines[1]
    assert [row["epoch"] for row in read_csv(Path(yolo.trainer.save_dir) / "routing.csv")] == list("112233")
    assert all(torch.isfinite(p).all() for p in load_model(yolo.trainer.last).model.parameters())


def test_nan_at_inference_names_the_layer(tiny_data, photos, tmp_path, capsys, caplog):
    yolo = load_model(SHIPPED)
    break_router(yolo.model)
    yolo.save(tmp_path / "nan.pt")
    for command in (("heatmap", f"source={photos[0]}"), ("val", f"data={tiny_data}")):
        assert NAN in error(capsys, *command, f"model={tmp_path}/nan.pt", "imgsz=64", f"out={tmp_path}/out"), command
    before = files_in(tmp_path)
    for command in (
        ("export",),
        *(("bench", f"by={by}", "baselines=") for by in ("model", "step", "layer", "profile")),
    ):
        assert NAN in error(capsys, *command, f"model={tmp_path}/nan.pt", "imgsz=64"), command
    assert files_in(tmp_path) == before, "no export that would route at random"
    with pytest.raises(ValueError, match=NAN):
        predict_images(load_model(tmp_path / "nan.pt"), [read_image(photos[0])], 64, 0.25, 1, "cpu")
    caplog.clear()
    load_model(tmp_path / "nan.pt").predict(photos[:2], imgsz=64, batch=1)
    assert len([line for line in caplog.messages if NAN in line]) == 1, "plain `yolo predict` is told once"


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_a_damaged_checkpoint_is_refused_or_the_same(tmp_path):
    whole = find_shipped(SHIPPED).read_bytes()
    same = load_model(SHIPPED).model.state_dict()
    file, refused = tmp_path / "flipped.pt", 0
    spread = [len(whole) * i // 12 for i in range(12)]
    for place in (*spread, *range(30, 90, 12), *range(len(whole) - 90, len(whole), 9)):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        file.write_bytes(flipped)
        found, told = attempt(lambda: load_model(file).model.state_dict())
        if told is None:  # the byte was one that nothing depends on, such as a date
            assert all(torch.equal(found[key], same[key]) for key in same), place
        else:
            refused += 1
            assert f"checkpoint {file} " in told
            assert "\n" not in told
    assert refused > 12


@pytest.mark.parametrize("length", [0, 20, 5_000_000, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path, photos, capsys, length):
    (tmp_path / "cut.pt").write_bytes(find_shipped(SHIPPED).read_bytes()[:length])
    told = error(capsys, "heatmap", f"model={tmp_path}/cut.pt", f"source={photos[0]}", "out=out")
    assert f"checkpoint {tmp_path}/cut.pt is damaged or no checkpoint" in told
    assert files_in(tmp_path) == {"cut.pt"}


@pytest.mark.parametrize(
    ("start", "old"), [(b"", False), (b"hello", False), (b"PK\x03\x04", False), (b"\x80\x02", True)]
)
def test_only_what_may_be_an_old_checkpoint_is_offered_trust(tmp_path, start, old):
    (tmp_path / "a.pt").write_bytes(start)
    _, told = attempt(lambda: load_model(tmp_path / "a.pt"))
    assert "a.pt is damaged or no checkpoint" in told
    assert ("MOD_VISION_TRUST=1" in told) == old
    assert ("only if you trust whoever made it" in told) == old


@pytest.mark.parametrize(
    "content",
    [{"a": 1}, {"model": {"0.weight": torch.ones(1)}}, {"0.weight": torch.ones(1)}, [1, 2], torch.ones(1)],
    ids=["dict", "training state", "state dict", "list", "tensor"],
)
def test_a_file_without_a_model(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    _, told = attempt(lambda: load_model(tmp_path / "a.pt"))
    assert f"checkpoint {tmp_path}/a.pt holds no model of Ultralytics" in told


@pytest.mark.parametrize(
    ("alter", "missing"),
    [
        (lambda net: delattr(net.model, "6"), "it has 22 layers, and its `yaml` 23 rows"),
        (lambda net: delattr(net, "yaml"), "its `yaml`, the rows that it was built from, is missing"),
        (lambda net: setattr(net, "yaml", {"backbone": []}), "its `yaml`, the rows that it was built from, is missing"),
        (lambda net: setattr(net, "names", None), "its `names` must be a text for each of 80 classes, got None"),
        (lambda net: setattr(net, "names", "abc"), "got 'abc'"),
        (lambda net: net.names.pop(79), "its `names` must be a text for each of 80 classes"),
        (lambda net: net.names.update({3: 4}), "its `names` must be a text for each of 80 classes"),
    ],
)
def test_an_altered_checkpoint_is_refused(tmp_path, alter, missing):
    yolo = load_model(MODEL)
    alter(yolo.model)
    torch.save({"model": yolo.model}, tmp_path / "a.pt")
    _, told = attempt(lambda: load_model(tmp_path / "a.pt"))
    assert f"checkpoint {tmp_path}/a.pt holds no whole model: " in told
    assert missing in told
    assert "\n" not in told


def test_names_can_be_a_list(tmp_path):
    """As open vocabularies have them."""
    yolo = load_model(MODEL)
    yolo.model.names = [f"thing {i}" for i in range(80)]
    torch.save({"model": yolo.model}, tmp_path / "a.pt")
    assert load_model(tmp_path / "a.pt").names[79] == "thing 79"


# ---------------------------------------------------------------------------------------------------------- full disk


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
        "heatmap": (f"source={photo}", f"out={out}"),
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
        told = error(capsys, *words)
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
        time.sleep(0.05)  # the check that it can be written is over, the work is not
        shutil.rmtree(out, ignore_errors=True)
        out.touch()

    thread = threading.Thread(target=vanish)
    thread.start()
    try:
        told = error(capsys, *words)
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
    assert told in error(capsys, *words, "model=none.pt", "data=none.yaml", f"out={tmp_path}/{out}")


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
