"""The classes of ours, and of timm, that checkpoints hold: loading with `weights_only` must be told of them."""

from __future__ import annotations

import torch

from mod_vision.nn import MoDStage
from mod_vision.nn.attention import SelfAttention, TransformerBlock
from mod_vision.nn.skip import LinearSkip
from mod_vision.routing import ROUTERS
from mod_vision.routing.window_routers import WINDOW_ROUTERS, Around, CellHead
from mod_vision.yolo.blocks import ROUTED_BLOCKS, windows

SAFE_CLASSES = (
    *(MoDStage, TransformerBlock, SelfAttention, LinearSkip),
    *(*ROUTERS.values(), *ROUTED_BLOCKS.values()),
    *(*WINDOW_ROUTERS.values(), Around, CellHead, *windows.CLASSES),
)


def allow_classes() -> None:
    """Let checkpoints of routed models be loaded safely."""
    torch.serialization.add_safe_globals(list(SAFE_CLASSES))


def allow_vit_classes() -> None:
    """Let checkpoints of ViT backbones be loaded safely; apart from the others, since timm is slow to import."""
    from mod_vision.nn import pyramid, timm_vit, vit

    own = (vit.MoDViT, vit.BlockGroup, vit.RoutedGroup, vit.Group, pyramid.SimplePyramid)
    torch.serialization.add_safe_globals([*own, *timm_vit.timm_classes()])
