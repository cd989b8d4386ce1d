"""Ultralytics' validation, with what COCO metrics and object recall of the router need collected on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.utils.ops import process_mask_native, scale_masks, xywh2ltwh

from mod_vision.routing import RoutedLayer, routed_layers
from mod_vision.routing.finite import check_finite
from mod_vision.routing.labels import labelled
from mod_vision.routing.lost_objects import LostObjects
from mod_vision.routing.recall import OBJECTS, REST, RouterRecall
from mod_vision.yolo.data.description import annotations_file, naming_split, stuff_folder
from mod_vision.yolo.data.zone_filter import ZoneFilter
from mod_vision.yolo.model.trust import check_data, restricted
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import image_names
from mod_vision.yolo.run.objects import object_cells
from mod_vision.yolo.run.token_groups import stuff_maps, stuff_tokens, token_groups
from mod_vision.yolo.run.window_objects import WindowObjects
from mod_vision.yolo.run.zone_validator import validator_in


@dataclass
class Validation:
    """What one pass over a labelled split gives.

    Attributes:
        folder: The one that all images of the split lie in.
        files: Path of each image within it: the file name, if no image lies deeper.
        labels: Per image: width, height, cls, boxes (pixel x, y, w, h), segments (pixel polygons).
        annotations: COCO JSON that the data YAML names for the split, or None.
        names: Class names by index.
        recall: Routed share of tokens per layer and group.
        shares: Per layer, the routed share of tokens of each image.
        objects: Per layer, of each image how many object tokens were routed, and how many there are.
        lost: Objects that windows lose, None for a model without windows.
        zone_filter: The zone that alone counts, None for the whole picture.
    """

    folder: Path = Path()
    files: list[str] = field(default_factory=list)
    labels: Sequence[dict[str, Any]] = ()
    annotations: Path | None = None
    names: dict[int, str] = field(default_factory=dict)
    recall: RouterRecall = field(default_factory=RouterRecall)
    shares: dict[str, list[float]] = field(default_factory=dict)
    objects: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    lost: LostObjects | None = None
    zone_filter: ZoneFilter | None = None


Watcher = Callable[[torch.nn.Module, torch.Tensor], None]
Receiver = Callable[[Validation, Sequence[str], Sequence[dict[str, Any]]], None]


class PixelLabels(Sequence[dict[str, Any]]):
    """Ultralytics' labels in pixels of the original images, each made when it is asked for.

    Those of images that were not read yet have no size, so they cannot be made.
    """

    def __init__(self, labels: Sequence[dict[str, Any]], sizes: dict[str, tuple[int, int]]) -> None:
        self.labels, self.sizes = labels, sizes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: Any) -> Any:
        labels = self.labels[i]
        return [_label(lb, self.sizes) for lb in labels] if isinstance(i, slice) else _label(labels, self.sizes)


class _Collect(DetectionValidator):
    """A validator that collects; predictions are as Ultralytics' `save_json` writes them, without its scoring.

    Ultralytics builds the validator itself, so what is annotated here is set on a subclass made for one run. Its own
    metrics stay empty: they would grow with every image.
    """

    found: Validation
    receive: Receiver | None
    watch: Watcher | None
    shown: ExitStack

    def get_desc(self) -> str:
        """Return what the progress bar says."""
        return "validating"

    def init_metrics(self, model: Any) -> None:
        """Find the routed layers, the images, and the classes by index instead of by COCO's ids.

        Raises:
            ValueError: If the model has other classes than the data, an image is listed twice, or a key of the data
                YAML has another form.
        """
        if len(model.names) != self.data["nc"]:
            raise ValueError(
                f"the model has {len(model.names)} classes, the data set {self.data['nc']} classes; train on this data "
                "set first, or score on the one the model was trained on."
            )
        self.args.save_json = self.args.val = False  # or COCO's own folders would be collected twice
        super().init_metrics(model)
        native = model.model if getattr(model, "format", None) == "pt" else model
        self.native = native
        self.routed: list[tuple[str, RoutedLayer]] = list(routed_layers(native))
        self.class_map = list(range(len(model.names)))
        self.found.names = dict(self.data["names"])  # a model built from a YAML has numbers for names
        self.sizes: dict[str, tuple[int, int]] = {}
        self.found.labels = PixelLabels(self.dataloader.dataset.labels, self.sizes)
        paths = [label["im_file"] for label in self.dataloader.dataset.labels]
        self.found.folder, self.found.files = image_names(paths)
        if repeated := [name for name, times in Counter(self.found.files).items() if times > 1]:
            raise ValueError(f"the split lists images twice, such as {repeated[0]}.")
        self.file_names = dict(zip(paths, self.found.files, strict=True))
        self.found.annotations = annotations_file(self.data, self.args.split)
        head = head_of(native)
        self.windows = None if head is None else WindowObjects(head, self.data, self.found.names)
        self.found.lost = self.windows and self.windows.found
        self.stuff = stuff_folder(self.data, self.args.split)
        if self.stuff and len({Path(path).stem for path in paths}) < len(paths):
            raise ValueError(
                "dense annotations (stuff:) go by file name, and images in different folders share theirs."
            )

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Show the labels of the batch, for a router that goes by them."""
        batch = super().preprocess(batch)
        self.shown.close()
        if self.windows is not None:
            head = self.windows.head
            self.shown.enter_context(labelled(lambda size: object_cells(batch, size, head)))
        return batch

    def update_metrics(self, preds: Any, batch: dict[str, Any]) -> None:
        """Hand on the predictions of a batch, and count its routes."""
        if self.routed:
            check_finite(self.native)
        files = [self.file_names[path] for path in batch["im_file"]]
        for i, pred in enumerate(preds):
            if len(pred["cls"]):
                image = DetectionValidator._prepare_batch(self, i, batch)  # without the labels' masks
                before = len(self.jdict)
                self.pred_to_json(self.scale_preds(self._prepare_pred(pred), image), image)
                for prediction in self.jdict[before:]:
                    prediction["file_name"] = files[i]
        self.sizes.update(zip(batch["im_file"], batch["ori_shape"], strict=True))
        if self.receive is not None:
            self.receive(self.found, files, list(self.jdict))
        self.jdict.clear()
        self._count_routes(batch)
        if self.watch is not None:
            self.watch(self.native, batch["img"])

    def get_stats(self) -> dict[str, Any]:
        """Return none of Ultralytics' own figures."""
        return {}

    def print_results(self) -> None:
        """Print none of Ultralytics' own figures."""

    def _count_routes(self, batch: dict[str, Any]) -> None:
        """Count which tokens of a batch were routed."""
        overlap = bool(self.args.overlap_mask)
        if self.windows is not None:
            self.windows.update(batch)
        stuff = stuff_maps(self.stuff, batch)
        for name, layer in self.routed:
            if layer.plan is not None:
                size = layer.plan.size
                groups = token_groups(batch, size, self.found.names, overlap)
                kinds = stuff_tokens(stuff, self.data, size, batch)
                groups |= {kind: tokens & groups[REST] for kind, tokens in kinds.items()}
                kept = layer.plan.kept()
                self.found.recall.update(name, kept, groups)
                self.found.shares.setdefault(name, []).extend(kept.float().mean(dim=(1, 2)).tolist())
                counts = ((kept & groups[OBJECTS]).sum(dim=(1, 2)), groups[OBJECTS].sum(dim=(1, 2)))
                self.found.objects.setdefault(name, []).extend(zip(*(c.tolist() for c in counts), strict=True))


class _CollectMasks(_Collect, SegmentationValidator):
    """The same for segmentation, with masks at the resolution of the input, as COCO scores them."""

    def init_metrics(self, model: Any) -> None:
        """Ask for full masks."""
        super().init_metrics(model)
        self.process = process_mask_native

    def scale_preds(self, predn: dict[str, Any], pbatch: dict[str, Any]) -> dict[str, Any]:
        """Scale predictions to the image, with masks rounded: Ultralytics cuts off what is below 1, all round."""
        scaled = DetectionValidator.scale_preds(self, predn, pbatch)
        masks = scale_masks(predn["masks"][None], pbatch["ori_shape"], ratio_pad=pbatch["ratio_pad"])[0]
        return {**scaled, "masks": (masks > 0.5).byte()}


VALIDATORS: dict[str, type[_Collect]] = {"detect": _Collect, "segment": _CollectMasks}


def check_task(model: YOLO) -> None:
    """Refuse models of tasks that are not scored.

    Raises:
        ValueError: If the model is neither for detection nor for segmentation.
    """
    if model.task not in VALIDATORS:
        raise ValueError(f"mod-vision scores detection and segmentation, this model is for {model.task!r}.")


def validate(
    model: YOLO,
    receive: Receiver | None = None,
    watch: Watcher | None = None,
    zone_filter: ZoneFilter | None = None,
    **overrides: Any,
) -> Validation:
    """Run Ultralytics' validation of `model` and return what it found.

    Args:
        model: Detection or segmentation model.
        receive: Takes, batch by batch, the validation, the batch's file names and its COCO-style predictions, which
            have file_name and the class index as category_id.
        watch: Takes the network and the input of each batch when it has run, with the plans of its layers.
        zone_filter: The zone that alone counts, None for the whole picture. A receiver that reads a COCO JSON goes
            by it.
        overrides: Ultralytics' validation arguments: data, split, imgsz, batch, device, ...

    Raises:
        FileNotFoundError: If the data set is missing or has no images.
        ValueError: If the model is neither for detection nor for segmentation, has other classes than the data, or a
            router gives NaN.
    """
    check_task(model)
    base = VALIDATORS[str(model.task)]
    data = check_data(overrides["data"], overrides.get("split", "val"))["yaml_file"]
    found = Validation(zone_filter=zone_filter)
    hooks = {"receive": receive, "watch": watch}
    own = {name: staticmethod(hook) if hook else None for name, hook in hooks.items()}
    defaults = {"plots": False, "verbose": False, "workers": 0}
    with ExitStack() as shown, restricted(), naming_split(overrides["data"], overrides.get("split", "val")):
        validator: type[DetectionValidator] = type(base.__name__, (base,), {"found": found, "shown": shown, **own})
        validator = validator if zone_filter is None else validator_in(validator, zone_filter)
        model.val(validator=validator, **{**defaults, **overrides, "data": data})
    return found


def _label(label: dict[str, Any], sizes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Return a cached Ultralytics label in pixels of the original image."""
    height, width = sizes[label["im_file"]]
    scale = np.array([width, height], dtype=np.float64)
    return {
        "width": width,
        "height": height,
        "cls": label["cls"].flatten(),
        "boxes": xywh2ltwh(label["bboxes"].astype(np.float64) * np.tile(scale, 2)),
        "segments": [segment * scale for segment in label["segments"]],
    }
