"""`mod-vision val`: one model, one at several capacities, or several models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mod_vision.cli.arguments import THREADS, data_of, opened, shares_of
from mod_vision.cli.keys import as_list
from mod_vision.files import fresh_path, writable_dir, write_text
from mod_vision.run_settings import ScoreSettings
from mod_vision.text import printable


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
    from mod_vision.yolo.data.description import check_split
    from mod_vision.yolo.run.validate import check_task

    several, given = as_list(models), run.imgsz
    if bool(model) == bool(several):
        raise ValueError("mod-vision val needs model=..., or models=a.pt,b.pt to compare several.")
    folder = writable_dir(fresh_path(out, "evaluation.json", "sweep.json", "compare.json")).resolve()
    check_split(run.split)
    yolo, run = opened(model or several[0], run)
    check_task(yolo)
    if several and not given:
        _check_sizes(several)
    data = data_of(yolo, data, "val", model or several[0])
    if several:
        _compare(several, data, run, folder, capacity)
    elif len(shares_of(capacity)) > 1:
        _sweep(yolo, Path(model).stem, data, shares_of(capacity), run, folder)
    else:
        _evaluate(yolo, data, shares_of(capacity), run, folder)


def _check_sizes(models: list[str]) -> None:
    """Refuse models that were trained at different sizes, where none is given."""
    sizes = {name: opened(name, ScoreSettings(imgsz=0))[1].imgsz for name in models}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{printable(name)} {size}" for name, size in sizes.items())
        raise ValueError(f"the models were trained at different sizes ({shown}); give the one to compare at, imgsz=...")


def _evaluate(yolo: Any, data: str, shares: list[Any], run: ScoreSettings, folder: Path) -> None:
    """Score a model at its own capacity, or at one."""
    from mod_vision.eval.evaluate import evaluate_model, save_evaluation
    from mod_vision.yolo.model.capacity import set_capacity

    for capacity in shares:
        set_capacity(yolo, capacity)
    result = evaluate_model(yolo, data, run, **_ultralytics_folder(folder))
    save_evaluation(result, folder / "evaluation.json")
    print(f"{result.report()}\nfigures in {folder / 'evaluation.json'}")


def _sweep(yolo: Any, name: str, data: str, shares: list[Any], run: ScoreSettings, folder: Path) -> None:
    """Score a model at several capacities."""
    from mod_vision.eval.sweep import evaluate_capacities, save_sweep, sweep_table
    from mod_vision.viz.pareto_plot import draw_sweep

    sweep = evaluate_capacities(yolo, data, shares, run, **_ultralytics_folder(folder))
    save_sweep(sweep, folder)
    draw_sweep(sweep, name, folder / "sweep.png")
    print(f"{sweep_table(sweep)}\nfigures and picture in {folder}")


def _compare(models: list[str], data: str, run: ScoreSettings, folder: Path, capacity: Any) -> None:
    """Score models on one split, and bootstrap their differences in AP over its images."""
    from mod_vision.eval.compare import compare

    if capacity is not None:
        raise ValueError("models= are compared at their own capacities; leave out capacity=.")
    found = compare({name: name for name in models}, data, run, **_ultralytics_folder(folder))
    write_text(folder / "compare.json", json.dumps(found.as_dict(), indent=2) + "\n")
    print(f"{found.table()}\nfigures in {folder / 'compare.json'}")


def _ultralytics_folder(folder: Path) -> dict[str, Any]:
    """Return the arguments that put what Ultralytics' validation writes into a folder of its own."""
    return {"project": str(folder), "name": "ultralytics", "exist_ok": True}
