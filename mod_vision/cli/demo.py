"""The main job on embedded images: a dense detector onto windows, scored, drawn, exported, all in one table."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

from mod_vision.conversion.convert import Conversion, convert
from mod_vision.conversion.wanted import Wanted
from mod_vision.conversion.windowed import without_windows
from mod_vision.files import writable_dir, write_text
from mod_vision.resources import DRONES, resource_dir
from mod_vision.run_settings import RunSettings
from mod_vision.viz.heatmap import heatmap
from mod_vision.yolo.export.check import check_export
from mod_vision.yolo.export.exporter import export_model, input_tensors
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import save
from mod_vision.yolo.model.loading import load_model, trained_with
from mod_vision.yolo.run.device import start
from mod_vision.yolo.run.images import evenly_spaced
from mod_vision.yolo.run.log import warnings_only

MODEL = "yolo26n-mod-hituav.pt"
SPEEDUP = 1.5
DRAWN, CHECKED = 6, 5  # images
WHEN_NOT = (
    "When not: on images full of objects, or with objects that fill the image, windows cover nearly everything, and "
    "the dense model or a smaller imgsz is the better buy; `mod-vision convert` measures that on your data and says so."
)


def demo(
    steps: int,
    run: RunSettings,
    out: str | Path,
) -> Path:
    """Take the dense weights that ship, and convert, score, draw and export them; no network and no GPU needed.

    Args:
        steps: Batches that the router is trained on.
        run: How all is run; imgsz 0 is the size that the model was trained at.
        out: Folder for everything it writes.

    Returns:
        The folder.

    Raises:
        ImportError: If the packages for the export are missing, before anything is trained.
        PermissionError: If the folder cannot be written to.
    """
    folder = writable_dir(out).resolve()
    missing = [name for name in ("onnx", "onnxruntime", "onnxslim") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"the demo exports to ONNX and needs {', '.join(missing)}: pip install 'mod-vision[export]'.")
    began = time.perf_counter()
    shipped = load_model(MODEL)
    run = start(RunSettings(run.imgsz or trained_with(shipped).imgsz, run.device, run.threads))
    dense = without_windows(shipped)
    save(dense, folder / "dense.pt", MODEL)

    _step(1, "YOLO26n, dense, onto windows: a router trained on 100 drone images, the table measured on 60 others")
    done = convert(dense, DRONES, Wanted(speedup=SPEEDUP), True, ("look",), steps, run, folder / "convert")
    routed = folder / "routed.pt"
    save(done.model, routed, MODEL)
    done.progress.finish()

    _step(2, "drawing the windows")
    images = evenly_spaced(sorted((resource_dir("assets") / "hituav" / "images" / "val").glob("*.jpg")), DRAWN)
    heatmap(load_model(routed), images, run.imgsz, folder / "windows")

    _step(3, "exporting to ONNX with a fixed number of windows, and checking it against eager")
    set_capacity(done.model, done.setting.share)
    save(done.model, folder / "fixed.pt", MODEL)
    with warnings_only():
        onnx = export_model(folder / "fixed.pt", "onnx", run.imgsz)
    check = check_export(*onnx, input_tensors(images[:CHECKED], run.imgsz))

    minutes = (time.perf_counter() - began) / 60
    paths = {"weights": routed, "ONNX": onnx.path, "windows": folder / "windows", "figures": folder}
    summary = f"{closing(done, str(check))}\n\n" + "".join(f"{name:<10}{path}\n" for name, path in paths.items())
    write_text(folder / "summary.txt", summary)
    print(f"\n{summary}done in {minutes:.1f} minutes", flush=True)
    return folder


def _step(number: int, text: str) -> None:
    """Announce a step."""
    print(f"\n[{number}/3] {text}", flush=True)


def closing(done: Conversion, check: str) -> str:
    """Return the table, what it says, and the verdict on the export."""
    return "\n".join([done.table(), "", f"*: {done.verdict.sentence}", WHEN_NOT, f"ONNX: {check}"])
