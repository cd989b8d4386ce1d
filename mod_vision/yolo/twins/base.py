"""What all routed twins of Ultralytics' blocks share: same parameters, same names as the dense block.

A twin is built from its dense block, so pretrained weights load, and at capacity 1 it *is* the dense block.
"""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar

import torch
from torch import nn

from mod_vision.routing import RoutedLayer


class DenseTwin(RoutedLayer):
    """Base of layers made from a dense Ultralytics block."""

    dense_type: ClassVar[type[nn.Module]]
    own_options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_dense(cls, block: nn.Module, capacity: Any, router: str, where: str, **options: Any) -> Any:
        """Return the routed twin of `block`, which shares its parameters.

        Args:
            block: The dense block.
            capacity: Share of tokens in (0, 1].
            router: Name of a router.
            where: The place it is made for, named in errors.
            options: The twin's own options, see `own_options`.

        Raises:
            ValueError: If the block has nothing to route, or capacity, router or an option is not valid.
        """
        twin = cls.__new__(cls)
        for key, value in block.__dict__.items():  # dicts of modules, parameters and hooks are not shared
            twin.__dict__[key] = copy(value) if isinstance(value, dict) else value
        twin.__dict__.pop("forward", None)  # that of the dense block, set by Ultralytics' fuse()
        dim, depth = twin.check_block(where, **options)
        twin.init_routing(dim, depth, capacity, router, where)
        return twin

    def check_block(self, where: str) -> tuple[int, int]:
        """Return channels and number of the blocks that are routed."""
        raise NotImplementedError

    @torch.no_grad()
    def calibrate(self, x: torch.Tensor) -> torch.Tensor:
        """Fit what the twin adds to a trained block, besides the router, on maps x (B, C, H, W) that the block reads.

        Most twins add nothing.

        Returns:
            What the dense block gives for x.
        """
        return self.dense_type.forward(self, x)
