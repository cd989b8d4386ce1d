"""Exports through Ultralytics, and what is needed to check them."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from ultralytics.nn.autobackend import AutoBackend

from mod_vision.files import writable_dir
from mod_vision.leftovers import OLD, temporary_folder
from mod_vision.resources import PHOTOS, is_ours
from mod_vision.routing.capacity import ceil_div
from mod_vision.yolo.blocks import KINDS
from mod_vision.yolo.model.capacity import load_at
from mod_vision.yolo.model.trust import check_data, untrusted_data
from mod_vision.yolo.run.device import MIN_STRIDE, input_size, round_imgsz
from mod_vision.yolo.run.images import read_images, some_images
from mod_vision.yolo.run.letterbox import check_routes, letterbox
from mod_vision.yolo.run.log import replaced_in_log


class Export(NamedTuple):
    """An exported model.

    Attributes:
        path: File or folder.
        run: Runs it on a batch (B, 3, H, W), by Ultralytics' own backends.
        eager: The fused eager model to compare it with.
    """

    path: Path
    run: Callable[[torch.Tensor], Any]
    eager: nn.Module


def export_yolo(yolo: Any, **args: Any) -> Path:
    """Export a `YOLO` object with Ultralytics' own exporter, and return the file or folder.

    Raises:
        ValueError: If Ultralytics does not know the format or an argument, or a ViT shall take any image size.
        RuntimeError: If the export fails.
    """
    fixed = [row[2] for row in yolo.model.yaml["backbone"] if row[2] in KINDS and not KINDS[row[2]].any_size]
    if args.get("dynamic") and fixed:
        raise ValueError(f"exports with {fixed[0]} have a fixed size; leave out dynamic=True.")
    threads = torch.get_num_threads()
    try:
        with untrusted_data(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # torch's own remarks on its exporter
            written = yolo.export(**args)
    except AssertionError as error:  # how Ultralytics refuses arguments
        raise ValueError(f"{error}") from error
    finally:
        torch.set_num_threads(threads)  # Ultralytics sets its own for a device
    if not written:
        raise RuntimeError(f"Ultralytics could not export to {args.get('format')}; the reason is in its log above.")
    return Path(written)


def export_model(
    model: str | Path,
    format: str = "onnx",
    imgsz: int | Sequence[int] = 640,
    capacity: Any = None,
    device: str = "cpu",
    **args: Any,
) -> Export:
    """Export a checkpoint with Ultralytics' own exporter.

    What it writes gets its name when it is whole: an export that fails leaves nothing, and an older one as it was.

    Args:
        model: Checkpoint (.pt). The export lies beside it, that of a model of this package in the working folder.
        format: As in `yolo export`.
        imgsz: Side of the images in pixels, or their height and width.
        capacity: Capacity that the export is fixed at, None for the model's own.
        device: Where it is exported, as in Ultralytics.
        args: Other arguments of `yolo export`, such as `dynamic=True`, `batch=8` or `quantize=8`, which detectors and
            segmenters calibrate on the embedded photos if there is no `data`.

    Raises:
        ValueError: If the model is no checkpoint, a router gives NaN, or as `export_yolo`.
        OSError: If the folder cannot be written.
        RuntimeError: If the export fails.
    """
    check_checkpoint(model)
    yolo: Any = load_at(model, capacity)
    if args.get("quantize") and yolo.task in ("detect", "segment"):  # other tasks calibrate on other data
        args["data"] = check_data(args.get("data") or PHOTOS)["yaml_file"]
    net: Any = load_at(model, capacity).model.float().eval()
    check_routes(net, imgsz)
    folder = folder_of(model)
    with moved_when_whole(folder) as part:
        yolo.model.pt_path = str(part / Path(model).name)  # beside which Ultralytics writes
        name = export_yolo(yolo, format=format, imgsz=imgsz, device=device, **args).relative_to(part)
    path = folder / name
    backend = AutoBackend(f"{path}/" if path.is_dir() else path, device=torch.device("cpu"), verbose=False)
    if hasattr(net, "end2end"):  # the exporter switches it off for formats that cannot do it
        net.end2end = bool(getattr(backend, "end2end", False))
    return Export(path, backend, net.fuse(verbose=False))


def check_checkpoint(model: str | Path) -> None:
    """Refuse a model that is no checkpoint.

    Raises:
        ValueError: If it is none.
    """
    if Path(model).suffix.lower() != ".pt":
        raise ValueError(f"model={model}: export takes a checkpoint (.pt).")


def folder_of(model: str | Path) -> Path:
    """Return where the export of a checkpoint lies: beside it, of one of this package in the working folder."""
    return Path(model).parent if Path(model).is_file() and not is_ours(model) else Path()


@contextmanager
def moved_when_whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder in `folder`, whose files and folders are moved there at the end if all went well.

    What an export that was killed left there is removed.

    Raises:
        OSError: If that fails; the message names the folder, and nothing is left behind.
    """
    part = temporary_folder(writable_dir(folder), "export")
    try:
        with replaced_in_log(str(part), str(folder.resolve())):
            yield part
        for path in list(part.iterdir()):
            _replace(path, folder / path.name)
    except OSError as error:
        elsewhere = error.filename is not None and str(part) not in str(error.filename)
        if error.errno is None or elsewhere or isinstance(error, ConnectionError):  # such as images that are missing
            raise
        raise type(error)(f"cannot write to the folder {folder}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(new: Path, path: Path) -> None:
    """Move a file or folder to `path`; a folder, which replaces none that has files, comes back if that fails."""
    old = new.with_name(f"{new.name}{OLD}")
    if path.is_dir():
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if old.exists():
            os.replace(old, path)
        raise


def check_batches(
    source: Any, images: int, imgsz: int | Sequence[int], batch: int, dynamic: bool, any_size: bool = True
) -> list[torch.Tensor]:
    """Return batches (batch, 3, height, width) of photos to check an export on.

    The last one is filled up with the first photos; with `dynamic`, one of another number of images follows, and of
    another size if it takes any.

    Args:
        source: Where photos come from, as `some_images` takes it.
        images: Most photos.
        imgsz: Image size of the export, one side or height and width.
        batch: Images of a batch.
        dynamic: Whether the export takes any batch.
        any_size: Whether one with `dynamic` takes any size too.
    """
    photos = torch.cat(input_tensors(some_images(source, images, "val"), imgsz))
    filled = torch.arange(ceil_div(len(photos), batch) * batch) % len(photos)
    batches = list(photos[filled].split(batch))
    if dynamic:
        other = torch.arange(batch + 1) % len(photos)
        height = photos.shape[2]
        batches.append(photos[other, :, : round_imgsz(height // 2) if any_size else height].contiguous())
    return batches


def tensorrt_runner(path: Path, image: torch.Tensor) -> Callable[[], Any]:
    """Return a run of a TensorRT engine on a batch (B, 3, H, W) on its GPU, by Ultralytics' own backend."""
    engine = AutoBackend(path, device=image.device, verbose=False)
    return lambda: engine(image)


def input_tensors(photos: Sequence[Path], imgsz: int | Sequence[int]) -> list[torch.Tensor]:
    """Read photos and letterbox them to the input of an export, each (1, 3, height, width) in [0, 1].

    Raises:
        ValueError: If none can be read; others are told and left out.
    """
    size = input_size(imgsz, MIN_STRIDE)
    return [letterbox(image, size, MIN_STRIDE, auto=False)[0] for image in read_images(photos)]
