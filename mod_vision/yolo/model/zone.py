"""What part of a picture a whole model looks at: its zone, and in frames of a still camera what moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ultralytics.engine.model import Model

from mod_vision.yolo.data.zones import zones_of
from mod_vision.yolo.model.outside import set_entry
from mod_vision.yolo.model.settings import check_refresh
from mod_vision.yolo.model.windows import head_of


def set_zone(model: Any, zone: Any, size: Sequence[float] | None = None) -> None:
    """Look at a zone of the picture alone: no window is placed outside of it, and what lies outside is not detected.

    It is kept in the checkpoint, in exports and in the YAML that the model is rebuilt from. A training does without it.
    With a fixed capacity, windows that the zone has no use for are computed at the top left, and nothing is detected
    there; `mod-vision zone` lowers the capacity to what the zone takes.

    Args:
        model: A `YOLO` object or a torch model that runs on windows.
        zone: One polygon [[x, y], ...], a list of polygons, a file (see `read_zone`), or a list of zones or files, one
            for each stream, which is one for each image of a batch. None takes the zone away.
        size: (width, height) of the picture, if points are in its pixels instead of shares in [0, 1].

    Raises:
        ValueError: If the model does not run on windows, or it is no zone.
        FileNotFoundError: If a file does not exist.
    """
    zones = zones_of(zone, size=size)
    net, head = _on_windows(model, "zone")
    set_entry(head.entry, zones)
    _write(model, net, "zone", zones)


def set_refresh(model: Any, frames: int, budget: float = 0.0) -> None:
    """Compute only what moved in the frames of videos and streams of still cameras, as `mod_vision.Stream` does.

    It is kept in the checkpoint and in the YAML that the model is rebuilt from; exports compute each frame.

    Args:
        model: As in `set_zone`.
        frames: Number of them after which each part of the picture is computed again at the latest; 0 computes each.
        budget: Milliseconds that a frame may take: what does not fit waits for the next frames. 0 is no bound.

    Raises:
        ValueError: If the model does not run on windows, or `frames` or `budget` is below 0.
    """
    check_refresh(frames, budget)
    if budget and not frames:
        raise ValueError("a budget is for frames of which only what moved is computed; give refresh= too, such as 30.")
    net, head = _on_windows(model, "stream")
    head.entry.refresh, head.entry.budget = frames, float(budget)
    _write(model, net, "refresh", frames or None)
    _write(model, net, "budget", float(budget) or None)


def _on_windows(model: Any, verb: str) -> tuple[Any, Any]:
    """Return the torch model and its head.

    Raises:
        ValueError: If it does not run on windows.
    """
    net: Any = model.model if isinstance(model, Model) else model
    head = head_of(net)
    if head is None:
        raise ValueError(f"{verb} needs a model that runs on windows; `mod-vision {verb} model=...` makes one.")
    return net, head


def _write(model: Any, net: Any, key: str, value: Any) -> None:
    """Write a key of `mod.windows` into the YAML of a model, or leave it out for None."""
    windows = {name: own for name, own in net.yaml["mod"]["windows"].items() if name != key}
    net.yaml["mod"]["windows"] = windows | ({} if value is None else {key: value})
    if isinstance(model, Model):
        model.predictor = None  # it keeps a copy of the model as it was
        if model.ckpt == {}:  # built from a YAML file, which training would read again
            model.ckpt = {"model": net}
