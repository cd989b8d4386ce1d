"""A whole model as one thing: copied, saved, run up to some of its layers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics import YOLO

from mod_vision.files import writable_dir, write_bytes


def copy_model(model: YOLO) -> YOLO:
    """Return a `YOLO` object with a copy of the model, which trains on from the weights it has.

    Raises:
        ValueError: If the model is an exported one, or fused, which cannot be undone.
    """
    net: Any = model.model
    if not isinstance(net, nn.Module):
        raise ValueError(f"model {net} is an exported one; convert the checkpoint it was made from.")
    if net.is_fused():
        raise ValueError("the model is fused (after predict, val or export); load the checkpoint again to convert it.")
    new = copy(model)
    new._modules = dict(model._modules)
    new.model = deepcopy(net).cpu().float().eval()
    new.ckpt = {"model": new.model}  # from which train() takes the weights
    new.overrides = dict(model.overrides)
    new.predictor = new.trainer = new.metrics = None
    return new


def catch_inputs(net: Any, rows: Sequence[int], images: torch.Tensor) -> dict[int, Any]:
    """Run images (B, 3, H, W) and return what the layers of some rows read: a map, or a list of maps for the head."""
    caught: dict[int, Any] = {}
    handles = [
        net.model[i].register_forward_pre_hook(lambda _, args, i=i: caught.__setitem__(i, args[0])) for i in rows
    ]
    try:
        with torch.no_grad():
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return caught


def check_out(path: Path, source: str | Path) -> None:
    """Check, before the work, that a checkpoint can be written.

    Raises:
        ValueError: If `path` is no .pt file, or the checkpoint `source` it is made from.
        OSError: If the folder cannot be written to.
    """
    if path.suffix.lower() != ".pt":
        raise ValueError(f"out={path}: a checkpoint is a .pt file.")
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise ValueError(f"out={path} is the model it is made from; choose another name.")
    writable_dir(path.parent)


def save(model: YOLO, path: Path, source: str | Path) -> None:
    """Save a model under a temporary name, then rename.

    Raises:
        ValueError: As `check_out`.
        OSError: If the folder cannot be written to; nothing is left behind.
    """
    check_out(path, source)
    checkpoint = io.BytesIO()
    model.save(checkpoint)
    write_bytes(path, checkpoint.getvalue())
