"""Whether a file of torch, a zip archive, is whole, and what its pickle would call."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from mod_vision.errors import one_line

MAX_GROWTH = 20  # torch does not compress; who does gains a little
# What zipfile raises for damaged bytes; NotImplementedError is its word for a compression that it does not know.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, NotImplementedError, UnicodeDecodeError)

MODEL_CODE = ("ultralytics.", "torch.nn.", "torchvision.", "clip.", "timm.", "mod_vision.")
VALUES = {  # classes that hold values and nothing else: enumerations, and arguments of a training
    "timm.layers.format.Format",
    "torchvision.transforms.functional.InterpolationMode",
    "ultralytics.utils.IterableSimpleNamespace",
    "ultralytics.yolo.utils.IterableSimpleNamespace",
}


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


def constructed(file: Path) -> list[str]:
    """Return the classes of models whose constructors unpickling a file of torch would call, by their full names.

    A saved model calls none, but for `VALUES`: its objects are put together from their states. Constructors can do
    more, such as fetch weights, and `weights_only` calls those of all classes that it is told of. Here nothing is
    called or imported: stand-ins take the place of all names.

    Raises:
        pickle.UnpicklingError: If the pickle does not read.
    """
    found: set[str] = set()
    try:
        _Reader(torch._C.PyTorchFileReader(str(file)).get_record("data.pkl"), found).load()
    except Exception as error:  # strange bytes make `pickle` raise anything
        raise pickle.UnpicklingError(f"its pickle does not read: {one_line(error)}") from error
    return sorted(name for name in found - VALUES if name.startswith(MODEL_CODE))


class _Reader(pickle.Unpickler):
    """Reads a pickle with stand-ins for everything that it names."""

    def __init__(self, content: bytes, found: set[str]) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.found = found

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in."""
        return _Called(name, (_StandIn,), {"path": f"{module}.{name}", "found": self.found})

    def persistent_load(self, pid: Any) -> Any:
        """Return what stands for the numbers of a tensor."""
        return _StandIn()


class _Called(type):
    """Notes calls of the stand-in for a function or class; `__new__`, from where a state follows, is no call."""

    path: str
    found: set[str]

    def __call__(cls, *args: Any) -> Any:
        cls.found.add(cls.path)
        return super().__call__(*args)


class _StandIn:
    """Takes whatever a pickle does to an object."""

    def __new__(cls, *args: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, *state: Any) -> None:
        """Take a state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take an item."""

    def extend(self, values: Any) -> None:
        """Take items."""

    append = add = extend
