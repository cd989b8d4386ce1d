"""The folder of a training: one training at a time, whole checkpoints, and no epoch twice."""

from __future__ import annotations

import csv
import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import strip_optimizer

from mod_vision.files import write_bytes, write_text
from mod_vision.leftovers import remove_parts
from mod_vision.yolo.run.log import replaced_in_log

LOCK = ".training.lock"  # stays; the operating system frees it when a training ends or dies


class WholeFile(type(Path())):
    """A path that is written under a temporary name, then renamed: a kill in between leaves the old file."""

    def write_bytes(self, data: bytes) -> int:
        """Write and rename."""
        write_bytes(Path(self), data)
        return len(data)


def check_free(folder: Path) -> None:
    """Refuse a folder in which a routed model is being trained.

    Raises:
        FileExistsError: If there is one; the message names the folder.
    """
    if (folder / LOCK).exists():
        take(folder).release()


def take(folder: Path) -> FileLock:
    """Mark a folder as that of a running training, until the lock is released or the process ends.

    Raises:
        FileExistsError: If another training, of any process, runs in it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"another training runs in {folder}, both would write its results and checkpoints; choose another name=, "
            f"or leave out exist_ok=True. If none does, delete {folder / LOCK}."
        ) from None
    except (OSError, NotImplementedError) as error:
        LOGGER.warning(f"mod_vision: no lock in {folder} ({error}); let only one training run in it")
    return lock


def write_whole(trainer: Any) -> None:
    """Have a trainer write its checkpoints whole or not at all."""
    trainer.last, trainer.best = WholeFile(trainer.last), WholeFile(trainer.best)
    importlib.import_module("ultralytics.engine.trainer").strip_optimizer = strip_whole  # was in the making at import


def remove_half_written(folder: Path) -> None:
    """Remove what killed trainings left half-written, in a folder that was taken and in those of the same name.

    Ultralytics numbers them: a training that is started anew after a kill gets another folder.
    """
    name = re.sub(r"-?\d+$", "", folder.name)
    for run in folder.parent.iterdir():
        if run == folder or (re.fullmatch(rf"{re.escape(name)}(-?\d+)?", run.name) and _is_over(run)):
            remove_parts(run)
            remove_parts(run / "weights")


def _is_over(folder: Path) -> bool:
    """Return whether a training had a folder and has it no more."""
    try:
        check_free(folder)
    except FileExistsError:
        return False
    return (folder / LOCK).exists()


def check_there(folder: Path) -> None:
    """Refuse to go on with a training whose folder was removed; Ultralytics makes a new one and writes on.

    Raises:
        FileNotFoundError: If neither the lock nor the arguments are there any more; the message names the folder.
    """
    if not any((folder / name).exists() for name in (LOCK, "args.yaml")):
        left = [f"; what was written since is in {folder}"] if folder.exists() else []
        raise FileNotFoundError(
            f"the folder {folder} vanished while a training wrote to it, and its figures and checkpoints with it"
            f"{''.join(left)}. Start it again, and keep the folder until it ends."
        )


def strip_whole(f: str | Path = "best.pt", s: str = "", updates: dict[str, Any] | None = None) -> dict[str, Any]:
    """Strip the optimiser out of a checkpoint at the end of a training, as Ultralytics does, but not in place."""
    if s or not isinstance(f, WholeFile):
        return strip_optimizer(f, s, updates)
    part = f.with_name(f".{f.name}.{os.getpid()}.part")
    with replaced_in_log(f" saved as {part},", ""):
        checkpoint = strip_optimizer(f, str(part), updates)
    if checkpoint:
        os.replace(part, f)
    return checkpoint


def restore_best(trainer: Any) -> None:
    """Write `best.pt` anew from a `last.pt` that is the best so far: a kill can have come between the two."""
    if Path(trainer.args.resume) != Path(trainer.last):
        return
    from ultralytics.nn.tasks import load_checkpoint  # which is being imported here

    _, checkpoint = load_checkpoint(trainer.last)
    if checkpoint["train_metrics"]["fitness"] == checkpoint["best_fitness"]:
        trainer.best.write_bytes(trainer.last.read_bytes())


def rows_before(file: Path, epoch: int, columns: Sequence[str] | None = None) -> list[list[str]]:
    """Return the header and the rows of a table before an epoch (from 1), or nothing if there are none.

    What a power loss has damaged is left out.

    Args:
        file: The table, whose first column is the epoch.
        epoch: First epoch that is left out.
        columns: What the header must be, and how long the rows, None for whatever is there.
    """
    if not file.is_file():
        return []
    with file.open(newline="", errors="replace") as lines:
        header, *rows = [row for row in csv.reader(line.replace("\0", "") for line in lines) if row] or [[]]
    rows = [row for row in rows if row[0].isdecimal() and len(row) == len(columns or row) and int(row[0]) < epoch]
    return [list(columns or header), *rows] if rows else []


def forget_from(file: Path, epoch: int) -> None:
    """Take the rows from an epoch (from 1) on out of a table: a resumed training writes them again."""
    if rows := rows_before(file, epoch):
        write_rows(file, rows)
    else:
        file.unlink(missing_ok=True)  # whoever writes the next row writes a header first


def write_rows(file: Path, rows: list[list[str]]) -> None:
    """Write a table, header first."""
    write_text(file, "".join(",".join(row) + "\n" for row in rows))
