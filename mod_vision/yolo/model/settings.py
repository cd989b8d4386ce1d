"""The `mod:` section of a model YAML."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from mod_vision.routing import ROUTERS, check_capacity
from mod_vision.routing.schedule import CapacitySchedule
from mod_vision.routing.window_routers import WINDOW_ROUTERS
from mod_vision.routing.windows import CELL
from mod_vision.yolo.data.zones import zones_of

COARSE = (0, 0.5, 0.25, 0.125)  # shares of the side that are whole numbers of pixels for any image


@dataclass(frozen=True)
class LossWeights:
    """Weights of the router's losses; 0 switches a loss off.

    Attributes:
        guide: Router logits against the tokens that touch an object.
        budget: Mean probability of a token to be routed against the capacity, for thresholds.
        z: Square of the logits.
        windows: Scores of cells against the cells that touch an object, of routers of windows.
    """

    guide: float = 0.5
    budget: float = 0.0
    z: float = 0.001
    windows: float = 1.0


@dataclass(frozen=True)
class WindowSettings:
    """What `mod.windows` sets: the network runs on windows of the image.

    Attributes:
        size: Side of a window in px.
        capacity: Share of the image's pixels that the windows compute, in (0, 1]; 1 runs the whole image.
        router: Name of a router of windows.
        coarse: Share of the image's side at which the whole image is looked at for large objects; 0 leaves it out.
        entry: Row at which windows are taken; the rows before see the whole image.
        objectness: Exponent of the router's probability that a cell holds an object of a class, in the odds of one that
            is found there, in [0, 1].
        doubt: What the router doubts of an object on average, minus the logarithm of its probability: what is found in
            a cell of this doubt keeps its score, and scores more in a cell of less.
        zone: The part of the picture that is looked at, as `zones_of` takes it; None is all of it.
        refresh: Frames of a video or stream after which each part is computed again at the latest, if nothing moves
            there; 0 computes each frame anew.
        budget: Milliseconds that such a frame may take; what does not fit waits for the next ones. 0 is no bound.
    """

    size: int = 192
    capacity: float = 0.25
    router: str = "look"
    coarse: float = 0.0
    entry: int = 0
    objectness: float = 0.0
    doubt: float = 0.0
    zone: Any = None
    refresh: int = 0
    budget: float = 0.0

    @classmethod
    def from_yaml(cls, section: Any) -> WindowSettings | None:
        """Read the section, None for a YAML without one.

        Raises:
            ValueError: If a key is unknown or a value is out of range.
        """
        if section is None:
            return None
        own = _mapping(section, "mod.windows", tuple(f.name for f in fields(cls)))
        found = cls(**own)
        if not _is_whole(found.size) or found.size < CELL or found.size % CELL:
            raise ValueError(f"mod.windows.size must be a multiple of {CELL} px, such as 192, got {found.size!r}.")
        check_capacity(found.capacity, "mod.windows")
        if found.router not in list(WINDOW_ROUTERS):
            known = ", ".join(WINDOW_ROUTERS)
            raise ValueError(f"mod.windows: unknown router {found.router!r}, choose one of {known}.")
        if not _is_number(found.coarse) or found.coarse not in COARSE:
            raise ValueError(f"mod.windows.coarse must be one of {', '.join(map(str, COARSE))}, got {found.coarse!r}.")
        if not _is_whole(found.entry) or found.entry < 0:
            raise ValueError(f"mod.windows.entry must be the number of a row of the backbone, got {found.entry!r}.")
        if not _is_number(found.objectness) or not 0 <= found.objectness <= 1:
            raise ValueError(f"mod.windows.objectness must be a number in [0, 1], got {found.objectness!r}.")
        if not _is_number(found.doubt) or not 0 <= found.doubt < float("inf"):
            raise ValueError(f"mod.windows.doubt must be a number, at least 0, got {found.doubt!r}.")
        if not _is_whole(found.refresh) or found.refresh < 0:
            raise ValueError(f"mod.windows.refresh must be a number of frames, or 0, got {found.refresh!r}.")
        if not _is_number(found.budget) or not 0 <= found.budget < float("inf"):
            raise ValueError(f"mod.windows.budget must be milliseconds, or 0, got {found.budget!r}.")
        if _has_text(found.zone):
            raise ValueError("mod.windows.zone must be points: a YAML goes elsewhere without the files it names.")
        return replace(found, zone=zones_of(found.zone, "mod.windows.zone"))


@dataclass(frozen=True)
class ModSettings:
    """What `mod:` sets for a whole model; a row can override capacity and router.

    Attributes:
        capacity: Share of tokens that pass a heavy block, in (0, 1], or a list over the depth of a stage.
        router: Name of a router.
        loss: Weights of the router's losses.
        schedule: Capacity over the course of a training.
        windows: Routed windows, None for a model without.
    """

    capacity: Any = 0.5
    router: str = "conv"
    loss: LossWeights = field(default_factory=LossWeights)
    schedule: CapacitySchedule = field(default_factory=CapacitySchedule)
    windows: WindowSettings | None = None

    @classmethod
    def from_yaml(cls, section: Any) -> ModSettings:
        """Read the section of a model YAML, None for a YAML without one.

        Raises:
            ValueError: If a key is unknown or a value is out of range.
        """
        section = _mapping(section, "mod", ("capacity", "router", "warmup", "elastic", "loss", "windows"))
        own = {key: section[key] for key in ("capacity", "router") if key in section}
        if own and section.get("windows") is not None:
            raise ValueError(f"mod: {', '.join(own)} belongs into mod.windows, where the windows have theirs.")
        check_options(own, "mod")
        schedule = CapacitySchedule(_warmup(section.get("warmup", 0)), _elastic(section.get("elastic")))
        windows = WindowSettings.from_yaml(section.get("windows"))
        return cls(**own, loss=_weights(section.get("loss")), schedule=schedule, windows=windows)


def check_options(options: Any, where: str, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the routing options of a row after checking names and values; `extra` ones are checked by their layer.

    Raises:
        ValueError: If an option is unknown or its value is not valid.
    """
    options = _mapping(options, where, ("capacity", "router", *extra))
    capacity = options.get("capacity", 0.5)
    for value in capacity if isinstance(capacity, list) and capacity else [capacity]:
        check_capacity(value, where)
    if options.get("router", "conv") not in list(ROUTERS):  # a list, for values that cannot be hashed
        raise ValueError(f"{where}: unknown router {options['router']!r}, choose one of {', '.join(ROUTERS)}.")
    return dict(options)


def check_refresh(frames: Any, budget: Any) -> None:
    """Check the frames and milliseconds that `set_refresh` and `Stream` take.

    Raises:
        ValueError: If it is no number of frames, or no time.
    """
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 0:
        raise ValueError(f"refresh must be a number of frames of at least 1, or 0, got {frames!r}.")
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 <= budget < float("inf"):
        raise ValueError(f"budget must be milliseconds, or 0 for no bound, got {budget!r}.")


def _has_text(value: Any) -> bool:
    """Return whether nested lists hold text."""
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and any(map(_has_text, value)))


def _weights(section: Any) -> LossWeights:
    """Read `mod.loss`."""
    weights = _mapping(section, "mod.loss", tuple(f.name for f in fields(LossWeights)))
    for name, value in weights.items():
        if not _is_number(value) or not 0 <= value < float("inf"):
            raise ValueError(f"mod.loss.{name} must be a number of at least 0, got {value!r}; 0 switches it off.")
    return LossWeights(**{name: float(value) for name, value in weights.items()})


def _warmup(value: Any) -> float:
    """Read `mod.warmup`."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"mod.warmup must be a number in [0, 1), got {value!r}. It is the share of the training at capacity 1, "
            "before the routing is fitted to it; 0 routes from the start."
        )
    return float(value)


def _elastic(value: Any) -> tuple[float, float] | None:
    """Read `mod.elastic`."""
    if value is None:
        return None
    pair = value if isinstance(value, (list, tuple)) and len(value) == 2 else ()
    ends = [check_capacity(c, "mod.elastic") for c in pair]
    if not ends or ends[0] >= ends[1]:
        raise ValueError(f"mod.elastic must be [lowest, highest] capacity, such as [0.25, 1.0], got {value!r}.")
    return ends[0], ends[1]


def _is_whole(value: Any) -> bool:
    """Return whether a value of a YAML is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Return whether a value of a YAML is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mapping(value: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Return `value` as a mapping with known keys only; None is empty."""
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping of {', '.join(known)}, got {value!r}.")
    unknown = [str(key) for key in value if key not in known]
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(known)}.")
    return value
