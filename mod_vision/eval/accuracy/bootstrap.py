"""Paired bootstrap over images: how far AP moves if the split had been drawn anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from pycocotools.cocoeval import Params

from mod_vision.eval.accuracy.coco import bits, envelope, sorted_detections
from mod_vision.eval.accuracy.matching import THRESHOLDS, Matches

AT_ONCE = 4 << 20  # detections times resamples in memory
PERCENTILES = (2.5, 97.5)


class Difference(NamedTuple):
    """A difference in AP, and the interval that holds 95 % of its resamples; all in [-1, 1]."""

    observed: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether the split does not tell the two apart."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{100 * self.observed:+.2f} ({100 * self.low:+.2f} to {100 * self.high:+.2f})"


def draw_resamples(images: int, resamples: int, seed: int) -> np.ndarray:
    """Draw images with replacement; returns how often each is drawn, (resamples, images)."""
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, images, images) for _ in range(resamples))
    return np.stack([np.bincount(draw, minlength=images).astype(np.uint8) for draw in draws])


def resampled_ap(matches: Matches, categories: Iterable[int], counts: np.ndarray) -> np.ndarray:
    """Return COCO's AP of each resample, as if images drawn twice were there twice; -1 without objects.

    Among equal scores, whose order COCO leaves open, the copies of a detection follow each other.

    Args:
        matches: Of all images.
        categories: Places of the categories that count.
        counts: (R, N), how often each resample has each image, by its place in `GroundTruth.image_index`.
    """
    total, classes = np.zeros(len(counts)), np.zeros(len(counts), dtype=int)
    for category in categories:
        objects, rows = matches.objects.of(category), sorted_detections(matches, category)
        step = max(1, AT_ONCE // max(1, len(rows), len(objects)))
        for start in range(0, len(counts), step):
            part = slice(start, start + step)
            present = counts[part][:, objects["image"]].astype(np.int64) @ objects["count"][:, 0].astype(np.int64)
            total[part] += _class_ap(rows, counts[part], np.maximum(present, 1)) * (present > 0)
            classes[part] += present > 0
    return np.where(classes > 0, total / np.maximum(classes, 1), -1.0)


def difference(observed: float, ap: np.ndarray, other: np.ndarray) -> Difference:
    """Return the difference of two models' AP, whose resamples (R,) are of the same images."""
    return Difference(observed, *np.percentile(ap - other, PERCENTILES).tolist())


def _class_ap(rows: np.ndarray, counts: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return the AP (R,) of a class in each resample.

    Args:
        rows: Its detections, highest score first.
        counts: (R, N), how often each resample has each image.
        objects: (R,), how many objects it has.
    """
    recalls = Params("bbox").recThrs
    weights = counts[:, rows["image"]].astype(np.int32)
    every = np.cumsum(weights, axis=1)
    ap = np.zeros(len(counts))
    for t in range(THRESHOLDS):
        ignored = bits(rows["ignored"][:, 0], t)
        seen = np.cumsum(weights * ~ignored, axis=1) if ignored.any() else every
        hits = np.flatnonzero(bits(rows["matched"][:, 0], t) & ~ignored)
        found = np.cumsum(weights[:, hits], axis=1)
        reached = np.searchsorted(recalls, found / objects[:, None], side="right")  # recall levels up to each hit
        steps = envelope(found / (seen[:, hits] + np.spacing(1)))
        ap += (steps * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
    return ap / (THRESHOLDS * len(recalls))
