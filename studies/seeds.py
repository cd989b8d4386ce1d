"""Routers of several seeds on the same network: AP and objects lost at mean shares of the pixels, mean and deviation.

Each is trained as `convert` does it, on a part of the training images; thresholds are set on the rest of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.utils.torch_utils import init_seeds

from mod_vision.cli.keys import as_list
from mod_vision.cli.main import run_tool
from mod_vision.conversion.job import with_router
from mod_vision.conversion.parts import divide
from mod_vision.files import writable_dir, write_text
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.train.fit import labelled_batches
from mod_vision.yolo.train.fit_windows import STEPS, fit_windows
from studies.opponents.asked import check_same, digest
from studies.opponents.scoring import images_of, score_images
from studies.opponents.shares import at_share, plans_of
from studies.opponents.ways import model_way


def seeds(
    model: str,
    data: str,
    imgsz: int = 640,
    seeds: Any = (0, 1, 2),
    shares: Any = (0.25, 0.35, 0.45),
    router: str = "look",
    window: int = 256,
    steps: int = STEPS,
    split: str = "val",
    threads: int = 2,
    out: str = "runs/seeds",
) -> None:
    """Train, score, and write a JSON of each seed and share; what is there is kept.

    Args:
        model: Dense checkpoint.
        data: Data YAML.
        imgsz: Image size in px.
        seeds: Seeds of the first weights of routers and of augmentation; all see the images in the same order.
        shares: Mean shares of the pixels.
        router: Router to train.
        window: Side of windows in px.
        steps: Batches that each router is trained on.
        split: Split to report on.
        threads: CPU threads.
        out: Folder of the results.
    """
    folder = Path(writable_dir(out))
    asked = {"model": digest(model), "data": Path(data).name, "imgsz": imgsz, "router": router, "window": window}
    check_same(folder / "asked.json", asked | {"steps": steps, "split": split})
    torch.set_num_threads(threads)
    dense = load_model(model)
    found = images_of(dense, data, split)
    if not (file := folder / "dense.json").is_file():
        write_text(file, json.dumps(score_images(model_way("dense", dense, imgsz, False), found), indent=1))
    for seed in map(int, as_list(seeds)):
        to_do = {share: folder / f"seed{seed}-{share:g}.json" for share in map(float, as_list(shares))}
        to_do = {share: file for share, file in to_do.items() if not file.is_file()}
        if not to_do:
            continue
        torch.set_num_threads(threads)  # a validation sets its own
        yolo, aside = trained(dense, data, imgsz, seed, router, steps, folder / f"router{seed}")
        head_of(yolo.model).entry.window = window  # type: ignore[union-attr]
        plans = plans_of(yolo, aside, imgsz)
        for share, file in to_do.items():
            way = model_way(f"seed {seed} at {share:g}", at_share(yolo, plans, share), imgsz, False)
            write_text(file, json.dumps({"seed": seed, "asked": share} | score_images(way, found), indent=1))
    found_by_seed = [json.loads(file.read_text()) for file in sorted(folder.glob("seed*.json"))]
    text = table(json.loads((folder / "dense.json").read_text()), found_by_seed)
    write_text(folder / "table.md", text)
    print(text)


def trained(
    dense: YOLO, data: str, imgsz: int, seed: int, router: str, steps: int, folder: Path
) -> tuple[YOLO, list[Path]]:
    """Return the model on windows with a router of a seed, and the images that were kept aside."""
    init_seeds(seed)
    parts, yolo = divide(data, folder), with_router(dense, router)
    fit_windows(yolo.model, labelled_batches(yolo, parts.data, imgsz), steps, resume=folder / "router.pt")
    return yolo, parts.kept


def table(dense: dict[str, Any], found: Sequence[dict[str, Any]]) -> str:
    """Return means and deviations over seeds at each share, as Markdown."""
    lines = ["| asked | seeds | computed | AP | lost, % | small, % |", "| --- | --- | --- | --- | --- | --- |"]
    lines.append(f"| dense | | | {100 * dense['AP']:.1f} | | |")
    for share in sorted({one["asked"] for one in found}):
        own = [one for one in found if one["asked"] == share]
        lost = [one["windows"]["lost"]["router"] for one in own]
        cells = [f"{share:g}", str(len(own)), _spread([one["windows"]["computed_share"] for one in own], 2)]
        cells += [_spread([100 * one["AP"] for one in own]), _spread([100 * one["all"] for one in lost])]
        lines.append(f"| {' | '.join([*cells, _spread([100 * one.get('small', np.nan) for one in lost])])} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean of some figures and their deviation, if there are several."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    sys.exit(run_tool(seeds, str(__doc__)))
