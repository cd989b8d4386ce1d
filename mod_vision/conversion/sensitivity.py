"""Which layers are worth routing: what each saves, and what it changes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import nn

from mod_vision.eval.cost.latency import as_deployed, paired_part_latency
from mod_vision.yolo.model.graph import catch_inputs, routed_layer, yaml_row

REPEATS = 7
MIN_SAVING = 0.01  # share of the network's time
MAX_SHIFT = 0.3


class Trial(NamedTuple):
    """What routing one layer alone does.

    Attributes:
        row: Row of the layer in the model YAML.
        name: Name of the dense block.
        dense_ms: Milliseconds of the dense layer for one image.
        routed_ms: Milliseconds of the routed layer.
        saving: Share of the network's time that it saves.
        shift: Relative change (L2) of the maps that the head reads, mean over them.
        reason: Why it cannot be routed; empty if it can.
    """

    row: int
    name: str
    dense_ms: float = 0.0
    routed_ms: float = 0.0
    saving: float = 0.0
    shift: float = 0.0
    reason: str = ""

    @property
    def verdict(self) -> str:
        """Return `routed`, or why it is not: it saves too little of the time, or changes the output too much."""
        if self.reason:
            return self.reason
        if self.saving < MIN_SAVING:
            return f"saves less than {MIN_SAVING:.0%}"
        return "routed" if self.shift <= MAX_SHIFT else f"shifts more than {MAX_SHIFT:.0%}"


def try_layers(net: Any, layers: dict[int, nn.Module], options: dict[int, Any], images: torch.Tensor) -> list[Trial]:
    """Route each layer alone to see what that changes, and all of them to see what each saves.

    Args:
        net: Dense torch model; it is as before afterwards.
        layers: Routed layers by row.
        options: Options of the rows, to build the layers anew for timing, where Conv and BatchNorm are fused.
        images: (B, 3, H, W).
    """
    head = len(net.model) - 1
    before = catch_inputs(net, [head], images)[head]
    dense = as_deployed(deepcopy(net))
    routed = deepcopy(dense)
    for row in layers:
        routed.model[row] = routed_layer(dense, row, options[row]).to(memory_format=torch.channels_last)
    image = images[:1].contiguous(memory_format=torch.channels_last)
    networks = [(network, dict(enumerate(network.model))) for network in (dense, routed)]
    times = paired_part_latency(networks, image, REPEATS)
    dense_ms, routed_ms = ({row: time.median for row, time in found.items()} for found in times)
    total = sum(dense_ms.values())
    trials = []
    for row, layer in layers.items():
        after = _with(net, row, layer, lambda: catch_inputs(net, [head], images)[head])
        saving = (dense_ms[row] - routed_ms[row]) / total
        name = yaml_row(net, row)[2]
        trials.append(Trial(row, name, dense_ms[row], routed_ms[row], saving, _shift(after, before)))
    return trials


def _with(net: Any, row: int, layer: nn.Module, call: Any) -> Any:
    """Call with a layer in the place of the one in `row`."""
    dense, net.model[row] = net.model[row], layer
    try:
        return call()
    finally:
        net.model[row] = dense


def _shift(after: Any, before: Any) -> float:
    """Return the relative change of the head's maps, mean over them."""
    after, before = ([maps] if isinstance(maps, torch.Tensor) else list(maps) for maps in (after, before))
    return sum(float((a - b).norm() / b.norm()) for a, b in zip(after, before, strict=True)) / len(before)


def table(trials: list[Trial]) -> str:
    """Return the trials as text."""
    lines = [f"{'row':>4}  {'block':<14}{'dense':>10}{'routed':>10}{'saves':>8}{'shift':>8}  "]
    for t in sorted(trials):
        figures = " " * 36
        if not t.reason:
            figures = f"{t.dense_ms:>7.1f} ms{t.routed_ms:>7.1f} ms{t.saving:>8.1%}{t.shift:>8.1%}"
        lines.append(f"{t.row:>4}  {t.name:<14}{figures}  {t.verdict}")
    lines.append("saves: share of the network's time, measured within it; shift: relative change of the maps that")
    lines.append("the head reads, when this layer alone is routed by an untrained router")
    return "\n".join(lines)
