"""Dense and routed models as they are deployed on a CPU: in PyTorch, ONNX Runtime and OpenVINO. AP, objects lost, ms.

Exports have the shape of the images. The routed ones are folders of graphs (`mod-vision export k=all`), run by the code
of their own `run.py` in float32. Thresholds are set on the training images that `convert` keeps aside.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO

from mod_vision.cli.arguments import sides_of
from mod_vision.cli.keys import as_list
from mod_vision.cli.main import run_tool
from mod_vision.conversion.parts import divide
from mod_vision.files import writable_dir, write_text
from mod_vision.routing.placing import window_cells
from mod_vision.routing.windows import WindowPlan
from mod_vision.yolo.export import runtime
from mod_vision.yolo.export.exporter import export_yolo
from mod_vision.yolo.export.several import RUNTIMES, Several, export_several
from mod_vision.yolo.model.coarse import largest_for_windows
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.device import MIN_STRIDE, input_size
from mod_vision.yolo.run.letterbox import Letterboxed
from studies.opponents.asked import check_same, digest, once
from studies.opponents.report import file_name, report
from studies.opponents.scoring import images_of, scenes_of, score
from studies.opponents.shares import at_share, plans_of
from studies.opponents.timing import time_ways
from studies.opponents.ways import Found, Way, model_way

NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
Detect = Callable[[np.ndarray, float], tuple[runtime.Ran | None, np.ndarray]]


def deployed(
    routed: str,
    dense: str,
    data: str,
    imgsz: Any = 640,
    split: str = "val",
    lower: Any = (),
    shares: Any = (0.25, 0.35, 0.45),
    formats: Any = tuple(RUNTIMES),
    scene: str = "",
    threads: int = 2,
    out: str = "runs/deployed",
) -> None:
    """Export, score and time all of them, each way in turn, and write a JSON of each; what is there is kept.

    Args:
        routed: Checkpoint on windows, of the dense weights, with a router that is trained.
        dense: Checkpoint of the dense model.
        data: Data YAML.
        imgsz: Height and width of the images in px.
        split: Split to report on.
        lower: Widths of smaller inputs of the dense model.
        shares: Mean shares of the pixels to set thresholds for.
        formats: Formats to export to.
        scene: Pattern that finds the scene in the name of an image; without, each image is its own.
        threads: Threads.
        out: Folder of the results.
    """
    folder, size = Path(writable_dir(out)), input_size(sides_of(imgsz), MIN_STRIDE)
    asked: dict[str, Any] = {
        "routed": digest(routed),
        "dense": digest(dense),
        "data": Path(data).name,
        "imgsz": size,
        "split": split,
    }
    asked |= {"threads": threads, "scene": scene, "lower": as_list(lower), "shares": as_list(shares)}
    check_same(folder / "asked.json", asked | {"formats": as_list(formats)})
    base = load_model(dense)
    found = images_of(base, data, split)
    torch.set_num_threads(threads)  # a validation sets its own
    widths = [size[1], *map(int, as_list(lower))]
    models = list(_models(routed, data, max(size), [float(share) for share in as_list(shares)], folder))
    ways = [model_way("dense", base, max(size)), *(model_way(name, yolo, max(size)) for name, yolo, _ in models)]
    sizes = [input_size([round(size[0] * width / size[1]), width], MIN_STRIDE) for width in widths]
    graphs = [_dense_graph(dense, own, folder) for own in sizes]  # which all runtimes read
    folders = [(name, export_several(file, "all", size)) for name, _, file in models]
    for format in as_list(formats):
        for own, width, path in zip(sizes, widths, graphs, strict=True):
            smaller = f" at {width} px" if own != size else ""
            ways.append(_dense_way(f"dense{smaller}, {NAMES[format]}", path, base.names, format, own, threads))
        ways += [_routed_way(f"{name}, {NAMES[format]}", done, format, size, threads) for name, done in folders]
    scenes = scenes_of(found.files, scene or "^.*$")
    for way in ways:
        once(folder / file_name(way.name), partial(score, way, found, scenes, "^"))
    once(folder / "times.json", lambda: time_ways(ways, found, threads, "^"))
    write_text(folder / "table.md", report(folder, [way.name for way in ways]))
    print((folder / "table.md").read_text())


def _models(
    routed: str, data: str, imgsz: int, shares: Sequence[float], folder: Path
) -> Iterator[tuple[str, YOLO, Path]]:
    """Yield the routed model at each mean share of the pixels, and its checkpoint, as name, model, file."""
    yolo = load_model(routed)
    plans = plans_of(yolo, divide(data, folder / "parts").kept, imgsz)
    for share in shares:
        own, file = at_share(yolo, plans, share), folder / f"routed-{share:g}.pt"
        own.save(file)
        yield f"routed at {share:g}", own, file


def _dense_graph(dense: str, size: list[int], folder: Path) -> Path:
    """Return the ONNX graph of the dense model at a size."""
    copy = folder / f"dense-{size[1]}.pt"  # beside which Ultralytics writes
    shutil.copy(dense, copy)
    return export_yolo(YOLO(copy), format="onnx", imgsz=size, device="cpu")


def _dense_way(name: str, path: Path, names: dict[int, str], format: str, size: list[int], threads: int) -> Way:
    """Return the way of an exported dense model."""
    net = runtime.graph(path, RUNTIMES[format], threads, runtime.FLOAT32)
    about = {"imgsz": size, "end2end": False, "names": names}  # candidates, as `yolo predict` has them

    def detect(photo: np.ndarray, conf: float) -> tuple[None, np.ndarray]:
        return None, runtime.boxes(net({"images": runtime.letterbox(photo, size)}), about, photo, conf)

    return _way(name, detect, size, None)


def _routed_way(name: str, done: Several, format: str, size: list[int], threads: int) -> Way:
    """Return the way of an exported folder in the runtime of a format."""
    about = done.about | {"runtime": RUNTIMES[format]}

    def detect(photo: np.ndarray, conf: float) -> tuple[runtime.Ran, np.ndarray]:
        return runtime.detect(done.path, about, photo, conf, threads, runtime.FLOAT32)

    return _way(name, detect, size, head_of(done.eager))


def _way(name: str, detect: Detect, size: list[int], head: Any) -> Way:
    """Return the way of a function from a photo to what was run and its detections; `head` is that of eager."""

    def find(photo: np.ndarray, conf: float) -> Found:
        ran, rows = detect(photo, conf)
        found = Found(rows[:, :4], rows[:, 4], rows[:, 5].astype(int))
        if ran is None:
            return found
        side, cells = head.entry.cell, (size[0] // head.entry.cell, size[1] // head.entry.cell)
        corners, no = torch.from_numpy(ran.corners), torch.zeros(1, cells[0] * cells[1])
        plan = WindowPlan(no, corners, cells, window_cells(head.entry.window, cells, side), side)
        boxed = Letterboxed((size[0], size[1]), runtime.place(photo, size)[1])
        return found._replace(boxed=boxed, plan=plan, largest=largest_for_windows(head))

    return Way(name, max(size), lambda conf: partial(find, conf=conf))


if __name__ == "__main__":
    sys.exit(run_tool(deployed, str(__doc__)))
