"""Where windows are placed: greedily, each where most score is left, for all images of a batch at once."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from mod_vision.routing.padding import without_padding
from mod_vision.routing.windows import CELL, WindowPlan, arange

LEVELS = 1023  # steps of a cell's worth: windows are compared by whole numbers, so all runtimes place them alike
BUCKETS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # window counts of adaptive plans


def window_count(size: tuple[int, int], window: tuple[int, int], capacity: float) -> int:
    """Return how many windows compute a share `capacity` of the pixels, to the nearest, and at least one."""
    return max(1, round(capacity * size[0] * size[1] / (window[0] * window[1])))


def window_cells(side: int, size: tuple[int, int], cell: int = CELL) -> tuple[int, int]:
    """Return rows and columns of a window of `side` px, no more than the image has."""
    return min(side // cell, size[0]), min(side // cell, size[1])


def plan_windows(
    logits: torch.Tensor,
    size: tuple[int, int],
    window: tuple[int, int],
    k: int,
    cell: int = CELL,
    least: float | None = None,
    inside: torch.Tensor | None = None,
) -> WindowPlan:
    """Place k windows in each image, each where most score is left, or as many as cover enough of it.

    A cell is worth the square of its probability, or many doubtful cells would draw windows away from a lone object.
    The score of a window is the sum over its cells that no earlier window covers, those of its border once and the
    inner ones twice, so that objects come to lie inside. Padding counts nothing. Equal windows are taken in raster
    order.

    Args:
        logits: (B, N) router scores.
        size: (h, w), cells of the image.
        window: Rows and columns of a window, in cells.
        k: Number of windows, or the most of them.
        cell: Side of a cell in px.
        least: Take the windows that cover cells of at least this worth first, up to the next of `BUCKETS`; waits for
            the device. None takes k.
        inside: (B, N) False where a cell is padding.
    """
    left = _levels(logits, size, inside)
    if least is None:
        _, corners, _ = _place(left, k, window)
        return WindowPlan(logits, corners, size, window, cell, None, inside)
    corners, counts = _place_worthy(left, k, window, least)
    most = int(counts.max())
    real = None
    if len(counts) > 1:
        real = arange(most, counts) < counts[:, None]
    return WindowPlan(logits, corners[:, :most], size, window, cell, real, inside)


def gains_of(plan: WindowPlan) -> torch.Tensor:
    """Return, of an image alone, what each window would at least gain, if as many were placed as cover it, (k,)."""
    k = window_count(plan.size, plan.window, 1.0)
    _, _, gains = _place(_levels(plan.logits, plan.size, plan.inside), k, plan.window)
    return gains[0].cummin(0).values


def next_bucket(count: int, k: int) -> int:
    """Return the number of windows that are computed where `count` of at most k are worth it."""
    return next(bucket for bucket in _buckets(k) if bucket >= count)


def _buckets(k: int) -> list[int]:
    """Return the numbers of windows that occur where there are at most k."""
    return [*(bucket for bucket in BUCKETS if bucket < k), k]


def _levels(logits: torch.Tensor, size: tuple[int, int], inside: torch.Tensor | None) -> torch.Tensor:
    """Return what cells are worth as whole numbers (B, h, w) in 32 bits, which no runtime rounds."""
    probabilities = without_padding(logits.detach().float(), inside).sigmoid().view(-1, *size)
    levels = (probabilities.square() * LEVELS).round().to(torch.int32)
    return levels + (1 if inside is None else inside.view(-1, *size).int())  # nothing to see is better than padding


def _place_worthy(
    left: torch.Tensor, k: int, window: tuple[int, int], least: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Place windows until none gains `least`; return corners, and how many of them each image takes, (B,)."""
    buckets = _buckets(k)
    corners, gains = (
        [left.new_zeros((len(left), 0, 2), dtype=torch.long)],
        [left.new_zeros((len(left), 0), dtype=torch.float)],
    )
    for before, after in pairwise(buckets):
        left, more, gained = _place(left, after - before, window)
        corners.append(more)
        gains.append(gained)
        if float(gained[:, -1].max()) < least:
            break
    gain = torch.cat(gains, 1)
    wanted = (gain >= least).long().cumprod(1).sum(1)
    taken = torch.tensor(buckets, device=left.device)
    return torch.cat(corners, 1), taken[torch.searchsorted(taken, wanted)]


def _place(left: torch.Tensor, k: int, window: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Place k windows on levels (B, h, w), whole numbers in 32 bits.

    Returns:
        The levels with what is covered set to 0, corners (B, k, 2), and the worth of what each covers first (B, k).
    """
    b, h, w = left.shape
    rows, cols = h - window[0] + 1, w - window[1] + 1
    later = arange(rows * cols, left).flip(0) + 1  # the first of equal windows has the largest
    spans = _spans(rows, window[0], left), _spans(cols, window[1], left)
    corners, gains = [], []
    for _ in range(k):
        sums = F.pad(left, (1, 0, 1, 0)).cumsum(1, dtype=left.dtype).cumsum(2, dtype=left.dtype)
        covered = total = _box_sums(sums, window)
        if min(window) > 2:
            total = total + _box_sums(sums[:, 1:-1, 1:-1], (window[0] - 2, window[1] - 2))
        total = total.flatten(1)
        best = torch.where(total == total.amax(1, keepdim=True), later, 0).argmax(1)
        y, x = torch.div(best, cols, rounding_mode="trunc"), best % cols
        corners.append(torch.stack((y, x), 1))
        gains.append(covered.flatten(1).gather(1, best[:, None]))
        hit = spans[0].index_select(0, y)[:, :, None] & spans[1].index_select(0, x)[:, None]
        left = left.masked_fill(hit, 0)
    if not corners:
        return left, left.new_zeros((b, 0, 2), dtype=torch.long), left.new_zeros((b, 0), dtype=torch.float)
    return left, torch.stack(corners, 1), torch.cat(gains, 1).float() / LEVELS


def _spans(places: int, lines: int, like: torch.Tensor) -> torch.Tensor:
    """Return which lines of an axis a window of `lines` covers at each of its places, (places, size)."""
    line, first = arange(places + lines - 1, like), arange(places, like)[:, None]
    return (line >= first) & (line < first + lines)


def _box_sums(sums: torch.Tensor, box: tuple[int, int]) -> torch.Tensor:
    """Return the sums in all boxes of a map of which `sums` has those above and left of each corner of a cell."""
    bands = sums[:, box[0] :] - sums[:, : -box[0]]
    return bands[:, :, box[1] :] - bands[:, :, : -box[1]]
