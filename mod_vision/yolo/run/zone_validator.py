"""A validation in which only what lies in a zone counts, by its centre: objects and detections."""

from __future__ import annotations

from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.ops import scale_boxes

from mod_vision.yolo.data.zone_filter import ZoneFilter


class ZoneValidator(DetectionValidator):
    """What makes a validator of any task one of a zone, as its first base; `zone_filter` is set on a subclass."""

    zone_filter: ZoneFilter

    def init_metrics(self, model: Any) -> None:
        """Leave out the objects outside."""
        dataset = self.dataloader.dataset
        dataset.labels = self.zone_filter.labels(dataset.labels)
        super().init_metrics(model)

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        """Leave out the detections outside, as one who filters what a dense model finds."""
        kept = [self._kept(pred["bboxes"], batch, i) for i, pred in enumerate(preds)]
        in_zone = [{key: own[k] for key, own in pred.items()} for pred, k in zip(preds, kept, strict=True)]
        super().update_metrics(in_zone, batch)

    def _kept(self, boxes: torch.Tensor, batch: dict[str, Any], i: int) -> torch.Tensor:
        """Return which boxes of an image of a batch lie in the zone, (n,); they are in px of the input."""
        shape, rotated = batch["ori_shape"][i], boxes.shape[1] > 4
        place = {"ratio_pad": batch["ratio_pad"][i], "xywh": rotated}
        boxes = scale_boxes(batch["img"].shape[2:], boxes[:, :4].clone(), shape, **place)
        centres = boxes[:, :2] if rotated else (boxes[:, :2] + boxes[:, 2:]) / 2
        return self.zone_filter.points(centres / boxes.new_tensor((shape[1], shape[0])))


def validator_in(base: type[DetectionValidator], zone_filter: ZoneFilter) -> type[DetectionValidator]:
    """Return a validator in which only what lies in a zone counts."""
    return type(base.__name__, (ZoneValidator, base), {"zone_filter": zone_filter})
