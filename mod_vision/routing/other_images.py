"""The control of object recall of the router for position: what the route of another image would have routed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mod_vision.measure import Measure


@dataclass
class _Shape:
    """Images that lie on the token map alike, summed token by token: (H * W,) int32 each.

    Attributes:
        images: How many there are.
        kept: In how many of them a token is routed.
        members: In how many of them a token is in each group.
        routed: Of each group, the tokens that are in it and routed, in the same image.
    """

    images: int = 0
    kept: Any = 0
    members: dict[str, Any] = field(default_factory=lambda: defaultdict(int))
    routed: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class OtherImages(Measure):
    """Gives each image of a layer the routes of all other images of the same shape, without keeping any.

    The sum over all pairs of images is the product of the sums, less what an image has with itself. So what is kept
    grows with the number of shapes, not of images.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self._shapes: dict[tuple[int, int, bytes], _Shape] = defaultdict(_Shape)

    def update(self, kept: torch.Tensor, inside: torch.Tensor, groups: Mapping[str, torch.Tensor]) -> None:
        """Add one batch.

        Args:
            kept: (B, H, W) bool, True where the token was routed.
            inside: (B, H, W) bool, True where it lies in the image, not in its padding.
            groups: (B, H, W) bool per group.
        """
        outlines, which = inside.flatten(1).unique(dim=0, return_inverse=True)
        images, routes = which.bincount().tolist(), _sums(kept, which)
        members = {group: _sums(tokens, which) for group, tokens in groups.items()}
        routed = {group: _sums(tokens & kept, which).sum(1).tolist() for group, tokens in groups.items()}
        for i, outline in enumerate(outlines.cpu().numpy()):
            shape = self._shapes[kept.shape[1], kept.shape[2], outline.tobytes()]
            shape.images += images[i]
            shape.kept = shape.kept + routes[i]
            for group in groups:
                shape.members[group] = shape.members[group] + members[group][i]
                shape.routed[group] += routed[group][i]

    def result(self) -> dict[str, float]:
        """Return the share of each group, in [0, 1], that the routes of other images route, in the mean over them.

        Groups without tokens in images that have another of their shape are left out.
        """
        routed: dict[str, float] = defaultdict(float)
        total: dict[str, int] = defaultdict(int)
        for shape in self._repeated():
            for group, members in shape.members.items():
                by_all = int((members.long() * shape.kept).sum())  # grows with the square of the images
                routed[group] += (by_all - shape.routed[group]) / (shape.images - 1)
                total[group] += int(members.sum())
        return {group: routed[group] / n for group, n in total.items() if n}

    def images(self) -> tuple[int, int]:
        """Return how many images have another of their shape, and how many there are."""
        return sum(shape.images for shape in self._repeated()), sum(shape.images for shape in self._shapes.values())

    def _repeated(self) -> list[_Shape]:
        """Return the shapes of more than one image."""
        return [shape for shape in self._shapes.values() if shape.images > 1]


def _sums(maps: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Sum bool maps (B, H, W) over the images of each shape, numbered by `which` (B,): (shapes, H * W) int32."""
    shapes = int(which.max()) + 1
    sums = torch.zeros(shapes, maps[0].numel(), dtype=torch.int32, device=maps.device)
    return sums.index_add_(0, which, maps.flatten(1).int()).cpu()
