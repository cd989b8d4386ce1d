"""What all routed layers share: a router, a capacity, and the plan of the last forward."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from mod_vision.routing.capacity import capacity_per_depth, num_routed
from mod_vision.routing.padding import tokens_inside, without_padding
from mod_vision.routing.plan import RoutingPlan, make_plan
from mod_vision.routing.routers import build_router
from mod_vision.routing.threshold import budget_threshold, count_above

NOT_SAVED = ("plan", "_of_thread", "_copied")  # what is not saved; older checkpoints hold a plan


class RoutedLayer(nn.Module):
    """Base of routed layers.

    Attributes:
        capacities: Share of tokens routed, one for the whole layer or one per block, not increasing.
        depth: Number of blocks that a fully routed token passes.
        router: Module that scores tokens (B, N, C) as (B, N).
        plan: The routing of the last forward in this thread, None before the first and at capacity 1.
        raster: Whether the routed tokens are in order of position instead of descending score.
        threshold: Score above which tokens are routed at inference, None for a fixed number of them.
        takes_ragged: Whether images of a batch can need different numbers of tokens.
    """

    capacities: tuple[float, ...]
    depth: int
    router: nn.Module
    raster: ClassVar[bool] = False
    threshold: float | None = None
    takes_ragged: ClassVar[bool] = False
    __jit_unused_properties__: ClassVar[list[str]] = ["plan"]  # TorchScript compiles properties

    _copied: tuple[tuple[weakref.ref[RoutedLayer], ...], Any] = (), None

    @property
    def plan(self) -> Any:
        """The routing of the last forward in this thread: a `RoutingPlan`, or a `WindowPlan` of a `WindowedLayer`."""
        return getattr(self._of_thread, "plan", None)

    @plan.setter
    def plan(self, plan: Any) -> None:
        self._of_thread.plan = plan

    def forget_plans(self) -> None:
        """Start without a plan in every thread."""
        self._of_thread = threading.local()

    def init_routing(
        self, dim: int, depth: int, capacity: Any, router: str, where: str, per_block: bool = False
    ) -> None:
        """Add router and capacities to a layer of `depth` blocks over tokens of `dim` channels.

        Args:
            dim: Channels of a token.
            depth: Number of blocks.
            capacity: Share of tokens in (0, 1]; with `per_block` also a list of them over the depth.
            router: Name of a router.
            where: Name of the layer in error messages.
            per_block: True if each block can have a capacity of its own.

        Raises:
            ValueError: If capacity or router is not valid.
        """
        self.capacities = capacity_per_depth(capacity, depth if per_block else 1, where)
        self.depth = depth
        self.router = build_router(router, dim, where)
        self.forget_plans()

    @property
    def dense(self) -> bool:
        """True at capacity 1 in every block: nothing is scored, gathered or gated, the layer is its dense baseline."""
        return self.capacities[-1] >= 1.0

    def route(self, tokens: torch.Tensor, size: tuple[int, int]) -> RoutingPlan:
        """Score the tokens (B, N, C) of a map of `size` (H, W), select the routed ones and remember the plan."""
        logits, inside = self.router(tokens, size), tokens_inside(size)
        n = tokens.shape[1]
        counts = self._count(logits, inside) if self.input_adaptive else None
        k = self.fit_selected(num_routed(n, self.capacities[0]) if counts is None else int(counts.max()), n)
        self.plan = plan = make_plan(logits, k, size, bool(self.router.learned), self.raster, counts, inside)
        return plan

    def fit_selected(self, k: int, num_tokens: int) -> int:
        """Return the number of routed tokens, of `num_tokens`, that the layer can compute where it needs k."""
        return k

    @property
    def input_adaptive(self) -> bool:
        """True if the number of routed tokens is the image's own: in threshold mode, at inference."""
        return self.threshold is not None and not self.training

    def _count(self, logits: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        """Return the number of tokens above the threshold for each image; those of padding do not count.

        Raises:
            ValueError: If the layer cannot take a batch, or the model is exported.
        """
        assert self.threshold is not None
        refuse_in_exports("routed tokens")
        if len(logits) > 1 and not self.takes_ragged:
            raise ValueError(
                f"{type(self).__name__} cannot compute images that need different numbers of tokens in one batch; use "
                "batch=1, or set_capacity(model, ...) for a fixed number."
            )
        return count_above(without_padding(logits, inside), self.threshold)

    def budget_threshold(self, plans: Sequence[Any], capacity: float) -> float:
        """Return the lowest threshold at which the mean share of routed tokens is within a budget.

        Args:
            plans: Plans of some images, each alone.
            capacity: The budget, mean share of tokens in (0, 1].
        """
        return budget_threshold([without_padding(plan.logits, plan.inside).float() for plan in plans], capacity)

    def depth_map(self) -> torch.Tensor | None:
        """Return how many of the blocks each token of the last forward passed, (B, H, W), None at capacity 1."""
        return None if self.plan is None else self.plan.passed(self.capacities, self.depth)

    def set_capacity(self, capacity: Any) -> None:
        """Set the capacity, one for all blocks or a list over the depth, and end threshold mode.

        Raises:
            ValueError: If a capacity is not in (0, 1] or the list increases.
        """
        self.capacities = self.check_capacity(capacity)
        self.threshold = None
        self.forget_plans()

    def set_threshold(self, threshold: float) -> None:
        """Route the tokens that score above `threshold` at inference; training stays at the capacity.

        Raises:
            ValueError: If the scores of the router do not compare across images, or blocks have different capacities.
        """
        if not self.router.learned:
            raise ValueError(f"thresholds need a learned router, {type(self.router).__name__} ranks within an image.")
        if len(set(self.capacities)) > 1 or self.dense:
            raise ValueError(f"thresholds need one capacity below 1 for all blocks, got {self.capacities}.")
        self.threshold = float(threshold)
        self.forget_plans()

    def check_capacity(self, capacity: Any, where: str | None = None) -> tuple[float, ...]:
        """Return the capacities that `set_capacity` would set; `where` names the layer in errors."""
        return capacity_per_depth(capacity, len(self.capacities), where or type(self).__name__)

    def follow_source(self) -> None:
        """Take the capacity or threshold that the layer this one was copied from was given since then, if any."""
        sources, before = self._copied
        source = next((layer for ref in sources if (layer := ref()) is not None), None)
        if source is not None and before != (now := (source.capacities, source.threshold)):
            self.capacities, self.threshold = now
            self._copied = sources, now
            self.forget_plans()

    def __deepcopy__(self, memo: dict[int, Any]) -> RoutedLayer:
        """Copy as usual, and remember the source: Ultralytics predicts with a copy of the model."""
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        copied._copied = (weakref.ref(self), *self._copied[0]), (self.capacities, self.threshold)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Leave the plan out of copies and checkpoints: it belongs to a batch, and may hold an autograd graph."""
        return {key: value for key, value in self.__dict__.items() if key not in NOT_SAVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without a plan."""
        super().__setstate__({key: value for key, value in state.items() if key not in NOT_SAVED})
        self.forget_plans()


def refuse_in_exports(what: str, instead: str = "") -> None:
    """Refuse a number of routed tokens or windows that is each image's own in the trace of an export.

    Args:
        what: What is routed.
        instead: A sentence about what else can be done.

    Raises:
        ValueError: If the model is exported.
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        raise ValueError(
            f"an export has a fixed number of {what}, not as many as an image needs: give `mod-vision export` a "
            f"capacity=, such as 0.4, or call set_capacity(model, 0.4) before it.{instead}"
        )


def routed_layers(model: nn.Module) -> Iterator[tuple[str, RoutedLayer]]:
    """Yield name and module of each routed layer of `model`, in forward order."""
    for name, module in model.named_modules():
        if isinstance(module, RoutedLayer):
            yield name, module
