"""Pictures of the routes while a routed model trains, beside Ultralytics' own plots and in its loggers.

Every tenth of the epochs, and after the last one, `routes_epoch<N>.jpg` shows the depth on some validation images, and
`routing.png` the figures of `routing.csv`. Both are announced by `trainer.on_plot`, from which W&B, DVC and ClearML
take plots; TensorBoard gets the mosaic here. The figures of the epoch join the metrics that all loggers are given.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils import LOGGER, RANK

from mod_vision.errors import one_line
from mod_vision.yolo.training import student

PICTURES = 10  # of a training
IMAGES = 8  # of a picture
PREFIX = "routing/"
NOT_LOGGED = ("epoch", "layer", "images")


def forget(trainer: Any) -> None:
    """Take our figures out of the metrics again: without a validation they would get into results.csv."""
    if RANK in (-1, 0) and getattr(trainer, "mod_training", None):  # other ranks have none
        trainer.metrics = {key: value for key, value in trainer.metrics.items() if not key.startswith(PREFIX)}


def show_routes(trainer: Any) -> None:
    """Give the epoch's figures to the loggers and, when it is time, draw the pictures."""
    training = getattr(trainer, "mod_training", None)
    epoch = trainer.epoch + 1
    if training is None or RANK not in (-1, 0):
        return
    rows = [row for row in _read_table(training.csv) if int(row["epoch"]) == epoch]
    figures = {
        f"{PREFIX}{row['layer']}/{name}": float(row[name]) for row in rows for name in row if name not in NOT_LOGGED
    }
    trainer.metrics = {**trainer.metrics, **figures}
    interval = math.ceil(trainer.epochs / PICTURES)
    if trainer.args.plots and rows and (epoch % interval == 0 or trainer.stop):
        try:
            _draw(trainer, training.csv, epoch)
        except Exception as error:  # whatever it is, a picture is not worth a training
            LOGGER.warning(f"mod_vision: no picture of the routes of epoch {epoch}: {one_line(error)}")


def _read_table(path: Path) -> list[dict[str, str]]:
    """Return the lines of a `routing.csv`, none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _draw(trainer: Any, table: Path, epoch: int) -> None:
    """Draw mosaic and curves."""
    from mod_vision.viz import training as pictures  # all of Ultralytics, which is being imported here

    net = student(trainer.ema.ema)
    files = trainer.test_loader.dataset.im_files
    some = [Path(files[i * len(files) // IMAGES]) for i in range(IMAGES)] if len(files) > IMAGES else map(Path, files)
    mosaic, curves = trainer.save_dir / f"routes_epoch{epoch}.jpg", trainer.save_dir / f"{table.stem}.png"
    picture = pictures.draw_mosaic(net, list(some), trainer.args.imgsz, mosaic)
    pictures.draw_curves(_read_table(table), curves)
    for path in (mosaic, curves):
        trainer.on_plot(path)
    board = sys.modules.get("ultralytics.utils.callbacks.tensorboard")
    if board is not None and board.WRITER:
        board.WRITER.add_image("routes", np.ascontiguousarray(picture[..., ::-1]), epoch, dataformats="HWC")


CALLBACKS = {"on_train_epoch_start": forget, "on_fit_epoch_end": show_routes}
