"""The verbs of `mod-vision`: what each takes and which function does it, imported when it is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mod_vision.cli.keys import as_list, as_value
from mod_vision.files import fresh_path, writable_dir, write_text
from mod_vision.resources import PHOTOS
from mod_vision.run_settings import BenchSettings, RunSettings, ScoreSettings

THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)  # Ultralytics would take one
Settings = TypeVar("Settings", bound=RunSettings)


def _opened(model: str, run: Settings) -> tuple[Any, Settings]:
    """Return the model, and the settings with the size that it was trained at where none is given."""
    from mod_vision.yolo.model.loading import load_model, trained_with

    yolo = load_model(model)
    return yolo, replace(run, imgsz=run.imgsz or trained_with(yolo).imgsz)


def _data_of(yolo: Any, data: str, verb: str, model: str) -> str:
    """Return the data set that is given, or else the one that the model was trained on."""
    from mod_vision.yolo.model.loading import trained_with

    found = data or trained_with(yolo).data
    if not found:
        raise ValueError(f"mod-vision {verb} needs data=: {model} does not tell what it was trained on.")
    return found


def _shares(capacity: Any) -> list[Any]:
    """Return capacities that are joined by commas."""
    return [as_value(c, "capacity") for c in as_list(capacity)]


def _ultralytics_folder(folder: Path) -> dict[str, Any]:
    """Return the arguments that put what Ultralytics' validation writes into a folder of its own."""
    return {"project": str(folder), "name": "ultralytics", "exist_ok": True}


def check() -> None:
    """Versions, what is registered, what is missing and what to do."""
    from mod_vision.cli.check import report

    print(report())


def val(
    model: str = "",
    data: str = "",
    models: str = "",
    capacity: Any = None,
    run: ScoreSettings = ScoreSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
    out: str = "runs/mod-vision-val",
) -> None:
    """COCO metrics, GFLOPs, latency and object recall of the router, of one model or several.

    capacity=1,0.5 sweeps; models=a.pt,b.pt also says how sure their differences are.
    Example: mod-vision val model=best.pt data=mine.yaml capacity=1,0.5,0.25
    """
    from mod_vision.yolo.data.keys import check_split

    several = as_list(models)
    if bool(model) == bool(several):
        raise ValueError("mod-vision val needs model=..., or models=a.pt,b.pt to compare several.")
    folder = writable_dir(fresh_path(out, "evaluation.json", "sweep.json", "compare.json")).resolve()
    check_split(run.split)
    yolo, run = _opened(model or several[0], run)
    data = _data_of(yolo, data, "val", model or several[0])
    if several:
        _compare(several, data, run, folder, capacity)
    elif len(_shares(capacity)) > 1:
        _sweep(model, data, _shares(capacity), run, folder)
    else:
        _evaluate(yolo, data, _shares(capacity), run, folder)


def _evaluate(yolo: Any, data: str, shares: list[Any], run: ScoreSettings, folder: Path) -> None:
    """Score a model at its own capacity, or at one."""
    from mod_vision.eval.evaluate import evaluate_model, save_evaluation
    from mod_vision.yolo.model.capacity import set_capacity

    for capacity in shares:
        set_capacity(yolo, capacity)
    result = evaluate_model(yolo, data, run, **_ultralytics_folder(folder))
    save_evaluation(result, folder / "evaluation.json")
    print(f"{result.report()}\nfigures in {folder / 'evaluation.json'}")


def _sweep(model: str, data: str, shares: list[Any], run: ScoreSettings, folder: Path) -> None:
    """Score a model at several capacities."""
    from mod_vision.eval.sweep import evaluate_capacities, save_sweep, sweep_table
    from mod_vision.viz.pareto import draw_sweep

    sweep = evaluate_capacities(model, data, shares, run, **_ultralytics_folder(folder))
    save_sweep(sweep, folder)
    draw_sweep(sweep, Path(model).stem, folder / "sweep.png")
    print(f"{sweep_table(sweep)}\nfigures and picture in {folder}")


def _compare(models: list[str], data: str, run: ScoreSettings, folder: Path, capacity: Any) -> None:
    """Score models on one split, and bootstrap their differences in AP over its images."""
    from mod_vision.eval.compare import compare

    if capacity is not None:
        raise ValueError("models= are compared at their own capacities; leave out capacity=.")
    found = compare({name: name for name in models}, data, run, **_ultralytics_folder(folder))
    write_text(folder / "compare.json", json.dumps(found.as_dict(), indent=2) + "\n")
    print(f"{found.table()}\nfigures in {folder / 'compare.json'}")


def heatmap(
    source: str,
    model: str = "yolo26n-mod-seg.pt",
    view: str | None = None,
    boxes: bool = False,
    conf: float = 0.25,
    frames: int | None = None,
    imgsz: int = 0,
    out: str = "runs/mod-vision-heatmap",
) -> None:
    """Pictures and videos of what the router sends through the heavy blocks, and what it skips.

    Example: mod-vision heatmap source=street.jpg model=best.pt view=overlay boxes=True
    """
    from mod_vision.viz.heatmap import heatmap as draw

    draw(model, source, imgsz or _size_of(model), out, view, boxes, conf, frames)


def _size_of(model: str) -> int:
    """Return the size that a checkpoint was trained at; an export keeps its own, or takes 640."""
    return 640 if Path(model).suffix == ".onnx" else _opened(model, RunSettings(imgsz=0))[1].imgsz


def report(
    model: str,
    data: str = "",
    capacity: Any = (1.0, 0.75, 0.5, 0.25),
    images: int = 12,
    conf: float = 0.25,
    evaluate: bool = True,
    run: ScoreSettings = ScoreSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
    out: str = "runs/mod-vision-report.html",
) -> None:
    """One HTML page: routes, predictions, accuracy and cost at several capacities.

    Example: mod-vision report model=best.pt data=mine.yaml capacity=1,0.5,0.25
    """
    from mod_vision.viz.report import write_report

    yolo, run = _opened(model, run)
    data = _data_of(yolo, data, "report", model)
    path = write_report(model, data, _shares(capacity), images, conf, evaluate, run, fresh_path(out))
    print(f"report in {path}; open it in a browser")


def app(
    model: str = "yolo26n-mod-seg.pt",
    host: str = "127.0.0.1",
    port: int = 7860,
    run: RunSettings = RunSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
) -> None:
    """A local page to drop pictures and videos on, with a slider for the capacity.

    Example: mod-vision app model=best.pt port=8000
    """
    from mod_vision.viz.app import app as serve
    from mod_vision.yolo.run.device import start

    run = start(_opened(model, run)[1])
    serve(model, run.imgsz, run.device, host, port)


def convert(
    model: str,
    data: str | None = None,
    capacity: float = 0.5,
    blocks: Any = "auto",
    router: str = "conv",
    run: RunSettings = RunSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
    out: str | None = None,
) -> None:
    """A trained dense model into one with routed attention that keeps every weight.

    Example: mod-vision convert model=yolo11s.pt data=mine.yaml capacity=0.5
    """
    from mod_vision.conversion.convert import convert as routed
    from mod_vision.yolo.model.convert import check_out, save
    from mod_vision.yolo.run.device import start

    if Path(model).suffix.lower() != ".pt":
        raise ValueError(f"model={model}: convert takes a trained checkpoint (.pt); train a new model from a YAML.")
    path = Path(out or f"{Path(model).stem}-mod.pt")
    check_out(path, model)
    if isinstance(blocks, str) and blocks not in ("auto", "all"):
        blocks = as_value(f"[{blocks}]", "blocks")
    yolo, run = _opened(model, run)
    save(routed(yolo, capacity, blocks, router, data, start(run).imgsz), path, model)
    print(f"saved as {path}; its routers are untrained, so train on:\n  yolo train model={path} data={data or '...'}")


def fit(
    model: str,
    data: str = "",
    capacity: float = 0.5,
    thresholds: bool = False,
    run: RunSettings = RunSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
    out: str | None = None,
) -> None:
    """Routers and bypasses for a model that was trained dense, or thresholds that make it input-adaptive.

    thresholds=True leaves the weights of a routed model as they are: images with much to see get more than `capacity`,
    others less, and the mean of the share of tokens stays within it.
    Example: mod-vision fit model=last.pt data=mine.yaml capacity=0.5
    """
    from mod_vision.yolo.model.convert import check_out, save
    from mod_vision.yolo.run.device import start

    path = Path(out or f"{Path(model).stem}-{'threshold' if thresholds else 'fit'}.pt")
    check_out(path, model)
    yolo, run = _opened(model, run)
    run, data = start(run), _data_of(yolo, data, "fit", model)
    save(_adaptive(yolo, data, capacity, run) if thresholds else _fitted(yolo, data, capacity, run), path, model)
    accuracy = f"mod-vision val model={path} data={data} imgsz={run.imgsz}"
    print(f"saved as {path} at capacity {capacity}; for its accuracy: {accuracy}")


def _fitted(yolo: Any, data: str, capacity: float, run: RunSettings) -> Any:
    """Fit routers and bypasses."""
    from mod_vision.yolo.train.fit import fit_routing

    return fit_routing(yolo, data, capacity, run.imgsz)


def _adaptive(yolo: Any, data: str, capacity: float, run: RunSettings) -> Any:
    """Set thresholds, and print what they route."""
    from mod_vision.eval.evaluate import spread
    from mod_vision.yolo.train.threshold import calibrate_thresholds

    for layer, shares in calibrate_thresholds(yolo, data, capacity, run.imgsz).items():
        print(f"{layer:<12}routed {spread(shares)} of the tokens")
    return yolo


def export(
    model: str,
    format: str = "onnx",
    capacity: Any = None,
    data: str | None = None,
    images: int = 20,
    batch: int = 1,
    dynamic: bool = False,
    quantize: Any = None,
    run: RunSettings = RunSettings(imgsz=0, threads=THREADS),  # noqa: B008  # frozen
) -> None:
    """To ONNX, OpenVINO, ... by `yolo export`, and checked against eager: outputs and routes on photos.

    Example: mod-vision export model=best.pt format=openvino capacity=0.5 data=mine.yaml
    """
    from mod_vision.yolo.export.check import check_export
    from mod_vision.yolo.export.exporter import check_batches, export_model
    from mod_vision.yolo.run.device import start

    run = start(_opened(model, run)[1])
    args = {"batch": batch, "dynamic": dynamic, "quantize": quantize, "data": data if quantize else None}
    given = {key: value for key, value in args.items() if value}
    done = export_model(model, format, run.imgsz, capacity, run.device, **given)
    check = check_export(*done, check_batches(data or PHOTOS, images, run.imgsz, batch, dynamic))
    print(f"{done.path}: {check}")
    if not check.passed and quantize in (None, 32, "fp32", "w32a32"):
        raise ValueError(f"{done.path} does not compute what the model does; do not deploy it.")


def bench(
    model: str = "yolo26n-mod.yaml",
    capacity: Any = (0.5, 0.25),
    baselines: Any = ("yolo26n.yaml",),
    by: str = "model",
    run: BenchSettings = BenchSettings(threads=THREADS),  # noqa: B008  # frozen
    out: str | None = None,
) -> None:
    """Speed against the dense baseline and others, in turn: by=model, backbone, layer, step (of a training), profile.

    Example: mod-vision bench model=best.pt capacity=0.5,0.25 backend=onnx threads=4
    """
    from mod_vision.eval.cost.benchmark import save_figures
    from mod_vision.eval.cost.conditions import conditions
    from mod_vision.routing import check_capacity
    from mod_vision.viz.speed import draw_speed

    measures = {"model": _whole, "backbone": _whole, "layer": _layers, "step": _steps, "profile": _profiles}
    if by not in measures:
        raise ValueError(f"by must be model, backbone, layer, step or profile, got {by!r}.")
    if measures[by] is not _whole and (run.backend, run.dtype) != ("eager", "float32"):
        raise ValueError(f"by={by} measures backend=eager in float32.")
    folder = writable_dir(fresh_path(out, "bench.json")) if out else None
    shares = [check_capacity(c) for c in _shares(capacity)]
    held = conditions(run)
    text = ", ".join(f"{key} {value}" for key, value in held.items())
    print(text)
    rows, table, figures = measures[by](model, shares, as_list(baselines), run, by)
    print(table)
    if folder is None:
        return
    save_figures(figures, {**held, "model": model, "by": by}, folder / "bench.json")
    if measures[by] is _whole:
        draw_speed(rows, text, folder / "bench.png")
    print(f"figures in {folder}")


Measured = tuple[list[Any], str, list[dict[str, Any]]]  # rows, their table, and figures for JSON


def _whole(model: str, shares: list[float], baselines: list[str], run: BenchSettings, by: str) -> Measured:
    """Time whole models, or their backbones."""
    from mod_vision.eval.cost.benchmark import as_figures, benchmark, table

    rows = benchmark(model, shares, baselines, run, by)
    return rows, table(rows), as_figures(rows)


def _layers(model: str, shares: list[float], baselines: list[str], run: BenchSettings, by: str) -> Measured:
    """Time each routed layer."""
    from mod_vision.eval.cost.layer_benchmark import benchmark_layers, layer_table

    rows = benchmark_layers(model, shares, run)
    return rows, layer_table(rows), [{**row._asdict(), "efficiency": row.efficiency} for row in rows]


def _steps(model: str, shares: list[float], baselines: list[str], run: BenchSettings, by: str) -> Measured:
    """Time a training step."""
    from mod_vision.eval.cost.step_benchmark import benchmark_step, step_table

    rows = benchmark_step(model, shares, baselines, run)
    return rows, step_table(rows), [row._asdict() for row in rows]


def _profiles(model: str, shares: list[float], baselines: list[str], run: BenchSettings, by: str) -> Measured:
    """Profile the steps of each routed layer."""
    from mod_vision.eval.cost.layer_profile import profile_layers, profile_table

    rows = profile_layers(model, shares, run)
    return rows, profile_table(rows), [row._asdict() for row in rows]


def demo(
    epochs: int = 6,
    run: RunSettings = RunSettings(imgsz=320, threads=THREADS),  # noqa: B008  # frozen
    out: str = "runs/mod-vision-demo",
) -> None:
    """Train, evaluate, draw and export a routed segmenter on embedded photos; no network, no GPU needed.

    Example: mod-vision demo epochs=2
    """
    from mod_vision.cli.demo import demo as show

    show(epochs, run, fresh_path(out, "summary.txt"))


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
    from mod_vision.tune.sweep import tune as sweep_variants
    from mod_vision.viz.pareto import draw_tuned

    data = _data_of(_opened(model, run)[0], data, "tune", model)
    choices = (_shares(capacity), as_list(router), as_list(stages))
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
    device: str = "cpu",
    out: str = "runs/mod-vision-predict",
) -> None:
    """Folders, lists and object stores on many workers, into Parquet; a second run goes on where the first ended.

    Example: mod-vision predict-many model=best.pt source=s3://bucket/photos workers=8
    """
    from mod_vision.yolo.run.predict_many import predict_many as predict

    predict(model, source, out, imgsz or _size_of(model), conf, batch, workers, device, capacity)


COMMANDS = (demo, val, heatmap, report, app, convert, fit, export, bench, tune, predict_many, check)
VERBS: dict[str, Callable[..., None]] = {f.__name__.replace("_", "-"): f for f in COMMANDS}
