"""Routed twins of Ultralytics' blocks, by the name they have in a model YAML."""

from mod_vision.yolo.twins.attention import MoDA2C2f, MoDAIFI, MoDC2PSA
from mod_vision.yolo.twins.base import DenseTwin

TWINS: dict[str, type[DenseTwin]] = {twin.__name__: twin for twin in (MoDC2PSA, MoDA2C2f, MoDAIFI)}
