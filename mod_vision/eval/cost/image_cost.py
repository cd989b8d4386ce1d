"""What each image costs, where compute is input-adaptive."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import torch
from torch import nn

from mod_vision.eval.cost.flops import executed_gflops, executed_gflops_by_layer
from mod_vision.measure import Measure
from mod_vision.routing import routed_layers
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.windows import head_of

Size: TypeAlias = tuple[int, ...]
Key: TypeAlias = tuple[Size, str, int]  # input size, routed layer, tokens or windows


class ImageCosts(Measure):
    """Executed GFLOPs of images as they are validated, each as if it were alone: a batch takes as long as its fullest.

    Those of a routed layer are counted once for each input size and number of tokens, those of all else once for each
    size: nothing else changes them. Of a model that runs on windows, all of it is counted for each number of windows.

    Attributes:
        executed: GFLOPs of each image.
        dense: Those of the dense baseline, the same weights at capacity 1, at the same input size.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.executed: list[float] = []
        self.dense: list[float] = []
        self._layers: dict[Key, float] = {}
        self._rest: dict[Size, float] = {}
        self._dense_at: dict[Size, float] = {}

    def update(self, model: nn.Module, images: torch.Tensor) -> None:
        """Count the images (B, 3, H, W) of the batch that a model ran last."""
        size = tuple(images.shape[2:])
        if size not in self._dense_at:
            dense = copy.deepcopy(model)
            set_capacity(dense, 1.0)
            self._dense_at[size] = executed_gflops(dense, image=images[:1])
        for keys, image in zip(_keys(model, size), images.split(1), strict=True):
            known = keys if all(key in self._layers for key in keys) else self._count(model, image)
            self.executed.append(self._rest[size] + sum(self._layers[key] for key in known))
            self.dense.append(self._dense_at[size])

    def result(self) -> tuple[list[float], list[float]]:
        """Return the executed GFLOPs of each image, and those of the dense baseline."""
        return self.executed, self.dense

    def _count(self, model: nn.Module, image: torch.Tensor) -> list[Key]:
        """Count an image alone, and return what it routed."""
        size = tuple(image.shape[2:])
        counts = executed_gflops_by_layer(model, image=image)
        (keys,) = _keys(model, size)
        if head_of(model) is not None:
            self._layers.update(dict.fromkeys(keys, counts["Global"]))
            self._rest[size] = 0.0
            return keys
        self._layers.update({key: counts[key[1]] for key in keys})
        self._rest[size] = counts["Global"] - sum(self._layers[key] for key in keys)
        return keys


def _keys(model: nn.Module, size: Size) -> list[list[Key]]:
    """Return what each image of the last batch routed."""
    plans = [(name, layer.plan) for name, layer in routed_layers(model) if layer.plan is not None]
    counts = [[(size, name, k) for k in _computed(plan)] for name, plan in plans]
    return [list(keys) for keys in zip(*counts, strict=True)]


def _computed(plan: Any) -> list[int]:
    """Return how many tokens or windows were computed of each image, -1 where it was run as a whole."""
    counts = plan.counts()
    whole = getattr(plan, "whole", None)
    found: list[int] = (counts if whole is None else counts.masked_fill(whole, -1)).tolist()
    return found
