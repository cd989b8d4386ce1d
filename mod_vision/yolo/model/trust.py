"""What files of others may do: checkpoints, model and data YAMLs can hold code, which runs only if it is trusted."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ultralytics
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn import tasks
from ultralytics.utils import YAML, checks

from mod_vision.env import TRUST
from mod_vision.yolo.data.caches import closed_caches
from mod_vision.yolo.data.description import check_size
from mod_vision.yolo.data.folder import check_folders
from mod_vision.yolo.model.offline import builds_offline

YAMLS = (".yaml", ".yml")

_here = threading.local()  # how many blocks of `restricted` this thread is in


class Switch:
    """A switch of Ultralytics, which counts for the process, as each thread shall see it.

    Args:
        usual: What it is outside of `restricted`.
        within: What it is within.
    """

    def __init__(self, usual: Any, within: bool) -> None:
        self.usual, self.within = usual, within

    def __bool__(self) -> bool:
        return self.within if is_restricted() else bool(self.usual)


def is_restricted() -> bool:
    """Return whether this thread is within `restricted`, and files are not trusted."""
    return getattr(_here, "depth", 0) > 0


def _per_thread(value: Any, within: bool) -> Switch:
    """Return a switch as each thread shall see it; set anew by others, it is wrapped anew."""
    return value if isinstance(value, Switch) else Switch(value, within)


def trusted() -> bool:
    """Return whether the user trusts the files that are given, by `MOD_VISION_TRUST=1`."""
    return os.environ.get(TRUST) == "1"


@contextmanager
def restricted() -> Iterator[None]:
    """Keep Ultralytics from running or fetching what files name, unless they are trusted.

    Checkpoints load `weights_only`, models are built without `eval` and without the network, neither the `download:`
    of a data YAML nor a package that a checkpoint wants is followed, and labels are scanned anew, as in
    `untrusted_data`. But for the latter, it holds for the thread that enters it.
    """
    tasks.SAFE_LOAD = _per_thread(tasks.SAFE_LOAD, True)
    checks.AUTOINSTALL = _per_thread(checks.AUTOINSTALL, False)
    download, *others = check_det_dataset.__defaults__
    check_det_dataset.__defaults__ = (_per_thread(download, False), *others)  # for whoever imported it
    depth = getattr(_here, "depth", 0)
    _here.depth = depth if trusted() else depth + 1
    try:
        with untrusted_data(), builds_offline(not trusted()):
            yield
    finally:
        _here.depth = depth


@contextmanager
def untrusted_data() -> Iterator[None]:
    """Keep Ultralytics from reading pickles in the folder of a data set, unless they are trusted."""
    with nullcontext() if trusted() else closed_caches():
        yield


def check_data(data: str, split: str = "val", autodownload: bool | None = None) -> dict[str, Any]:
    """Check a data set as Ultralytics does. The `download:` of a YAML can be a script: it runs only if trusted.

    Args:
        data: Data YAML, or a folder with one. The bare names of those that Ultralytics ships, such as coco8.yaml, are
            downloaded.
        split: Split that is needed, empty for whichever is there.
        autodownload: Whether to follow `download:`, by default if Ultralytics ships the YAML or it is trusted.

    Raises:
        FileNotFoundError: If the YAML does not exist, or its images are missing and cannot be downloaded.
        SyntaxError: If the YAML lacks a key.
        ValueError: If `data` is no YAML, it is beyond a limit, or its images are missing and its `download:` is not
            trusted.
    """
    file = _data_yaml(data)
    ours = file.resolve().is_relative_to(Path(ultralytics.__file__).parent)
    content = YAML.load(file)
    check_size(content, str(file))
    try:
        follow = ours or trusted() if autodownload is None else autodownload
        found = check_det_dataset(str(file), autodownload=follow, split=split)
    except FileNotFoundError as error:
        if not trusted() and content.get(split) and content.get("download"):
            raise ValueError(
                f"{data}: the images are missing, and its `download:` was not followed, since it can run any code and "
                f"fetch any file. If you trust whoever made it, set the environment variable {TRUST}=1."
            ) from error
        raise
    check_folders(found)
    return found


def _data_yaml(data: str) -> Path:
    """Return the data YAML that is meant by its path, its bare name, or the folder it lies in.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is something else.
    """
    path = Path(data)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in YAMLS)
        found = [file for file in found if file.stem == path.name] if len(found) > 1 else found
        if len(found) != 1:
            raise ValueError(f"data={data}: a folder must hold one YAML, this one holds {len(found)}; name the file.")
        return found[0]
    if path.suffix.lower() not in ("", *YAMLS):
        raise ValueError(
            f"data={data} is no data YAML; see https://docs.ultralytics.com/datasets for how to write one."
        )
    return Path(checks.check_file(data if path.suffix else f"{data}.yaml"))
