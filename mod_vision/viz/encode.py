"""Writing videos that browsers play, by PyAV."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np

from mod_vision.files import naming_folder

CODECS = {
    ".mp4": ("libx264", {"preset": "veryfast", "g": "50"}),  # H.264, a key frame and so a fragment every 50 frames
    ".webm": ("libvpx", {"deadline": "realtime", "cpu-used": "4", "crf": "10", "b": "4M"}),  # VP8
}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
WHOLE = {"movflags": "faststart", "flush_packets": "1"}  # an error is told at once
BT601 = 6  # how FFmpeg turns BGR into YUV; without a note, browsers take HD for BT.709


def import_av() -> ModuleType:
    """Import PyAV.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError('videos are written by PyAV: pip install "mod-vision[video]".') from error
    return av


@contextmanager
def video_file(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Open a video for writing, and give the function that adds a picture (H, W, 3), uint8 in BGR.

    An .mp4 grows by fragments that play without an end, so a full disk leaves what was written before. Whatever else
    ends it, its last frames are written, and its index is put first, so that a browser plays it while it loads.
    Without a frame there is no file.

    Args:
        path: The video, .mp4 (H.264) or .webm (VP8).
        fps: Frames per second.
        size: Width and height of the pictures, both even.

    Raises:
        ImportError: If PyAV is not installed.
        OSError: If the video cannot be written, or the codec does not take this size.
    """
    av = import_av()
    mp4, (codec, options) = path.suffix == ".mp4", CODECS[path.suffix]
    raw = path.open("wb")  # of Python, which tells of a full disk; FFmpeg can forget it when it closes a file
    file = av.open(raw, "w", path.suffix[1:], options=FRAGMENTS if mp4 else {})
    stream = file.add_stream(codec, Fraction(fps).limit_denominator(65535), options=options)
    stream.width, stream.height = size
    stream.pix_fmt, stream.codec_context.colorspace = "yuv420p", BT601
    try:
        stream.codec_context.open()
    except av.FFmpegError:
        raw.close()
        path.unlink()
        raise OSError(f"{codec} does not write videos of {size[0]} x {size[1]} pixels.") from None

    @contextmanager
    def writing() -> Iterator[None]:
        with naming_folder(path.parent):
            try:
                yield
            except OSError:
                with suppress(OSError):
                    raw.close()  # nothing can be written any more
                raise

    def add(picture: np.ndarray) -> None:
        with writing():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))

    try:
        yield add
    finally:
        if not raw.closed:
            with writing():
                file.mux(stream.encode(None))
                file.close()
                raw.close()
                if not path.stat().st_size:  # no frame was added
                    path.unlink()
                elif mp4:
                    _put_index_first(path)


def _put_index_first(path: Path) -> None:
    """Write a fragmented .mp4 anew, in one piece with its index at the front; if that fails, it stays as it is."""
    av = import_av()
    whole = path.with_suffix(".whole.mp4")
    try:
        with av.open(str(path)) as source, av.open(str(whole), "w", options=WHOLE) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:  # the last one is empty
                    packet.stream = stream
                    target.mux(packet)
        os.replace(whole, path)
    finally:
        whole.unlink(missing_ok=True)
