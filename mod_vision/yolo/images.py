"""One image through an Ultralytics model, with the geometry that maps the token grids back onto it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.data.loaders import LoadImagesAndVideos, LoadPilAndNumpy
from ultralytics.data.utils import check_det_dataset
from ultralytics.engine.model import Model
from ultralytics.nn import tasks
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES
from ultralytics.utils.patches import imread
from ultralytics.utils.torch_utils import select_device

from mod_vision.errors import one_line
from mod_vision.resources import find_file
from mod_vision.routing.finite import check_finite
from mod_vision.yolo.checkpoint import open_checkpoint
from mod_vision.yolo.data_yaml import split_images
from mod_vision.yolo.parse import check_model_yaml
from mod_vision.yolo.register import register
from mod_vision.yolo.trust import YAMLS, restricted

MIN_STRIDE = 32

_turns: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


class Letterboxed(NamedTuple):
    """Geometry of an image in the model's input.

    Attributes:
        size: (height, width) of the padded input.
        valid: (top, left, height, width) of the image in it, in input pixels.
    """

    size: tuple[int, int]
    valid: tuple[int, int, int, int]


class Forward(NamedTuple):
    """One image through a model.

    Attributes:
        boxed: Where the image lies in the input.
        batch: (1, 3, H, W), the input, RGB in [0, 1].
        outputs: What the model gave, as it gave it.
    """

    boxed: Letterboxed
    batch: torch.Tensor
    outputs: Any


def load_model(path_or_model: str | Path | Model) -> YOLO:
    """Load a checkpoint or build an untrained model from a YAML; never downloads, a `YOLO` object passes through.

    Args:
        path_or_model: A .pt file or a YAML file, or the bare name of one that ships with this package, such as
            'yolo26n-mod.yaml' and 'yolo26n-mod-seg.pt', or a `YOLO`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is neither .pt nor YAML, or no whole checkpoint of weights alone, see `open_checkpoint`.
    """
    register()
    if isinstance(path_or_model, Model):
        return path_or_model
    path = Path(path_or_model)
    if path.suffix.lower() not in (".pt", *YAMLS):
        raise ValueError(f"model {path} is neither a checkpoint (.pt) nor a model YAML.")
    if path.suffix.lower() != ".pt":
        return _build(path)
    file = find_file(path)
    if file is None:  # Ultralytics would try to download it
        hint = f" Download it first: yolo predict model={path.name}" if path.name in GITHUB_ASSETS_NAMES else ""
        raise FileNotFoundError(f"checkpoint {path} does not exist.{hint}")
    return open_checkpoint(file)


def _build(path: Path) -> YOLO:
    """Build an untrained model; errors of ours name the row, others at least the file."""
    try:
        check_model_yaml(tasks.yaml_model_load(path))
        with restricted():
            return YOLO(str(path))
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"model {path} cannot be built: {one_line(error)}") from error


def load_export(path: Path) -> YOLO:
    """Return a `YOLO` object of an exported model; it is opened when it predicts."""
    register()
    return YOLO(str(path))


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
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in YAMLS:
        source = split_images(check_det_dataset(str(source), autodownload=False), split)
    loader = LoadImagesAndVideos(source)
    files = [Path(file) for file, video in zip(loader.files, loader.video_flag, strict=True) if not video]
    if not files:
        raise FileNotFoundError(f"{source} has no image.")
    return evenly_spaced(files, count)


def image_names(files: Iterable[str | Path]) -> tuple[Path, list[str]]:
    """Return the folder that all of some images lie in, and the path of each within it: its name, if none is deeper.

    Raises:
        ValueError: If there is no image.
    """
    paths = [Path(os.path.abspath(file)) for file in files]  # links stay as they are
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return folder, [path.relative_to(folder).as_posix() for path in paths]


def evenly_spaced(files: list[Any], count: int) -> list[Any]:
    """Return `count` of the files, evenly spaced, or all if there are no more."""
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


def read_image(image: str | Path | np.ndarray | Image.Image) -> np.ndarray:
    """Return an image as `yolo predict` sees it: BGR (H, W, 3) uint8, turned as its EXIF says, without alpha.

    Of 16 bits, the upper 8 are taken.

    Args:
        image: A file, a PIL image, or a uint8 or uint16 array (H, W), (H, W, 1), (H, W, 3) in BGR or (H, W, 4) in BGRA.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is no image, or the array is not of these types and shapes.
    """
    if isinstance(image, (str, Path)):
        return _decode(Path(image))
    if isinstance(image, np.ndarray):
        shape = (*image.shape, 1) if image.ndim == 2 else image.shape
        if image.dtype not in (np.uint8, np.uint16) or not image.size or len(shape) != 3 or shape[2] not in (1, 3, 4):
            raise ValueError(
                f"an image array must be uint8 or uint16, gray, BGR or BGRA; got {image.dtype} of shape {image.shape}."
            )
    return np.ascontiguousarray(LoadPilAndNumpy(image).im0[0])


def read_images(files: Sequence[Path]) -> list[np.ndarray]:
    """Read image files as `read_image` does. What cannot be read is told in a line and left out.

    Raises:
        ValueError: If none can be read.
    """
    images = []
    for file in files:
        try:
            images.append(read_image(file))
        except (OSError, ValueError) as error:
            print(f"left out: {error}", flush=True)
    if not images:
        raise ValueError(f"none of the {len(files)} images can be read, such as {files[0]}.")
    return images


def _decode(path: Path) -> np.ndarray:
    """Read an image file."""
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist.")
    try:
        image = imread(path)
    except cv2.error as error:  # more pixels than OpenCV takes
        raise ValueError(f"{path} is not an image that can be read: {error.err}.") from None
    if image is None:
        raise ValueError(f"{path} is not an image that can be read.")
    return np.ascontiguousarray(image)


def letterbox(
    image_bgr: np.ndarray, size: Any, stride: int, auto: bool, stretch: bool = False
) -> tuple[torch.Tensor, Letterboxed]:
    """Scale and pad an image as Ultralytics does for a prediction.

    Args:
        image_bgr: (H, W, 3) uint8, or (H, W, 1) for models of gray images.
        size: (height, width) that it is fitted into.
        stride: Stride of the model.
        auto: Pad to the smallest rectangle of the stride instead of the whole size.
        stretch: Stretch it to the whole size instead of padding, as RT-DETR wants it.

    Returns:
        The input (1, 3 or 1, height, width), RGB in [0, 1], float32, and where the image lies in it.
    """
    boxer = LetterBox(size, auto=auto and not stretch, scale_fill=stretch, stride=stride)
    placed = boxer.get_params({"img": image_bgr})
    padded = boxer(image=image_bgr)
    rgb = padded[..., ::-1].transpose(2, 0, 1).copy()
    width, height = placed["new_unpad"]
    boxed = Letterboxed((padded.shape[0], padded.shape[1]), (placed["top"], placed["left"], height, width))
    return torch.from_numpy(rgb)[None].float() / 255, boxed


def forward_letterboxed(net: Any, image_bgr: np.ndarray, imgsz: int) -> Forward:
    """Run one image through the model as Ultralytics predicts it: padded to the smallest rectangle of its stride.

    For RT-DETR it is stretched to a square instead, and for models of gray images made gray.

    The routed layers then hold the plan of this image. The model is left in the mode it was in.

    Args:
        net: The network of a `YOLO` object.
        image_bgr: (H, W, 3) uint8.
        imgsz: Longer side of the input, rounded up to a multiple of the stride.

    Raises:
        ValueError: If the model is an exported one or has neither 1 nor 3 channels, `imgsz` is not positive, or a
            router gives NaN.
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"model {net} is an exported one, its routing cannot be read; use the .pt file.")
    stride = max(int(net.stride.max()), MIN_STRIDE)
    channels = int(net.yaml.get("channels", 3))
    if channels not in (1, 3):
        raise ValueError(f"images are read with 1 or 3 channels, and the model takes {channels}.")
    image = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)[..., None] if channels == 1 else image_bgr
    stretch = isinstance(net, tasks.RTDETRDetectionModel)
    batch, boxed = letterbox(image, input_size(imgsz, stride), stride, auto=True, stretch=stretch)
    like = next(net.parameters())
    batch = batch.to(like.device, like.dtype)
    with _evaluating(net), torch.inference_mode():
        forward = Forward(boxed, batch, net(batch))
        check_finite(net)
        return forward


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a while, which is one thread's at a time.

    Ultralytics' heads keep the anchors of the last image, which another thread would replace.
    """
    with _turns.setdefault(net, threading.RLock()):
        training = net.training
        net.eval()
        try:
            yield
        finally:
            net.train(training)


def check_routes(net: Any, imgsz: int) -> None:
    """Run a model on an image of noise, which routers that are broken show in; none of it is kept.

    Args:
        net: The network of a `YOLO` object, on any device.
        imgsz: Side of the image in pixels, the one it is to run at: layers can refuse smaller maps.

    Raises:
        ValueError: If a router gives NaN; the message names the layer. Or if a layer cannot compute this size.
    """
    like = next(net.parameters())
    size = input_size(imgsz, max(int(net.stride.max()), MIN_STRIDE))
    image = torch.rand(1, int(net.yaml.get("channels", 3)), *size)
    with _evaluating(net), torch.no_grad():
        net(image.to(like.device, like.dtype))
        check_finite(net)


def input_size(imgsz: int, stride: int) -> list[int]:
    """Return height and width of an input of `imgsz` pixels, rounded up to a multiple of the stride.

    Raises:
        ValueError: If `imgsz` is not positive.
    """
    if imgsz < 1:
        raise ValueError(f"imgsz must be a positive number of pixels, got {imgsz}.")
    return check_imgsz(imgsz, stride, min_dim=2)
