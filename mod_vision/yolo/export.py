"""ONNX export through Ultralytics, and the inputs to check it with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from ultralytics.data.augment import LetterBox

from mod_vision.yolo.images import load_model


def export_onnx(weights: str | Path, imgsz: int) -> tuple[Path, nn.Module]:
    """Export a checkpoint with Ultralytics' own exporter.

    Returns:
        The ONNX file, and the fused eager model to compare it with.
    """
    path = Path(load_model(weights).export(format="onnx", imgsz=imgsz, device="cpu"))
    return path, load_model(weights).model.float().eval().fuse(verbose=False)


def input_tensors(photos: Sequence[Path], imgsz: int) -> list[torch.Tensor]:
    """Read photos and letterbox them to the square of an export, each (1, 3, imgsz, imgsz) in [0, 1]."""
    letterbox = LetterBox((imgsz, imgsz), auto=False)
    images = (letterbox(image=np.asarray(Image.open(photo).convert("RGB"))) for photo in photos)
    return [torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255 for image in images]
