"""Router losses in Ultralytics' training: what the router should look at is what the labels mark."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from mod_vision.routing import RoutedLayer, routed_layers
from mod_vision.routing.labels import labelled
from mod_vision.routing.losses import budget_loss, guide_anneal, guide_loss, z_loss
from mod_vision.yolo.blocks.windows import WindowedHead, on_full_maps
from mod_vision.yolo.model.rows import forget_pretrained
from mod_vision.yolo.model.settings import LossWeights, ModSettings
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.objects import object_cells, object_tokens
from mod_vision.yolo.train.windows_loss import windows_loss

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


def guided_layers(model: nn.Module) -> list[RoutedLayer]:
    """Return the layers whose router can be trained: learned, and below capacity 1."""
    return [layer for _, layer in routed_layers(model) if layer.router.learned and not layer.dense]


def router_losses(
    layers: list[RoutedLayer], weights: LossWeights, objects: Callable[[Any], torch.Tensor], progress: float
) -> dict[str, torch.Tensor]:
    """Return the weighted losses that are switched on, by the name of their column, each the mean over layers.

    Args:
        layers: Routed layers after a forward; without any, all losses are 0.
        weights: Weights of the losses.
        objects: Gives how much each token (B, N) of a plan counts as an object.
        progress: Share of the training that is done.
    """
    columns = {}
    plans = [layer.plan for layer in layers]
    if weights.guide:
        guide = weights.guide * guide_anneal(progress)
        columns["guide"] = guide * _mean([guide_loss(p.logits, objects(p)) for p in plans])
    if weights.budget:
        gaps = [budget_loss(layer.plan.logits, layer.capacities[0]) for layer in layers]
        columns["budget"] = weights.budget * _mean(gaps)
    if weights.z:
        columns["z"] = weights.z * _mean([z_loss(p.logits) for p in plans])
    return columns


def window_losses(head: WindowedHead, weight: float, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weighted loss of the router of windows by the name of its column, 0 in a step on whole images.

    Args:
        head: The head of a model that runs on windows, after a forward.
        weight: Weight of the loss; 0 leaves it out.
        batch: Labelled batch.
    """
    if not weight or not head.entry.router.learned:
        return {}
    plan = head.windows
    if plan is None:
        return {"windows": torch.zeros(())}
    return {"windows": weight * windows_loss(plan.logits, plan.classes, batch, plan.size, head)}


def _mean(terms: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean of scalars, 0 of none."""
    return torch.stack(terms).mean() if terms else torch.zeros(())


def with_router_losses(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a model's `loss(batch, preds)` so that the router's losses join it, with columns of their own.

    `loss` is where detection, segmentation, RT-DETR and distillation all pass with both the batch and the criterion's
    items at hand.
    """

    @functools.wraps(loss)
    def loss_with_router(self: nn.Module, batch: dict[str, Any], preds: Any = None) -> Loss:
        head = head_of(self)
        cells = functools.cache(lambda size: object_cells(batch, size, head))
        with labelled(cells) if head and "bboxes" in batch else nullcontext():
            total, items = loss(self, batch, preds if preds is None else on_full_maps(preds))
        forget_pretrained(self.yaml)  # in training from here on, and saved with the weights
        settings = ModSettings.from_yaml(self.yaml.get("mod"))
        layers = [layer for layer in guided_layers(self) if layer.plan is not None]  # None: `preds` of another model
        scheduled = self.training and not settings.schedule.constant and any(routed_layers(self))
        if "bboxes" not in batch or not (layers or scheduled):  # a step at capacity 1 of a schedule has columns too
            return total, items
        overlap = bool(getattr(self.args, "overlap_mask", True))
        progress = getattr(self, "mod_progress", 0.0)
        if head is not None:
            own = window_losses(head, settings.loss.windows, batch)
        else:
            own = router_losses(
                layers, settings.loss, lambda p: object_tokens(batch, p.size, overlap).flatten(1), progress
            )
        images = len(batch["img"]) if total.ndim else 1  # RT-DETR's loss is one number per batch, YOLO's are per image
        total = torch.cat((total.reshape(-1), *(term.to(total).reshape(1) * images for term in own.values())))
        return total, {**items, **{name: term.detach() for name, term in own.items()}}

    return loss_with_router
