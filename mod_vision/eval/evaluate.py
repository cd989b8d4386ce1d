"""`mod-vision val`: accuracy, cost and routing truth of one model on one data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from mod_vision.eval.coco import evaluate, ground_truth_from_labels, load_ground_truth, match_categories, match_images
from mod_vision.eval.flops import executed_gflops
from mod_vision.eval.latency import Latency, as_deployed, paired_latency
from mod_vision.files import write_text
from mod_vision.routing import routed_layers, set_capacity
from mod_vision.routing.truth import RoutingTruth
from mod_vision.yolo.export import input_tensors
from mod_vision.yolo.images import load_model, round_imgsz, some_images, torch_device
from mod_vision.yolo.validate import Validation, validate

MAX_CLASSES_SHOWN = 12
COST_IMAGES = 8  # where the cost depends on the image


@dataclass
class Cost:
    """Cost of one image: executed GFLOPs, and latency in milliseconds; `dense_` at capacity 1."""

    gflops: float
    dense_gflops: float
    latency: Latency
    dense_latency: Latency
    threads: int
    device: str


@dataclass
class Evaluation:
    """Accuracy, cost and routing truth.

    Attributes:
        box: COCO's twelve numbers for boxes.
        mask: The same for masks, None for a detection model.
        cost: Executed GFLOPs and latency, beside the dense twin's.
        truth: Routed share of tokens per layer and group.
        shares: Per layer, the routed share of tokens of each image, in the order of `files`.
        objects: Per layer, of each image how many object tokens were routed, and how many there are.
        files: File names of the images that were scored.
        names: Class names by index.
    """

    box: dict[str, float]
    mask: dict[str, float] | None
    cost: Cost
    truth: RoutingTruth
    shares: dict[str, list[float]]
    objects: dict[str, list[tuple[int, int]]]
    files: list[str]
    names: dict[int, str]

    def as_dict(self) -> dict[str, Any]:
        """Return plain figures, for JSON."""
        return {
            "images": len(self.files),
            "box": self.box,
            "mask": self.mask,
            "cost": asdict(self.cost),
            "routed_share": self.truth.shares(),
            "routed_share_random": self.truth.random(),
            "routed_share_best": self.truth.best(),
            "routed_share_by_image": {
                layer: dict(zip(self.files, shares, strict=True)) for layer, shares in self.shares.items()
            },
        }

    def report(self) -> str:
        """Return the figures as text."""
        cost, lines = self.cost, [f"{len(self.files)} images, COCO metrics by pycocotools"]
        for name, stats in (("box", self.box), ("mask", self.mask)):
            if stats:
                lines.append(f"  {name:<5}" + "  ".join(f"{key} {100 * value:.1f}" for key, value in stats.items()))
        lines += [
            f"executed GFLOPs  {cost.gflops:.2f}, dense twin {cost.dense_gflops:.2f}",
            f"latency          {cost.latency}, dense twin {cost.dense_latency}, batch 1, {cost.device}, "
            f"{cost.threads} threads",
        ]
        if self.truth.total:
            lines.append(self.truth.table() if len(self.names) <= MAX_CLASSES_SHOWN else self._short_truth().table())
        else:
            lines.append("routing truth: nothing was routed (capacity 1 or no routed layer).")
        if any(min(shares) < max(shares) for shares in self.shares.values()):
            lines += ["routed share by image", *(f"  {layer:<10}{spread(s)}" for layer, s in self.shares.items())]
        return "\n".join(lines)

    def _short_truth(self) -> RoutingTruth:
        """Return the truth of objects and the rest alone, for data sets with many classes."""
        short = RoutingTruth()
        for layer, totals in self.truth.total.items():
            for group in list(totals)[:2]:
                short.total[layer][group] = totals[group]
                short.routed[layer][group] = self.truth.routed[layer][group]
                short.fitting[layer][group] = self.truth.fitting[layer][group]
        return short


def spread(shares: list[float]) -> str:
    """Return mean, least and most of some shares, in percent."""
    return f"mean {100 * mean(shares):.1f} %, {100 * min(shares):.1f} to {100 * max(shares):.1f} %"


def evaluate_model(
    model: Any,
    data: str,
    imgsz: int = 640,
    batch: int = 8,
    device: str = "cpu",
    split: str = "val",
    annotations: str | None = None,
    **overrides: Any,
) -> Evaluation:
    """Score a model on a labelled split.

    Args:
        model: `YOLO` object, checkpoint or YAML name.
        data: Data YAML. Its key `annotations: {val: file.json}` names the COCO JSON; without one, ground truth is built
            from the YOLO labels.
        imgsz: Image size in pixels.
        batch: Images per batch.
        device: As in Ultralytics.
        split: Split of the data set.
        annotations: COCO JSON, wins over the data YAML's.
        overrides: More of Ultralytics' validation arguments.

    Raises:
        FileNotFoundError: If model, data or JSON is missing.
        ValueError: If the JSON lacks images or shares no class with the model.
    """
    yolo = load_model(model)
    images = None
    if any(layer.threshold is not None for _, layer in routed_layers(yolo.model)):
        images = input_tensors(some_images(data, COST_IMAGES, split), round_imgsz(imgsz))
    cost = measure_cost(yolo.model, imgsz, device, images=images)
    found = validate(yolo, data=data, imgsz=imgsz, batch=batch, device=device, split=split, **overrides)
    box, mask = score(found, Path(annotations) if annotations else found.annotations, str(yolo.task))
    return Evaluation(box, mask, cost, found.truth, found.shares, found.objects, found.files, found.names)


def score(found: Validation, annotations: Path | None, task: str) -> tuple[dict[str, float], dict[str, float] | None]:
    """Return COCO's numbers for boxes, and for masks if the task is segmentation."""
    coco = load_ground_truth(annotations or ground_truth_from_labels(found.labels, found.names))
    images = match_images(coco, found.files)
    categories = match_categories(coco, found.names)
    predictions = [
        {**p, "image_id": images[p["file_name"]], "category_id": categories[p["category_id"]]}
        for p in found.predictions
        if p["category_id"] in categories
    ]
    ids = list(images.values())
    boxes = [{k: v for k, v in p.items() if k != "segmentation"} for p in predictions]
    masks = [{k: v for k, v in p.items() if k != "bbox"} for p in predictions]  # so that areas are those of the masks
    mask = evaluate(coco, masks, "segm", ids) if task == "segment" else None
    return evaluate(coco, boxes, "bbox", ids), mask


def measure_cost(
    model: nn.Module,
    imgsz: int,
    device: str = "cpu",
    repeats: int = 11,
    images: Sequence[torch.Tensor] | None = None,
) -> Cost:
    """Measure a model against its dense twin, the same weights at capacity 1.

    Args:
        model: Torch model.
        imgsz: Image size in pixels.
        device: As in Ultralytics.
        repeats: Timed rounds.
        images: Images (1, 3, imgsz, imgsz) over which the cost is averaged, for models whose cost depends on them; by
            default one of noise.
    """
    target, imgsz = torch_device(device), round_imgsz(imgsz)
    routed = as_deployed(deepcopy(model), target)
    dense = deepcopy(routed)
    if any(routed_layers(dense)):
        set_capacity(dense, 1.0)
    images = images or [torch.rand(1, 3, imgsz, imgsz)]
    inputs = [image.to(target, memory_format=torch.channels_last) for image in images]
    with torch.inference_mode():
        times = paired_latency(
            {"routed": _each(routed, inputs), "dense": _each(dense, inputs)}, repeats, device=str(target)
        )
    gflops = mean(executed_gflops(routed, imgsz, image) for image in inputs), executed_gflops(dense, imgsz)
    per_image = {name: Latency(*(t / len(inputs) for t in time)) for name, time in times.items()}
    return Cost(*gflops, per_image["routed"], per_image["dense"], torch.get_num_threads(), str(target))


def _each(model: nn.Module, images: Sequence[torch.Tensor]) -> Callable[[], None]:
    """Return a function that runs a model on each image."""

    def run() -> None:
        for image in images:
            model(image)

    return run


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write the figures as JSON."""
    write_text(path, json.dumps(evaluation.as_dict(), indent=2) + "\n")
