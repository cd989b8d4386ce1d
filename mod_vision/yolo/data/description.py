"""Keys of a data YAML: its splits, and those for annotations that Ultralytics does not know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mod_vision.limits import MAX_CHANNELS, check_classes, check_nodes

SPLITS = ("train", "val", "test")
UNUSABLE = {"Error loading data": "has no images", "No valid images found": "has no image that can be read"}


def check_split(split: str) -> str:
    """Return the name of a split.

    Raises:
        ValueError: If no split has such a name.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split}: split must be one of {', '.join(SPLITS)}.")
    return split


def check_size(content: Any, where: str) -> None:
    """Refuse a data YAML of a few bytes that asks for gigabytes; whatever else is wrong with it, Ultralytics tells.

    Args:
        content: What the YAML holds.
        where: Its name, for the error.

    Raises:
        ValueError: If it has more classes or channels than any data set, or its aliases repeat values endlessly.
    """
    check_nodes(content, where)
    if not isinstance(content, dict):
        return
    names, nc = content.get("names"), content.get("nc")
    if isinstance(names, (list, dict)):
        check_classes(len(names), f"{where}: `names:`")
    check_classes(_number(nc), f"{where}: `nc:`")
    channels = content.get("channels", 3)
    if isinstance(channels, (int, float)) and not channels <= MAX_CHANNELS:
        raise ValueError(f"{where}: `channels: {channels}` must be at most {MAX_CHANNELS}.")


def _number(value: Any) -> float:
    """Return a value of a YAML as the number that Ultralytics takes it for, 0 if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
    except OverflowError:
        return math.inf


def split_images(data: Mapping[str, Any], split: str) -> Any:
    """Return where the images of a split lie.

    Args:
        data: The data set as Ultralytics describes it.
        split: One of `SPLITS`.

    Raises:
        FileNotFoundError: If the YAML names none.
    """
    if not data.get(split):
        there = ", ".join(name for name in SPLITS if data.get(name)) or "none"
        raise FileNotFoundError(
            f"{data.get('yaml_file', 'the data YAML')}: `{split}: {data.get(split)}` names no images; write the "
            f"folder, such as `{split}: images/{split}`. The YAML has images for: {there}."
        )
    return data[split]


@contextmanager
def naming_split(data: Any, split: str) -> Iterator[None]:
    """Have Ultralytics name the split that it can make no data set of, not the reasons for each of its images.

    Raises:
        FileNotFoundError: If the split has no images, or none that can be read.
    """
    try:
        yield
    except (FileNotFoundError, RuntimeError) as error:
        for words, told in UNUSABLE.items():
            if words in str(error):
                raise FileNotFoundError(f"{data}: the split {split!r} {told}.") from error
        raise


def annotations_file(data: Mapping[str, Any], split: str) -> Path | None:
    """Return the COCO JSON of a split, None if the YAML names none.

    Raises:
        ValueError: If `annotations:` is neither a file nor a mapping of files by split.
    """
    named = data.get("annotations")
    file = named.get(split) if isinstance(named, dict) else named
    return _path(data, "annotations", file, f"a JSON file, or one for each split, such as `{{{split}: {split}.json}}`")


def stuff_folder(data: Mapping[str, Any], split: str) -> Path | None:
    """Return the folder of the dense annotation of a split, None if the YAML names none.

    Raises:
        ValueError: If `stuff:` is no mapping of folders by split, or `stuff_names:` none of names by number.
    """
    named, form = data.get("stuff"), f"a folder for each split, such as `{{{split}: stuff/{split}}}`"
    if named is not None and not isinstance(named, dict):
        _refuse(data, "stuff", form)
    folder = _path(data, "stuff", named.get(split) if named else None, form)
    names = data.get("stuff_names")
    if folder and not (isinstance(names, dict) and all(isinstance(name, str) for name in names.values())):
        _refuse(data, "stuff_names", "names by the number that stands for them, such as `{0: sky, 1: road}`")
    return folder


def _path(data: Mapping[str, Any], key: str, value: Any, form: str) -> Path | None:
    """Return a path of the YAML, which is relative to the data set."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        _refuse(data, key, form)
    return Path(data["path"]) / value


def _refuse(data: Mapping[str, Any], key: str, form: str) -> None:
    """Refuse the value of a key."""
    raise ValueError(f"{data.get('yaml_file', 'the data YAML')}: `{key}: {data.get(key)}` must be {form}.")
