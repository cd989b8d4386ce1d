"""Reading images as `yolo predict` does, and choosing some of a source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from ultralytics.data.loaders import LoadImagesAndVideos, LoadPilAndNumpy
from ultralytics.utils.patches import PIL_FALLBACK_SUFFIXES, imread

from mod_vision.errors import one_line
from mod_vision.yolo.data.description import split_images
from mod_vision.yolo.model.trust import YAMLS, check_data
from mod_vision.yolo.run.sources import literal


def some_images(source: Any, count: int, split: str = "train") -> list[Path]:
    """Return up to `count` images of a source, evenly spaced.

    Args:
        source: A data YAML, or what `yolo predict` reads images from: a file, a folder, a pattern, a .txt of paths, or
            a list of those.
        count: Number of images.
        split: Split of a data YAML to take them from.

    Raises:
        FileNotFoundError: If the source does not exist or has no image; nothing is downloaded.
    """
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in YAMLS:
        source = split_images(check_data(str(source), "", autodownload=False), split)
    loader = LoadImagesAndVideos(literal(source))
    files = [Path(file) for file, video in zip(loader.files, loader.video_flag, strict=True) if not video]
    if not files:
        raise FileNotFoundError(f"{source} has no image.")
    return evenly_spaced(files, count)


def image_names(files: Iterable[str | Path]) -> tuple[Path, list[str]]:
    """Return the folder that all of some images lie in, and the path of each within it: its name, if none is deeper.

    Raises:
        ValueError: If there is no image.
    """
    paths = [Path(os.path.abspath(file)) for file in files]  # links stay as they are
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return folder, [path.relative_to(folder).as_posix() for path in paths]


def evenly_spaced(files: list[Any], count: int) -> list[Any]:
    """Return `count` of the files, evenly spaced, or all if there are no more."""
    return [files[i * len(files) // count] for i in range(count)] if len(files) > count else files


def read_image(image: str | Path | np.ndarray | Image.Image) -> np.ndarray:
    """Return an image as `yolo predict` sees it: BGR (H, W, 3) uint8, turned as its EXIF says, without alpha.

    Of 16 bits, the upper 8 are taken.

    Args:
        image: A file, a PIL image, or a uint8 or uint16 array (H, W), (H, W, 1), (H, W, 3) in BGR or (H, W, 4) in BGRA.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is no image, or the array is not of these types and shapes.
    """
    if isinstance(image, (str, Path)):
        return _decode(Path(image))
    if isinstance(image, np.ndarray):
        shape = (*image.shape, 1) if image.ndim == 2 else image.shape
        if image.dtype not in (np.uint8, np.uint16) or not image.size or len(shape) != 3 or shape[2] not in (1, 3, 4):
            raise ValueError(
                f"an image array must be uint8 or uint16, gray, BGR or BGRA; got {image.dtype} of shape {image.shape}."
            )
    return np.ascontiguousarray(LoadPilAndNumpy(image).im0[0])


def read_images(files: Sequence[Path]) -> list[np.ndarray]:
    """Read image files as `read_image` does. What cannot be read is told in a line and left out.

    Raises:
        ValueError: If none can be read.
    """
    images = []
    for file in files:
        try:
            images.append(read_image(file))
        except (OSError, ValueError) as error:
            print(f"left out: {one_line(error)}", flush=True)
    if not images:
        raise ValueError(f"none of the {len(files)} images can be read, such as {files[0]}.")
    return images


def _decode(path: Path) -> np.ndarray:
    """Read an image file."""
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist.")
    if path.suffix.lower() in PIL_FALLBACK_SUFFIXES and not _is_heif(path):
        raise ValueError(f"{path} is not an image that can be read.")
    try:
        image = imread(path)
    except cv2.error as error:  # more pixels than OpenCV takes
        raise ValueError(f"{path} is not an image that can be read: {error.err}.") from None
    if image is None:
        raise ValueError(f"{path} is not an image that can be read.")
    return np.ascontiguousarray(image)


def _is_heif(path: Path) -> bool:
    """Return whether a file is AVIF or HEIF: Pillow would decode others too, and run Ghostscript for some."""
    with path.open("rb") as start:
        return start.read(8)[4:] == b"ftyp"
