"""What a sweep chooses from: lists of capacities, routers and routed stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from mod_vision.routing import ROUTERS, check_capacity
from mod_vision.yolo.model.variants import ALL, DENSE, Candidate, routed_rows

Choices = Mapping[str, list[Any]]  # capacities from 1 down, routers, stages: by a candidate's attributes


def check_choices(model: Any, capacity: Sequence[Any], router: Sequence[str], stages: Sequence[str]) -> Choices:
    """Check what the user wants to choose from; doubles are dropped.

    Args:
        model: Routed `YOLO` object.
        capacity: Shares in (0, 1]; the dense baseline at 1 is a candidate in any case.
        router: Names of routers.
        stages: `all`, or rows of routed layers joined by `+`, such as `6` or `6+8`.

    Raises:
        ValueError: If a list is empty, a value is not valid, or the model routes nothing.
    """
    rows = routed_rows(model.model)
    if not rows:
        raise ValueError("this model has no routed layer, so there is nothing to tune; `mod-vision convert` adds some.")
    for name, values in (("capacity", capacity), ("router", router), ("stages", stages)):
        if not values:
            raise ValueError(f"{name} is empty, give at least one value.")
    shares = sorted({check_capacity(value) for value in capacity} - {1.0}, reverse=True)
    if not shares:
        raise ValueError("capacity=1 is the dense baseline, which is always tried; give at least one share below 1.")
    for name in router:
        if name not in ROUTERS:
            raise ValueError(f"router={name}: unknown router, choose from {', '.join(ROUTERS)}.")
    wanted = dict.fromkeys(_check_stages(value, rows) for value in stages)
    return {"capacity": [1.0, *shares], "router": list(dict.fromkeys(router)), "stages": list(wanted)}


def _check_stages(value: str, rows: list[int]) -> str:
    """Return stages in their one spelling: ascending, and `all` if they are."""
    if value == ALL:
        return ALL
    parts = value.split("+")
    if not all(part.strip().isdecimal() and int(part) in rows for part in parts):
        known = ", ".join(map(str, rows))
        raise ValueError(f"stages={value}: give all, or rows of routed layers ({known}), several joined by +.")
    chosen = sorted({int(part) for part in parts})
    return ALL if chosen == rows else "+".join(map(str, chosen))


def candidates(choices: Choices) -> list[Candidate]:
    """Return the dense baseline and all routed candidates."""
    return [DENSE, *map(Candidate._make, product(choices["capacity"][1:], choices["router"], choices["stages"]))]


def candidate_of(params: Mapping[str, Any]) -> Candidate:
    """Return the candidate with these parameters; whatever is at capacity 1 is the dense baseline."""
    return DENSE if params["capacity"] == 1 else Candidate(**params)
