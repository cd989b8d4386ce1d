"""One image through an Ultralytics model, with the geometry that maps the token grids back onto it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import torch
from torch import nn
from ultralytics.data.augment import LetterBox
from ultralytics.nn import tasks

from mod_vision.routing.finite import check_finite
from mod_vision.yolo.run.device import input_size, stride_of

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
    stride = stride_of(net)
    channels = int(net.yaml.get("channels", 3))
    if channels not in (1, 3):
        raise ValueError(f"images are read with 1 or 3 channels, and the model takes {channels}.")
    image = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)[..., None] if channels == 1 else image_bgr
    stretch = isinstance(net, tasks.RTDETRDetectionModel)
    batch, boxed = letterbox(image, input_size(imgsz, stride), stride, auto=True, stretch=stretch)
    like = next(net.parameters())
    batch = batch.to(like.device, like.dtype)
    with evaluating(net), torch.inference_mode():
        forward = Forward(boxed, batch, net(batch))
        check_finite(net)
        return forward


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
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


def check_routes(net: Any, imgsz: int | Sequence[int]) -> None:
    """Run a model on an image of noise, which routers that are broken show in; none of it is kept.

    Args:
        net: The network of a `YOLO` object, on any device.
        imgsz: Side of the image in pixels, or height and width, that it is to run at: layers can refuse smaller maps.

    Raises:
        ValueError: If a router gives NaN; the message names the layer. Or if a layer cannot compute this size.
    """
    like = next(net.parameters())
    size = input_size(imgsz, stride_of(net))
    image = torch.rand(1, int(net.yaml.get("channels", 3)), *size)
    with evaluating(net), torch.no_grad():
        net(image.to(like.device, like.dtype))
        check_finite(net)
