"""The `mod:` section of a model YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mod_vision.routing import ROUTERS, check_capacity


@dataclass(frozen=True)
class ModSettings:
    """What `mod:` sets for a whole model; a row can override capacity and router.

    Attributes:
        capacity: Share of tokens that pass a heavy block, in (0, 1], or a list over the depth of a stage.
        router: Name of a router.
        guide: Weight of the guide loss, 0 switches it off.
    """

    capacity: Any = 0.5
    router: str = "linear"
    guide: float = 0.5

    @classmethod
    def from_yaml(cls, section: Any) -> ModSettings:
        """Read the section of a model YAML, None for a YAML without one.

        Raises:
            ValueError: If a key is unknown or a value is out of range.
        """
        section = dict(_mapping(section, "mod", ("capacity", "router", "loss")))
        loss = _mapping(section.pop("loss", None), "mod.loss", ("guide",))
        guide = loss.get("guide", cls.guide)
        if not isinstance(guide, (int, float)) or isinstance(guide, bool) or not guide >= 0:
            raise ValueError(f"mod.loss.guide must be a number of at least 0, got {guide!r}; 0 switches it off.")
        settings = cls(**section, guide=float(guide))
        check_options({"capacity": settings.capacity, "router": settings.router}, "mod")
        return settings


def check_options(options: Any, where: str, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the routing options of a row after checking names and values; `extra` ones are checked by their layer.

    Raises:
        ValueError: If an option is unknown or its value is not valid.
    """
    options = _mapping(options, where, ("capacity", "router", *extra))
    capacity = options.get("capacity", 0.5)
    for value in capacity if isinstance(capacity, list) and capacity else [capacity]:
        check_capacity(value, where)
    if options.get("router", "linear") not in list(ROUTERS):  # a list, for values that cannot be hashed
        raise ValueError(f"{where}: unknown router {options['router']!r}, choose one of {', '.join(ROUTERS)}.")
    return dict(options)


def _mapping(value: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Return `value` as a mapping with known keys only; None is empty."""
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping of {', '.join(known)}, got {value!r}.")
    unknown = [str(key) for key in value if key not in known]
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(known)}.")
    return value
