"""What lies in a zone, by its centre: detections and labelled objects."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch

from mod_vision.routing.zone import points_in, sums_of, whole_extent
from mod_vision.yolo.data.zones import Zone, masks_of


class ZoneFilter:
    """Tells what lies in a zone of the picture.

    Args:
        zone: The zone.
    """

    def __init__(self, zone: Zone) -> None:
        self.zone, self.sums = zone, sums_of(masks_of([zone]))

    def points(self, points: torch.Tensor) -> torch.Tensor:
        """Return which points (n, 2), x and y as shares of the picture's width and height, lie in the zone, (n,)."""
        points = points.flip(-1)[None]
        return points_in(self.sums.to(points.device), points, whole_extent(points))[0]

    def labels(self, labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the labels of images, as Ultralytics' data sets have them, of the objects in the zone alone."""
        found = []
        for label in labels:
            kept = self.points(torch.from_numpy(label["bboxes"][:, :2])).numpy()
            own = {key: label[key][kept] for key in ("cls", "bboxes", "keypoints") if label.get(key) is not None}
            found.append({**label, **own, "segments": list(compress(label["segments"], kept))})
        return found

    def content(self, content: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the ground truth of an image in COCO's terms, of the objects in the zone and of all crowds.

        Args:
            content: `annotations`, and width and height in pixels.
            name: Name of the image.

        Raises:
            ValueError: If width or height are missing.
        """
        size = [content.get(key) for key in ("width", "height")]
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(
                f"the COCO JSON does not tell width and height of {name}, so it is not known what lies in the zone."
            )
        objects = content["annotations"]
        boxes = np.array([own["bbox"] for own in objects], float).reshape(-1, 4)
        kept = self.points(torch.from_numpy((boxes[:, :2] + boxes[:, 2:] / 2) / np.array(size, float))).tolist()
        crowds = [bool(own["iscrowd"]) for own in objects]
        return {**content, "annotations": [o for o, k, c in zip(objects, kept, crowds, strict=True) if k or c]}
