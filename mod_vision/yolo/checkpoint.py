"""Opening checkpoints: whole files only, and weights only, since a pickle can run any code of whoever wrote it."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import torch
from ultralytics import YOLO

from mod_vision.errors import one_line
from mod_vision.yolo.register import allow_vit_classes
from mod_vision.yolo.trust import TRUST, restricted, trusted

VIT_MODULES = ("timm.", "mod_vision.nn.vit.", "mod_vision.nn.pyramid.")
MAX_GROWTH = 20  # torch does not compress; who does gains a little
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, NotImplementedError, UnicodeDecodeError)


def open_checkpoint(file: Path) -> YOLO:
    """Load a checkpoint.

    Args:
        file: A .pt file that exists.

    Raises:
        ValueError: If it is damaged, holds no model, or holds anything but weights and known classes.
    """
    _check_whole(file)
    if any(name.startswith(VIT_MODULES) for name in _unknown_names(file)):
        allow_vit_classes()
    try:
        with restricted():
            return YOLO(str(file))
    except Exception as error:
        if not trusted() and (refused := _unknown_names(file)):
            raise ValueError(
                f"checkpoint {file} holds {', '.join(refused[:3])}, which are no weights and could run any code, so it "
                f"was not loaded. If you trust whoever made it, set the environment variable {TRUST}=1."
            ) from error
        raise ValueError(f"checkpoint {file} does not load: {one_line(error)}") from error


def _check_whole(file: Path) -> None:
    """Compare the checksums of all parts, which `torch.load` does not: flipped bits would be taken for weights.

    Raises:
        ValueError: If the file is empty, cut off, damaged or no checkpoint.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            growth = sum(part.file_size for part in archive.infolist()) / max(1, file.stat().st_size)
            bomb = growth > MAX_GROWTH and f"it would grow {growth:.0f}-fold"
            part = None if bomb else archive.testzip()
        broken = bomb or (part and f"wrong checksum of {part}")
    except DAMAGE as error:
        broken = one_line(error)
    if broken and not trusted():
        raise ValueError(
            f"checkpoint {file} is damaged or no checkpoint ({broken}); copy or download it again. One in the format "
            f"before torch 1.6, or without checksums, loads with the environment variable {TRUST}=1: "
            "load it once and save it anew."
        )


def _unknown_names(file: Path) -> list[str]:
    """Return the classes and functions in a checkpoint that loading weights only does not take."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # a zip archive without a pickle, or with a strange one; loading it will tell
        return []
