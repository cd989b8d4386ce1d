"""Where windows are placed: greedily, each where most score is left, for all images of a batch at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
    counts: Sequence[int] | None = None,
    cover: bool = False,
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
        counts: The numbers of windows that occur with `least`, from 0 up, instead of `BUCKETS` up to k.
        cover: Whether all cells of worth shall be covered, each as well as the others: inner cells count once, and
            windows side by side share a row or a column of cells, so that nothing is cut between them.
    """
    if least is None:
        corners, _ = windows_in_order(logits, size, window, k, inside, cover)
        return WindowPlan(logits, corners, size, window, cell, None, inside)
    corners, taken = _place_worthy(_levels(logits, size, inside), counts or buckets(k), window, least, cover)
    most = int(taken.max())
    real = None
    if len(taken) > 1:
        real = arange(most, taken) < taken[:, None]
    return WindowPlan(logits, corners[:, :most], size, window, cell, real, inside)


def boxed(plan: WindowPlan) -> WindowPlan:
    """Return a plan of one window as large as all that counts, if that has fewer pixels; waits for the device.

    Args:
        plan: Windows that cover all that is `inside`.
    """
    if plan.inside is None or not plan.width:
        return plan
    here = plan.inside.view(-1, *plan.size)
    firsts, sides = [], []
    for lines in (here.any(2), here.any(1)):
        first = lines.int().argmax(1)
        last = lines.shape[1] - 1 - lines.flip(1).int().argmax(1)
        sides.append(int((last - first).max()) + 1)
        firsts.append(first.clamp(max=lines.shape[1] - sides[-1]))
    if sides[0] * sides[1] >= plan.width * plan.window[0] * plan.window[1]:
        return plan
    return plan._replace(corners=torch.stack(firsts, 1)[:, None], window=(sides[0], sides[1]), real=None)


def either(which: torch.Tensor, first: WindowPlan, second: WindowPlan) -> WindowPlan:
    """Return the plan of a batch whose images have windows, scores and classes of one plan or of another.

    Args:
        which: (B,) True for images of the first.
        first: A plan with scores by class, or without.
        second: One of windows of the same size; it has no scores by class, those of any object stand for them.
    """
    width = max(first.width, second.width)
    ours, others = (F.pad(plan.corners, (0, 0, 0, width - plan.width)) for plan in (first, second))
    counts = torch.where(which, first.counts(), second.counts())
    most = int(counts.max())
    logits = torch.where(which[:, None], first.logits, second.logits)
    classes = first.classes
    if classes is not None:
        classes = torch.where(which[:, None, None], classes, second.logits[:, None])
    placed = torch.where(which[:, None, None], ours, others)[:, :most]
    real = arange(most, counts) < counts[:, None] if len(counts) > 1 else None
    return first._replace(corners=placed, logits=logits, classes=classes, real=real)


def windows_in_order(
    logits: torch.Tensor,
    size: tuple[int, int],
    window: tuple[int, int],
    k: int,
    inside: torch.Tensor | None = None,
    cover: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the corners (B, k, 2) of windows, and the worth of what each covers first (B, k); as `plan_windows`.

    Their order does not depend on k: fewer windows are the first of more.
    """
    left, box = _boxes(_levels(logits, size, inside), window, cover)
    _, corners, gains = _place(left, k, box, _covers(left.shape[1:], box, left), not cover)
    return corners, gains


def worthy(gains: torch.Tensor, least: float) -> torch.Tensor:
    """Return how many windows, of gains (B, k), come before the first one that gains less than `least`, (B,)."""
    k = gains.shape[1]
    return F.pad(torch.where(gains < least, arange(k, gains), k), (0, 1), value=k).amin(1)


def gains_of(plan: WindowPlan) -> torch.Tensor:
    """Return, of an image alone, what each window would at least gain, if as many were placed as cover it, (k,)."""
    k = window_count(plan.size, plan.window, 1.0)
    _, gains = windows_in_order(plan.logits, plan.size, plan.window, k, plan.inside)
    return gains[0].cummin(0).values


def next_bucket(count: int, k: int) -> int:
    """Return the number of windows that are computed where `count` of at most k are worth it."""
    return next(bucket for bucket in buckets(k) if bucket >= count)


def buckets(k: int) -> list[int]:
    """Return the numbers of windows that occur where there are at most k."""
    return [*(bucket for bucket in BUCKETS if bucket < k), k]


def _levels(logits: torch.Tensor, size: tuple[int, int], inside: torch.Tensor | None) -> torch.Tensor:
    """Return what cells are worth as whole numbers (B, h, w) in 32 bits, which no runtime rounds."""
    probabilities = without_padding(logits.detach().float(), inside).sigmoid().view(-1, *size)
    levels = (probabilities.square() * LEVELS).round().to(torch.int32)
    return levels + (1 if inside is None else inside.view(-1, *size).int())  # nothing to see is better than padding


def _place_worthy(
    left: torch.Tensor, counts: Sequence[int], window: tuple[int, int], least: float, cover: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Place windows until none gains `least`; return corners, and how many of them, of `counts`, each image takes."""
    left, box = _boxes(left, window, cover)
    covers = _covers(left.shape[1:], box, left)
    corners, gains = (
        [left.new_zeros((len(left), 0, 2), dtype=torch.long)],
        [left.new_zeros((len(left), 0), dtype=torch.float)],
    )
    for before, after in pairwise(counts):
        left, more, gained = _place(left, after - before, box, covers, not cover)
        corners.append(more)
        gains.append(gained)
        if float(gained[:, -1].max()) < least:
            break
    numbers = torch.tensor(counts, device=left.device)
    return torch.cat(corners, 1), numbers[torch.searchsorted(numbers, worthy(torch.cat(gains, 1), least))]


def _boxes(left: torch.Tensor, window: tuple[int, int], cover: bool) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return the levels (B, h, w) and what a window covers of them, in cells.

    To `cover`, its last row and column are left to the next window. The last two of the image count as one, so that
    there are as many places.
    """
    if not cover or min(window) < 2:
        return left, window
    left = torch.cat((left[:, :-2], left[:, -2:].sum(1, keepdim=True, dtype=left.dtype)), 1)
    left = torch.cat((left[:, :, :-2], left[:, :, -2:].sum(2, keepdim=True, dtype=left.dtype)), 2)
    return left, (window[0] - 1, window[1] - 1)


def _place(
    left: torch.Tensor, k: int, window: tuple[int, int], covers: torch.Tensor, inner_twice: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Place k windows on levels (B, h, w), whole numbers in 32 bits; `covers` is what `_covers` gives.

    With `inner_twice` the cells of a window that are not at its border count twice.

    The loop has as few operations as can be: on a GPU, each takes longer to start than to run.

    Returns:
        The levels with what is covered set to 0, corners (B, k, 2), and the worth of what each covers first (B, k).
    """
    b, h, w = left.shape
    if not k:
        return left, left.new_zeros((b, 0, 2), dtype=torch.long), left.new_zeros((b, 0), dtype=torch.float)
    left = F.pad(left, (1, 0, 1, 0))
    found, worth = [], []
    for _ in range(k):
        total, all_left = _totals(left, window, inner_twice)
        found.append(_first_best(total.flatten(1)))
        worth.append(all_left)
        lines = covers.index_select(0, found[-1])
        left.masked_fill_(lines[:, : h + 1, None] & lines[:, None, h + 1 :], 0)
    at, cols = torch.stack(found, 1), w - window[1] + 1
    corners = torch.stack((torch.div(at, cols, rounding_mode="trunc"), at % cols), 2)
    worth.append(left.sum((1, 2), dtype=left.dtype))
    remains = torch.stack(worth, 1)
    return left[:, 1:, 1:], corners, (remains[:, :-1] - remains[:, 1:]).float() / LEVELS


def _totals(left: torch.Tensor, window: tuple[int, int], inner_twice: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what windows at all places would score (B, rows, columns), and the worth of all that is left, (B,).

    Args:
        left: (B, 1 + h, 1 + w) levels, behind a row and a column of zeros.
        window: Rows and columns of a window.
        inner_twice: As in `_place`.
    """
    inner = (window[0] - 2, window[1] - 2) if inner_twice else (0, 0)
    if _exported():
        left = left[:, 1:, 1:]
        total = _added_sums(left, window)
        if min(inner) > 0:
            total = total + _added_sums(left[:, 1:-1, 1:-1], inner)
        return total, left.sum((1, 2), dtype=left.dtype)
    sums = left.cumsum(1, dtype=left.dtype).cumsum(2, dtype=left.dtype)
    total = _box_sums(sums, window)
    if min(inner) > 0:
        total = total + _box_sums(sums[:, 1:-1, 1:-1], inner)
    return total, sums[:, -1, -1]


def _exported() -> bool:
    """Return whether the model is exported: other runtimes lack some operations, or do them in another way."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def _first_best(total: torch.Tensor) -> torch.Tensor:
    """Return the first of the places (B, n) that have the most, (B,); not every runtime of exports takes the first."""
    if not _exported():
        return total.argmax(1)
    later = arange(total.shape[1], total).flip(0) + 1  # the first of equal windows has the largest
    return torch.where(total == total.amax(1, keepdim=True), later, 0).argmax(1)


def _covers(size: Sequence[int], window: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Return which rows and columns of an image a window covers at each of its places, (places, 1 + h + 1 + w).

    Before the rows, and before the columns, is one that no window covers.
    """
    rows, cols = (_spans(n - lines + 1, lines, like) for n, lines in zip(size, window, strict=True))
    places = rows.shape[0], cols.shape[0], -1
    return torch.cat((rows[:, None].expand(places), cols[None].expand(places)), 2).flatten(0, 1)


def _spans(places: int, lines: int, like: torch.Tensor) -> torch.Tensor:
    """Return which lines of an axis, behind one more, a window of `lines` covers at each place, (places, 1 + size)."""
    line, first = arange(places + lines, like) - 1, arange(places, like)[:, None]
    return (line >= first) & (line < first + lines)


def _box_sums(sums: torch.Tensor, box: tuple[int, int]) -> torch.Tensor:
    """Return the sums in all boxes of a map of which `sums` has those above and left of each corner of a cell."""
    bands = sums[:, box[0] :] - sums[:, : -box[0]]
    return bands[:, :, box[1] :] - bands[:, :, : -box[1]]


def _added_sums(left: torch.Tensor, box: tuple[int, int]) -> torch.Tensor:
    """Return the same of the map itself, without cumulative sums, which TensorRT makes loops of."""
    return _run_sums(_run_sums(left, 1, box[0]), 2, box[1])


def _run_sums(x: torch.Tensor, axis: int, n: int) -> torch.Tensor:
    """Return the sums of all runs of n values along an axis, from those of runs of 1, 2, 4 and so on."""
    places, start, parts = x.shape[axis] - n + 1, 0, []
    for length in (1 << bit for bit in range(n.bit_length())):
        if length > 1:
            pairs, half = x.shape[axis] - length // 2, length // 2
            x = x.narrow(axis, 0, pairs) + x.narrow(axis, half, pairs)
        if n & length:
            parts.append(x.narrow(axis, start, places))
            start += length
    return functools.reduce(torch.add, parts)
