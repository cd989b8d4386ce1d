"""Figures per class, as rows, CSV and text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mod_vision.eval.accuracy.coco import Scores
from mod_vision.text import in_csv, printable

SIZES = ("small", "medium", "large")
FIGURES = {"AP": "ap", "AP50": "ap50", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large"}


def class_rows(scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Return a row per class: name, objects by size, and figures such as `box AP`, None where there are no objects."""
    rows = []
    for parts in zip(*(part.classes for part in scores.values()), strict=True):
        row = {"class": parts[0].name, "objects": parts[0].objects, **{s: getattr(parts[0], s) for s in SIZES}}
        for kind, part in zip(scores, parts, strict=True):
            values = {figure: getattr(part, field) for figure, field in FIGURES.items()}
            row |= {f"{kind} {figure}": None if value < 0 else value for figure, value in values.items()}
        rows.append(row)
    return rows


def class_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of classes as CSV, empty where there are no objects."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: in_csv(value) for key, value in row.items()} for row in rows)
    return lines.getvalue()


def class_table(rows: Sequence[Mapping[str, Any]], max_classes: int) -> str:
    """Return the classes with the most objects as text, figures in percent."""
    present = sorted((row for row in rows if row["objects"]), key=lambda row: -row["objects"])
    figures = [key for key in rows[0] if key not in ("class", "objects", *SIZES)]
    heads = [key if key.endswith(" AP") else key.split()[-1] for key in figures]  # the kind stands before its first one
    widths = [len(head) + 3 if head.endswith(" AP") else 6 for head in heads]
    lines = [f"{'class':<18}{'objects':>8}" + "".join(f"{size:>8}" for size in SIZES)]
    lines[0] += "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))
    for row in present[:max_classes]:
        line = f"{printable(row['class'], 17):<18}{row['objects']:>8}" + "".join(f"{row[size]:>8}" for size in SIZES)
        cells = zip(figures, widths, strict=True)
        lines.append(line + "".join(f"{percent(row[key]):>{width}}" for key, width in cells))
    if len(present) > max_classes:
        lines.append(f"... and {len(present) - max_classes} more classes with objects")
    return "\n".join(lines)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a figure in percent, `-` where there are no objects: None, or below 0 as in COCO's numbers."""
    return "-" if value is None or value < 0 else f"{100 * value:.{digits}f}"
