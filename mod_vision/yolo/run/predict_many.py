"""A checkpoint over more images than one process should hold: Ray Data in, Parquet out, resumable.

The images are cut into parts. Each part is predicted by one of several workers and written as one Parquet file, under a
temporary name and then renamed. A part whose worker dies is given to another; a run that dies goes on with the images
that no finished part holds. So no image is lost, and none is there twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mod_vision.errors import one_line
from mod_vision.files import writable_dir, write_bytes, write_text
from mod_vision.resources import find_file
from mod_vision.text import printable
from mod_vision.yolo.model.capacity import load_at
from mod_vision.yolo.run.log import progress_bar
from mod_vision.yolo.run.predict import Detections, predict_images

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
PART_BATCHES = 8  # batches in a part: what a killed worker loses at most
SETTINGS = "run.json"


def predict_many(
    model: str,
    source: str,
    out: str | Path = "runs/mod-vision-predict",
    imgsz: int = 640,
    conf: float = 0.25,
    batch: int = 16,
    workers: int = 2,
    device: str = "cpu",
    capacity: float | None = None,
) -> Path:
    """Predict all images of a source, and write Parquet files with one row per image.

    Rows have `path`, `width`, `height`, `error` (None, or why the image could not be read), and lists with an entry per
    object: `cls`, `name`, `conf`, `box` (x1, y1, x2, y2 in pixels) and `polygon` (x, y, x, y, ..., for segmenters).

    The environment variable RAY_ADDRESS names a cluster; without it, Ray runs on this machine. The workers of a cluster
    need mod_vision installed, and a folder `out` that all of them see; the checkpoint is sent to them.

    Args:
        model: Checkpoint (.pt).
        source: Folder (searched below too), pattern, .txt with a path per line, or URI such as s3://bucket/photos.
        out: Folder of the results; a run that was cut short goes on.
        imgsz: Longer side of the model's input in pixels.
        conf: Lowest confidence of an object, in [0, 1].
        batch: Images per forward.
        workers: Processes that hold the model, each with one CPU thread, or one GPU.
        device: `cpu`, or `0` for a GPU per worker.
        capacity: Share of tokens to route, by default the checkpoint's.

    Returns:
        The folder.

    Raises:
        ImportError: If Ray is not installed.
        FileNotFoundError: If model or source is missing, or holds no image.
        ValueError: If the checkpoint does not load, the folder holds results of other settings, or a value is out of
            range.
        RuntimeError: If a worker cannot predict or write a part; finished parts are kept.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise ImportError("predict-many needs Ray Data: pip install 'mod-vision[ray]'.")
    if not 0 <= conf <= 1:
        raise ValueError(f"conf must be in [0, 1], got {conf}.")
    weights = find_file(model)
    if weights is None or weights.suffix.lower() != ".pt":
        raise FileNotFoundError(f"model={model}: there is no such checkpoint (.pt).")
    load_at(weights, capacity)  # what is wrong with it is said here, not by each worker
    paths = list_images(source)
    folder = writable_dir(out).resolve()
    content = weights.read_bytes()
    settings = {"imgsz": imgsz, "conf": conf, "capacity": capacity, "sha256": hashlib.sha256(content).hexdigest()}
    check_settings(folder, settings)
    start = time.perf_counter()
    before = finished(folder)
    left = [path for path in paths if path not in before]
    print(f"{len(paths)} images, {len(paths) - len(left)} of them done before", flush=True)
    if left:
        run_parts(content, left, folder, settings, batch, workers, device)
    unreadable = {path for path, error in finished(folder).items() if error}
    for path in sorted(unreadable & set(left)):
        print(f"unreadable: {printable(path)}")
    seconds = time.perf_counter() - start
    print(
        f"{len(left)} images in {seconds:.1f} s ({len(left) / seconds:.1f} images/s), {len(unreadable)} of all "
        f"unreadable; results in {folder}/*.parquet"
    )
    return folder


def list_images(source: str) -> list[str]:
    """Return the images of a source, each once, in order.

    Raises:
        FileNotFoundError: If there is none.
    """
    if "://" in source:
        from pyarrow import fs

        system, root = fs.FileSystem.from_uri(source)
        prefix = source[: len(source.rstrip("/")) - len(root.rstrip("/"))]
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
        files = [f"{prefix}{info.path}" for info in found if info.is_file]
    elif Path(source).suffix.lower() == ".txt" and Path(source).is_file():
        lines = [line.strip() for line in Path(source).read_text().splitlines()]
        files = [line if "://" in line else str(Path(source).parent / line) for line in lines if line]
    elif Path(source).is_file():  # also if it is named like a pattern
        files = [source]
    elif Path(source).is_dir():
        files = [str(path) for path in Path(source).rglob("*") if path.is_file()]
    else:
        files = [str(path) for path in Path(source).parent.glob(Path(source).name)]
    images = sorted({f if "://" in f else str(Path(f).resolve()) for f in files if Path(f).suffix.lower() in SUFFIXES})
    if not images:
        raise FileNotFoundError(f"source={source}: no image there ({', '.join(sorted(SUFFIXES))}).")
    return images


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Keep the settings of a new run, or compare them with those of the run that goes on.

    Raises:
        ValueError: If they differ.
    """
    file = folder / SETTINGS
    if not file.is_file():
        write_text(file, json.dumps(settings, indent=1) + "\n")
        return
    before = json.loads(file.read_text())
    changed = [f"{key} {before.get(key)} is now {value}" for key, value in settings.items() if before.get(key) != value]
    if changed:
        raise ValueError(f"{folder} holds results of other settings ({'; '.join(changed)}); choose another out=.")


def finished(folder: Path) -> dict[str, str | None]:
    """Return the images in the finished parts, each with why it could not be read, or None."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(file, columns=["path", "error"]) for file in folder.glob("part-*.parquet")]
    return {row["path"]: row["error"] for table in tables for row in table.to_pylist()}


def run_parts(
    content: bytes, paths: Sequence[str], folder: Path, settings: dict[str, Any], batch: int, workers: int, device: str
) -> None:
    """Predict images part by part on Ray's workers.

    Raises:
        RuntimeError: If a worker says that it cannot go on, or Ray gives up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network unless asked
    import ray

    size = batch * PART_BATCHES
    parts = [{"paths": list(paths[i : i + size])} for i in range(0, len(paths), size)]
    ours = not ray.is_initialized()
    if ours:
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers + 1, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **local)
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours is one line
    checkpoint = ray.put(content)  # held until the end, for workers that are started again
    try:
        resources = {"num_cpus": 1} if device == "cpu" else {"num_cpus": 1, "num_gpus": 1}
        done = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
            Worker,
            fn_constructor_args=(checkpoint, str(folder), settings, batch, device),
            batch_size=1,
            concurrency=min(workers, len(parts)),
            **resources,
        )
        with progress_bar("predicting", len(paths), "image") as bar:
            for row in done.iter_rows():
                if row["error"]:
                    raise RuntimeError(
                        f"{row['error']} The parts in {folder} are kept: the same command goes on with them."
                    )
                bar.update(int(row["images"]))
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray gave up: {one_line(error)}") from error
    finally:
        if ours:
            ray.shutdown()


class Worker:
    """Holds a model and predicts parts, in a process of its own."""

    def __init__(self, content: Any, folder: str, settings: dict[str, Any], batch: int, device: str) -> None:
        import ray
        import torch

        torch.set_num_threads(1)
        self.folder, self.settings, self.batch, self.device = Path(folder), settings, batch, device
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            file.write(ray.get(content))
            file.flush()
            self.model = load_at(file.name, settings["capacity"])

    def __call__(self, part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predict one part and write it, a row per image; return the number of images, or what went wrong."""
        paths = [str(path) for path in part["paths"][0]]
        name = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:16]
        try:
            write_part(self._predict(paths), self.folder / f"part-{name}.parquet")
        except (OSError, ValueError, RuntimeError, cv2.error) as error:  # if raised, it is told as Ray's trace
            return {"images": np.array([0]), "error": np.array([one_line(error)])}
        return {"images": np.array([len(paths)]), "error": np.array([""])}

    def _predict(self, paths: Sequence[str]) -> list[dict[str, Any]]:
        """Return a row for each image."""
        images, errors = {}, {}
        for path in paths:
            try:
                images[path] = read_image(path)
            except (OSError, ValueError) as error:
                errors[path] = str(error).splitlines()[0]
        imgsz, conf = self.settings["imgsz"], self.settings["conf"]
        found = predict_images(self.model, list(images.values()), imgsz, conf, self.batch, self.device)
        by_path = dict(zip(images, found, strict=True))
        nothing = Detections([], [], [], [], [])
        return [
            {
                "path": path,
                "width": images[path].shape[1] if path in images else None,
                "height": images[path].shape[0] if path in images else None,
                "error": errors.get(path),
                **by_path.get(path, nothing)._asdict(),
            }
            for path in paths
        ]


def read_image(path: str) -> np.ndarray:
    """Read an image (H, W, 3), uint8, BGR, from a path or URI, turned as its EXIF tag says.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no image.
    """
    if "://" in path:
        from pyarrow import fs

        system, name = fs.FileSystem.from_uri(path)
        with system.open_input_file(name) as file:
            content = file.read()
    else:
        content = Path(path).read_bytes()
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error as error:  # more pixels than OpenCV takes
        raise ValueError(f"no image that OpenCV can read: {one_line(error)}") from None
    if image is None:
        raise ValueError("no image that OpenCV can read")
    return image


def write_part(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as Parquet, under a temporary name and then renamed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.float32())
    schema = pa.schema(
        {
            "path": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "error": pa.string(),
            "cls": pa.list_(pa.int32()),
            "name": pa.list_(pa.string()),
            "conf": numbers,
            "box": pa.list_(numbers),
            "polygon": pa.list_(numbers),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    write_bytes(path, sink.getvalue().to_pybytes())
