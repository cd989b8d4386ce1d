"""What files of others may do: checkpoints, model and data YAMLs can hold code, which runs only if it is trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import ultralytics
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn import tasks
from ultralytics.utils import YAML, checks

TRUST = "MOD_VISION_TRUST"

_lock = RLock()  # the switch is Ultralytics' own and counts for the process


def trusted() -> bool:
    """Return whether the user trusts the files that are given, by `MOD_VISION_TRUST=1`."""
    return os.environ.get(TRUST) == "1"


@contextmanager
def restricted() -> Iterator[None]:
    """Have Ultralytics load checkpoints `weights_only` and build models without `eval`, unless they are trusted."""
    with _lock:
        before = tasks.SAFE_LOAD
        tasks.SAFE_LOAD = before or not trusted()
        try:
            yield
        finally:
            tasks.SAFE_LOAD = before


def check_data(data: str, split: str = "val") -> dict[str, Any]:
    """Check a data set as Ultralytics does. The `download:` of a YAML can be a script: it runs only if trusted.

    Args:
        data: Data YAML. The bare names of those that Ultralytics ships, such as coco8.yaml, are downloaded.
        split: Split that is needed.

    Raises:
        FileNotFoundError: If the YAML does not exist, or its images are missing and cannot be downloaded.
        SyntaxError: If the YAML lacks a key.
        ValueError: If its images are missing and its `download:` is not trusted.
    """
    file = Path(checks.check_file(data))
    ours = file.resolve().is_relative_to(Path(ultralytics.__file__).parent)
    try:
        return check_det_dataset(str(file), autodownload=ours or trusted(), split=split)
    except FileNotFoundError as error:
        content = YAML.load(file)
        if not trusted() and content.get(split) and content.get("download"):
            raise ValueError(
                f"{data}: the images are missing, and its `download:` was not followed, since it can run any code and "
                f"fetch any file. If you trust whoever made it, set the environment variable {TRUST}=1."
            ) from error
        raise
