"""Boxes of images by the folder that this file lies in: python run.py photo.jpg ...; no torch is needed.

Made by `mod-vision export k=...`: one graph places windows, then one of several runs the network on those needed.
pip install numpy onnxruntime opencv-python-headless
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

CONF, IOU = 0.25, 0.7


@functools.cache
def session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open a graph when it is first needed; 0 threads are as many as there are cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or the idle graphs would take the cores
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(folder: Path, numbers: list[int], pixels: np.ndarray, threads: int = 0) -> tuple[np.ndarray, list[Any]]:
    """Return the corners (1, k, 2), in cells, of the windows of an image, and what the network says of them.

    Args:
        folder: The folder.
        numbers: The numbers of windows that there are graphs for, with 0 if a coarse pass looks at every image.
        pixels: (1, 3, size, size), RGB in [0, 1].
        threads: CPU threads, 0 for as many as there are cores.
    """
    corners, needed, guesses = session(folder / "router.onnx", threads).run(None, {"images": pixels})
    k = next((k for k in numbers if k >= needed[0]), numbers[-1])
    if not needed[0] and k:  # nothing to see: the router is all that it costs
        return corners[:, :0], []
    network = session(folder / f"k{k}.onnx", threads)
    feed = {"images": pixels, "corners": corners[:, :k], "guesses": guesses}
    return feed["corners"], network.run(None, {given.name: feed[given.name] for given in network.get_inputs()})


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Return an image (H, W, 3) in BGR in a gray square (1, 3, size, size) in RGB, the scale, and its left and top."""
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    new_width, new_height = round(width * scale), round(height * scale)
    left, top = round((size - new_width) / 2 - 0.1), round((size - new_height) / 2 - 0.1)
    boxed = np.full((size, size, 3), 114, np.uint8)
    boxed[top : top + new_height, left : left + new_width] = cv2.resize(image, (new_width, new_height))
    return boxed[None, ..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255, scale, (left, top)


def candidates(y: np.ndarray, classes: int, conf: float) -> np.ndarray:
    """Return rows x1, y1, x2, y2, confidence, class of an output (4 and more, n) that needs NMS."""
    best = y[4 : 4 + classes].max(0)
    y = y[:, best > conf]
    half, scores, kinds = y[2:4] / 2, best[best > conf], y[4 : 4 + classes].argmax(0)
    boxes = np.concatenate((y[:2] - half, y[:2] + half)).T
    kept = cv2.dnn.NMSBoxesBatched(np.c_[boxes[:, :2], y[2:4].T].tolist(), scores.tolist(), kinds.tolist(), conf, IOU)
    return np.c_[boxes, scores, kinds][np.asarray(kept, int).ravel()]


def detect(folder: Path, about: dict[str, Any], image: np.ndarray, conf: float = CONF) -> tuple[int, np.ndarray]:
    """Return how many windows were run, and a row x1, y1, x2, y2, confidence, class for each object of an image."""
    pixels, scale, offset = letterbox(image, about["imgsz"])
    corners, found = outputs(folder, about["k"], pixels)
    if not found:
        return 0, np.zeros((0, 6))
    rows = found[0][0][:, :6] if about["end2end"] else candidates(found[0][0], len(about["names"]), conf)
    rows = rows[rows[:, 4] > conf]
    edge = (*image.shape[1::-1], *image.shape[1::-1])
    rows[:, :4] = ((rows[:, :4] - (*offset, *offset)) / scale).clip(0, edge)
    return corners.shape[1], rows


def main(folder: Path, files: list[str]) -> None:
    """Print what is found in each image."""
    about = json.loads((folder / "metadata.json").read_text())
    for file in files:
        image = cv2.imread(file)
        if image is None:
            sys.exit(f"error: {file} is no image that can be read.")
        windows, rows = detect(folder, about, image)
        print(f"{file}: {windows} windows, {len(rows)} objects")
        for *box, confidence, cls in rows:
            print(f"{about['names'][str(int(cls))]} {confidence:.3f} {' '.join(f'{value:.1f}' for value in box)}")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, sys.argv[1:])
