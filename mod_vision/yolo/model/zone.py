"""Zones of whole models: outside of them nothing is computed and nothing is detected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ultralytics.engine.model import Model

from mod_vision.yolo.data.zones import zones_of
from mod_vision.yolo.model.outside import set_entry
from mod_vision.yolo.model.windows import head_of


def set_zone(model: Any, zone: Any, size: Sequence[float] | None = None) -> None:
    """Look at a zone of the picture alone: no window is placed outside of it, and what lies outside is not detected.

    It is kept in the checkpoint, in exports and in the YAML that the model is rebuilt from. A training does without it.

    Args:
        model: A `YOLO` object or a torch model that runs on windows.
        zone: One polygon [[x, y], ...], a list of polygons, a file (see `read_zone`), or a list of zones or files, one
            for each stream, which is one for each image of a batch. None takes the zone away.
        size: (width, height) of the picture, if points are in its pixels instead of shares in [0, 1].

    Raises:
        ValueError: If the model does not run on windows, or it is no zone.
        FileNotFoundError: If a file does not exist.
    """
    net: Any = model.model if isinstance(model, Model) else model
    head = head_of(net)
    if head is None:
        raise ValueError("zones need a model that runs on windows; `mod-vision zone model=... zone=...` makes one.")
    zones = zones_of(zone, size=size)
    set_entry(head.entry, zones)
    windows = {key: value for key, value in net.yaml["mod"]["windows"].items() if key != "zone"}
    net.yaml["mod"]["windows"] = windows | ({} if zones is None else {"zone": zones})
    if isinstance(model, Model):
        model.predictor = None  # it keeps a copy of the model, with the zone before
        if model.ckpt == {}:  # built from a YAML file, which training would read again
            model.ckpt = {"model": net}
