"""One image through an Ultralytics model, with the geometry that maps the token grids back onto it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.data.loaders import LoadImagesAndVideos
from ultralytics.data.utils import check_det_dataset
from ultralytics.engine.model import Model
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import select_device

from mod_vision.resources import find_shipped
from mod_vision.yolo.register import register

MIN_STRIDE = 32


class Letterboxed(NamedTuple):
    """Geometry of an image in the model's input.

    Attributes:
        size: (height, width) of the padded input.
        valid: (top, left, height, width) of the image in it, in input pixels.
    """

    size: tuple[int, int]
    valid: tuple[int, int, int, int]


def load_model(path_or_model: str | Path | Model) -> YOLO:
    """Load a checkpoint or build an untrained model from a YAML; never downloads, a `YOLO` object passes through.

    Args:
        path_or_model: A .pt file or a YAML file, or the bare name of one that ships with this package, such as
            'yolo26n-mod.yaml' and 'yolo26n-mod-seg.pt', or a `YOLO`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is neither .pt nor YAML, or no checkpoint that loads.
    """
    register()
    if isinstance(path_or_model, Model):
        return path_or_model
    path = Path(path_or_model)
    if path.suffix.lower() not in (".pt", ".yaml", ".yml"):
        raise ValueError(f"model {path} is neither a checkpoint (.pt) nor a model YAML.")
    if path.suffix.lower() != ".pt":
        return YOLO(str(path))
    if not path.is_file() and find_shipped(str(path)) is None:  # Ultralytics would try to download it
        raise FileNotFoundError(f"checkpoint {path} does not exist.")
    try:
        return YOLO(str(path))
    except TypeError as error:  # what Ultralytics raises for a damaged file, with advice over several lines
        raise ValueError(f"checkpoint {path} does not load: {str(error).splitlines()[0]}") from error


def some_images(source: Any, count: int, split: str = "train") -> list[Path]:
    """Return up to `count` images of a source, evenly spaced.

    Args:
        source: A data YAML, or what `yolo predict` reads images from: a file, a folder, a pattern, a .txt of paths, or
            a list of those.
        count: Number of images.
        split: Split of a data YAML to take them from.

    Raises:
        FileNotFoundError: If the source does not exist or has no image; nothing is downloaded.
    """
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in (".yaml", ".yml"):
        source = check_det_dataset(str(source), autodownload=False)[split]
    loader = LoadImagesAndVideos(source)
    files = [Path(file) for file, video in zip(loader.files, loader.video_flag, strict=True) if not video]
    if not files:
        raise FileNotFoundError(f"{source} has no image.")
    return [files[i * len(files) // count] for i in range(count)] if len(files) > count else files


def torch_device(device: str) -> torch.device:
    """Return the device that Ultralytics means by `device`: cpu, 0, 0,1, mps, ...

    Raises:
        ValueError: If there is no such device.
    """
    return torch.device("cpu") if device in ("", "cpu") else select_device(device, verbose=False)


def round_imgsz(imgsz: int) -> int:
    """Round an image size up to a multiple of the stride, as Ultralytics does."""
    return int(check_imgsz(imgsz, MIN_STRIDE))


def forward_letterboxed(model: Any, image_bgr: np.ndarray, imgsz: int) -> Letterboxed:
    """Run one image through the model as Ultralytics predicts it: padded to the smallest rectangle of its stride.

    The routed layers then hold the plan of this image.

    Args:
        model: A `YOLO` object with a PyTorch model.
        image_bgr: (H, W, 3) uint8.
        imgsz: Longer side of the input, rounded up to a multiple of the stride.

    Raises:
        ValueError: If the model is an exported one, or `imgsz` is not positive.
    """
    if not isinstance(model.model, nn.Module):
        raise ValueError(f"model {model.model} is an exported one, its routing cannot be read; use the .pt file.")
    if imgsz < 1:
        raise ValueError(f"imgsz must be a positive number of pixels, got {imgsz}.")
    inner: Any = model.model
    stride = max(int(inner.stride.max()), MIN_STRIDE)
    letterbox = LetterBox(check_imgsz(imgsz, stride, min_dim=2), auto=True, stride=stride)
    placed = letterbox.get_params({"img": image_bgr})
    padded = letterbox(image=image_bgr)
    _forward(inner, padded)
    width, height = placed["new_unpad"]
    return Letterboxed((padded.shape[0], padded.shape[1]), (placed["top"], placed["left"], height, width))


def _forward(inner: nn.Module, image_bgr: np.ndarray) -> None:
    """Run the model on a padded image, and leave it in the mode it was in."""
    like = next(inner.parameters())
    rgb = np.ascontiguousarray(image_bgr[..., ::-1].transpose(2, 0, 1))
    batch = torch.from_numpy(rgb)[None].to(like.device, like.dtype) / 255
    training = inner.training
    inner.eval()
    try:
        with torch.inference_mode():
            inner(batch)
    finally:
        inner.train(training)
