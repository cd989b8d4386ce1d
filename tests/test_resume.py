"""A training that is killed with SIGKILL or stopped by Ctrl-C goes on as if nothing had been."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import files_in, read_csv
from ultralytics import YOLO

from mod_vision.resources import find_shipped
from mod_vision.yolo.images import load_model
from mod_vision.yolo.run_folder import forget_from, rows_before

KILLED = """
import os, signal, sys
from pathlib import Path
from ultralytics import YOLO
from mod_vision.yolo import run_folder

data, project, where = sys.argv[1:]
epoch = 0

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def stripped(f, *args, **kwargs):
    if where == "strip":  # half of what it writes
        Path(args[0] or f).write_bytes(b"half a checkpoint")
        die()

def in_epoch(trainer):
    global epoch
    epoch = trainer.epoch + 1
    if (where, epoch) == ("batch", 4):
        die()
    if (where, epoch) == ("ctrl-c", 2):
        os.kill(os.getpid(), signal.SIGINT)

def on_rename(event, args):
    name = {"save": "last.pt", "state": "resume-2.pt"}.get(where)
    if event == "os.rename" and epoch == 2 and name and str(args[1]).endswith(name):
        die()

if where == "strip":
    run_folder.strip_optimizer = stripped
sys.addaudithook(on_rename)
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
yolo = YOLO(Path(__file__).with_name("yolo26n-mod-two.yaml"))
yolo.add_callback("on_train_batch_end", in_epoch)
yolo.train(data=data, project=project, name="run", imgsz=32, batch=4, nbs=12, epochs=4, close_mosaic=2, workers=0,
           plots=False, amp=False, device="cpu")
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def training_script(folder: Path) -> Path:
    """Write the script, and a model with two kinds of routers, one of them random."""
    d = yaml.safe_load(find_shipped("yolo26-mod.yaml").read_text())
    next(row for row in d["backbone"] if row[2:] == ["MoDStage", [1024]])[3].append({"router": "random"})
    (folder / "yolo26n-mod-two.yaml").write_text(yaml.safe_dump(d))
    script = folder / "train.py"
    script.write_text(KILLED)
    return script


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory) -> dict[str, Path]:
    """A run of four epochs, and three killed ones: between two batches of the last, and while saving the second."""
    script = training_script(tmp_path_factory.mktemp("script"))
    runs = {}
    for where in ("unbroken", "batch", "save", "state"):
        project = tmp_path_factory.mktemp(where)
        done = subprocess.run([sys.executable, script, tiny_data, project, where], capture_output=True, timeout=300)
        assert done.returncode == (0 if where == "unbroken" else -signal.SIGKILL), done.stderr
        runs[where] = project / "run"
    return runs


def figures(run: Path) -> list[list[dict[str, str]]]:
    """The tables of a training, without the time it took."""
    tables = [read_csv(run / name) for name in ("results.csv", "routing.csv")]
    return [[{k: v for k, v in row.items() if k != "time"} for row in table] for table in tables]


@pytest.mark.parametrize(
    ("where", "epochs", "rows", "left"),
    [
        ("batch", 3, 3, {"resume-3.pt"}),
        ("save", 1, 2, {"resume-1.pt", "resume-2.pt"}),
        ("state", 1, 1, {"resume-1.pt"}),
    ],
)
def test_a_killed_training_resumes_to_what_an_unbroken_one_gives(runs, where, epochs, rows, left, caplog):
    """To the bit: figures and weights, with the same seed, wherever it was killed."""
    run, unbroken = runs[where], runs["unbroken"]
    last = run / "weights" / "last.pt"
    assert load_model(last).ckpt["epoch"] == epochs - 1, "the checkpoint is whole"
    assert len(read_csv(run / "results.csv")) == rows
    assert {name for name in files_in(run / "weights") if name.startswith("resume")} == left
    assert any(name.endswith(".part") for name in files_in(run)) == (where != "batch")
    YOLO(last).train(resume=True)
    assert files_in(run) == files_in(unbroken), "no half-written file and no state is left"
    assert figures(run) == figures(unbroken)
    assert [row["epoch"] for row in figures(run)[0]] == list("1234")
    weights = [load_model(each / "weights" / "last.pt").model.state_dict() for each in (run, unbroken)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not [line for line in caplog.messages if "half precision" in line]


def test_ctrl_c_leaves_a_usable_run_and_a_resume_without_its_state_says_so(tiny_data, tmp_path, caplog):
    """A state that is missing or of another training is left aside, one that is damaged is refused."""
    script = training_script(tmp_path)
    done = subprocess.run([sys.executable, script, tiny_data, tmp_path, "ctrl-c"], capture_output=True, timeout=300)
    assert done.returncode
    assert done.stderr.strip().endswith(b"KeyboardInterrupt"), done.stderr
    run = tmp_path / "run"
    assert {row["epoch"] for row in read_csv(run / "routing.csv")} == {"1"}
    state = run / "weights" / "resume-1.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"resume-1\.pt is damaged .*If you delete it, .* goes on from last\.pt alone"):
        YOLO(run / "weights" / "last.pt").train(resume=True)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    state.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"is damaged \(wrong checksum"):
        YOLO(run / "weights" / "last.pt").train(resume=True)
    other = torch.load(io.BytesIO(whole), weights_only=True)
    next(iter(other["ema"].values())).add_(1)
    torch.save(other, state)
    YOLO(run / "weights" / "last.pt").train(resume=True)
    assert [line for line in caplog.messages if "resume-1.pt belongs to another training" in line]
    assert [row["epoch"] for row in read_csv(run / "results.csv")] == list("1234")


def test_a_kill_at_the_very_end_leaves_whole_checkpoints(tiny_data, tmp_path):
    """Ultralytics takes the optimiser out of them then; in place it would leave half a file."""
    script = training_script(tmp_path)
    done = subprocess.run([sys.executable, script, tiny_data, tmp_path, "strip"], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    weights = tmp_path / "run" / "weights"
    assert any(".part" in path.name for path in weights.iterdir())
    assert load_model(weights / "last.pt").ckpt["epoch"] == 3
    assert load_model(weights / "best.pt").task == "detect"


def test_tables_that_a_power_loss_has_damaged_are_read(tmp_path):
    table = tmp_path / "results.csv"
    for damage in (b"\0" * 40, b"garbage,1\n", b"\xff\xfe", b"3,0.", b"\n\n"):
        table.write_bytes(b"epoch,loss\n1,0.5\n2,0.4\n" + damage)
        forget_from(table, 2)
        assert table.read_text() == "epoch,loss\n1,0.5\n"
    assert rows_before(table, 3, ["epoch", "layer", "routed"]) == []
    table.write_bytes(b"")
    forget_from(table, 2)
    assert not table.exists(), "whoever writes the next row writes a header first"
