"""What all routed forms of Ultralytics' blocks share: same parameters, same names as the dense block.

A routed form is built from its dense block, so pretrained weights load, and at capacity 1 it *is* the dense block.
"""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar

import torch
from torch import nn

from mod_vision.routing import RoutedLayer, RoutingPlan
from mod_vision.yolo.blocks.registry import RoutedRow, RowKind


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    """View a map (B, C, H, W) as tokens (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def sharing(module: nn.Module, kind: Any) -> Any:
    """Return a module of another class that shares the parameters and attributes of one."""
    new = kind.__new__(kind)
    for key, value in module.__dict__.items():  # dicts of modules, parameters and hooks are not shared
        new.__dict__[key] = copy(value) if isinstance(value, dict) else value
    new.__dict__.pop("forward", None)  # that of the other class, set by Ultralytics' fuse()
    return new


def take_place(old: nn.Module, new: Any) -> Any:
    """Give the new layer what Ultralytics attaches to the layers of a model."""
    new.i, new.f = old.i, old.f
    kind = type(new[0] if isinstance(new, nn.Sequential) else new)
    new.type = f"{kind.__module__}.{kind.__name__}"
    new.np = sum(p.numel() for p in new.parameters())
    return new


class RoutedBlock(RowKind, RoutedLayer):
    """Base of layers made from a dense Ultralytics block; their rows have the arguments of the dense block's."""

    dense_type: ClassVar[type[nn.Module]]

    @classmethod
    def from_dense(cls, block: nn.Module, capacity: Any, router: str, where: str) -> Any:
        """Return the routed form of `block`, which shares its parameters.

        Args:
            block: The dense block.
            capacity: Share of tokens in (0, 1].
            router: Name of a router.
            where: The place it is made for, named in errors.

        Raises:
            ValueError: If the block has nothing to route, or capacity or router is not valid.
        """
        routed = sharing(block, cls)
        dim, depth = routed.check_block(where)
        routed.init_routing(dim, depth, capacity, router, where)
        return routed

    @classmethod
    def stand_in(cls, args: list[Any]) -> list[Any]:
        """Return the dense block's row."""
        return [cls.dense_type.__name__, args]

    @classmethod
    def build(cls, dense: nn.Module, row: RoutedRow) -> nn.Module:
        """Return the routed block, or a sequence of them where Ultralytics repeats the block from the outside."""
        if isinstance(dense, nn.Sequential):
            return nn.Sequential(*(cls.from_dense(block, where=row.where, **row.options) for block in dense))
        return cls.from_dense(dense, where=row.where, **row.options)

    def check_block(self, where: str) -> tuple[int, int]:
        """Return channels and number of the blocks that are routed."""
        raise NotImplementedError

    def route_map(self, x: torch.Tensor) -> tuple[torch.Tensor, RoutingPlan]:
        """Return the tokens (B, N, C) of a map (B, C, H, W) and their routing."""
        tokens = to_tokens(x)
        return tokens, self.route(tokens, (x.shape[2], x.shape[3]))
