"""Where the time of a routed layer goes: routing, gather, block, scatter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch.profiler import record_function

from mod_vision.eval.cost.layer_benchmark import deployed
from mod_vision.eval.cost.profiler import quiet_profile
from mod_vision.routing import routed_layers
from mod_vision.routing.finite import check_finite
from mod_vision.run_settings import BenchSettings
from mod_vision.yolo.model.capacity import set_capacity

STEPS = ("routing", "gather", "block", "scatter")
OPERATIONS = {  # of those outside of the router
    "routing": ("topk", "sort"),
    "gather": ("index_select", "gather"),
    "scatter": ("index_copy", "index_copy_", "scatter"),
}
LAYER, ROUTER = "mod_vision layer ", "mod_vision router"


class ProfileRow(NamedTuple):
    """One layer at one capacity.

    Attributes:
        layer: Name of the layer.
        capacity: Share of tokens that it routes, 1 for its dense baseline.
        ms: Milliseconds per forward by step; the block's are all that is no other step.
    """

    layer: str
    capacity: float
    ms: dict[str, float]


def profile_layers(
    model: str,
    capacity: Sequence[float],
    bench: BenchSettings = BenchSettings(),  # noqa: B008  # frozen
) -> list[ProfileRow]:
    """Add up the time of each step of the routed layers, fused and in channels-last memory, dense and at each capacity.

    Args:
        model: Routed model: checkpoint or YAML name.
        capacity: Capacities to measure.
        bench: How it is run, in eager mode and float32.

    Raises:
        ValueError: If the model routes nothing, or a router gives NaN.
    """
    net, image = deployed(model, bench)
    rows = []
    for c in (1.0, *capacity):
        set_capacity(net, c)
        rows += [ProfileRow(layer, c, ms) for layer, ms in _profile(net, image, bench.repeats).items()]
    order = [name for name, _ in routed_layers(net)]
    return sorted(rows, key=lambda row: order.index(row.layer))


def _profile(net: Any, image: torch.Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Return milliseconds per forward by layer and step."""
    cuda = image.device.type == "cuda"
    with torch.inference_mode(), ExitStack() as hooks:
        for name, layer in routed_layers(net):
            _mark(layer, LAYER + name, hooks)
            _mark(layer.router, ROUTER, hooks)
        net(image)
        check_finite(net)
        with quiet_profile(image.device.type) as profiled:
            for _ in range(repeats):
                net(image)
    totals: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(STEPS, 0.0))
    for event in profiled.events() or ():
        above = _above(event)  # from the innermost on
        place = next((name for name in above if name.startswith(LAYER)), None)
        if place is not None and not event.name.startswith((LAYER, ROUTER)):
            time = event.self_device_time_total if cuda else event.self_cpu_time_total
            inside = [event.name, *above[: above.index(place)]]
            totals[place.removeprefix(LAYER)][_step(inside)] += time / 1e3 / repeats
    return totals


def _mark(module: Any, name: str, hooks: ExitStack) -> None:
    """Put the forwards of a module under a name in the profile, as long as the hooks are there."""
    open_marks: list[Any] = []

    def begin(*_: Any) -> None:
        open_marks.append(record_function(name).__enter__())

    def end(*_: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    for register, hook in ((module.register_forward_pre_hook, begin), (module.register_forward_hook, end)):
        remove: Callable[[], None] = register(hook).remove
        hooks.callback(remove)


def _above(event: Any) -> list[str]:
    """Return the names of the events that an event lies in."""
    names = []
    while event.cpu_parent is not None:
        event = event.cpu_parent
        names.append(event.name)
    return names


def _step(names: Sequence[str]) -> str:
    """Return the step that an operation belongs to, by its name and those of what it lies in, from the inside out."""
    if ROUTER in names:
        return "routing"
    for operation in (name.rpartition("::")[2] for name in names):
        for step, operations in OPERATIONS.items():
            if operation in operations:
                return step
    return "block"


def profile_table(rows: Sequence[ProfileRow]) -> str:
    """Return the rows as text."""
    lines = [f"{'layer':<14}{'capacity':>8}" + "".join(f"{step:>12}" for step in STEPS) + f"{'sum':>12}"]
    for row in rows:
        figures = [*(row.ms[step] for step in STEPS), sum(row.ms.values())]
        lines.append(f"{row.layer:<14}{row.capacity:>8g}" + "".join(f"{ms:>9.2f} ms" for ms in figures))
    return "\n".join(lines)
