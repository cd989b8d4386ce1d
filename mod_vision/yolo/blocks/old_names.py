"""Rows that mod_vision had once: a model YAML or a checkpoint that names one is told what to use instead."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NoReturn

import torch

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
MODULE = "mod_vision.yolo.twins.conv"  # where checkpoints look for them
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


def refuse_checkpoints() -> None:
    """Have a checkpoint that holds a removed row fail with the advice, whether it is loaded `weights_only` or not.

    Without the module, Ultralytics would try to install a package of that name.
    """
    module = ModuleType(MODULE, __doc__)
    rows = [type(name, (_Removed,), {"__module__": MODULE}) for name in REMOVED]
    vars(module).update({row.__name__: row for row in rows})
    sys.modules[MODULE] = module
    torch.serialization.add_safe_globals([*rows, (_Removed, BYPASS)])
