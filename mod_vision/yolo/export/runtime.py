"""Boxes of images by the folder that this file lies in: python run.py photo.jpg ...; no torch is needed.

Made by `mod-vision export k=...`: one graph places windows, then one of several runs the network on those needed.
pip install numpy opencv-python-headless, and onnxruntime or openvino, as `runtime` in metadata.json says.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

CONF, IOU = 0.25, 0.7
FLOAT32 = "f32"
Graph = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Ran(NamedTuple):
    """What was run for an image.

    Attributes:
        graph: Name of the graph: `k8` for eight windows, `whole` for the whole image, empty if the router saw nothing.
        corners: (1, k, 2) row and column of each window, in cells.
        outputs: What the network says, none if no graph was run.
    """

    graph: str
    corners: np.ndarray
    outputs: list[np.ndarray]


@functools.cache
def graph(path: Path, runtime: str, threads: int = 0, precision: str = "") -> Graph:
    """Open a graph when it is first needed, as a function of its inputs by name.

    Args:
        path: The graph.
        runtime: `onnxruntime` or `openvino`.
        threads: CPU threads, 0 for as many as there are cores.
        precision: Of OpenVINO, which else computes in bfloat16 on CPUs that have it.
    """
    run: Any
    if runtime == "openvino":
        import openvino

        wishes = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
        config = {key: wish for key, wish in wishes.items() if wish}
        model = openvino.Core().compile_model(path, "CPU", config)
        names = [given.get_any_name() for given in model.inputs]
        run = lambda given: list(model(given).values())  # noqa: E731
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or idle graphs would take the cores
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        run = functools.partial(session.run, None)
    return lambda given: run({name: given[name] for name in names})


def run_image(folder: Path, about: dict[str, Any], pixels: np.ndarray, threads: int = 0, precision: str = "") -> Ran:
    """Place the windows of an image, and run the network on as many as it needs.

    Args:
        folder: The folder.
        about: Its metadata.
        pixels: (1, 3, height, width), RGB in [0, 1].
        threads: CPU threads, 0 for as many as there are cores.
        precision: Of the network in OpenVINO; the router computes in float32, so all runtimes place the same windows.
    """
    runtime = about["runtime"]
    corners, needed, guesses = graph(folder / "router.onnx", runtime, threads, FLOAT32)({"images": pixels})
    enough = [k for k in about["k"] if k >= needed[0]]
    k = enough[0] if enough else about["k"][-1]
    if not needed[0] and k:  # nothing to see: the router is all that it costs
        return Ran("", corners[:, :0], [])
    name, k = ("whole", 0) if not enough and about["whole"] else (f"k{k}", k)
    given = {"images": pixels, "corners": corners[:, :k], "guesses": guesses}
    return Ran(name, given["corners"], graph(folder / f"{name}.onnx", runtime, threads, precision)(given))


def place(image: np.ndarray, size: Sequence[int]) -> tuple[float, tuple[int, int, int, int]]:
    """Return the scale of an image (H, W, 3) in an input of a size, and its top, left, height and width there."""
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    new_height, new_width = round(height * scale), round(width * scale)
    top, left = round((size[0] - new_height) / 2 - 0.1), round((size[1] - new_width) / 2 - 0.1)
    return scale, (top, left, new_height, new_width)


def letterbox(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return an image (H, W, 3) in BGR as an input (1, 3, *size) in RGB in [0, 1], gray around it."""
    _, (top, left, height, width) = place(image, size)
    boxed = np.full((*size, 3), 114, np.uint8)
    boxed[top : top + height, left : left + width] = cv2.resize(image, (width, height))
    pixels = np.ascontiguousarray(boxed[None, ..., ::-1].transpose(0, 3, 1, 2)).astype(np.float32)
    pixels /= 255  # bytes are put into order, then divided in place: a third of the time
    return pixels


def candidates(y: np.ndarray, classes: int, conf: float) -> np.ndarray:
    """Return rows x1, y1, x2, y2, confidence, class of an output (4 and more, n) that needs NMS."""
    best = y[4 : 4 + classes].max(0)
    y = y[:, best > conf]
    half, scores, kinds = y[2:4] / 2, best[best > conf], y[4 : 4 + classes].argmax(0)
    boxes = np.concatenate((y[:2] - half, y[:2] + half)).T
    kept = cv2.dnn.NMSBoxesBatched(np.c_[boxes[:, :2], y[2:4].T].tolist(), scores.tolist(), kinds.tolist(), conf, IOU)
    return np.c_[boxes, scores, kinds][np.asarray(kept, int).ravel()]


def detect(
    folder: Path, about: dict[str, Any], image: np.ndarray, conf: float = CONF, threads: int = 0, precision: str = ""
) -> tuple[Ran, np.ndarray]:
    """Return what was run, and a row x1, y1, x2, y2, confidence, class for each object of an image (H, W, 3), BGR."""
    ran = run_image(folder, about, letterbox(image, about["imgsz"]), threads, precision)
    return ran, boxes(ran.outputs, about, image, conf)


def boxes(outputs: Sequence[np.ndarray], about: dict[str, Any], image: np.ndarray, conf: float) -> np.ndarray:
    """Return the rows x1, y1, x2, y2, confidence, class of a network's outputs, in pixels of the image."""
    if not outputs:
        return np.zeros((0, 6))
    found = outputs[0][0]
    rows = found[:, :6] if about["end2end"] else candidates(found, len(about["names"]), conf)
    rows = rows[rows[:, 4] > conf]
    scale, (top, left, _, _) = place(image, about["imgsz"])
    edge = (*image.shape[1::-1], *image.shape[1::-1])
    rows[:, :4] = ((rows[:, :4] - (left, top, left, top)) / scale).clip(0, edge)
    return rows


def main(folder: Path, files: list[str]) -> None:
    """Print what is found in each image."""
    about = json.loads((folder / "metadata.json").read_text())
    for file in files:
        image = cv2.imread(file)
        if image is None:
            sys.exit(f"error: {file} is no image that can be read.")
        try:
            ran, rows = detect(folder, about, image)
        except ImportError as error:
            sys.exit(f"error: {error.name} is not installed: pip install {error.name}")
        computed = "the whole image" if ran.graph == "whole" else f"{ran.corners.shape[1]} windows"
        print(f"{file}: {computed}, {len(rows)} objects")
        for *box, confidence, cls in rows:
            print(f"{about['names'][str(int(cls))]} {confidence:.3f} {' '.join(f'{value:.1f}' for value in box)}")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, sys.argv[1:])
