"""Whether a file of torch, a zip archive, is whole."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

from mod_vision.errors import one_line

MAX_GROWTH = 20  # torch does not compress; who does gains a little
# What zipfile raises for damaged bytes; NotImplementedError is its word for a compression that it does not know.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, NotImplementedError, UnicodeDecodeError)


def damage(file: Path) -> str | None:
    """Return what is wrong with a file of torch, None if it is whole.

    All parts are compared with their checksums, which `torch.load` does not: flipped bits would be taken for weights.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            growth = sum(part.file_size for part in archive.infolist()) / max(1, file.stat().st_size)
            if growth > MAX_GROWTH:
                return f"it would grow {growth:.0f}-fold"
            part = archive.testzip()
    except DAMAGE as error:
        return one_line(error)
    return f"wrong checksum of {part}" if part else None
