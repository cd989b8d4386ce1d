"""A model on windows as a folder of ONNX graphs: a router, and one graph for each of several numbers of windows.

The router places the most windows, in their order, and says how many of them the image is worth. Fewer windows are the
first of more (`windows_in_order`), so the graph of k windows is given the first k of them. Of all the numbers that the
model itself computes, the folder has a graph of the whole image too, for those that are crowded.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from ultralytics.utils import LOGGER

from mod_vision.routing.padding import padded_images
from mod_vision.routing.placing import buckets, window_cells, window_count, windows_in_order, worthy
from mod_vision.routing.window_layer import WindowedLayer
from mod_vision.yolo.export.exporter import check_checkpoint, folder_of, moved_when_whole
from mod_vision.yolo.export.shared_weights import save_sharing
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.device import input_size, stride_of
from mod_vision.yolo.run.letterbox import check_routes

TASKS = ("detect", "segment")  # those that `mod-vision fit` sets thresholds for
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}  # of formats: both read ONNX
ALL = "all"


class Several(NamedTuple):
    """An exported folder.

    Attributes:
        path: The folder.
        about: What its metadata says.
        eager: The fused eager model to compare it with, in threshold mode, of the same numbers of windows.
    """

    path: Path
    about: dict[str, Any]
    eager: nn.Module


class _Router(nn.Module):
    """Places the most windows, and counts those that the image is worth."""

    def __init__(self, entry: WindowedLayer, most: int) -> None:
        super().__init__()
        self.entry, self.most = entry, most

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return corners (1, most, 2), the number of windows (1,) of an image, and guesses of its cells (1, C, N)."""
        size = self.entry.cells(images)
        with padded_images(images):
            said, inside = self.entry.score(images, size)
        window = window_cells(self.entry.window, size, self.entry.cell)
        corners, gains = windows_in_order(said[:, 0], size, window, self.most, inside)
        assert self.entry.threshold is not None
        return corners, worthy(gains, self.entry.threshold), said[:, 1:] if said.shape[1] > 1 else said


class _OnWindows(nn.Module):
    """Runs the network on given windows, or on the whole image."""

    def __init__(self, net: nn.Module, whole: bool = False) -> None:
        super().__init__()
        self.net, self.whole = net, whole

    def forward(
        self, images: torch.Tensor, corners: torch.Tensor | None = None, guesses: torch.Tensor | None = None
    ) -> Any:
        """Return the output for an image: of all of it, of windows at corners (1, k, 2), or of the coarse pass alone.

        Without guesses (1, C, N) of the cells, which only objectness needs, the output does not depend on them.
        """
        entry = head_of(self.net).entry
        if self.whole:
            with entry.whole_image():
                return self.net(images)
        if corners is None:
            corners = torch.zeros((1, 0, 2), dtype=torch.long, device=images.device)
        if guesses is None:
            guesses = images.new_zeros(1, 1, math.prod(entry.cells(images)))
        with entry.windows_at(corners, guesses):
            return self.net(images)


def export_several(model: str | Path, numbers: Any, imgsz: int | Sequence[int] = 640, format: str = "onnx") -> Several:
    """Export a checkpoint on windows as a folder of ONNX graphs for several numbers of windows.

    The folder is MODEL_windows, for OpenVINO MODEL_openvino_windows.

    The weights are stored once, in `weights.bin`; `metadata.json` says what the graphs are, and `run.py` uses them
    without torch. It finds what `yolo predict` finds with the checkpoint, by NMS as that does.

    Args:
        model: Checkpoint (.pt) with a threshold. The folder lies beside it, that of a model of this package in the
            working folder.
        numbers: Numbers of windows, a list or joined by commas; or `all` for those that the model itself computes.
        imgsz: Side of the images in pixels, or their height and width.
        format: `onnx` or `openvino`, for the runtime that `run.py` uses.

    Raises:
        ValueError: If the model cannot, a number is none that occurs, or there is no such format.
        ImportError: If onnx, onnxslim or the runtime is not installed.
        OSError: If the folder cannot be written.
    """
    check_checkpoint(model)
    _check_format(format, numbers)
    yolo = load_model(model)
    net: Any = yolo.model.float().eval().requires_grad_(False)
    entry = _entry_of(net, model, numbers)
    size = input_size(imgsz, stride_of(net))
    ks, whole = window_numbers(numbers, entry, size)
    entry.crowded = entry.crowded if whole else None
    check_routes(net, size)
    if hasattr(net, "end2end"):
        net.end2end = False  # as `yolo predict` runs it, whatever the checkpoint says
    net = net.fuse(verbose=False)
    eager = copy.deepcopy(net)
    eager.model[-1].entry.counts = None if whole else (0, *ks)
    about = {
        "task": yolo.task,
        "names": net.names,
        "runtime": RUNTIMES[format],
        "imgsz": size,
        "stride": int(net.stride.max()),
        "end2end": bool(net.end2end),
        "threshold": entry.threshold,
        "window": entry.window,
        "k": [0, *ks] if net.model[-1].coarse else ks,
        "whole": whole,
    }
    path = folder_of(model) / f"{Path(model).stem}{'' if format == 'onnx' else f'_{format}'}_windows"
    with moved_when_whole(path.parent) as part:
        (folder := part / path.name).mkdir()
        save_sharing(_graphs(net, about["k"], whole, size, part), folder)
        (folder / "metadata.json").write_text(json.dumps(about, indent=2))
        shutil.copy(Path(__file__).with_name("runtime.py"), folder / "run.py")
    return Several(path, json.loads(json.dumps(about)), eager)


def _check_format(format: str, numbers: Any) -> None:
    """Refuse a format that is none, or whose runtime is not there to check the folder.

    Raises:
        ValueError: If there is no such format.
        ImportError: If its runtime is not installed.
    """
    if format not in RUNTIMES:
        raise ValueError(f"k={numbers}: format={format} is none of {', '.join(RUNTIMES)}; choose one, or leave out k.")
    if find_spec(RUNTIMES[format]) is None:
        how = "openvino" if format == "openvino" else "'mod-vision[export]'"
        raise ImportError(f"{RUNTIMES[format]} is not installed: pip install {how}.")


def _entry_of(net: Any, model: Any, numbers: Any) -> WindowedLayer:
    """Return the layer that places the windows of a model.

    Raises:
        ValueError: If there is none, or it cannot say how many an image needs from the image alone.
    """
    head, said = head_of(net), f"k={numbers}: {model}"
    if head is None:
        raise ValueError(f"{said} does not run on windows; k is for models with mod.windows, leave it out.")
    entry = head.entry
    if entry.threshold is None:
        raise ValueError(
            f"{said} has no threshold, so all images get as many windows; leave out k, or set one: mod-vision fit "
            f"model={model} thresholds=True"
        )
    if entry.router.reads != "image":
        raise ValueError(f"{said} has a router that reads the network; k needs router look or scout, or leave it out.")
    if net.task not in TASKS or net.yaml.get("channels", 3) != 3:
        raise ValueError(f"{said}: k is for detection and segmentation of images with 3 channels; leave it out.")
    return entry


def window_numbers(numbers: Any, entry: WindowedLayer, size: Sequence[int]) -> tuple[list[int], bool]:
    """Return numbers of windows in ascending order, and whether an image that needs more is run as a whole.

    Args:
        numbers: A list of them, or joined by commas; or `all`.
        entry: The layer that places them.
        size: Height and width of the images in pixels.

    Raises:
        ValueError: If one is not whole, not possible, or there twice; or as `_own_numbers`.
    """
    cells = size[0] // entry.cell, size[1] // entry.cell
    window = window_cells(entry.window, cells, entry.cell)
    most = window_count(cells, window, 1.0)
    if numbers == ALL:
        return _own_numbers(entry, most, math.prod(window) / math.prod(cells))
    words = [word.strip() for word in f"{numbers}".strip("[]()").split(",") if word.strip()]
    ks = sorted(int(word) for word in words if word.isdecimal())
    if not ks or len(ks) < len(words) or not 0 < ks[0] <= ks[-1] <= most:
        raise ValueError(
            f"k={numbers}: k takes all, or whole numbers of windows from 1 to {most}, joined by commas; {most} windows "
            f"of {entry.window} px compute as much as an image of {size[0]}x{size[1]} px has."
        )
    if len(set(ks)) < len(ks):
        raise ValueError(f"k={numbers}: a number is there twice; give each once: k={','.join(map(str, sorted({*ks})))}")
    return ks, False


def _own_numbers(entry: WindowedLayer, most: int, share: float) -> tuple[list[int], bool]:
    """Return the numbers of windows that a model computes by itself, and whether it runs images with more as a whole.

    Args:
        entry: The layer that places them.
        most: The most windows of an image.
        share: Share of its pixels that a window computes.

    Raises:
        ValueError: If it runs all images as a whole in which it sees anything.
    """
    numbers = [k for k in buckets(most) if k]
    fewer = [k for k in numbers if entry.crowded is None or k * share < entry.crowded]
    if not fewer:
        raise ValueError(
            f"k={ALL}: a window of {entry.window} px computes {100 * share:.0f} % of the pixels, so the model runs all "
            "images of this size as a whole; give a larger imgsz, or numbers such as k=1,2."
        )
    return fewer, len(fewer) < len(numbers)


def _graphs(net: Any, ks: Sequence[int], whole: bool, size: Sequence[int], folder: Path) -> dict[str, Any]:
    """Return the ONNX graphs by their file names.

    Args:
        net: The fused model.
        ks: Numbers of windows, 0 among them for a graph of the coarse pass alone.
        whole: Whether there is a graph of the whole image.
        size: Height and width of the images in pixels.
        folder: For files in between.
    """
    head = net.model[-1]
    head.export, head.format, head.shape = True, "onnx", None
    image = torch.zeros(1, 3, *size)
    router, network = _Router(head.entry, max(ks) + whole).eval(), _OnWindows(net).eval()
    graphs = {"router.onnx": _traced(router, (image,), ["corners", "count", "guesses"], folder)}
    names = ["output0", "output1"] if hasattr(head, "proto") else ["output0"]
    guesses = (router(image)[2],) if head.objectness else ()
    for k in ks:
        given = (torch.zeros(1, k, 2, dtype=torch.long), *guesses) if k else ()
        graphs[f"k{k}.onnx"] = _traced(network, (image, *given), names, folder)
    if whole:
        graphs["whole.onnx"] = _traced(_OnWindows(net, whole=True).eval(), (image,), names, folder)
    return graphs


def _traced(module: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: list[str], folder: Path) -> Any:
    """Return the ONNX graph of a module, slimmed.

    Raises:
        ImportError: If onnx or onnxslim is not installed.
    """
    try:
        import onnx
        import onnxslim
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'mod-vision[export]'.") from None
    from ultralytics.utils.export.engine import best_onnx_opset, torch2onnx

    LOGGER.info(f"mod_vision: a graph of {', '.join(outputs)} for inputs {[tuple(x.shape) for x in inputs]}")
    file = folder / "graph.onnx"
    names = ["images", "corners", "guesses"][: len(inputs)]
    torch2onnx(module, inputs, file, best_onnx_opset(onnx), names, outputs)
    graph = onnxslim.slim(onnx.load(file))
    graph.ir_version = min(graph.ir_version, 10)  # as Ultralytics does, for older runtimes
    file.unlink()
    return graph
