"""Heat maps of the routing, of images and videos: what the model computed, and what it skipped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mod_vision.errors import one_line
from mod_vision.files import writable_dir, write_bytes
from mod_vision.text import printable, short_stem
from mod_vision.viz.annotators import DepthAnnotator
from mod_vision.viz.camera import Camera, has_streams
from mod_vision.viz.encode import import_av
from mod_vision.viz.routes import RouteMap, crop_maps, skipped_share, windows_of
from mod_vision.viz.traced import open_traced
from mod_vision.viz.video import Figures, Recording, figures_of
from mod_vision.viz.views import DEFAULT_VIEW, check_view, draw_view
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.log import progress_bar
from mod_vision.yolo.run.sources import Source, find_sources, open_clip, short_names

UNTRAINED = "this router has no training yet, so what it skips says nothing; train the model, or `mod-vision fit` it"

FOUND = 0.25  # lowest score of what a stream keeps, where nothing is drawn of it


def heatmap(
    model: Any,
    source: Any,
    imgsz: int = 640,
    out: str | Path = "runs/mod-vision-heatmap",
    view: str = DEFAULT_VIEW,
    boxes: bool = False,
    conf: float = 0.25,
    frames: int | None = None,
    cmap: str = "viridis",
) -> list[Path]:
    """Draw the routing of all that `source` names, a picture or a video each, and print the skipped shares.

    What cannot be read is reported and left out. Videos have a table of the figures of each frame beside them. Ctrl-C
    ends a video, and all that was drawn is kept.

    Args:
        model: A `YOLO` object, a .pt file, a model YAML, or an ONNX export.
        source: An image or video file, a folder, a glob pattern, a webcam, a stream, ..., as `find_sources` takes it.
        imgsz: Longer side of the model's input; ONNX exports of a fixed size keep theirs.
        out: Folder of the pictures, made if it does not exist.
        view: mask, overlay, side or page.
        boxes: Draw what the model finds on top.
        conf: Lowest confidence of that, in [0, 1].
        frames: Most frames of each video or stream, None for all.
        cmap: Colour map: viridis, cividis or magma.

    Returns:
        The pictures and videos, named after what they show.

    Raises:
        ImportError: If there is a video or a stream, and PyAV is not installed.
        FileNotFoundError: If model or source does not exist, or the source has no image and no video.
        ValueError: If nothing can be read, the model routes nothing, or an argument is not valid.
        OSError: If the folder cannot be written, or a stream cannot be opened.
    """
    if frames is not None and (not isinstance(frames, int) or isinstance(frames, bool) or frames < 1):
        raise ValueError(f"frames must be a whole number of at least 1, got {frames}.")
    DepthAnnotator(cmap)  # refuses unknown ones before there is work
    sources = find_sources(source)
    if any(one.kind != "image" for one in sources):
        import_av()  # likewise
    job = _Job(_Model(model, imgsz, conf if boxes else None), check_view(view), cmap, writable_dir(out))
    try:
        for number, (one, name) in enumerate(zip(sources, short_names(sources), strict=True), 1):
            label = f"[{number}/{len(sources)}] {printable(name)}"
            if one.kind == "image":
                job.draw_image(one, label)
            else:
                job.draw_clip(one, label, frames)
    finally:
        if job.written:
            print(f"mean of {job.counted()}: skipped {_shares(job.skipped)}; see {printable(job.folder)}")
        if job.untrained:
            print(UNTRAINED)
    if not job.written:
        raise ValueError(f"none of the {len(sources)} files of {source} can be read.")
    return job.written


class _Model:
    """A model that tells what it routes, and what it finds where `conf` is not None."""

    def __init__(self, model: Any, imgsz: int, conf: float | None) -> None:
        self.traced, self.conf = open_traced(model, imgsz), conf
        self.postprocess = None if conf is None else self.traced.postprocess(conf)

    def look(self, image: np.ndarray) -> tuple[list[RouteMap], Any]:
        """Run an image (H, W, 3), and return maps, and results or None."""
        trace = self.traced.trace(image)
        return crop_maps(trace), self.postprocess and self.postprocess(trace.forward, image)

    def camera(self) -> Camera | None:
        """Return what frames of a new camera go through, None where the model computes each anew."""
        if not has_streams(self.traced):
            return None
        return Camera(self.traced, self.postprocess or self.traced.postprocess(FOUND))

    def look_at(self, frame: np.ndarray, camera: Camera | None) -> tuple[list[RouteMap], Any, Figures]:
        """Run a frame (H, W, 3) of a video, and return maps, results or None, and figures."""
        if camera is None:
            trace = self.traced.trace(frame)
            result = self.postprocess and self.postprocess(trace.forward, frame)
            maps = crop_maps(trace)
            return maps, result, figures_of(maps, self.traced.gflops(trace))
        trace, result = camera.look(frame)
        maps, oldest = crop_maps(trace), int(result.ages.max(initial=0))
        return maps, self.postprocess and result, figures_of(maps, camera.gflops(trace), oldest)


class _Job:
    """Draws one source after the other into a folder.

    Attributes:
        written: The pictures and videos.
        skipped: The skipped shares of each layer, one for each image and frame.
        images: Number of images drawn.
        frames: Number of frames drawn.
        untrained: Whether a router was never trained.
    """

    def __init__(self, model: _Model, view: str, cmap: str, folder: Path) -> None:
        self.model, self.view, self.cmap, self.folder = model, view, cmap, folder
        self.written: list[Path] = []
        self.skipped: dict[str, list[float]] = defaultdict(list)
        self.images = self.frames = 0
        self.untrained = False

    def draw_image(self, source: Source, label: str) -> None:
        """Draw an image file."""
        try:
            image = read_image(source.place)
        except (OSError, ValueError) as error:
            print(f"{label}: left out, {one_line(error)}")
            return
        maps, result = self.model.look(image)
        path = self._free_name(Path(getattr(source.place, "filename", None) or source.place).stem, ".png")
        picture = draw_view(image, maps, self.view, result, self.cmap).compose()
        write_bytes(path, cv2.imencode(path.suffix, picture)[1].tobytes())
        self.written.append(path)
        self.images += 1
        self._count(maps)
        shares = _shares({layer.name: [skipped_share(layer)] for layer in maps})
        windows = windows_of(maps)
        print(f"{label}: {f'{windows.told()}, ' if windows else ''}skipped {shares}, see {printable(path.name)}")

    def draw_clip(self, source: Source, label: str, max_frames: int | None) -> None:
        """Draw a video, or several streams side by side, until they end, or `max_frames` frames, or Ctrl-C."""
        try:
            clip = open_clip(source)
        except FileNotFoundError as error:  # a stream that does not open is no file among others: that ends the job
            print(f"{label}: left out, {one_line(error)}")
            return
        total = min(clip.total or max_frames, max_frames) if max_frames else clip.total
        bar = progress_bar(label, total, "frame", islice(clip.frames, max_frames))
        recordings: list[Recording] = []
        try:
            with ExitStack() as stack:
                for name in clip.names:
                    path = self._free_name(name, ".mp4")
                    self.written.append(path)
                    recordings.append(stack.enter_context(Recording(path, clip, max_frames)))
                self._record(bar, recordings)
        finally:
            bar.close()
            for recording in recordings:
                self._report(recording, label)

    def _record(self, frames: Iterable[Sequence[np.ndarray]], recordings: Sequence[Recording]) -> None:
        """Draw all frames, of which there is one for each recording at a time."""
        cameras = [self.model.camera() for _ in recordings]
        for images in frames:
            for image, recording, camera in zip(images, recordings, cameras, strict=True):
                maps, result, figures = self.model.look_at(image, camera)
                recording.add(draw_view(image, maps, self.view, result, self.cmap), figures)
                self._count(maps)

    def _report(self, recording: Recording, label: str) -> None:
        """Tell what became of a video."""
        self.frames += recording.frames  # also those that Ctrl-C came upon before they were counted
        if recording.frames:
            count, path = _plural(recording.frames, "frame"), recording.path
            print(f"{label}: {count}, see {printable(path.name)} and {printable(path.stem)}.csv")
        else:
            self.written.remove(recording.path)
            print(f"{label}: left out, it has no frame that can be read")

    def _count(self, maps: Sequence[RouteMap]) -> None:
        """Note the skipped shares, and whether they mean something."""
        for layer in maps:
            self.skipped[layer.name].append(skipped_share(layer))
            self.untrained |= not layer.trained

    def counted(self) -> str:
        """Return what the shares are the mean of."""
        counts = (self.images, "image"), (self.frames, "frame")
        return " and ".join(_plural(count, unit) for count, unit in counts if count)

    def _free_name(self, stem: str, suffix: str) -> Path:
        """Name a picture after its source and the view; a name that is taken is numbered."""
        stem = short_stem(stem)
        name = self.folder / f"{stem}-{self.view}{suffix}"
        number = 2
        while name in self.written or name.is_file():
            name = self.folder / f"{stem}-{number}-{self.view}{suffix}"
            number += 1
        return name


def _plural(count: int, unit: str) -> str:
    """Write a number of things."""
    return f"{count} {unit}{'s' * (count != 1)}"


def _shares(skipped: dict[str, list[float]]) -> str:
    """Format the mean skipped share of each layer."""
    return ", ".join(f"{printable(name)} {np.mean(shares):.0%}" for name, shares in skipped.items())
