"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any


def writable_dir(folder: str | Path) -> Path:
    """Create `folder` and return it.

    Raises:
        PermissionError: If it cannot be created or written to; the message names it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write to the output folder {folder}: {error.strerror or error}.") from None
    return folder


def fresh_path(path: str | Path, *results: str) -> Path:
    """Return `path`, or the first of path2, path3, ... at which nothing would be overwritten.

    Args:
        path: A file, or a folder.
        results: Files in the folder that a finished run leaves; other ones may be there.
    """
    path = Path(path)
    stem, suffix = (path.name, "") if results else (path.stem, path.suffix)
    numbered = (path.with_name(f"{stem}{n}{suffix}") for n in count(2))
    return next(p for p in chain([path], numbered) if not p.is_file() and not any((p / r).exists() for r in results))


@contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Name the folder in the error of what cannot be written.

    Raises:
        OSError: With the folder and the reason.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder}: {error.strerror or error}.") from None


def write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename.

    Raises:
        OSError: If that fails; the message names the folder, and nothing is left behind.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming_folder(path.parent):
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # or a power loss could leave the new name with nothing behind it
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def renamed_at_end(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, and rename what lies there at the end, also when an error or Ctrl-C ends it.

    For files that grow for long, whose beginning is worth keeping. If nothing was written, there is no file.

    Raises:
        OSError: If it cannot be renamed; the message names the folder, and nothing is left behind.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
    finally:
        if part.is_file():
            with naming_folder(path.parent):
                try:
                    os.replace(part, path)
                except OSError:
                    part.unlink(missing_ok=True)
                    raise


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure as PNG under a temporary name, then rename."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    write_bytes(path, png.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write text under a temporary name, then rename."""
    write_bytes(path, text.encode(errors="backslashreplace"))  # names of files need not be UTF-8
