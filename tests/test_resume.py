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
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.train.run_folder import forget_from, rows_before

pytestmark = pytest.mark.usefixtures("own_folder")

KILLED = """
import os, signal, sys, torch
from pathlib import Path
from ultralytics import YOLO
from ultralytics.utils.callbacks import add_integration_callbacks
from mod_vision.yolo.train import run_folder

data, *projects = sys.argv[1:]
epoch = 0

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def train(project, where):
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

    def at_end(trainer):
        net, average = trainer.model.state_dict(), trainer.ema.ema.state_dict()
        torch.save((net, average, trainer.optimizer.state_dict()), Path(project) / "exact.pt")

    def on_rename(event, args):
        name = {"save": "last.pt", "state": "resume-2.pt"}.get(where)
        if event == "os.rename" and epoch == 2 and name and str(args[1]).endswith(name):
            die()

    if where == "strip":
        run_folder.strip_optimizer = stripped
    sys.addaudithook(on_rename)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
    yolo = YOLO(model)
    yolo.add_callback("on_train_batch_end", in_epoch)
    yolo.add_callback("on_train_end", at_end)
    yolo.train(data=data, project=project, name="run", imgsz=32, batch=4, nbs=12, close_mosaic=2, workers=0,
               epochs=1 if where == "strip" else 4, plots=False, amp=False, device="cpu")

model = Path(__file__).with_name("yolo26n-mod-hybrid-two.yaml")
add_integration_callbacks(YOLO(model))  # this and the next import much, as each training would
torch.use_deterministic_algorithms(True)
for project in projects:
    process = os.fork()
    if not process:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(Path(project) / "stderr", os.O_WRONLY | os.O_CREAT), 2)
        train(project, Path(project).name)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory) -> dict[str, Path]:
    """A run of four epochs and others that were stopped, each in a process of its own; all import only once.

    Killed between two batches of the last epoch, while saving the second, at the very end; and stopped by Ctrl-C. The
    model has two kinds of routers, one of them random.
    """
    root = tmp_path_factory.mktemp("runs")
    d = yaml.safe_load(find_shipped("yolo26-mod-hybrid.yaml").read_text())
    next(row for row in d["backbone"] if row[2:] == ["MoDStage", [1024]])[3].append({"router": "random"})
    (root / "yolo26n-mod-hybrid-two.yaml").write_text(yaml.safe_dump(d))
    (root / "train.py").write_text(KILLED)
    projects = [root / where for where in ("unbroken", "batch", "save", "state", "strip", "ctrl-c")]
    for project in projects:
        project.mkdir()
    words = [sys.executable, root / "train.py", tiny_data, *projects]
    done = subprocess.run(words, cwd=root, stdout=subprocess.PIPE, text=True, timeout=300)
    codes = [int(line) for line in done.stdout.splitlines()]
    told = {project.name: (project / "stderr").read_text()[-2000:] for project in projects}
    assert codes[:5] == [0] + [-signal.SIGKILL] * 4, told
    assert codes[5], "stopped"
    assert told["ctrl-c"].strip().endswith("KeyboardInterrupt"), told
    return {project.name: project / "run" for project in projects}


def figures(run: Path) -> list[list[dict[str, str]]]:
    """The tables of a training, without the time it took."""
    tables = [read_csv(run / name) for name in ("results.csv", "routing.csv")]
    return [[{k: v for k, v in row.items() if k != "time"} for row in table] for table in tables]


def same(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(torch.equal(t, others[key]) for key, t in tensors.items())


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
    yolo = YOLO(last)
    yolo.train(resume=True)
    assert files_in(run) == files_in(unbroken), "no half-written file and no state is left"
    assert figures(run) == figures(unbroken)
    assert [[row["epoch"] for row in table] for table in figures(run)] == [list("1234"), list("11223344")]
    assert same(*(load_model(each / "weights" / "last.pt").model.state_dict() for each in (run, unbroken)))
    net, average, optimizer = torch.load(unbroken.with_name("exact.pt"))
    assert same(yolo.trainer.model.state_dict(), net)
    assert same(yolo.trainer.ema.ema.state_dict(), average)
    states = yolo.trainer.optimizer.state_dict()["state"]
    assert all(same(states[key], state) for key, state in optimizer["state"].items())
    assert not [line for line in caplog.messages if "half precision" in line or ".part" in line]
    assert [line for line in caplog.messages if line.startswith(f"Optimizer stripped from {last}, ")]


def stop(_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_leaves_a_usable_run_and_a_resume_without_its_state_says_so(runs, caplog):
    """A state that is missing or of another training is left aside, one that is damaged is refused."""
    run = runs["ctrl-c"]
    assert {row["epoch"] for row in read_csv(run / "routing.csv")} == {"1"}
    last, best, state = (run / "weights" / name for name in ("last.pt", "best.pt", "resume-1.pt"))
    whole = state.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    refused = []  # and kept, as a notebook does, with all that the exception refers to
    for damaged, told in ((whole[:1000], "not a zip file"), (flipped, "wrong checksum")):
        state.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=rf"resume-1\.pt is damaged .*{told}.*delete it, .* last\.pt alone"
        ) as error:
            YOLO(last).train(resume=True)
        refused.append(error)
    state.unlink()
    yolo = YOLO(last)
    yolo.add_callback("on_train_start", stop)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(resume=True)
    assert [line for line in caplog.messages if "resume-1.pt is missing, so" in line]
    other = torch.load(io.BytesIO(whole), weights_only=True)
    next(iter(other["ema"].values())).add_(1)
    torch.save(other, state)
    best.unlink()  # a kill can have come between last.pt and best.pt
    yolo = YOLO(last)
    yolo.add_callback("on_train_start", lambda _: refused.append(best.read_bytes() == last.read_bytes()))
    yolo.train(resume=True)
    assert refused[-1] is True
    assert [line for line in caplog.messages if "resume-1.pt does not fit last.pt, so" in line]
    assert [row["epoch"] for row in read_csv(run / "results.csv")] == list("1234")


def test_a_kill_at_the_very_end_leaves_whole_checkpoints(runs):
    """Ultralytics takes the optimiser out of them then; in place it would leave half a file."""
    weights = runs["strip"] / "weights"
    assert any(".part" in path.name for path in weights.iterdir())
    assert load_model(weights / "last.pt").ckpt["epoch"] == 0
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
