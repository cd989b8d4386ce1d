"""Names that older checkpoints hold: classes that have moved load, rows that are gone say what to use instead."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NoReturn

import torch

from mod_vision.yolo.blocks import attention

REMOVED = (
    "MoDConv",
    "MoDBottleneck",
    "MoDC3",
    "MoDC2f",
    "MoDC3k2",
    "MoDRepNCSPELAN4",
    "MoDRepC3",
    "MoDHGBlock",
)
MOVED = {"mod_vision.yolo.twins.attention": attention}
MODULE = "mod_vision.yolo.twins.conv"  # where checkpoints look for removed rows
BYPASS = "mod_vision.nn.skip.CoarseSkip"  # a part of theirs


def advice(name: str) -> str:
    """Return what to use instead of a removed row."""
    return (
        f"{name} was removed; use {name.removeprefix('MoD')}, the same block without routing, and route attention by "
        "MoDC2PSA (YOLO11, YOLO26) or MoDA2C2f (YOLO12)"
    )


class _Removed:
    """Stands for a removed class while a checkpoint is loaded."""

    def __new__(cls, *_: Any) -> NoReturn:
        raise ValueError(f"{advice(cls.__name__)}.")


def know_old_names() -> None:
    """Have classes found under the names that older checkpoints hold, whether loaded `weights_only` or not.

    A checkpoint with a removed row fails with the advice. Without the modules, Ultralytics would try to install a
    package of that name.
    """
    sys.modules["mod_vision.yolo.twins"] = ModuleType("mod_vision.yolo.twins", __doc__)
    for name, moved in MOVED.items():
        sys.modules[name] = moved
        own = [value for value in vars(moved).values() if getattr(value, "__module__", "") == moved.__name__]
        classes = [value for value in own if isinstance(value, type)]
        torch.serialization.add_safe_globals([(value, f"{name}.{value.__name__}") for value in classes])
    module = ModuleType(MODULE, __doc__)
    rows = [type(name, (_Removed,), {"__module__": MODULE}) for name in REMOVED]
    vars(module).update({row.__name__: row for row in rows})
    sys.modules[MODULE] = module
    torch.serialization.add_safe_globals([*rows, (_Removed, BYPASS)])
