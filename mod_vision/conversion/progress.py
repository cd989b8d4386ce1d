"""What of a conversion is done: one that was stopped, or that shall give something else, goes on from there."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mod_vision.files import writable_dir, write_text

Value = TypeVar("Value")


class Progress:
    """A folder with what a conversion found so far, until it is finished.

    Args:
        folder: The folder, new or of a conversion: what another one left there is removed.
        asked: What its routers are trained by, plain values: only a conversion by the same goes on. What is found
            by more than that has it in its key.

    Raises:
        FileExistsError: If the folder holds anything else.
    """

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self.folder, self.file = folder, folder / "progress.json"
        text = json.dumps(asked, sort_keys=True, default=str)
        self.done: dict[str, Any] = {"asked": text}
        if folder.exists() and any(folder.iterdir()):
            found = self._read()
            if found["asked"] == text:
                self.done = found
                print(f"going on with what is in {folder}", flush=True)
            else:
                shutil.rmtree(folder)
        writable_dir(folder)
        self._write()

    def _read(self) -> dict[str, Any]:
        """Return what a conversion left."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.file.read_text())
            if isinstance(found, dict) and "asked" in found:
                return found
        raise FileExistsError(
            f"{self.folder} holds files that are not of a conversion; its work would lie there, and be removed at the "
            "end. Move them, or give another name."
        )

    def once(self, key: str, find: Callable[[], Value]) -> Value:
        """Return what was found under a key, or find it now; it has to be plain values for JSON."""
        if key not in self.done:
            self.done[key] = find()
            self._write()
        found: Value = self.done[key]
        return found

    def _write(self) -> None:
        """Write what was found."""
        write_text(self.file, json.dumps(self.done, indent=1))

    def finish(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
