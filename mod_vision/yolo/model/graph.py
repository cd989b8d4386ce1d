"""Turning a trained dense model into a routed one that keeps every weight.

A layer is replaced by its routed form, which shares its parameters, and so is its row in the model's YAML. The result
is what Ultralytics would have built from a routed YAML: it saves, loads and trains on as any other.
"""

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
from mod_vision.yolo.blocks import ROUTED_BLOCKS
from mod_vision.yolo.blocks.base import take_place
from mod_vision.yolo.blocks.registry import RoutedRow

CAN_BE_ROUTED = {block.dense_type for block in ROUTED_BLOCKS.values()}


def attention_rows(net: Any) -> list[int]:
    """Return the rows of a model whose layer has a routed form: a block, or one that is repeated from the outside."""
    return [i for i, layer in enumerate(net.model) if _kinds(layer) and _kinds(layer) <= CAN_BE_ROUTED]


def _kinds(layer: nn.Module) -> set[type]:
    """Return the class of the block that a layer is, or repeats."""
    return {type(block) for block in layer} if isinstance(layer, nn.Sequential) else {type(layer)}


def yaml_row(net: Any, i: int) -> list[Any]:
    """Return row i of the YAML that a model was built from."""
    backbone = net.yaml["backbone"]
    return backbone[i] if i < len(backbone) else net.yaml["head"][i - len(backbone)]


def routed_layer(net: Any, i: int, options: dict[str, Any]) -> nn.Module:
    """Return the routed form of layer i, which shares its parameters; the model is not changed.

    Args:
        net: Torch model of Ultralytics.
        i: Row of the layer.
        options: Options of the row: capacity and router.

    Raises:
        ValueError: If the layer cannot be routed; the message says why.
    """
    dense, row = net.model[i], yaml_row(net, i)
    routed = RoutedRow(ROUTED_BLOCKS[f"MoD{row[2]}"], list(row[3]), options, f"layer {i}, {row[2]}")
    new = take_place(dense, routed.kind.build(dense, routed))
    like = next(dense.parameters())
    return new.to(like.device, like.dtype).train(dense.training)


def put_routed(net: Any, i: int, layer: nn.Module, options: dict[str, Any]) -> None:
    """Put a routed layer in the place of layer i, in the model and in its YAML."""
    row = yaml_row(net, i)
    net.model[i] = layer
    row[2:] = [f"MoD{row[2]}", [*row[3], dict(options)]]


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
