"""The verbs of `mod-vision`: what each takes and which function does it, imported when it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mod_vision.cli.arguments import THREADS, data_of, milliseconds, opened, shares_of, zones_in
from mod_vision.cli.bench import bench
from mod_vision.cli.camera import stream, zone
from mod_vision.cli.export import export
from mod_vision.cli.keys import as_list
from mod_vision.cli.val import val
from mod_vision.env import AUTOLOAD
from mod_vision.files import fresh_path
from mod_vision.run_settings import RunSettings, ScoreSettings


def check() -> None:
    """Versions, what is registered, what is missing and what to do."""
    from mod_vision.cli.installed import report

    print(report())


def heatmap(
    source: str,
    model: str = "yolo26n-mod-hituav.pt",
    view: str = "mask",
    boxes: bool = False,
    conf: float = 0.25,
    frames: int | None = None,
    imgsz: int = 0,
    out: str = "runs/mod-vision-heatmap",
) -> None:
    """Pictures and videos of what the router sends through the heavy blocks, and what it skips.

    Example: mod-vision heatmap source=street.jpg model=best.pt boxes=True
    """
    from mod_vision.viz.heatmap import heatmap as draw

    draw(model, source, imgsz or _size_of(model), out, view, boxes, conf, frames)


def _size_of(model: str) -> int:
    """Return the size that a checkpoint was trained at; an export keeps its own, or takes 640."""
    return 640 if Path(model).suffix.lower() == ".onnx" else opened(model, RunSettings(imgsz=0))[1].imgsz


def report(
    model: str,
    data: str = "",
    capacity: Any = (1.0, 0.75, 0.5, 0.25),
    images: int = 12,
    conf: float = 0.25,
    evaluate: bool = True,
    run: RunSettings = RunSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
    out: str = "runs/mod-vision-report.html",
) -> None:
    """One HTML page: routes, predictions, accuracy and cost at several capacities.

    Example: mod-vision report model=best.pt data=mine.yaml capacity=1,0.5,0.25
    """
    from mod_vision.viz.report import write_report

    yolo, run = opened(model, run)
    data, scoring = data_of(yolo, data, "report", model), ScoreSettings(run.imgsz, run.device, run.threads)
    path = write_report(model, data, shares_of(capacity), images, conf, evaluate, scoring, fresh_path(out))
    print(f"report in {path}; open it in a browser")


def app(
    model: str = "yolo26n-mod-hituav.pt",
    host: str = "127.0.0.1",
    port: int = 7860,
    run: RunSettings = RunSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
) -> None:
    """A local page to drop pictures and videos on, with a slider for the capacity.

    Example: mod-vision app model=best.pt port=8000
    """
    from mod_vision.viz.app import app as serve
    from mod_vision.yolo.run.device import start

    run = start(opened(model, run)[1])
    serve(model, run.imgsz, run.device, host, port)


def convert(
    model: str,
    data: str = "",
    budget: Any = 0,
    speedup: float = 0.0,
    max_loss: float | None = None,
    labels: bool = True,
    router: Any = ("look", "stem"),
    steps: int = 3000,
    force: bool = False,
    zone: str = "",
    size: str = "",
    run: RunSettings = RunSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
    out: str | None = None,
) -> int:
    """A trained dense model into one that runs on windows of large images: fitted, measured, never sold at a loss.

    The table compares it with the dense model, at its size and at smaller ones, on `val` and on this machine. Nothing
    is written if one of those is the better buy, and the exit code is 1; another speedup=, budget= or max_loss= then
    takes the routers that are trained. A conversion that was stopped goes on where it ended. With a zone, only what
    lies in it is looked at, and nothing else counts, for any row of the table.
    Example: mod-vision convert model=best.pt data=mine.yaml speedup=2
    """
    from mod_vision.conversion.convert import convert as routed
    from mod_vision.conversion.wanted import Wanted
    from mod_vision.yolo.model.graph import check_out, save

    if Path(model).suffix.lower() != ".pt":
        raise ValueError(f"model={model}: convert takes a trained checkpoint (.pt); train a new model from a YAML.")
    if size and not zone:
        raise ValueError(f"size={size} is that of the pictures of a zone; add zone=, or did you mean imgsz=?")
    path = Path(out or f"{Path(model).stem}-mod.pt")
    check_out(path, model)
    wanted = Wanted(milliseconds(budget), speedup, max_loss)
    zones = zones_in(zone, size) if zone else None
    yolo, run = opened(model, run)
    folder = path.with_name(f"{path.stem}-convert")
    data = data_of(yolo, data, "convert", model)
    done = routed(yolo, data, wanted, labels, as_list(router), steps, run, folder, zones)
    print(f"\n{done.table()}\n\n{done.verdict.sentence}")
    if not done.verdict.sold and not force:
        print(
            f"nothing was written; the trained routers stay in {folder}, and the same command with force=True, or with "
            "another speedup=, budget= or max_loss=, goes on from them"
        )
        return 1
    path = fresh_path(path)
    save(done.model, path, model)
    done.progress.finish()
    print(f"saved as {path}: yolo predict model={path} imgsz={done.run.imgsz} source=...")
    return 0


def fit(
    model: str,
    data: str = "",
    capacity: float = 0.0,
    thresholds: bool = False,
    imgsz: int = 0,
    out: str | None = None,
) -> None:
    """Routers and bypasses for a model that was trained dense, or thresholds that make it input-adaptive.

    thresholds=True leaves the weights of a routed model as they are: images with much to see get more than `capacity`,
    others less, and the mean of the share of tokens, or of pixels in windows, stays within it.
    Example: mod-vision fit model=last.pt data=mine.yaml capacity=0.5
    """
    from mod_vision.yolo.model.capacity import own_capacity
    from mod_vision.yolo.model.graph import check_out, save
    from mod_vision.yolo.run.device import start

    path = Path(out or f"{Path(model).stem}-{'threshold' if thresholds else 'fit'}.pt")
    check_out(path, model)
    path = fresh_path(path)
    yolo, run = opened(model, RunSettings(imgsz, "cpu", THREADS))
    run, data = start(run), data_of(yolo, data, "fit", model)
    capacity = capacity or own_capacity(yolo)
    save(_adaptive(yolo, data, capacity, run) if thresholds else _fitted(yolo, data, capacity, run), path, model)
    accuracy = f"mod-vision val model={path} data={data} imgsz={run.imgsz}"
    print(f"saved as {path} at capacity {capacity}; for its accuracy: {accuracy}")


def _fitted(yolo: Any, data: str, capacity: float, run: RunSettings) -> Any:
    """Fit routers and bypasses."""
    from mod_vision.yolo.train.fit import fit_routing

    return fit_routing(yolo, data, capacity, run.imgsz)


def _adaptive(yolo: Any, data: str, capacity: float, run: RunSettings) -> Any:
    """Set thresholds, and print what they route."""
    from mod_vision.eval.evaluate import spread, warn_of_new_router
    from mod_vision.yolo.model.windows import head_of
    from mod_vision.yolo.train.calibration import calibrate_thresholds

    warn_of_new_router("", yolo.model)
    for layer, shares in calibrate_thresholds(yolo, data, capacity, run.imgsz).items():
        print(f"{layer:<12}routed {spread(shares)} of the {'tokens' if head_of(yolo.model) is None else 'pixels'}")
        if not max(shares):
            print(
                "warning: no image is worth a window at this budget, so nothing would be found; train the router, or "
                "give a larger capacity",
                flush=True,
            )
    return yolo


def demo(
    steps: int = 400,
    run: RunSettings = RunSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
    out: str = "runs/mod-vision-demo",
) -> None:
    """Convert a detector to windows on embedded drone images, score, draw and export it; no network, no GPU needed.

    Example: mod-vision demo steps=50
    """
    from mod_vision.cli.demo import demo as show

    show(steps, run, fresh_path(out, "summary.txt"))


def tune(
    model: str,
    data: str = "",
    capacity: Any = (0.25, 0.5, 0.75),
    router: Any = ("conv",),
    stages: str = "all",
    epochs: int = 20,
    iterations: int = 12,
    batch: int = 16,
    cfg: str | None = None,
    run: RunSettings = RunSettings(threads=THREADS),  # noqa: B008  # frozen
    out: str = "runs/mod-vision-tune",
) -> None:
    """Train variants by capacity, router and routed stages, for the Pareto front of AP against latency.

    Example: mod-vision tune model=best.pt data=mine.yaml capacity=0.25,0.5 iterations=6
    """
    from mod_vision.tune.trials import tune as sweep_variants
    from mod_vision.viz.pareto_plot import draw_tuned

    data = data_of(opened(model, run)[0], data, "tune", model)
    choices = (shares_of(capacity), as_list(router), as_list(stages))
    sweep = sweep_variants(model, data, *choices, epochs, iterations, batch, cfg, run, out)
    sweep.save()
    draw_tuned(sweep.rows(), sweep.metric(), sweep.folder / "pareto.png")
    print(f"\n{sweep.table()}\nfigures, picture and checkpoints in {sweep.folder}")


def predict_many(
    model: str,
    source: str,
    conf: float = 0.25,
    batch: int = 16,
    workers: int = 2,
    capacity: Any = None,
    imgsz: int = 0,
    device: str = "",
    out: str = "runs/mod-vision-predict",
) -> None:
    """Folders, lists and object stores on many workers, into Parquet; a second run goes on where the first ended.

    Example: mod-vision predict-many model=best.pt source=s3://bucket/photos workers=8
    """
    from mod_vision.yolo.run.device import torch_device
    from mod_vision.yolo.run.predict_many import predict_many as predict

    os.environ[AUTOLOAD] = "1"  # for the workers, which are processes of their own
    default = "cpu" if torch_device("").type == "cpu" else "0"
    predict(model, source, out, imgsz or _size_of(model), conf, batch, workers, device or default, capacity)


COMMANDS = (demo, val, heatmap, report, app, convert, zone, stream, fit, export, bench, tune, predict_many, check)
VERBS: dict[str, Callable[..., int | None]] = {f.__name__.replace("_", "-"): f for f in COMMANDS}
