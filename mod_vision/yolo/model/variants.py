"""Variants of one routed model, by capacity, router and the stages that are routed, and its dense baseline."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, YAML

from mod_vision.yolo.blocks import KINDS
from mod_vision.yolo.model.graph import copy_model
from mod_vision.yolo.model.rows import write_options
from mod_vision.yolo.model.trust import restricted

ALL, NONE = "all", "none"


class Candidate(NamedTuple):
    """A variant of a model.

    Attributes:
        capacity: Share of tokens that pass the routed stages, in (0, 1].
        router: Name of the router, `none` for the dense baseline.
        stages: `all`, rows of the model YAML such as `6` or `6+8`, or `none` for the dense baseline.
    """

    capacity: float
    router: str
    stages: str

    def __str__(self) -> str:
        return self.kind if self == DENSE else f"capacity {self.capacity:g}, {self.kind}"

    @property
    def kind(self) -> str:
        """Router and stages."""
        return "dense baseline" if self == DENSE else f"router {self.router}, stages {self.stages}"

    @property
    def slug(self) -> str:
        """Name of the candidate's folder."""
        return "dense" if self == DENSE else f"{self.capacity:g}-{self.router}-{self.stages}"


DENSE = Candidate(1.0, NONE, NONE)


def routed_rows(net: Any) -> list[int]:
    """Return the rows of a model's YAML that are routed."""
    return [i for i, row in enumerate(net.yaml["backbone"] + net.yaml["head"]) if row[2] in KINDS]


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
    routed = routed_rows(old)
    chosen = routed if candidate.stages == ALL else [int(i) for i in candidate.stages.split("+") if i != NONE]
    for i in routed:
        write_options(rows[i], {"capacity": candidate.capacity if i in chosen else 1.0, **router})
    with restricted():  # the YAML is that of a checkpoint
        net = type(old)(d, ch=d.get("channels", 3), nc=classes, verbose=False)
    net.load(old, verbose=False)
    net.task = model.task  # or a checkpoint would be taken for a detector
    new.model, new.ckpt = net, {"model": net}
    return new


def read_train_args(cfg: str | None) -> dict[str, Any]:
    """Return the training arguments of a YAML as `yolo train cfg=` takes it.

    Raises:
        FileNotFoundError: If there is no such file.
        SyntaxError: If one is none of Ultralytics'.
    """
    if cfg is None:
        return {}
    if not Path(cfg).is_file():
        raise FileNotFoundError(f"cfg={cfg} does not exist; it is a YAML of training arguments such as lr0: 0.001.")
    args = YAML.load(cfg)
    get_cfg(DEFAULT_CFG_DICT, args)
    return args
