"""Whether the scores of routers are numbers: NaN has a rank like any other, so a broken router goes unnoticed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mod_vision.routing.layer import RoutedLayer, routed_layers


def first_not_finite(layers: Iterable[tuple[str, RoutedLayer]]) -> str | None:
    """Return the first of some layers whose scores in the last forward are NaN or infinite, None if all are numbers.

    One host synchronisation for the whole model, so for the end of a batch, not for a forward.
    """
    plans = {name: layer.plan for name, layer in layers if layer.plan is not None}
    if not plans:
        return None
    finite = torch.stack([_finite(plan) for plan in plans.values()]).tolist()
    return next((name for name, good in zip(plans, finite, strict=True) if not good), None)


def _finite(plan: Any) -> torch.Tensor:
    """Return whether all scores of a plan are numbers, those by class too, as a scalar."""
    good, classes = plan.logits.isfinite().all(), getattr(plan, "classes", None)
    return good if classes is None else good & classes.isfinite().all()


def check_finite(model: nn.Module) -> None:
    """Refuse the routes of the last forward if they come from scores that are no numbers.

    Raises:
        ValueError: If the scores of a routed layer are NaN or infinite; the message names the first.
    """
    if name := first_not_finite(routed_layers(model)):
        raise ValueError(f"{not_finite(name)}; the weights are broken, or float16 is too small (use float32).")


def not_finite(name: str) -> str:
    """Return what to say of a layer with such scores."""
    return f"router scores of {name} are NaN or infinite, so its routes mean nothing"
