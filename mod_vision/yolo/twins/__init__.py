"""Routed twins of Ultralytics' blocks, by the name they have in a model YAML."""

from mod_vision.yolo.twins.attention import MoDA2C2f, MoDAIFI, MoDC2PSA
from mod_vision.yolo.twins.base import DenseTwin
from mod_vision.yolo.twins.conv import (
    MoDBottleneck,
    MoDC2f,
    MoDC3,
    MoDC3k2,
    MoDConv,
    MoDHGBlock,
    MoDRepC3,
    MoDRepNCSPELAN4,
)

ATTENTION_TWINS = (MoDC2PSA, MoDA2C2f, MoDAIFI)
TILE_TWINS = (MoDConv, MoDBottleneck, MoDC3, MoDC2f, MoDC3k2, MoDRepNCSPELAN4, MoDRepC3, MoDHGBlock)
TWINS: dict[str, type[DenseTwin]] = {twin.__name__: twin for twin in (*ATTENTION_TWINS, *TILE_TWINS)}
