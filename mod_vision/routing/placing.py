"""Where windows are placed: greedily, each where most score is left, for all images of a batch at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mod_vision.routing.padding import without_padding
from mod_vision.routing.windows import CELL, WindowPlan, arange

LEVELS = 1023  # steps of a cell's worth: windows are compared by whole numbers, so all runtimes place them alike
BUCKETS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # window counts of adaptive plans


def windows_of(size: tuple[int, int], window: tuple[int, int], capacity: float) -> int:
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
    probabilities = without_padding(logits.detach().float(), inside).sigmoid().view(-1, *size)
    levels = (probabilities.square() * LEVELS).round()
    left = levels + 1 if inside is None else levels + inside.view(-1, *size)  # nothing to see is better than padding
    if least is None:
        _, corners, gains = _place(left, k, window)
        return WindowPlan(logits, corners, gains, size, window, cell, None, inside)
    corners, gains, counts = _place_worthy(left, k, window, least)
    most = int(counts.max())
    real = None
    if len(counts) > 1:
        real = arange(most, counts) < counts[:, None]
    return WindowPlan(logits, corners[:, :most], gains[:, :most], size, window, cell, real, inside)


def gains_of(plan: WindowPlan) -> torch.Tensor:
    """Return, of an image alone, what each window would at least gain, if as many were placed as cover it, (k,)."""
    k = windows_of(plan.size, plan.window, 1.0)
    whole = plan_windows(plan.logits, plan.size, plan.window, k, plan.cell, inside=plan.inside)
    return whole.gains[0].cummin(0).values


def next_bucket(count: int, k: int) -> int:
    """Return the number of windows that are computed where `count` of at most k are worth it."""
    return next(b for b in (*(b for b in BUCKETS if b < k), k) if b >= count)


def _place_worthy(
    left: torch.Tensor, k: int, window: tuple[int, int], least: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Place windows until none gains `least`; return corners, gains, and how many of them each image takes, (B,)."""
    steps = [b for b in BUCKETS if 0 < b < k] + [k] * (k > 0)
    corners, gains = [left.new_zeros((len(left), 0, 2), dtype=torch.long)], [left.new_zeros(len(left), 0)]
    for before, after in zip([0, *steps], steps, strict=False):
        left, more, gained = _place(left, after - before, window)
        corners.append(more)
        gains.append(gained)
        if float(gained[:, -1].max()) < least:
            break
    gain = torch.cat(gains, 1)
    wanted = (gain >= least).long().cumprod(1).sum(1)
    buckets = torch.tensor([0, *steps], device=left.device)
    return torch.cat(corners, 1), gain, buckets[torch.searchsorted(buckets, wanted)]


def _place(left: torch.Tensor, k: int, window: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Place k windows on levels (B, h, w), whole numbers.

    Returns:
        The levels with what is covered set to 0, corners (B, k, 2), and the worth of what each covers first (B, k).
    """
    b, h, w = left.shape
    rows, cols = h - window[0] + 1, w - window[1] + 1
    n = rows * cols
    whole = torch.int32 if 2 * (LEVELS + 1) * window[0] * window[1] * n < 2**31 else torch.int64
    later = arange(n, left).flip(0).to(whole)
    ys, xs = arange(h, left), arange(w, left)
    corners, gains = [], []
    for _ in range(k):
        covered = total = _box_sums(left, window)
        if min(window) > 2:
            total = total + _box_sums(left[:, 1:-1, 1:-1], (window[0] - 2, window[1] - 2))
        best = (total.flatten(1).to(whole) * n + later).argmax(1, keepdim=True)
        y, x = torch.div(best, cols, rounding_mode="floor"), best % cols
        corners.append(torch.cat((y, x), 1))
        gains.append(covered.flatten(1).gather(1, best))
        hit = ((ys >= y) & (ys < y + window[0]))[:, :, None] & ((xs >= x) & (xs < x + window[1]))[:, None]
        left = left.masked_fill(hit, 0)
    if not corners:
        return left, left.new_zeros((b, 0, 2), dtype=torch.long), left.new_zeros(b, 0)
    return left, torch.stack(corners, 1), torch.cat(gains, 1) / LEVELS


def _box_sums(values: torch.Tensor, box: tuple[int, int]) -> torch.Tensor:
    """Return the sums of whole numbers (B, h, w) in all boxes, exact in float32 up to 2^24."""
    return (F.avg_pool2d(values[:, None], box, 1) * (box[0] * box[1])).round()[:, 0]
