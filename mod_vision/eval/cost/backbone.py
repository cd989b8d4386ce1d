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
        read = [i for layer in self.layers for i in ([layer.f] if isinstance(layer.f, int) else layer.f)]
        self.kept = {i for i in read if i != -1}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last row's map for images (B, 3, H, W)."""
        outputs: dict[int, Any] = {}
        for i, layer in enumerate(self.layers):
            if isinstance(layer.f, int):
                x = x if layer.f == -1 else outputs[layer.f]
            else:
                x = [x if j == -1 else outputs[j] for j in layer.f]
            x = layer(x)
            if i in self.kept:
                outputs[i] = x
        return x
