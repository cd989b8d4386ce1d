"""What a comparison was asked for: its folder holds results of one call alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mod_vision.files import write_text


def check_same(file: Path, asked: dict[str, Any]) -> None:
    """Write what is asked for.

    Raises:
        FileExistsError: If the folder holds results of anything else.
    """
    text = json.dumps(asked, indent=1)
    if file.is_file() and file.read_text() != text:
        raise FileExistsError(f"{file.parent} holds results of another call; give another out=, or remove it.")
    write_text(file, text)


def digest(weights: str) -> str:
    """Return the digest of a checkpoint, nothing of none."""
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:16] if weights else ""


def once(file: Path, find: Callable[[], dict[str, Any]]) -> None:
    """Find figures and write them, unless they are there."""
    if not file.is_file():
        print(f"    {file.stem}", flush=True)
        write_text(file, json.dumps(find(), indent=1))
