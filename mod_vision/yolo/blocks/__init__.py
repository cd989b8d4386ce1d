"""The kinds of routed rows, by the name they have in a model YAML; importing this package registers them."""

from mod_vision.yolo.blocks import stage_row, vit_row  # noqa: F401  # each registers its row
from mod_vision.yolo.blocks.attention import MoDA2C2f, MoDAIFI, MoDC2PSA
from mod_vision.yolo.blocks.base import RoutedBlock
from mod_vision.yolo.blocks.registry import KINDS

__all__ = ("KINDS", "ROUTED_BLOCKS", "MoDA2C2f", "MoDAIFI", "MoDC2PSA", "RoutedBlock")

ROUTED_BLOCKS = {name: kind for name, kind in KINDS.items() if issubclass(kind, RoutedBlock)}
