"""Mixture-of-Depths for Ultralytics YOLO: compute where the objects are, skip the sky.

Importing this package is light: it makes sure that Ultralytics knows the routed layers as soon as, and only if,
Ultralytics itself is imported. Everything else is imported on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from mod_vision.env import AUTOLOAD
from mod_vision.plugin import autoload as _autoload

if TYPE_CHECKING:
    from mod_vision.conversion.convert import convert as convert
    from mod_vision.nn import MixtureOfDepthsBlock as MixtureOfDepthsBlock
    from mod_vision.nn import MoDStage as MoDStage
    from mod_vision.routing import Routed as Routed
    from mod_vision.viz.routes import route_maps as route_maps
    from mod_vision.yolo.model.capacity import set_capacity as set_capacity
    from mod_vision.yolo.model.zone import set_refresh as set_refresh
    from mod_vision.yolo.model.zone import set_zone as set_zone
    from mod_vision.yolo.run.stream import Stream as Stream
    from mod_vision.yolo.train.calibration import calibrate_thresholds as calibrate_thresholds
    from mod_vision.yolo.train.fit import fit_routing as fit_routing

__version__ = "0.1.0"

_PUBLIC = {
    "calibrate_thresholds": "mod_vision.yolo.train.calibration",
    "MixtureOfDepthsBlock": "mod_vision.nn",
    "MoDStage": "mod_vision.nn",
    "fit_routing": "mod_vision.yolo.train.fit",
    "convert": "mod_vision.conversion.convert",
    "Routed": "mod_vision.routing",
    "Stream": "mod_vision.yolo.run.stream",
    "route_maps": "mod_vision.viz.routes",
    "set_capacity": "mod_vision.yolo.model.capacity",
    "set_refresh": "mod_vision.yolo.model.zone",
    "set_zone": "mod_vision.yolo.model.zone",
}
__all__ = ("__version__", *_PUBLIC)

if os.environ.get(AUTOLOAD, "1") != "0":
    _autoload.install()


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _PUBLIC:
        _autoload.install()  # whoever asks for it wants the layers, also where nothing is hooked by itself
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
