"""Plain `yolo predict` of routed models: at the capacity they have now, and a word if a router is broken."""

from __future__ import annotations

from typing import Any

from torch import nn
from ultralytics.utils import LOGGER

from mod_vision.routing import routed_layers
from mod_vision.routing.finite import first_not_finite, not_finite
from mod_vision.text import printable


def follow_capacities(predictor: Any) -> None:
    """Give the copy of the model that a predictor keeps the capacities that the model was given since it was made."""
    net = getattr(predictor.model, "model", None)  # a path in exports
    if not hasattr(predictor, "mod_layers") or predictor.mod_net is not net:  # once for the frames of a stream
        predictor.mod_net, predictor.mod_layers = net, dict(routed_layers(net) if isinstance(net, nn.Module) else ())
    for layer in predictor.mod_layers.values():
        layer.follow_source()


def warn_of_broken_routes(predictor: Any) -> None:
    """Say once if a router gives no numbers; results are on the host by now, so this waits for nothing new."""
    if predictor.mod_idle or getattr(predictor, "mod_warned", False):
        return
    if name := first_not_finite(predictor.mod_layers.items()):
        predictor.mod_warned = True
        LOGGER.warning(f"mod_vision: {not_finite(name)}; see {printable(predictor.batch[0][0])}")
