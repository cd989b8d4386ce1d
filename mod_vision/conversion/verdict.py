"""Is a routed model worth it? Never where the dense one, or a smaller image, is the better buy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from mod_vision.conversion.rows import Row

SAME = 0.05  # times that differ by less are the same


class Verdict(NamedTuple):
    """What to say of a routed model.

    Attributes:
        sold: Whether it is worth it.
        sentence: Why, or why not, with the figures.
    """

    sold: bool
    sentence: str


def verdict(
    routed: Row, dense: Sequence[Row], max_loss: float | None, allowed: float = 0.0, zone: Row | None = None
) -> Verdict:
    """Compare a routed model with the dense one, and with it on smaller images.

    Args:
        routed: The routed model.
        dense: The dense model at its own size, then at smaller ones.
        max_loss: AP that it may lose, None if it does not matter.
        allowed: Milliseconds that are asked for, 0 if none are: a smaller image may take them, too.
        zone: The model that computes all of a zone, without a training, None without a zone.
    """
    full, ap, own = dense[0], routed.accuracy.ap, _figures(routed)
    asked = f"; {allowed:.1f} ms are asked for" if allowed else ""
    if routed.ms >= full.ms * (1 - SAME) or (full.ms <= allowed and full.accuracy.ap >= ap):
        return Verdict(False, f"the dense model is the better buy: {_figures(full)}, the routed one has {own}{asked}.")
    time = max(routed.ms, allowed)
    rivals = {f"the dense model at imgsz={row.imgsz}": row for row in dense[1:]}
    if zone is not None:
        rivals["all of the zone, as `mod-vision zone` computes it without a training,"] = zone
    latest = max(time, routed.ms * (1 + SAME))
    better = [name for name, row in rivals.items() if row.ms <= latest and row.accuracy.ap >= ap]
    if better:
        best = max(better, key=lambda name: rivals[name].accuracy.ap)
        return Verdict(False, f"{best} is the better buy: {_figures(rivals[best])}, the routed one has {own}{asked}.")
    rival = dense_ap(dense, time)
    if ap <= rival:
        sizes = ", ".join(f"{_figures(row)} at imgsz={row.imgsz}" for row in dense)
        return Verdict(
            False,
            f"the dense model on smaller images is the better buy: {sizes}, so by interpolation {rival:.1f} AP in "
            f"{time:.1f} ms; the routed one has {own}{asked}.",
        )
    loss = full.accuracy.ap - ap
    if max_loss is not None and loss > max_loss:
        return Verdict(
            False,
            f"the dense model is the better buy: {_figures(full)}, the routed one has {own} and loses {loss:.1f} AP, "
            f"more than max_loss={max_loss:g}.",
        )
    equal, slow = dense_ap(dense, routed.ms), routed.ms > allowed * (1 + SAME) > 0
    late = f" It does not reach the {allowed:.1f} ms that are asked for." if slow else ""
    return Verdict(
        True,
        f"{full.ms / routed.ms:.2f}x as fast as the dense model at {-loss:+.1f} AP: {own} instead of {_figures(full)}; "
        f"on images so small that it takes as little time, the dense model has {equal:.1f} AP by interpolation.{late}",
    )


def dense_ap(dense: Sequence[Row], ms: float) -> float:
    """Return the AP that the dense model has on images so small that one takes `ms` milliseconds.

    Between the sizes that were measured it is taken to grow evenly with the time, and from nothing up to the smallest.
    """
    points = [(0.0, 0.0), *sorted((row.ms, row.accuracy.ap) for row in dense)]
    for (low, before), (high, after) in pairwise(points):
        if low <= ms < high:
            return before + (after - before) * (ms - low) / (high - low)
    return points[-1][1]


def _figures(row: Row) -> str:
    """Return accuracy and time of a row."""
    return f"{row.accuracy.ap:.1f} AP in {row.ms:.1f} ms"
