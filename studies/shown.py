"""What a user is shown at conf=0.25: recall and precision of dense and of windows, by how the router's doubt counts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

from mod_vision.cli.keys import as_list
from mod_vision.cli.main import run_tool
from mod_vision.conversion.parts import divide
from mod_vision.conversion.windowed import without_windows
from mod_vision.files import writable_dir, write_text
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from studies.opponents.scoring import images_of, score_images
from studies.opponents.shares import at_share, plans_of
from studies.opponents.ways import Way, model_way


def shown(
    model: str,
    data: str,
    imgsz: int = 640,
    shares: Any = (0.25, 0.35, 0.45),
    split: str = "val",
    threads: int = 2,
    out: str = "runs/shown",
) -> None:
    """Score dense, and windows without the router's doubt, with it, and with it but for what it doubts of objects.

    Args:
        model: Checkpoint that `mod-vision convert` wrote.
        data: Data YAML.
        imgsz: Image size in px.
        shares: Mean shares of the pixels; thresholds are set on the training images that `convert` kept aside.
        split: Split to report on.
        threads: CPU threads.
        out: Folder of the results.

    Raises:
        ValueError: If the model has no doubt.
    """
    folder = Path(writable_dir(out))
    torch.set_num_threads(threads)
    yolo = load_model(model)
    found = images_of(without_windows(yolo), data, split)
    ways = list(_ways(yolo, divide(data, folder / "parts").kept, imgsz, [float(s) for s in as_list(shares)]))
    lines = ["| | AP | recall | precision |", "| --- | --- | --- | --- |"]
    for way in ways:
        torch.set_num_threads(threads)  # a validation sets its own
        figures = score_images(way, found)
        figures.pop("resamples")
        write_text(folder / f"{way.name.replace(' ', '-')}.json", json.dumps(figures, indent=1))
        lines.append(f"| {way.name} | {' | '.join(f'{100 * figures[k]:.1f}' for k in ('AP', 'recall', 'precision'))} |")
        print(lines[-1], flush=True)
    write_text(folder / "table.md", "\n".join(lines) + "\n")


def _ways(yolo: YOLO, aside: list[Path], imgsz: int, shares: list[float]) -> Iterator[Way]:
    """Yield dense, and windows of each share with each way to count the router's doubt."""
    yield model_way("dense", without_windows(yolo), imgsz, False)
    own: Any = head_of(yolo.model)
    if not own.objectness or not own.doubt:
        raise ValueError("the model has no objectness, or no doubt: give one that `mod-vision convert` wrote.")
    plans = plans_of(yolo, aside, imgsz)
    counted = {
        "not counted": (0.0, 0.0),
        "counted": (own.objectness, 0.0),
        "but of objects": (own.objectness, own.doubt),
    }
    for share in shares:
        for name, (objectness, doubt) in counted.items():
            model = at_share(yolo, plans, share)
            head: Any = head_of(model.model)
            head.objectness, head.doubt = objectness, doubt
            yield model_way(f"{share:g} {name}", model, imgsz, False)


if __name__ == "__main__":
    sys.exit(run_tool(shown, str(__doc__)))
