"""The layer that routes windows: from what its router reads to the plan of a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mod_vision.routing.capacity import check_capacity
from mod_vision.routing.labels import label_cells
from mod_vision.routing.layer import refuse_in_exports
from mod_vision.routing.moving import LEAST, MovedSums
from mod_vision.routing.padding import running_images, shrunk_frame
from mod_vision.routing.placing import boxed, either, gains_of, next_bucket, plan_windows, window_cells, window_count
from mod_vision.routing.shrink import shrunk
from mod_vision.routing.threshold import lowest_threshold
from mod_vision.routing.window_routers import SURE, WindowRouter, told_apart
from mod_vision.routing.windows import WindowPlan
from mod_vision.routing.zone import extent_of, whole_extent
from mod_vision.routing.zoned_layer import ZonedLayer

COVERED = 0.5  # cells that a window must be the first to cover, where all of something is
WAITING = LEAST / 2  # the same, of cells of which some are worth less than others
FEW = 4  # windows on what moved, about as many as a router costs: beyond, it is asked which are worth it
CROWDED = 0.8  # of the pixels in such windows, from which on the whole image is faster
MOST_OVERLAPPING = 3  # windows of a zone, in those that would cover the image side by side


class MixedBatch(Exception):
    """Some images of a batch are run on windows, others as a whole: the plan tells which, and each goes its own way."""


class WindowedLayer(ZonedLayer):
    """Base of the layer at which a network narrows from the whole image to windows.

    Its capacity is the share of the image's pixels that the windows compute.

    Attributes:
        window: Side of a window in px.
        cell: Side of a cell in px.
        reduction: Px of the image to a position of the map that this layer reads.
        crowded: Share of the pixels from which on an image is run as a whole, in threshold mode; None is never.
        counts: The numbers of windows that occur with a threshold, from 0 up; None for those of `plan_windows`.
        refresh: Frames of a still camera after which each part is computed again at the latest; 0 is each frame.
        budget: Milliseconds that such a frame may take; 0 is no bound.
    """

    window: int
    cell: int
    reduction: int
    router: WindowRouter
    crowded: float | None = None
    counts: tuple[int, ...] | None = None
    refresh: int = 0
    budget: float = 0.0
    takes_ragged = True

    def init_windows(self, router: WindowRouter, window: int, cell: int, reduction: int, capacity: float) -> None:
        """Add router, capacity and sizes to a layer."""
        self.capacities, self.depth, self.router = (check_capacity(capacity, "mod.windows"),), 1, router
        self.window, self.cell, self.reduction = window, cell, reduction
        self.forget_plans()

    @property
    def dense(self) -> bool:
        """True at capacity 1, and where the whole image is run on purpose, as by the coarse pass."""
        return self.capacities[-1] >= 1.0 or getattr(self._of_thread, "whole", False)  # compiled, super() is true

    @contextmanager
    def whole_image(self) -> Iterator[None]:
        """Run the network on whole images in this thread."""
        self._of_thread.whole = True
        self.plan = None
        try:
            yield
        finally:
            self._of_thread.whole = False

    @contextmanager
    def windows_at(self, corners: torch.Tensor, guesses: torch.Tensor) -> Iterator[None]:
        """Take windows that were placed before in the forwards of this thread.

        Args:
            corners: (B, k, 2) row and column of the first cell of each.
            guesses: (B, C, N) what the router said of the cells, as `WindowPlan.guesses`.
        """
        self._of_thread.given = corners, guesses
        try:
            yield
        finally:
            self._of_thread.given = None

    def route_windows(self, x: torch.Tensor, coarse: torch.Tensor | None = None, reduction: int = 1) -> WindowPlan:
        """Score the cells, place the windows, unless they are given, and remember the plan.

        Args:
            x: (B, C, H, W), images, or the map of them that the layer reads.
            coarse: (B, 1, h, w) logits of a coarse pass at the cells, for routers that read it.
            reduction: Px of the image to a position of `x`.

        Raises:
            ValueError: If the image is not a whole number of cells high and wide, or the model is exported while
                images need different numbers of windows.
            MixedBatch: If some of the images, but not all, shall be run as a whole.
        """
        size = self.cells(x, reduction)
        window = window_cells(self.window, size, self.cell)
        if (given := getattr(self._of_thread, "given", None)) is not None:
            corners, guesses = given
            self.plan = plan = WindowPlan(guesses[:, 0], corners, size, window, self.cell, classes=guesses)
            return plan
        if (moved := self.moved) is not None:
            return self._placed(
                self._moving(x, size, moved, coarse, reduction), CROWDED if moved.most is None else None
            )
        if self.input_adaptive:
            refuse_in_exports("windows", " A folder for several of them: mod-vision export k=all.")
        said, inside = self.score(x, size, coarse, reduction)
        logits, classes = told_apart(said)
        if self.training:
            self.router.steps += 1
        least = self.threshold if self.input_adaptive else None
        k, counts = window_count(size, window, self.capacities[0] if least is None else 1.0), self.counts
        if self.router.covers and least is not None:
            k = MOST_OVERLAPPING * k
            counts = counts or tuple(range(k + 1))  # a zone does not change: its number of windows is no surprise
        marked = self._marked(logits, size)
        plan = plan_windows(marked, size, window, k, self.cell, least, inside, counts, self.router.covers)
        if self.router.covers and least is not None and self.zone_is_one:
            plan = boxed(plan)
        return self._placed(
            plan._replace(logits=logits, classes=classes), self.crowded if self.input_adaptive else None
        )

    def _placed(self, plan: WindowPlan, crowded: float | None) -> WindowPlan:
        """Remember a plan, in which images are run as a whole from a share `crowded` of their pixels on, and return it.

        Raises:
            MixedBatch: As in `route_windows`.
        """
        self.plan = plan = plan._replace(whole=_whole(plan, crowded))
        if plan.whole is not None and not bool(plan.whole.all()):
            raise MixedBatch
        return plan

    def _moving(
        self, x: torch.Tensor, size: tuple[int, int], moved: MovedSums, coarse: torch.Tensor | None, reduction: int
    ) -> WindowPlan:
        """Return windows that cover the cells of what moved, or those of them that a router takes where they are many.

        Args:
            x: As in `route_windows`, as are `coarse` and `reduction`.
            size: (h, w), cells of the image.
            moved: What moved.
            coarse: Logits of a coarse pass.
            reduction: Px of the image to a position of `x`.
        """
        window = window_cells(self.window, size, self.cell)
        image = x if reduction == 1 else running_images()
        frame = None if image is None else shrunk_frame(image)
        worth, sure = moved.cells(size, whole_extent(x) if frame is None else extent_of(frame))
        inside = self._in_zone(None if frame is None else frame.inside(size), frame, x, size)
        here = worth > 0 if inside is None else (worth > 0) & inside
        most = MOST_OVERLAPPING * window_count(size, window, 1.0)
        most = most if moved.most is None else min(most, moved.most)
        counts, first = tuple(range(most + 1)), worth.sqrt().logit(eps=1e-4)  # cells count by their square
        plan = plan_windows(first, size, window, most, self.cell, WAITING, here, counts, True)
        plan = plan._replace(logits=torch.full_like(first, SURE))
        many = plan.counts() > FEW
        if self.threshold is None or not (self.router.learned and self.router.trained and bool(many.any())):
            return plan
        logits, classes = told_apart(self.score(x, size, coarse, reduction)[0])
        marked, least = logits.masked_fill(sure & here, SURE), self.threshold
        if moved.most is not None:  # what has waited comes first
            marked, least = (marked.sigmoid() * worth.sqrt()).logit(eps=1e-4), least * LEAST
        asked = plan_windows(marked, size, window, most, self.cell, least, here, counts)
        return either(many, asked._replace(logits=logits, classes=classes), plan)

    def score(
        self, x: torch.Tensor, size: tuple[int, int], coarse: torch.Tensor | None = None, reduction: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the router's scores of the cells (B, 1 + classes, N), and which (B, N) are more than padding.

        The first scores are of any object. What is padding is None if it is not known.

        Args:
            x: As in `route_windows`, as are `coarse` and `reduction`.
            size: (h, w), cells of the image.
            coarse: Logits of a coarse pass.
            reduction: Px of the image to a position of `x`.
        """
        image = x if reduction == 1 else running_images()
        small = None if image is None or self.router.reads != "image" else shrunk(image, 2)
        said = self.router(self.seen(x, size, small, coarse), size).flatten(2)
        frame = None if image is None else shrunk_frame(image, small)
        return said, self._in_zone(None if frame is None else frame.inside(size), frame, x, size)

    def seen(
        self, x: torch.Tensor, size: tuple[int, int], small: torch.Tensor | None, coarse: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return what the router reads.

        Args:
            x: (B, C, H, W), what the layer reads.
            size: (h, w), cells of the image.
            small: Images at half their side, None if they are not known.
            coarse: As in `route_windows`.

        Raises:
            ValueError: If it is not known.
        """
        cells = x.new_zeros(x.shape[0], 1, *size)
        if coarse is None:  # a training has no coarse pass: windows follow the labels
            coarse = cells
        given = {"image": small, "map": x, "coarse": coarse, "cells": cells}[self.router.reads]
        if given is None:
            raise ValueError(f"{type(self.router).__name__} reads the image, which is not known outside of a model.")
        return given

    def cells(self, x: torch.Tensor, reduction: int = 1) -> tuple[int, int]:
        """Return rows and columns of the cells of an image, of which `x` is a map.

        Raises:
            ValueError: If it is not a whole number of cells high and wide.
        """
        height, width = (int(n) * reduction for n in x.shape[2:])
        if height % self.cell or width % self.cell:
            raise ValueError(
                f"windows need images whose sides are multiples of {self.cell} px, got {height} x {width}; "
                "set imgsz to such a size."
            )
        return height // self.cell, width // self.cell

    def _marked(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """In a training, let windows find the objects whatever the router knows, then what it takes for objects."""
        cells = label_cells(size) if self.training else None
        return logits if cells is None else logits.detach().masked_fill(cells.flatten(1) > 0, SURE)

    def set_threshold(self, threshold: float) -> None:
        """Take the windows that cover cells of at least this worth first; training stays at the capacity.

        Raises:
            ValueError: If the scores of the router do not compare across images, or nothing is routed.
        """
        if not self.router.compares:
            raise ValueError(f"thresholds need scores that compare, {type(self.router).__name__} has none.")
        if super().dense:
            raise ValueError(f"thresholds need a capacity below 1, got {self.capacities[0]}.")
        self.threshold = float(threshold)
        self.forget_plans()

    def budget_threshold(self, plans: Sequence[Any], capacity: float) -> float:
        """Return the lowest threshold at which the mean share of computed pixels is within a budget."""
        gains = [gains_of(plan) for plan in plans]

        def shares(threshold: float) -> list[float]:
            counts = [next_bucket(int((own >= threshold).sum()), len(own)) for own in gains]
            return [count * plan.window_share for count, plan in zip(counts, plans, strict=True)]

        candidates = torch.cat(gains)
        none = candidates.max()[None] + 1  # at which there is no window
        return lowest_threshold(torch.cat((candidates, none)), shares, capacity)


def _whole(plan: WindowPlan, crowded: float | None) -> torch.Tensor | None:
    """Return which images of a batch have a share `crowded` of their pixels in windows, (B,), None if none has."""
    if crowded is None:
        return None
    whole = plan.shares() >= crowded
    return whole if bool(whole.any()) else None
