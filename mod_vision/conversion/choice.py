"""Which windows to run: for a time an image may take, those that lose the fewest objects of the images kept aside.

AP on these images would be no better judge: the network has learnt them by heart, and is not fooled there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from mod_vision.conversion.seen import PASS, Seen, Shown, shown_by
from mod_vision.conversion.timing import WindowTime
from mod_vision.yolo.model.coarse import OWN

THRESHOLDS = 80  # that are tried


class Setting(NamedTuple):
    """How a model shall run on windows.

    Attributes:
        router: Name of the router.
        size: Side of a window in px.
        coarse: Share of the side of a coarse pass, 0 without.
        threshold: Worth of a window that is computed.
        crowded: Share of the pixels from which on an image is run as a whole.
        share: Mean share of the pixels that is computed.
        ms: Mean milliseconds that this is expected to take.
        lost: Share of the objects of the images kept aside that no window shows as a whole.
        doubt: What the router doubts of those objects on average, those that no window shows among them.
    """

    router: str
    size: int
    coarse: float
    threshold: float
    crowded: float
    share: float
    ms: float
    lost: float
    doubt: float = 0.0


def settings_of(
    router: str, seen: Sequence[Seen], dense_ms: float, times: Mapping[tuple[int, float], WindowTime]
) -> list[Setting]:
    """Return what can be chosen with a router: sizes of windows, coarse passes and thresholds, and what each gives.

    Args:
        router: Its name.
        seen: What it says of the images kept aside.
        dense_ms: Milliseconds of the dense forward.
        times: Milliseconds of windows, by their side and coarse pass.
    """
    found = []
    for size in sorted({size for size, _ in times}):
        shown = [shown_by(image, size) for image in seen]
        gains = np.concatenate([image.gains for image in shown])
        some = gains[gains > 0]  # where a zone or padding is all that is left, nothing is gained
        tried = np.unique(np.quantile(some if len(some) else gains, np.linspace(0, 1, THRESHOLDS)))
        for (own, coarse), time in times.items():
            if own == size:
                found += [_setting(router, size, coarse, float(t), shown, dense_ms, time) for t in tried]
    doubts = torch.cat([image.doubts for image in seen])
    doubt = round(float(doubts.mean()), 4) if len(doubts) else 0.0
    return [setting._replace(doubt=doubt) for setting in found]


def _setting(
    router: str, size: int, coarse: float, threshold: float, shown: Sequence[Shown], dense_ms: float, time: WindowTime
) -> Setting:
    """Return what windows at a threshold give."""
    window = float(np.median([image.window_share for image in shown]))
    crowded = dense_ms / time.each * window if time.each else float("inf")  # the router has run by then
    ms, shares, lost = [], [], 0
    for image in shown:
        i = image.chosen(threshold)
        share = image.counts[i] * image.window_share
        whole = share >= crowded
        ms.append(time.base + dense_ms if whole else time.of(image.counts[i]))
        shares.append(1.0 if whole else share)
        lost += 0 if whole else int(image.lost[i]) - (image.found if coarse else 0)
    objects = max(sum(image.objects for image in shown), 1)
    return Setting(router, size, coarse, threshold, crowded, float(np.mean(shares)), float(np.mean(ms)), lost / objects)


def sparse(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings that compute fewer pixels than the dense model, or all of them, if none does.

    Where few windows cover an image, they compute more than it has: two of 256 px are 129 % of 288x352 px. They are no
    faster then, even if times that were taken on a busy machine say so.
    """
    return [setting for setting in settings if setting.share < 1] or list(settings)


def best_within(settings: Sequence[Setting], ms: float) -> Setting:
    """Return the setting that loses the fewest objects in a mean time, or the fastest, if none is fast enough."""
    within = [setting for setting in settings if setting.ms <= ms]
    if not within:
        return min(settings, key=lambda s: (s.ms, s.lost))
    return min(within, key=lambda s: (s.lost, s.ms))


def passes_of(seen: Sequence[Seen], smallest: int, often: float = 0.01) -> list[float]:
    """Return which coarse passes are worth a try: none, and one if some objects are large for the smallest windows."""
    sides = np.concatenate([(image.boxes[:, 2:] - image.boxes[:, :2]).amax(1).numpy() for image in seen])
    return [0.0, PASS] if len(sides) and float((sides > OWN * smallest).mean()) > often else [0.0]
