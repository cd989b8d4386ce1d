"""The backbone of an Ultralytics model by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Backbone(nn.Module):
    """The rows under `backbone:` of a model YAML.

    Args:
        net: Torch model of Ultralytics; its layers are shared, not copied.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.layers = net.model[: len(net.yaml["backbone"])]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last row's map for images (B, 3, H, W)."""
        outputs: list[Any] = []
        for layer in self.layers:
            if layer.f != -1:
                found = [x if i == -1 else outputs[i] for i in ([layer.f] if isinstance(layer.f, int) else layer.f)]
                x = found[0] if isinstance(layer.f, int) else found
            x = layer(x)
            outputs.append(x)
        return x
