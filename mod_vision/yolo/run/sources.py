"""What `source=` names: image and video files, webcams, streams and the screen, as `yolo predict` reads them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ultralytics.data.build import check_source
from ultralytics.data.loaders import LoadImagesAndVideos, LoadScreenshots, LoadStreams
from ultralytics.data.utils import VID_FORMATS

LISTS = (".txt", ".csv")  # of sources, which Ultralytics opens itself
FPS = 30.0  # of videos that do not tell theirs


class Source(NamedTuple):
    """One image, one video, or what runs live.

    Attributes:
        place: The file, or what opens the stream.
        kind: image, video, stream or screen.
    """

    place: Any
    kind: str


class Clip(NamedTuple):
    """Moving pictures.

    Attributes:
        names: A name for each of those that run side by side: one, or as many as a `.streams` file lists.
        fps: Frames per second.
        total: Number of frames, None if it is not known or there is no end.
        live: Whether frames come in real time; those that come while the last one is at work are missed.
        frames: One frame (H, W, 3), uint8 in BGR, for each name.
    """

    names: list[str]
    fps: float
    total: int | None
    live: bool
    frames: Iterator[list[np.ndarray]]


class _Listing(LoadImagesAndVideos):
    """The files of a source. None is opened: one that is broken would end the rest."""

    def _new_video(self, path: str) -> None:
        """Leave the video closed."""


def find_sources(source: Any) -> list[Source]:
    """Return what a source names, images first.

    Args:
        source: A file, a folder, a pattern, a .txt or .csv of files, a list of files, a URL, the number of a webcam, a
            stream (rtsp://, rtmp://, tcp://, http://), a .streams file of several, or 'screen'.

    Raises:
        FileNotFoundError: If there is no image and no video.
        OSError: If a URL cannot be reached.
    """
    files = source = literal(source)
    if not isinstance(source, (list, tuple)):
        files, stream, screen, image, *_ = check_source(source)
        if stream or screen:
            return [Source(files, "stream" if stream else "screen")]
        if image:  # a URL without a suffix, which is fetched by now
            return [Source(one, "image") for one in files]
    try:
        found = _Listing(files)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{source} is no image or video, no folder with some, and no pattern or list that names one."
        ) from None
    return [
        Source(Path(file), "video" if video else "image")
        for file, video in zip(found.files, found.video_flag, strict=True)
    ]


def short_names(sources: Sequence[Source]) -> list[str]:
    """Return what to call sources: files by their path below the folder that holds them all."""
    folders = [one.place.parent.absolute() for one in sources if isinstance(one.place, Path)]
    if not folders or len({folder.anchor for folder in folders}) > 1:
        return [str(one.place) for one in sources]
    base = os.path.commonpath(folders)
    return [
        os.path.relpath(one.place, base) if isinstance(one.place, Path) else str(one.place)  # a stream keeps its URL
        for one in sources
    ]


def open_clip(source: Source) -> Clip:
    """Open a video, a stream or the screen; a broken video can turn out to have no frame.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If a video has no suffix of one: Ultralytics would take it for a list of files.
    """
    if source.kind == "screen":
        screen = LoadScreenshots(source.place)
        return Clip(["screen"], screen.fps, None, True, _frames(screen))
    if source.kind == "stream":
        stream: Any = LoadStreams(source.place)
        names = [_file_name(name) for name in stream.sources]
        return Clip(names, min(stream.fps), None, True, _frames(stream))
    check_video(Path(source.place))
    video: Any = LoadImagesAndVideos([literal(source.place)])
    fps = video.fps if 0 < video.fps < 1000 else FPS
    return Clip([Path(source.place).stem], fps, video.frames if video.frames > 0 else None, False, _frames(video))


def check_video(file: Path) -> None:
    """Refuse what has no suffix of a video before anything opens it: a list or a playlist would name other files.

    Raises:
        ValueError: If it has none.
    """
    if file.suffix[1:].lower() not in VID_FORMATS:
        raise ValueError(f"{file.name} is not a video; known are {', '.join(sorted(VID_FORMATS))}.")


def literal(source: Any) -> Any:
    """Return what names a file or folder for Ultralytics, which takes every `*` for a part of a pattern.

    Args:
        source: A file, a folder or a list of them; what does not exist, such as a pattern, is returned as it is.
    """
    if isinstance(source, (list, tuple)):
        return [literal(one) for one in source]
    if not isinstance(source, (str, Path)) or "*" not in str(path := Path(source).absolute()):
        return source
    if path.is_file():
        return source if path.suffix.lower() in LISTS else glob.escape(str(path))
    return f"{glob.escape(str(path))}/*.*" if path.is_dir() else source


def _file_name(stream: str) -> str:
    """Return a name for files about a stream."""
    return f"webcam-{stream}" if stream.isnumeric() else re.sub(r"[\W_]+", "-", stream).strip("-")


def _frames(loader: Any) -> Iterator[list[np.ndarray]]:
    """Yield the frames of one of Ultralytics' loaders, and close it in the end."""
    try:
        for _, images, _ in loader:
            yield images
    finally:
        if hasattr(loader, "close"):
            loader.close()
