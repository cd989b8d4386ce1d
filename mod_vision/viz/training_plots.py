"""Pictures of the routes while a routed model trains, beside Ultralytics' own plots and in its loggers.

Every tenth of the epochs, and after the last one, `routes_epoch<N>.jpg` shows the depth on some validation images, and
`routing.png` the figures of `routing.csv`. Both are announced by `trainer.on_plot`, from which W&B, DVC and ClearML
take plots; TensorBoard gets the mosaic here. The figures of the epoch join the metrics that all loggers are given.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils import LOGGER, RANK

from mod_vision.errors import one_line
from mod_vision.yolo.train.callbacks import ROUTES_CSV, student
from mod_vision.yolo.train.run_folder import rows_before

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
    header, *lines = rows_before(training.csv, epoch + 1) or [[]]
    table = [dict(zip(header, line, strict=True)) for line in lines]
    rows = [row for row in table if int(row["epoch"]) == epoch]
    figures = {
        f"{PREFIX}{row['layer']}/{name}": float(row[name]) for row in rows for name in row if name not in NOT_LOGGED
    }
    trainer.metrics = {**trainer.metrics, **figures}
    interval = math.ceil(trainer.epochs / PICTURES)
    if trainer.args.plots and rows and (epoch % interval == 0 or trainer.stop):
        try:
            _draw(trainer, table, epoch)
        except Exception as error:  # whatever it is, a picture is not worth a training
            LOGGER.warning(f"mod_vision: no picture of the routes of epoch {epoch}: {one_line(error)}")


def _draw(trainer: Any, table: list[dict[str, str]], epoch: int) -> None:
    """Draw mosaic and curves, the latter of the lines of `routing.csv`."""
    from mod_vision.viz import training_pictures as pictures  # all of Ultralytics, which is being imported here
    from mod_vision.yolo.run.images import evenly_spaced  # too

    net = student(trainer.ema.ema)
    some = [Path(file) for file in evenly_spaced(trainer.test_loader.dataset.im_files, IMAGES)]
    mosaic, curves = trainer.save_dir / f"routes_epoch{epoch}.jpg", (trainer.save_dir / ROUTES_CSV).with_suffix(".png")
    picture = pictures.draw_mosaic(net, some, trainer.args.imgsz, mosaic)
    pictures.draw_curves(table, curves)
    for path in (mosaic, curves):
        trainer.on_plot(path)
    board = sys.modules.get("ultralytics.utils.callbacks.tensorboard")
    if board is not None and board.WRITER:
        board.WRITER.add_image("routes", np.ascontiguousarray(picture[..., ::-1]), epoch, dataformats="HWC")


CALLBACKS = {"on_train_epoch_start": forget, "on_fit_epoch_end": show_routes}
