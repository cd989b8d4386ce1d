"""The images of a forward, told to its routed layers, which look for padding in them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mod_vision.routing.padding import padded_images


def with_padding(predict_once: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the forward of Ultralytics' models (but RT-DETR's, whose images are stretched) so that layers know them."""

    @functools.wraps(predict_once)
    def predict(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with padded_images(x):
            return predict_once(self, x, *args, **kwargs)

    return predict
