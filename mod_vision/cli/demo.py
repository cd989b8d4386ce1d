"""The main job: train the small routed segmenter on with the embedded photos, then measure, draw and export it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mod_vision.eval.cost.latency import doubts
from mod_vision.eval.evaluate import Evaluation, evaluate_models, save_evaluation
from mod_vision.files import writable_dir, write_text
from mod_vision.resources import PHOTOS, resource_dir
from mod_vision.run_settings import RunSettings, ScoreSettings
from mod_vision.viz.heatmap import heatmap
from mod_vision.yolo.export.check import check_export
from mod_vision.yolo.export.exporter import export_model, input_tensors
from mod_vision.yolo.model.capacity import load_at
from mod_vision.yolo.model.trust import restricted
from mod_vision.yolo.run.device import start

MODEL = "yolo26n-mod-hybrid-seg.pt"
CHECKED_IMAGES = 5


def demo(
    epochs: int = 6,
    run: RunSettings = RunSettings(imgsz=320),  # noqa: B008  # frozen
    out: str | Path = "runs/mod-vision-demo",
) -> Path:
    """Run the whole path on the 80 embedded photos; no network and no GPU needed.

    Args:
        epochs: Training epochs of each of the two models.
        run: How all is run.
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
    run = start(run)
    began = time.perf_counter()

    _step(1, f"training {MODEL} on with 58 photos, {epochs} epochs, then its dense baseline (capacity 1.0) alike")
    routed = _train(None, folder / "routed", epochs, run)
    dense = _train(1.0, folder / "dense", epochs, run)

    _step(2, "timing both in turn, counting FLOPs, scoring with pycocotools on 22 photos")
    results = score({"routed": routed, "dense": dense}, PHOTOS, folder, run)
    for name, result in results.items():
        save_evaluation(result, folder / f"{name}.json")
        print(f"{name}: {result.report()}\n", flush=True)

    _step(3, "drawing route heatmaps")
    photos = resource_dir("assets") / "open" / "images" / "val"
    heatmap(routed, photos, run.imgsz, folder / "heatmaps")

    _step(4, "exporting to ONNX and checking it against eager")
    onnx = export_model(routed, "onnx", run.imgsz)
    check = check_export(*onnx, input_tensors(sorted(photos.glob("*.jpg"))[:CHECKED_IMAGES], run.imgsz))

    minutes = (time.perf_counter() - began) / 60
    paths = {"weights": routed, "ONNX": onnx.path, "heatmaps": folder / "heatmaps", "figures": folder}
    closing = table(results, str(check), epochs, run.imgsz)
    summary = f"{closing}\n\n" + "".join(f"{name:<10}{path}\n" for name, path in paths.items())
    write_text(folder / "summary.txt", summary)
    print(f"\n{summary}done in {minutes:.1f} minutes", flush=True)
    return folder


def _step(number: int, text: str) -> None:
    """Announce a step."""
    print(f"\n[{number}/4] {text}", flush=True)


def _train(capacity: float | None, folder: Path, epochs: int, run: RunSettings) -> Path:
    """Train on the embedded photos into a folder, and return the checkpoint."""
    yolo: Any = load_at(MODEL, capacity)
    with restricted():  # the model is built anew from the YAML in the checkpoint
        yolo.train(
            data=PHOTOS,
            epochs=epochs,
            imgsz=run.imgsz,
            device=run.device,
            batch=8,
            nbs=8,  # a step per batch, where Ultralytics would accumulate eight: there are only eight in an epoch
            optimizer="AdamW",
            lr0=0.0001,  # small, because the weights are trained; the automatic choice is for long trainings
            warmup_epochs=1,
            mosaic=0,
            workers=2,
            seed=0,
            val=False,
            plots=False,
            project=str(folder.parent),
            name=folder.name,
            exist_ok=True,
        )
    return folder / "weights" / "best.pt"


def score(models: Mapping[str, Path], data: str, folder: Path, run: RunSettings) -> dict[str, Evaluation]:
    """Score models by their names, and time them in turn with the same threads: training sets its own."""
    scoring = ScoreSettings(run.imgsz, run.device, run.threads)
    return evaluate_models(models, data, scoring, project=str(folder), name="val", exist_ok=True)


def table(results: Mapping[str, Evaluation], check: str, epochs: int, imgsz: int) -> str:
    """Return the closing table; `check` is the verdict on the export."""
    lines = [
        f"{'model':<8}{'box AP':>8}{'mask AP':>9}{'GFLOPs':>8}{'latency':>28}{'skipped':>9}",
    ]
    for name, result in results.items():
        routed = result.recall.result().random
        skipped = 1 - sum(routed.values()) / len(routed) if routed else 0.0
        mask = result.mask or {"AP": 0.0}
        lines.append(
            f"{name:<8}{100 * result.box['AP']:>8.2f}{100 * mask['AP']:>9.2f}{result.cost.gflops:>8.2f}"
            f"{result.cost.latency!s:>28}{100 * skipped:>8.0f}%"
        )
    cost = results["routed"].cost
    lines += [
        *doubts({name: result.cost.latency.spread for name, result in results.items()}),
        f"latency: median (quartiles) of both in turn, batch 1, {cost.device}, {cost.threads} threads",
        f"ONNX: {check}",
        f"AP in percent, {imgsz} px. {epochs} epochs on 58 photos show that every part works,\n"
        "not how accurate a model trained on your data will be.",
    ]
    return "\n".join(lines)
