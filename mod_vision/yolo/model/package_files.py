"""Nothing is written into the installed package: exports go to the working folder, caches of the photos nowhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from mod_vision.resources import is_ours


def export_elsewhere(exporter: Any) -> None:
    """Have Ultralytics write the export of a checkpoint of this package into the working folder, not beside it."""
    if is_ours(exporter.file):
        exporter.file = Path(exporter.file.name)


def keep_photos_clean() -> None:
    """Have Ultralytics take the folders of this package for read-only, where it caches labels and images. Idempotent.

    Called for each file that Ultralytics looks up, the data YAML among them, by a module that is whole then; at
    registration it can be half imported.
    """
    utils, base = (sys.modules.get(f"ultralytics.data.{name}") for name in ("utils", "base"))
    if utils is None or base is None or hasattr(utils.is_dir_writeable, "__wrapped__"):
        return
    utils.is_dir_writeable = _not_ours(utils.is_dir_writeable)
    base.BaseDataset.check_cache_disk = _not_beside_ours(base.BaseDataset.check_cache_disk)


def _not_ours(writeable: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Wrap the check that is made before labels are cached."""

    @wraps(writeable)
    def check(folder: Any) -> bool:
        return not is_ours(folder) and writeable(folder)

    return check


def _not_beside_ours(enough: Callable[..., bool]) -> Callable[..., bool]:
    """Wrap the check that is made before decoded images are cached (cache=disk)."""

    @wraps(enough)
    def check(dataset: Any, *args: Any, **kwargs: Any) -> bool:
        if not any(map(is_ours, {Path(file).parent for file in dataset.im_files})):
            return enough(dataset, *args, **kwargs)
        dataset.cache = None  # as Ultralytics does for folders that are read-only
        LOGGER.warning(f"{dataset.prefix}no images are cached on disk beside those of mod_vision's package")
        return False

    return check
