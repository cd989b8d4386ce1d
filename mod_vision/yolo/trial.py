"""One trial of a sweep: a candidate, trained by plain Ultralytics."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, YAML

from mod_vision.yolo.convert import save
from mod_vision.yolo.images import load_model
from mod_vision.yolo.search import Candidate, routed_variant
from mod_vision.yolo.trust import check_data, restricted


def find_data(data: str) -> tuple[str, int]:
    """Return the absolute path of a data YAML, and its number of classes.

    Raises:
        FileNotFoundError: If the data set does not exist and cannot be downloaded.
        SyntaxError: If the YAML lacks a key.
        ValueError: If its `download:` would run, and is not trusted.
    """
    found = check_data(data)
    return str(Path(found["yaml_file"]).resolve()), int(found["nc"])


def read_train_args(cfg: str | None) -> dict[str, Any]:
    """Return the training arguments of a YAML as `yolo train cfg=` takes it.

    Raises:
        FileNotFoundError: If there is no such file.
        SyntaxError: If one is none of Ultralytics'.
    """
    if cfg is None:
        return {}
    if not Path(cfg).is_file():
        raise FileNotFoundError(f"cfg={cfg} does not exist; it is a YAML of training arguments such as lr0: 0.001.")
    args = YAML.load(cfg)
    get_cfg(DEFAULT_CFG_DICT, args)
    return args


def train(start: Path, candidate: Candidate, classes: int, folder: Path, args: dict[str, Any]) -> Path:
    """Train a candidate in an Ultralytics run folder of its own, and return the checkpoint.

    Args:
        start: Checkpoint with the weights that every candidate starts from.
        candidate: What to train.
        classes: Number of classes.
        folder: Run folder, emptied first: what an interrupted training left is of no use.
        args: Training arguments.
    """
    shutil.rmtree(folder, ignore_errors=True)
    untrained = folder / "start.pt"
    save(routed_variant(load_model(start), candidate, classes), untrained, start)
    with restricted():  # the model is built anew from the YAML in the checkpoint
        load_model(untrained).train(**args, project=str(folder.parent), name=folder.name, exist_ok=True)
    return folder / "weights" / "best.pt"
