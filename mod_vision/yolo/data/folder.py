"""Folders of a data set by others: links in them that never end, and devices in place of images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mod_vision.yolo.data.description import SPLITS


def check_folders(data: dict[str, Any]) -> None:
    """Refuse links among the images that lead to the same folder again: twenty of them list millions of files.

    Args:
        data: The data set as Ultralytics describes it.

    Raises:
        ValueError: If there is one; the message names both ways.
    """
    for split in SPLITS:
        places = data.get(split) or []
        for place in [places] if isinstance(places, str) else places:
            if os.path.isdir(place):
                _walk(place)


def _walk(top: str) -> None:
    """Walk a folder and the links in it as Ultralytics does, and refuse to come to the same place twice."""
    came_by: dict[str, str] = {}
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in came_by:
            raise ValueError(f"{folder} is the folder {came_by[real]} again, by a link; remove the link.")
        came_by[real] = folder
        with os.scandir(folder) as entries:
            waiting += [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def check_files(files: Iterable[str | Path]) -> None:
    """Refuse what is there but no file, such as a link to a device, which never ends.

    Raises:
        ValueError: If there is one; the message names it.
    """
    for file in files:
        if not os.path.isfile(file) and not os.path.isdir(file) and os.path.exists(file):
            raise ValueError(f"{file} is neither a file nor a folder, but a device or a pipe; remove it.")
