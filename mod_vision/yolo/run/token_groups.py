"""Groups of tokens that labels tell apart: objects and the rest, single classes, sky and road."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mod_vision.routing.losses import tokens_in_boxes
from mod_vision.routing.recall import OBJECTS, REST, majority_cells
from mod_vision.yolo.run.objects import object_tokens, upright_boxes


def token_groups(
    batch: dict[str, Any], size: tuple[int, int], names: dict[int, str], overlap: bool
) -> dict[str, torch.Tensor]:
    """Return boolean maps (B, H, W) of objects, of the rest of the image without padding, and of each class."""
    inside = _inside(batch, size)
    objects = object_tokens(batch, size, overlap).bool() & inside
    groups = {OBJECTS: objects, REST: inside & ~objects}
    classes, boxes = batch["cls"].flatten().long(), upright_boxes(batch).to(inside.device)
    for index in classes.unique().tolist():
        part = classes == index
        touched = tokens_in_boxes(boxes[part], batch["batch_idx"][part].to(inside.device), len(inside), size).bool()
        name = names[index] if names[index] not in groups else f"class {names[index]}"
        groups[name] = touched & objects  # where there are masks, `objects` trims the boxes to them
    return groups


def _placed(batch: dict[str, Any], i: int) -> tuple[int, int, int, int]:
    """Return top, left, height, width of image `i` within the padded input, in pixels."""
    (ratio_h, ratio_w), (pad_w, pad_h) = batch["ratio_pad"][i]
    h, w = batch["ori_shape"][i]
    return round(pad_h), round(pad_w), round(h * ratio_h), round(w * ratio_w)


def _inside(batch: dict[str, Any], size: tuple[int, int]) -> torch.Tensor:
    """Return the tokens (B, H, W) whose centre lies in the image, not in its padding."""
    height, width = batch["img"].shape[2:]
    rows = (torch.arange(size[0]) + 0.5) * height / size[0]
    cols = (torch.arange(size[1]) + 0.5) * width / size[1]
    maps = []
    for i in range(len(batch["img"])):
        top, left, h, w = _placed(batch, i)
        maps.append(((rows >= top) & (rows < top + h))[:, None] & ((cols >= left) & (cols < left + w)))
    return torch.stack(maps).to(batch["img"].device)


def stuff_maps(folder: Path | None, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Return each image's dense annotation on the padded input, -1 in the padding; empty if the data has none.

    A data YAML can name folders of index maps, `stuff: {val: stuff/val}`, and their `stuff_names: {0: sky, ...}`.
    """
    if folder is None:
        return []
    maps = []
    for i, file in enumerate(batch["im_file"]):
        path = folder / f"{Path(file).stem}.png"
        labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if labels is None:
            raise FileNotFoundError(f"the dense annotation {path} is missing or no image.")
        top, left, h, w = _placed(batch, i)
        canvas = np.full(batch["img"].shape[2:], -1, dtype=np.int16)
        canvas[top : top + h, left : left + w] = cv2.resize(labels, (w, h), interpolation=cv2.INTER_NEAREST)
        maps.append(torch.from_numpy(canvas))
    return maps


def stuff_tokens(
    stuff: list[torch.Tensor], data: dict[str, Any], size: tuple[int, int], batch: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Return maps (B, H, W) of the tokens that are mostly one kind of stuff."""
    if not stuff:
        return {}
    things = set(data["names"].values())
    kinds = {value: name for value, name in data["stuff_names"].items() if name not in things}
    device = batch["img"].device
    return {
        name: torch.stack([majority_cells(labels, size, value) for labels in stuff]).to(device)
        for value, name in kinds.items()
    }
