"""What killed processes leave behind under temporary names, which tell the process, and for folders the host."""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

OLD = ".old"  # ends the name of what makes room for something new, within a temporary folder
PART = re.compile(r"\.(\d+)\.part(\.\w+)?$")  # ends the name of a file that is being written


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder; what a living one writes stays."""
    for part in folder.glob(".*.part*"):
        owner = PART.search(part.name)
        if owner and not _lives(int(owner[1])):
            with suppress(PermissionError):  # of another user
                part.unlink(missing_ok=True)


def temporary_folder(folder: Path, kind: str) -> Path:
    """Make a temporary folder in `folder`, and remove those of the same kind that killed processes of this host left.

    Args:
        folder: Where it shall lie, which exists.
        kind: What its name starts with, after a dot.
    """
    start = f".{kind}-{platform.node()}-"
    for left in folder.glob(f"{glob.escape(start)}*"):
        owner = left.name.removeprefix(start).partition("-")[0]
        if owner.isdecimal() and not _lives(int(owner)):
            _remove_folder(left)
    return Path(tempfile.mkdtemp(prefix=f"{start}{os.getpid()}-", dir=folder)).resolve()


def _remove_folder(left: Path) -> None:
    """Remove a temporary folder; what had to make room comes back if nothing took its place."""
    for old in left.glob(f"*{OLD}"):
        path = left.parent / old.name.removesuffix(OLD)
        if not path.exists():
            os.replace(old, path)
    shutil.rmtree(left, ignore_errors=True)


def _lives(pid: int) -> bool:
    """Return whether there is a process of this number; a killed one that nobody has waited for does not live."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
