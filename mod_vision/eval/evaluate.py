"""`mod-vision val`: accuracy, cost and object recall of the router of one model on one data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from mod_vision.eval.accuracy.class_table import class_csv, class_rows, class_table, percent
from mod_vision.eval.accuracy.coco import Scorer, Scores
from mod_vision.eval.accuracy.matching import check_engine
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.eval.cost.image_cost import ImageCosts
from mod_vision.eval.cost.latency import Latency, as_deployed, doubts, paired_latency
from mod_vision.files import write_text
from mod_vision.routing import routed_layers
from mod_vision.routing.lost_objects import LostObjects
from mod_vision.routing.recall import OBJECTS, REST, RouterRecall
from mod_vision.run_settings import ScoreSettings
from mod_vision.text import printable
from mod_vision.yolo.data.description import check_split
from mod_vision.yolo.export.exporter import input_tensors
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.trust import check_data
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.device import round_imgsz, start, torch_device
from mod_vision.yolo.run.images import some_images
from mod_vision.yolo.run.validate import check_task, validate

MAX_CLASSES_SHOWN = 12
COST_IMAGES = 8  # where the cost depends on the image


@dataclass
class Cost:
    """Cost of one image: executed GFLOPs, and latency in milliseconds; `dense_` at capacity 1.

    Where compute is input-adaptive, the mean GFLOPs of all images at their input sizes.
    """

    gflops: float
    dense_gflops: float
    latency: Latency
    dense_latency: Latency
    threads: int
    device: str


@dataclass
class Evaluation:
    """Accuracy, cost and object recall of the router.

    Attributes:
        scores: COCO's figures for `box`, and for `mask` if the model segments.
        cost: Executed GFLOPs and latency, beside the dense baseline's.
        recall: Routed share of tokens per layer and group.
        shares: Per layer, the routed share of tokens of each image, in the order of `files`.
        objects: Per layer, of each image how many object tokens were routed, and how many there are.
        files: File names of the images that were scored.
        names: Class names by index.
        gflops: Executed GFLOPs of each image, in the order of `files`; empty where all images cost the same.
        lost: Objects that the windows lose, for a model that runs on windows.
    """

    scores: dict[str, Scores]
    cost: Cost
    recall: RouterRecall
    shares: dict[str, list[float]]
    objects: dict[str, list[tuple[int, int]]]
    files: list[str]
    names: dict[int, str]
    gflops: list[float] = field(default_factory=list)
    lost: LostObjects | None = None

    @property
    def objects_scored(self) -> int:
        """Objects that count, of all classes."""
        return sum(figures.objects for figures in self.scores["box"].classes)

    @property
    def box(self) -> dict[str, float]:
        """COCO's twelve numbers for boxes."""
        return self.scores["box"].stats

    @property
    def mask(self) -> dict[str, float] | None:
        """The same for masks, None for a detection model."""
        return self.scores["mask"].stats if "mask" in self.scores else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain figures, for JSON."""
        return {
            "images": len(self.files),
            "box": self.box,
            "mask": self.mask,
            "classes": class_rows(self.scores),
            "cost": asdict(self.cost),
            **self.recall.result().figures(),
            "routed_share_by_image": {
                layer: dict(zip(self.files, shares, strict=True)) for layer, shares in self.shares.items()
            },
            **({"windows": self.lost.result()} if self.lost and self.lost.windows else {}),
            **({"gflops_by_image": dict(zip(self.files, self.gflops, strict=True))} if self.gflops else {}),
        }

    def report(self) -> str:
        """Return the figures as text."""
        cost, lines = self.cost, [f"{len(self.files)} images, COCO metrics"]
        for name, part in self.scores.items():
            lines.append(f"  {name:<5}" + "  ".join(f"{key} {percent(value)}" for key, value in part.stats.items()))
        lines += [
            class_table(class_rows(self.scores), MAX_CLASSES_SHOWN),
            f"executed GFLOPs  {cost.gflops:.2f}, dense baseline {cost.dense_gflops:.2f}",
            f"latency          {cost.latency}, dense baseline {cost.dense_latency}, batch 1, {cost.device}, "
            f"{cost.threads} threads",
        ]
        if self.gflops:
            lines[-2] += f": means of all images, {min(self.gflops):.2f} to {max(self.gflops):.2f}"
            lines[-1] += f", mean of {min(COST_IMAGES, len(self.files))} images on squares"
        lines += doubts({"latency": cost.latency.spread, "latency of the dense baseline": cost.dense_latency.spread})
        if self.lost and self.lost.windows:
            lines.append(self.lost.table())
        if self.recall.total:
            lines.append(self.recall.table(None if len(self.names) <= MAX_CLASSES_SHOWN else (OBJECTS, REST)))
        else:
            lines.append("object recall of the router: nothing was routed (capacity 1 or no routed layer).")
        if any(min(shares) < max(shares) for shares in self.shares.values()):
            lines += ["routed share by image", *(f"  {layer:<10}{spread(s)}" for layer, s in self.shares.items())]
        return "\n".join(lines)


def spread(shares: list[float]) -> str:
    """Return mean, least and most of some shares, in percent."""
    return f"mean {100 * mean(shares):.1f} %, {100 * min(shares):.1f} to {100 * max(shares):.1f} %"


def evaluate_model(
    model: Any,
    data: str,
    run: ScoreSettings = ScoreSettings(),  # noqa: B008  # frozen
    **overrides: Any,
) -> Evaluation:
    """Score a model on a labelled split.

    Args:
        model: `YOLO` object, checkpoint or YAML name.
        data: Data YAML.
        run: How it is run and scored.
        overrides: More of Ultralytics' validation arguments.

    Raises:
        FileNotFoundError: If model, data or JSON is missing.
        ValueError: If the model is neither for detection nor for segmentation, the JSON lacks images or has other
            classes than the model, or there is no such split or engine.
        ImportError: If the engine is not installed.
    """
    return evaluate_models({"": model}, data, run, **overrides)[""]


def evaluate_models(
    models: Mapping[str, Any],
    data: str,
    run: ScoreSettings = ScoreSettings(),  # noqa: B008  # frozen
    **overrides: Any,
) -> dict[str, Evaluation]:
    """Score models on the same split, by their names, and time them in turn; see `evaluate_model`."""
    check_engine(run.engine)
    check_split(run.split)
    run = start(run)
    yolos = {name: load_model(model) for name, model in models.items()}
    for yolo in yolos.values():
        check_task(yolo)
    images = None
    following = {name for name, yolo in yolos.items() if _input_adaptive(yolo.model)}
    if following:
        images = input_tensors(some_images(check_data(data, run.split)[run.split], COST_IMAGES), run.imgsz)
    costs = measure_costs([yolo.model for yolo in yolos.values()], run.imgsz, run.device, images=images)
    evaluations: dict[str, Evaluation] = {}
    for (name, yolo), cost in zip(yolos.items(), costs, strict=True):
        if len(yolos) > 1:
            print(f"[{len(evaluations) + 1}/{len(yolos)}] scoring {printable(name)}", flush=True)
        warn_of_new_router(name, yolo.model)
        scorer = Scorer(str(yolo.task), Path(run.annotations) if run.annotations else None, run.engine)
        where: dict[str, Any] = {"imgsz": run.imgsz, "batch": run.batch, "device": run.device, "split": run.split}
        costs_of_images = ImageCosts()
        watch = costs_of_images.update if name in following else None
        found = validate(yolo, scorer.update, watch, data=data, **where, **overrides)
        gflops, dense_gflops = costs_of_images.result()
        if gflops:
            cost = replace(cost, gflops=mean(gflops), dense_gflops=mean(dense_gflops))
        routes = (found.recall, found.shares, found.objects)
        evaluations[name] = Evaluation(scorer.result(), cost, *routes, found.files, found.names, gflops, found.lost)
        if not evaluations[name].objects_scored:
            scored = f"the split {run.split!r} of {printable(data)}"
            print(f"warning: {scored} has no object to score, so there is no AP", flush=True)
    return evaluations


def warn_of_new_router(name: str, model: nn.Module) -> None:
    """Say so where windows lie anywhere, because their router was never trained."""
    head = head_of(model)
    if head is not None and not head.entry.dense and not head.entry.router.trained:
        print(
            f"warning: the router of the windows{' of ' * bool(name)}{printable(name)} was never trained, so they lie "
            "anywhere; train the model, or fit its router: mod-vision fit model=... data=...",
            flush=True,
        )


def _input_adaptive(model: nn.Module) -> bool:
    """Return whether a layer of a model has a threshold."""
    return any(layer.threshold is not None for _, layer in routed_layers(model))


def measure_costs(
    models: Sequence[nn.Module],
    imgsz: int,
    device: str = "cpu",
    repeats: int = 11,
    images: Sequence[torch.Tensor] | None = None,
) -> list[Cost]:
    """Measure models against their dense baselines, the same weights at capacity 1, all in turn.

    Args:
        models: Torch models.
        imgsz: Image size in pixels.
        device: As in Ultralytics.
        repeats: Timed rounds.
        images: Images (1, 3, imgsz, imgsz) over which the cost is averaged, for models whose cost depends on them; by
            default one of noise.
    """
    target, imgsz = torch_device(device), round_imgsz(imgsz)
    routed = [as_deployed(deepcopy(model), target) for model in models]
    dense = deepcopy(routed)
    for net in dense:
        if any(routed_layers(net)):
            set_capacity(net, 1.0)
    images = images or [torch.rand(1, 3, imgsz, imgsz)]
    inputs = [image.to(target, memory_format=torch.channels_last) for image in images]
    calls = {str(i): _each(model, inputs) for i, model in enumerate(routed + dense)}
    with torch.inference_mode():
        times = paired_latency(calls, repeats, device=str(target))
    per_image = [Latency(*(t / len(inputs) for t in time)) for time in times.values()]
    gflops = [mean(executed_gflops(model, imgsz, image) for image in inputs) for model in routed]
    gflops += [executed_gflops(net, imgsz) for net in dense]
    n = len(models)
    return [
        Cost(gflops[i], gflops[n + i], per_image[i], per_image[n + i], torch.get_num_threads(), str(target))
        for i in range(n)
    ]


def _each(model: nn.Module, images: Sequence[torch.Tensor]) -> Callable[[], None]:
    """Return a function that runs a model on each image."""

    def run() -> None:
        for image in images:
            model(image)

    return run


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write the figures as JSON, and those of the classes as CSV beside it."""
    write_text(path, json.dumps(evaluation.as_dict(), indent=2) + "\n")
    write_text(path.with_name(f"{path.stem}-classes.csv"), class_csv(class_rows(evaluation.scores)))
