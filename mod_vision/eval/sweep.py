"""One checkpoint at several capacities: AP against executed GFLOPs and latency."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mod_vision.eval.accuracy.class_table import percent
from mod_vision.eval.cost.latency import doubts
from mod_vision.eval.evaluate import Evaluation, evaluate_models
from mod_vision.eval.pareto import pareto_front
from mod_vision.files import write_text
from mod_vision.routing import check_capacity
from mod_vision.run_settings import ScoreSettings
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.loading import load_model

Sweep = Mapping[float, Evaluation]


def evaluate_capacities(
    model: Any,
    data: str,
    capacities: Sequence[float],
    run: ScoreSettings = ScoreSettings(),  # noqa: B008  # frozen
    **overrides: Any,
) -> Sweep:
    """Score a model at several capacities, by capacity, from much compute to little.

    Args:
        model: `YOLO` object, checkpoint or YAML name.
        data: Data YAML.
        capacities: Shares of tokens in (0, 1].
        run: How it is run and scored.
        overrides: As in `evaluate_model`.

    Raises:
        ValueError: If a capacity is out of range or the model routes nothing.
    """
    yolo = load_model(model)
    models = {}
    for capacity in sorted({check_capacity(c) for c in capacities}, reverse=True):
        models[f"capacity {capacity:g}"] = copy_model(yolo)  # scoring fuses layers, which cannot be undone
        set_capacity(models[f"capacity {capacity:g}"], capacity)
    found = evaluate_models(models, data, run, **overrides)
    return {float(name.split()[-1]): evaluation for name, evaluation in found.items()}


def sweep_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return a row of figures per capacity: AP in [0, 1], None without objects; GFLOPs; and latency."""
    rows = []
    for capacity, found in sweep.items():
        latency = found.cost.latency._asdict()
        row: dict[str, float | None] = {"capacity": capacity, "gflops": found.cost.gflops}
        row |= {f"latency_ms_{key}": value for key, value in latency.items()}
        for kind, part in found.scores.items():
            row |= {f"{kind} {key}": None if value < 0 else value for key, value in part.stats.items()}
        rows.append(row)
    return rows


def sweep_table(sweep: Sweep) -> str:
    """Return the sweep as text, AP in percent; `*` marks the Pareto front of AP against latency."""
    kinds = list(next(iter(sweep.values())).scores)
    head = "".join(f"{f'{kind} AP':>9}{'AP50':>7}{'APs':>7}{'APm':>7}{'APl':>7}" for kind in kinds)
    lines = [f"{'capacity':<11}{'GFLOPs':>9}   {'latency':<24}{head}"]
    fronts = {kind: on_front(sweep, kind, "latency") for kind in kinds}
    for i, (capacity, found) in enumerate(sweep.items()):
        line = f"{capacity:<11g}{found.cost.gflops:>9.2f}   {found.cost.latency!s:<24}"
        for kind, part in found.scores.items():
            star = "*" if fronts[kind][i] else " "
            line += f"{percent(part.stats['AP'], 2):>8}{star}"
            line += "".join(f"{percent(part.stats[key]):>7}" for key in ("AP50", "APs", "APm", "APl"))
        lines.append(line)
    spreads = {f"capacity {capacity:g}": found.cost.latency.spread for capacity, found in sweep.items()}
    return "\n".join([*lines, "* on the Pareto front of AP against latency", *doubts(spreads)])


def cost_of(found: Evaluation, cost: str) -> float:
    """Return the `latency` in milliseconds, or the `gflops`."""
    return found.cost.latency.median if cost == "latency" else found.cost.gflops


def on_front(sweep: Sweep, kind: str, cost: str) -> list[bool]:
    """Return which capacities are on the Pareto front of a kind's AP against a cost; without objects none is."""
    points = [(cost_of(found, cost), found.scores[kind].stats["AP"]) for found in sweep.values()]
    front = set(pareto_front(points))
    return [i in front and ap >= 0 for i, (_, ap) in enumerate(points)]


def save_sweep(sweep: Sweep, folder: Path) -> None:
    """Write `sweep.json` with all figures, and `sweep.csv` with those of the rows."""
    content = [{"capacity": capacity, **found.as_dict()} for capacity, found in sweep.items()]
    write_text(folder / "sweep.json", json.dumps(content, indent=2) + "\n")
    rows, lines = sweep_rows(sweep), io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "sweep.csv", lines.getvalue())
