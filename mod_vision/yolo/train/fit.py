"""Routing for a model that was trained dense: what routing adds is fitted, and all other weights stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset

from mod_vision.nn import MoDStage
from mod_vision.routing import check_capacity, routed_layers
from mod_vision.routing.losses import guide_loss
from mod_vision.yolo.data.description import naming_split
from mod_vision.yolo.data.zone_filter import ZoneFilter
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.graph import catch_inputs
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.settings import ModSettings
from mod_vision.yolo.model.trust import check_data, restricted
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.device import round_imgsz, stride_of
from mod_vision.yolo.run.log import warnings_only
from mod_vision.yolo.run.objects import object_tokens
from mod_vision.yolo.train.fit_windows import WINDOWS_BATCH, fit_windows
from mod_vision.yolo.train.loss import guided_layers
from mod_vision.yolo.train.random_parts import batches_by_shape, in_unit

BATCHES, BATCH, LEARNING_RATE = 80, 8, 0.01
REPEATS = 4  # steps on a batch: a forward of the model costs far more than a step of the routers
CALIBRATION_BATCHES = 4


def fit_routing(model: str | Path | YOLO, data: str, capacity: float = 0.5, imgsz: int = 640) -> YOLO:
    """Fit the bypasses of routed layers to the dense layers, and the routers to the labels.

    A linear map explains most of what a trained stage does to a token of the background, so it is fitted in closed form
    and stands in for the stage where that is skipped. Then each router learns from the labels of the training split
    which tokens touch an object, by the guide loss on features that stay as they are.

    Args:
        model: A `YOLO` object or checkpoint with routed layers, trained at capacity 1 or converted; changed in place.
        data: Data YAML of a labelled data set.
        capacity: Share of tokens, in (0, 1), at which the routers are fitted and the model is left.
        imgsz: Image size in pixels.

    Returns:
        The model.

    Raises:
        ValueError: If the model routes nothing or is neither for detection nor for segmentation, the capacity is out of
            range, or nothing is labelled.
        FileNotFoundError: If model or data are missing.
    """
    if check_capacity(capacity) == 1:
        raise ValueError("capacity 1 routes nothing; fit at the capacity that the model shall run at.")
    yolo = load_model(model)
    if yolo.task not in ("detect", "segment"):
        raise ValueError(f"fit takes models for detection and segmentation, this one is for {yolo.task!r}.")
    batches = labelled_batches(yolo, data, round_imgsz(imgsz))
    set_capacity(yolo, capacity)
    fit_net(yolo.model, batches)
    return yolo


def fit_net(net: Any, batches: Iterator[dict[str, Any]]) -> None:
    """Fit what routing adds to a torch model that was trained dense, at the capacities it has.

    Routers without parameters need no fit, and without a guide loss (`loss: {guide: 0}`) none is made.

    Args:
        net: Torch model of Ultralytics; it is as before afterwards but for bypasses and routers.
        batches: Labelled batches, as many as are asked for, with images on the model's device, uint8 or in [0, 1].
    """
    if head_of(net) is not None:
        fit_windows(net, batches)
        return
    batches = ({**batch, "img": in_unit(batch["img"])} for batch in batches)
    layers = [layer for _, layer in routed_layers(net)]
    capacities, training = [layer.capacities for layer in layers], net.training
    net.eval()
    for layer in layers:
        layer.set_capacity(1.0)
    images = torch.cat([next(batches)["img"] for _ in range(CALIBRATION_BATCHES)])
    rows = [i for i, layer in enumerate(net.model) if isinstance(layer, MoDStage)]
    for row, x in catch_inputs(net, rows, images).items():
        net.model[row].calibrate(x)
    for layer, capacity in zip(layers, capacities, strict=True):
        layer.set_capacity(capacity)
    if guided_layers(net) and ModSettings.from_yaml(net.yaml.get("mod")).loss.guide:
        fit_routers(net, batches)
    net.train(training)


def endless(loader: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the batches of a loader again and again."""
    while True:
        yield from loader


def labelled_batches(yolo: YOLO, data: str, imgsz: int) -> Iterator[dict[str, Any]]:
    """Return batches of the training split without augmentation, without end, with images of uint8.

    Raises:
        FileNotFoundError: If data is missing, or has no image that can be read.
        ValueError: If no image has a labelled object.
    """
    windowed = head_of(yolo.model) is not None  # images are large: no time for padding
    images = WINDOWS_BATCH if windowed else BATCH
    dataset = _labelled(yolo, data, imgsz, "train", images, windowed)
    if not any(len(label["cls"]) for label in dataset.labels):
        raise ValueError(
            f"{data}: none of the {len(dataset.labels)} images of `train` has a labelled object, so the routers would "
            "be fitted to nothing; labels are .txt files in a folder `labels` beside `images`."
        )
    classes = len(yolo.names)
    if (highest := max(int(label["cls"].max()) for label in dataset.labels if len(label["cls"]))) >= classes:
        raise ValueError(f"{data}: class {highest} is labelled, and the model has {classes} classes, from 0 on.")
    device = next(yolo.model.parameters()).device
    if windowed:
        picked = batches_by_shape(dataset, images)
        found: Iterator[Any] = (dataset.collate_fn([dataset[i] for i in places]) for places in picked)
    else:
        found = endless(build_dataloader(dataset, images, workers=0, shuffle=True))
    return ({**batch, "img": batch["img"].to(device)} for batch in found)


def labelled_images(
    yolo: YOLO, data: str, imgsz: int, split: str, zone_filter: ZoneFilter | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the images of a split one by one, as batches of one with their labels, padded to their own rectangle.

    Of a zone, only the objects in it are labelled.
    """
    dataset = _labelled(yolo, data, imgsz, split, 1, rect=True)
    if zone_filter is not None:
        dataset.labels = zone_filter.labels(dataset.labels)
    device = next(yolo.model.parameters()).device
    for i in range(len(dataset)):
        batch = dataset.collate_fn([dataset[i]])
        yield {**batch, "img": batch["img"].to(device).float() / 255}


def labels_of(yolo: YOLO, data: str, imgsz: int, split: str) -> list[dict[str, Any]]:
    """Return the labels of the images of a split, as Ultralytics' data sets have them."""
    return list(_labelled(yolo, data, imgsz, split, 1, rect=True).labels)


def _labelled(yolo: YOLO, data: str, imgsz: int, split: str, batch: int, rect: bool) -> Any:
    """Return a split as Ultralytics' data set without augmentation."""
    described = check_data(data, split)
    args = get_cfg(overrides={"task": yolo.task, "imgsz": imgsz, "rect": rect})
    stride = stride_of(yolo.model)
    with restricted(), naming_split(data, split), warnings_only():
        return build_yolo_dataset(args, described[split], batch, described, mode="val", rect=rect, stride=stride)


def fit_routers(net: nn.Module, batches: Iterator[dict[str, Any]]) -> None:
    """Train the routers alone by the guide loss; the features that they read get no gradient."""
    layers = guided_layers(net)
    read: dict[nn.Module, Any] = {}
    hooks = [layer.router.register_forward_pre_hook(read.__setitem__) for layer in layers]
    weights = [p.requires_grad_() for layer in layers for p in layer.router.parameters()]  # loaded ones are frozen
    optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE)
    steps = BATCHES * REPEATS
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 0.5 * (1 + math.cos(math.pi * i / steps)))
    try:
        for _ in range(BATCHES):
            batch = next(batches)
            with torch.no_grad():
                net(batch["img"])
            objects = {layer: object_tokens(batch, layer.plan.size).flatten(1) for layer in layers}
            for _ in range(REPEATS):
                losses = [guide_loss(layer.router(*read[layer.router]), objects[layer]) for layer in layers]
                optimiser.zero_grad()
                torch.stack(losses).mean().backward()
                optimiser.step()
                schedule.step()
    finally:
        for hook in hooks:
            hook.remove()
        optimiser.zero_grad()
