"""The verbs of `mod-vision`: what each takes and which function does it, imported when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mod_vision.keys import as_list, as_value
from mod_vision.resources import PHOTOS


def check() -> None:
    """Print versions, what is registered, what is missing and what to do."""
    from mod_vision.check import report

    print(report())


def val(
    model: str,
    data: str,
    capacity: Any = None,
    imgsz: int = 640,
    batch: int = 8,
    device: str = "cpu",
    split: str = "val",
    annotations: str | None = None,
    engine: str = "pycocotools",
    threads: int = 2,
    out: str = "runs/mod-vision-val",
) -> None:
    """COCO metrics, cost and routing truth; capacity=1,0.5 sweeps; engine=faster for many images."""
    import torch

    from mod_vision.eval.evaluate import evaluate_model, save_evaluation
    from mod_vision.eval.sweep import evaluate_capacities, save_sweep, sweep_table
    from mod_vision.files import writable_dir
    from mod_vision.viz.sweep import draw_sweep

    folder = writable_dir(out).resolve()
    torch.set_num_threads(threads)
    shares = [as_value(c, "capacity") for c in as_list(capacity)]
    where = (imgsz, batch, device, split, annotations, engine)
    run = _ultralytics_folder(folder)
    if len(shares) > 1:
        sweep = evaluate_capacities(model, data, shares, *where, **run)
        save_sweep(sweep, folder)
        draw_sweep(sweep, Path(model).stem, folder / "sweep.png")
        print(f"{sweep_table(sweep)}\nfigures and picture in {folder}")
        return
    if shares:
        (result,) = evaluate_capacities(model, data, shares, *where, **run).values()
    else:
        result = evaluate_model(model, data, *where, **run)
    save_evaluation(result, folder / "evaluation.json")
    print(f"{result.report()}\nfigures in {folder / 'evaluation.json'}")


def compare(
    models: str,
    data: str,
    resamples: int = 1000,
    seed: int = 1,
    imgsz: int = 640,
    batch: int = 8,
    device: str = "cpu",
    split: str = "val",
    annotations: str | None = None,
    engine: str = "pycocotools",
    threads: int = 2,
    out: str = "runs/mod-vision-compare",
) -> None:
    """Score models=a.pt,b.pt on one split, and bootstrap their differences in AP over its images."""
    import json

    import torch

    from mod_vision.eval.compare import compare as run
    from mod_vision.files import writable_dir, write_text

    folder = writable_dir(out).resolve()
    torch.set_num_threads(threads)
    named = {name: name for name in as_list(models)}
    where = (imgsz, batch, device, split, annotations, engine)
    found = run(named, data, resamples, seed, *where, **_ultralytics_folder(folder))
    write_text(folder / "compare.json", json.dumps(found.as_dict(), indent=2) + "\n")
    print(f"{found.table()}\nfigures in {folder / 'compare.json'}")


def _ultralytics_folder(folder: Path) -> dict[str, Any]:
    """Return the arguments that put what Ultralytics' validation writes into a folder of its own."""
    return {"project": str(folder), "name": "ultralytics", "exist_ok": True}


def heatmap(
    source: str,
    model: str = "yolo26n-mod-seg.pt",
    imgsz: int = 640,
    view: str | None = None,
    boxes: bool = False,
    conf: float = 0.25,
    frames: int | None = None,
    cmap: str = "viridis",
    out: str = "runs/mod-vision-heatmap",
) -> None:
    """Draw which patches the router sends through the heavy blocks; view=page, overlay, side or mask."""
    from mod_vision.viz.heatmap import heatmap as draw

    draw(model, source, imgsz, out, view, boxes, conf, frames, cmap)


def app(
    model: str = "yolo26n-mod-seg.pt",
    imgsz: int = 640,
    device: str = "cpu",
    threads: int = 2,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_mb: int = 50,
) -> None:
    """Serve a local page: drop a picture or a video, move the capacity, see routes and cost."""
    import torch

    from mod_vision.viz.app import app as run

    torch.set_num_threads(threads)
    run(model, imgsz, device, host, port, max_mb)


def report(
    model: str,
    data: str,
    capacity: Any = (1.0, 0.75, 0.5, 0.25),
    images: int = 12,
    imgsz: int = 640,
    conf: float = 0.25,
    batch: int = 8,
    device: str = "cpu",
    threads: int = 2,
    evaluate: bool = True,
    out: str = "runs/mod-vision-report.html",
) -> None:
    """Write one HTML page about what a model skips at several capacities; evaluate=False is quick."""
    import torch

    from mod_vision.viz.report import write_report

    torch.set_num_threads(threads)
    shares = [as_value(c, "capacity") for c in as_list(capacity)]
    path = write_report(model, data, shares, images, imgsz, conf, batch, device, evaluate, out)
    print(f"report in {path}; open it in a browser")


def bench(
    model: str = "yolo26n-mod.yaml",
    capacity: Any = (0.5, 0.25),
    imgsz: int = 640,
    batch: int = 1,
    threads: int = 2,
    device: str = "cpu",
    repeats: int = 15,
    rivals: Any = ("yolo26n.yaml",),
    backend: str = "eager",
    dtype: str = "float32",
    by: str = "model",
    out: str | None = None,
) -> None:
    """Time a routed model, its dense twin and rivals in turn; by=backbone, layer, step (of a training) or profile."""
    from mod_vision.eval.benchmark import as_figures, benchmark, conditions, save_figures, table
    from mod_vision.eval.layer_benchmark import benchmark_layers, layer_table
    from mod_vision.eval.layer_profile import profile_layers, profile_table
    from mod_vision.eval.step_benchmark import benchmark_step, step_table
    from mod_vision.files import writable_dir
    from mod_vision.routing import check_capacity
    from mod_vision.viz.speed import draw_speed

    whole = by in ("model", "backbone")
    if by not in ("model", "backbone", "layer", "step", "profile"):
        raise ValueError(f"by must be model, backbone, layer, step or profile, got {by!r}.")
    if not whole and (backend, dtype) != ("eager", "float32"):
        raise ValueError(f"by={by} measures backend=eager in float32.")
    folder = writable_dir(out) if out else None
    capacities, others = [check_capacity(as_value(c, "capacity")) for c in as_list(capacity)], as_list(rivals)
    held = conditions(imgsz, batch, threads, device, repeats, backend, dtype)
    text = ", ".join(f"{key} {value}" for key, value in held.items())
    print(text)
    if by == "layer":
        layers = benchmark_layers(model, capacities, imgsz, batch, threads, device, repeats)
        told, figures = layer_table(layers), [{**row._asdict(), "efficiency": row.efficiency} for row in layers]
    elif by == "step":
        steps = benchmark_step(model, capacities, imgsz, batch, threads, device, repeats, others)
        told, figures = step_table(steps), [row._asdict() for row in steps]
    elif by == "profile":
        profiles = profile_layers(model, capacities, imgsz, batch, threads, device, repeats)
        told, figures = profile_table(profiles), [row._asdict() for row in profiles]
    else:
        rows = benchmark(model, capacities, imgsz, batch, threads, device, repeats, others, backend, dtype, by)
        told, figures = table(rows), as_figures(rows)
    print(told)
    if folder is None:
        return
    save_figures(figures, {**held, "model": model, "by": by}, folder / "bench.json")
    if whole:
        draw_speed(rows, text, folder / "bench.png")
    print(f"figures in {folder}")


def export(
    model: str,
    format: str = "onnx",
    imgsz: int = 640,
    batch: int = 1,
    capacity: Any = None,
    data: str | None = None,
    images: int = 20,
    dynamic: bool = False,
    quantize: Any = None,
    device: str = "cpu",
    threads: int = 2,
) -> None:
    """`yolo export`, then the export against eager on photos (those of `data`): outputs and routed tokens."""
    import torch

    from mod_vision.eval.export_check import check_export
    from mod_vision.routing.capacity import ceil_div
    from mod_vision.yolo.export import export_model, input_tensors
    from mod_vision.yolo.images import round_imgsz, some_images

    torch.set_num_threads(threads)
    args = {"batch": batch, "dynamic": dynamic, "quantize": quantize, "data": data if quantize else None}
    done = export_model(model, format, imgsz, capacity, device, **{key: value for key, value in args.items() if value})
    files = some_images(data or PHOTOS, images, "val")
    photos = torch.cat(input_tensors(files, round_imgsz(imgsz)))
    filled = torch.arange(ceil_div(len(photos), batch) * batch) % len(photos)  # the last batch with the first photos
    batches = list(photos[filled].split(batch))
    if dynamic:  # another size and another batch
        batches.append(photos[: batch + 1, :, : round_imgsz(imgsz // 2)].contiguous())
    check = check_export(*done, batches)
    print(f"{done.path}: {check}")
    if not check.passed and quantize in (None, 32, "fp32", "w32a32"):
        raise ValueError(f"{done.path} does not compute what the model does; do not deploy it.")


def convert(
    model: str,
    capacity: float = 0.5,
    blocks: Any = "auto",
    router: str = "conv",
    data: str | None = None,
    imgsz: int = 640,
    threads: int = 2,
    out: str | None = None,
) -> None:
    """Turn a trained dense model into a routed one that keeps every weight."""
    import torch

    from mod_vision.eval.conversion import convert as run
    from mod_vision.yolo.convert import check_out, save

    if Path(model).suffix.lower() != ".pt":
        raise ValueError(f"model={model}: convert takes a trained checkpoint (.pt); train a new model from a YAML.")
    path = Path(out or f"{Path(model).stem}-mod.pt")
    check_out(path, model)
    torch.set_num_threads(threads)
    if isinstance(blocks, str) and blocks not in ("auto", "all"):
        blocks = as_value(f"[{blocks}]", "blocks")
    routed = run(model, capacity, blocks, router, data, imgsz)
    save(routed, path, model)
    print(f"saved as {path}; its routers are untrained, so train on:\n  yolo train model={path} data={data or '...'}")


def fit(
    model: str, data: str, capacity: float = 0.5, imgsz: int = 640, threads: int = 2, out: str | None = None
) -> None:
    """Route a model that was trained dense: fit its routers and the ways around, and keep all other weights."""
    import torch

    from mod_vision.yolo.convert import check_out, save
    from mod_vision.yolo.fit import fit_routing

    path = Path(out or f"{Path(model).stem}-fit.pt")
    check_out(path, model)
    torch.set_num_threads(threads)
    save(fit_routing(model, data, capacity, imgsz), path, model)
    accuracy = f"mod-vision val model={path} data={data} imgsz={imgsz}"
    print(f"saved as {path} at capacity {capacity}; for its accuracy: {accuracy}")


def threshold(
    model: str, data: str, capacity: float = 0.5, imgsz: int = 640, threads: int = 2, out: str | None = None
) -> None:
    """Let compute follow the image: thresholds that keep the mean share of tokens within `capacity`."""
    import torch

    from mod_vision.eval.evaluate import spread
    from mod_vision.yolo.convert import check_out, save
    from mod_vision.yolo.images import load_model
    from mod_vision.yolo.threshold import calibrate_thresholds

    path = Path(out or f"{Path(model).stem}-threshold.pt")
    check_out(path, model)
    torch.set_num_threads(threads)
    yolo = load_model(model)
    for layer, shares in calibrate_thresholds(yolo, data, capacity, imgsz).items():
        print(f"{layer:<12}routed {spread(shares)} of the tokens")
    save(yolo, path, model)
    print(f"saved as {path}; for its accuracy: mod-vision val model={path} data={data} imgsz={imgsz}")


def demo(
    epochs: int = 6, imgsz: int = 320, device: str = "cpu", threads: int = 2, out: str = "runs/mod-vision-demo"
) -> None:
    """Run the whole path on the embedded photos."""
    from mod_vision.demo import demo as run

    run(epochs, imgsz, device, threads, out)


def tune(
    model: str,
    data: str,
    capacity: Any = (0.25, 0.5, 0.75),
    router: Any = ("conv",),
    stages: str = "all",
    imgsz: int = 640,
    epochs: int = 20,
    iterations: int = 12,
    batch: int = 16,
    device: str = "cpu",
    threads: int = 2,
    cfg: str | None = None,
    out: str = "runs/mod-vision-tune",
) -> None:
    """Train variants by capacity, router and routed stages, and print the Pareto front of AP against latency."""
    from mod_vision.tune.sweep import tune as run
    from mod_vision.viz.pareto import Mark, Panel, draw_pareto
    from mod_vision.yolo.variants import Candidate

    shares, routers, rows = [as_value(c, "capacity") for c in as_list(capacity)], as_list(router), as_list(stages)
    sweep = run(model, data, shares, routers, rows, imgsz, epochs, iterations, batch, device, threads, cfg, out)
    sweep.save()
    marks = []
    for row in sweep.rows():
        kind = Candidate(row["capacity"], row["router"], row["stages"]).kind
        marks.append(Mark(1 / row["speed_up"], row["ap"], f"{row['capacity']:g}", kind, row["pareto"]))
    panel = Panel("latency relative to the dense baseline", f"{sweep.metric()} in percent", marks)
    draw_pareto([panel], sweep.folder / "pareto.png")
    print(f"\n{sweep.table()}\nfigures, picture and checkpoints in {sweep.folder}")


def predict_many(
    model: str,
    source: str,
    out: str = "runs/mod-vision-predict",
    imgsz: int = 640,
    conf: float = 0.25,
    batch: int = 16,
    workers: int = 2,
    device: str = "cpu",
    capacity: Any = None,
) -> None:
    """Predict a folder, a list or an object store on many workers; Parquet, resumable."""
    from mod_vision.predict_many import predict_many as run

    run(model, source, out, imgsz, conf, batch, workers, device, capacity)


COMMANDS = (demo, check, val, compare, heatmap, report, app, convert, fit, threshold, bench, export, tune, predict_many)
VERBS: dict[str, Callable[..., None]] = {f.__name__.replace("_", "-"): f for f in COMMANDS}
