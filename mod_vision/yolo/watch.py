"""A watch over plain `yolo predict` of routed models."""

from __future__ import annotations

from typing import Any

from torch import nn
from ultralytics.utils import LOGGER

from mod_vision.routing.finite import first_not_finite, not_finite
from mod_vision.text import printable


def warn_of_broken_routes(predictor: Any) -> None:
    """Say once if a router gives no numbers; results are on the host by now, so this waits for nothing new."""
    net = getattr(predictor.model, "model", None)
    if isinstance(net, nn.Module) and not getattr(predictor, "mod_warned", False) and (name := first_not_finite(net)):
        predictor.mod_warned = True
        LOGGER.warning(f"mod_vision: {not_finite(name)}; see {printable(predictor.batch[0][0])}")
