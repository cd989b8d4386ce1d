"""The baselines of a study, each a model YAML made from the routed one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.resources import find_shipped
from mod_vision.yolo.blocks.stage_row import StageRow
from mod_vision.yolo.model.loading import load_model

ModelYaml = dict[str, Any]
CLOSE = 0.03  # relative gap in GFLOPs
Make = Callable[[ModelYaml, str, int], ModelYaml]


@dataclass(frozen=True)
class Row:
    """One baseline: how it is made from the routed model, and the capacities at which its checkpoint is scored.

    Attributes:
        name: Name in tables and of files.
        make: Gives the model YAML from the routed one, its file name, such as yolo26n-mod-seg.yaml, and the image size.
        capacities: Capacities to score at, None for the model as it was trained.
        start: Row whose training it takes over, with its own routing fitted to it, instead of a training of its own.
        tuned: Whether it is trained on for a few epochs after that.
    """

    name: str
    make: Make
    capacities: tuple[float | None, ...] = (None,)
    start: str | None = None
    tuned: bool = True


def mod(**settings: Any) -> Make:
    """Return how to make a model with other settings in its `mod:` section; `loss` is merged key by key."""

    def make(d: ModelYaml, name: str, imgsz: int) -> ModelYaml:
        section = {**(d.get("mod") or {}), **settings}
        section["loss"] = {**((d.get("mod") or {}).get("loss") or {}), **settings.get("loss", {})}
        return {**deepcopy(d), "mod": section}

    return make


def iso_flop(capacity: float) -> Make:
    """Return how to make the dense model with fewer blocks that costs what the routed one does at `capacity`.

    Of those that cost the same to 3 % (else of the closest), the one with the most even loss of blocks.
    """

    def make(d: ModelYaml, name: str, imgsz: int) -> ModelYaml:
        target = gflops(mod(capacity=capacity)(d, name, imgsz), name, imgsz)
        least, *one_more = _shallowest(d)
        base = gflops(least, name, imgsz)
        per_step = [gflops(baseline, name, imgsz) - base for baseline in one_more]  # blocks of a stage cost the same

        def misfit(baseline: ModelYaml) -> tuple[float, float]:
            steps = [n / low - 1 for n, low in zip(_depths(baseline), _depths(least), strict=True)]
            cost = base + sum(n * more for n, more in zip(steps, per_step, strict=True))
            gap = abs(cost / target - 1)
            shares = [new / old for new, old in zip(_depths(baseline), _depths(d), strict=True)]
            return max(gap - CLOSE, 0.0), max(shares) - min(shares)

        return min(_shallower(d), key=misfit)

    return make


def plain(scale: str) -> Make:
    """Return how to find Ultralytics' own model of the same family at another scale."""

    def make(d: ModelYaml, name: str, imgsz: int) -> ModelYaml:
        found = re.match(r"(yolo\d+)[nslmx]-mod(-hybrid|-attention|-vit-[tsb])?(-seg)?", name)
        if found is None:
            raise ValueError(f"{name} is not named after a model of Ultralytics, such as yolo26n-mod-hybrid.yaml.")
        return {"model": f"{found[1]}{scale}{found[3] or ''}.yaml"}

    return make


CAPACITIES = (0.75, 0.5, 0.25)
ELASTIC = [0.25, 0.75]


def _from_dense(name: str, *capacities: float, **settings: Any) -> Row:
    """Return a row that is trained dense first, then routed."""
    return Row(name, mod(**settings), capacities or (None,), start="dense")


ROWS = {
    row.name: row
    for row in (
        Row("dense", mod(capacity=1.0)),
        Row("dense-untuned", mod(capacity=1.0), start="dense", tuned=False),
        Row("fitted-untuned", mod(), CAPACITIES, start="dense", tuned=False),
        *(_from_dense(f"routed-{c}", capacity=c) for c in CAPACITIES),
        _from_dense("elastic", *CAPACITIES, elastic=ELASTIC),
        *(_from_dense(f"random-{c}", capacity=c, router="random") for c in CAPACITIES),
        _from_dense("linear-0.5", capacity=0.5, router="linear"),
        _from_dense("linear-0.25", capacity=0.25, router="linear"),
        _from_dense("norm-0.5", capacity=0.5, router="norm"),
        _from_dense("contrast-0.5", capacity=0.5, router="contrast"),
        _from_dense("grid-0.5", capacity=0.5, router="grid"),
        _from_dense("no-guide-0.5", capacity=0.5, loss={"guide": 0}),
        _from_dense("no-z-0.5", capacity=0.5, loss={"z": 0}),
        Row("never-dense-0.5", mod(capacity=0.5)),
        Row("warmup-0.5", mod(capacity=0.5, warmup=0.75)),
        *(Row(f"isoflop-{c}", iso_flop(c)) for c in CAPACITIES),
        Row("yolo-n", plain("n")),
        Row("yolo-s", plain("s")),
    )
}


def read_model(name: str) -> ModelYaml:
    """Return a model YAML of this package by the name with its scale letter.

    Raises:
        ValueError: If there is none, or it has no stage whose blocks the isoFLOP baseline could do without.
    """
    file = find_shipped(name) or find_shipped(re.sub(r"^(yolo\d+)[nslmx]", r"\1", name))
    if file is None:
        raise ValueError(
            f"there is no model {name!r}; see cfg/models, and write the scale, as in yolo26n-mod-hybrid.yaml."
        )
    d: ModelYaml = yaml.safe_load(file.read_text())
    if not any(row[2] == StageRow.row_name for row in d["backbone"]):
        raise ValueError(
            f"{name} has no {StageRow.row_name} row; blocks of these are taken away for its isoFLOP baselines."
        )
    return d


def gflops(d: ModelYaml, name: str, imgsz: int) -> float:
    """Return the executed GFLOPs of a model YAML; the file name gives the scale."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(yaml.safe_dump(d))
        return executed_gflops(load_model(path).model.eval().fuse(verbose=False), imgsz)


def _depths(d: ModelYaml) -> list[int]:
    """Return the repeats of the stages, before the scale's depth."""
    return [row[1] for row in d["backbone"] if row[2] == StageRow.row_name]


def _shallower(d: ModelYaml) -> Iterator[ModelYaml]:
    """Yield the dense models with any smaller number of blocks in each stage, as the smallest scales have them."""
    step, depths = _step(d), _depths(d)
    for repeats in product(*(range(step, n + 1, step) for n in depths)):
        yield _with_depths(d, repeats)


def _shallowest(d: ModelYaml) -> Iterator[ModelYaml]:
    """Yield the dense model with one step of blocks in each stage, and for each stage the one with a step more."""
    step, stages = _step(d), range(len(_depths(d)))
    yield _with_depths(d, [step for _ in stages])
    for stage in stages:
        yield _with_depths(d, [2 * step if i == stage else step for i in stages])


def _step(d: ModelYaml) -> int:
    """Return the least number of repeats that is a block at all scales."""
    return round(1 / min(scale[0] for scale in d["scales"].values()))


def _with_depths(d: ModelYaml, repeats: Sequence[int]) -> ModelYaml:
    """Return the dense model with these repeats of its stages."""
    baseline = mod(capacity=1.0)(d, "", 0)
    for row, n in zip((row for row in baseline["backbone"] if row[2] == StageRow.row_name), repeats, strict=True):
        row[1] = n
    return baseline
