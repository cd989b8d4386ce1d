"""What a sweep chooses from: routed variants of one model, by capacity, router and the stages that are routed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from torch import nn
from ultralytics import YOLO

from mod_vision import routing
from mod_vision.routing import ROUTERS, check_capacity
from mod_vision.yolo.convert import copy_model
from mod_vision.yolo.parse import write_options
from mod_vision.yolo.trust import restricted
from mod_vision.yolo.twins import KINDS

ALL, NONE = "all", "none"


class Candidate(NamedTuple):
    """A variant of a model.

    Attributes:
        capacity: Share of tokens that pass the routed stages, in (0, 1].
        router: Name of the router, `none` for the dense twin.
        stages: `all`, rows of the model YAML such as `6` or `6+8`, or `none` for the dense twin.
    """

    capacity: float
    router: str
    stages: str

    def __str__(self) -> str:
        return self.kind if self == DENSE else f"capacity {self.capacity:g}, {self.kind}"

    @property
    def kind(self) -> str:
        """Router and stages."""
        return "dense twin" if self == DENSE else f"router {self.router}, stages {self.stages}"

    @property
    def slug(self) -> str:
        """Name of the candidate's folder."""
        return "dense" if self == DENSE else f"{self.capacity:g}-{self.router}-{self.stages}"


DENSE = Candidate(1.0, NONE, NONE)


@dataclass(frozen=True)
class SearchSpace:
    """Discrete choices; a candidate is a place in each list, its genes.

    Attributes:
        capacities: From 1, the dense twin, down.
        routers: Names of routers.
        stages: As in a candidate.
    """

    capacities: tuple[float, ...]
    routers: tuple[str, ...]
    stages: tuple[str, ...]

    def candidates(self) -> list[Candidate]:
        """Return the dense twin and all routed candidates."""
        return [DENSE, *map(Candidate._make, product(self.capacities[1:], self.routers, self.stages))]

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Return the first and the last place of each gene, by its name."""
        lists = {"capacity": self.capacities, "router": self.routers, "stages": self.stages}
        return {name: (0, len(choices) - 1) for name, choices in lists.items()}

    def genes(self, candidate: Candidate) -> dict[str, int]:
        """Return the place of a candidate of this space in each list; the dense twin is at 0 in all."""
        if candidate == DENSE:
            return dict.fromkeys(self.ranges(), 0)
        places = (
            self.capacities.index(candidate.capacity),
            self.routers.index(candidate.router),
            self.stages.index(candidate.stages),
        )
        return dict(zip(self.ranges(), places, strict=True))

    def candidate(self, genes: dict[str, int]) -> Candidate:
        """Return the candidate at these places."""
        if genes["capacity"] == 0:
            return DENSE
        return Candidate(
            self.capacities[genes["capacity"]], self.routers[genes["router"]], self.stages[genes["stages"]]
        )


def search_space(model: YOLO, capacity: Sequence[Any], router: Sequence[str], stages: Sequence[str]) -> SearchSpace:
    """Check what the user wants to choose from; doubles are dropped.

    Args:
        model: Routed model.
        capacity: Shares in (0, 1]; the dense twin at 1 is a candidate in any case.
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
        raise ValueError("capacity=1 is the dense twin, which is always tried; give at least one share below 1.")
    for name in router:
        if name not in ROUTERS:
            raise ValueError(f"router={name}: unknown router, choose from {', '.join(ROUTERS)}.")
    wanted = dict.fromkeys(_check_stages(value, rows) for value in stages)
    return SearchSpace((1.0, *shares), tuple(dict.fromkeys(router)), tuple(wanted))


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


def routed_rows(net: Any) -> list[int]:
    """Return the rows of a model's YAML that are routed."""
    return [i for i, row in enumerate(net.yaml["backbone"] + net.yaml["head"]) if row[2] in KINDS]


def capacities(net: Any, candidate: Candidate) -> dict[int, float]:
    """Return the capacity of each routed row of a model; stages that are not routed have 1."""
    rows = routed_rows(net)
    chosen = rows if candidate.stages == ALL else [int(i) for i in candidate.stages.split("+") if i != NONE]
    return {row: candidate.capacity if row in chosen else 1.0 for row in rows}


def routed_variant(model: YOLO, candidate: Candidate, classes: int) -> YOLO:
    """Return a candidate with the weights of `model`, as far as they fit, written into its YAML.

    Args:
        model: A `YOLO` object, not fused; it stays as it is.
        candidate: What to build.
        classes: Number of classes of the head.
    """
    new = copy_model(model)
    old: Any = new.model
    d = deepcopy(old.yaml)
    router = {} if candidate == DENSE else {"router": candidate.router}
    d["mod"] = {**(d.get("mod") or {}), "capacity": candidate.capacity, **router}
    rows = d["backbone"] + d["head"]
    for i, capacity in capacities(old, candidate).items():
        write_options(rows[i], {"capacity": capacity, **router})
    with restricted():  # the YAML is that of a checkpoint
        net = type(old)(d, ch=d.get("channels", 3), nc=classes, verbose=False)
    net.load(old, verbose=False)
    net.task = model.task  # or a checkpoint would be taken for a detector
    new.model, new.ckpt = net, {"model": net}
    return new


def share_weights(net: nn.Module, candidate: Candidate) -> nn.Module:
    """Return a copy of a model at the capacities of a candidate; the copy shares all parameters."""
    tensors = (*net.parameters(), *net.buffers())
    new: Any = deepcopy(net, {id(tensor): tensor for tensor in tensors})
    routing.set_capacity(new, {f"model.{row}": capacity for row, capacity in capacities(new, candidate).items()})
    return new
