"""Speed and FLOPs of each routed layer against its dense baseline, within the network."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch

from mod_vision.eval.cost.flops import executed_gflops_by_layer
from mod_vision.eval.cost.latency import Latency, as_deployed, doubts, paired_part_latency
from mod_vision.routing import routed_layers
from mod_vision.routing.finite import check_finite
from mod_vision.run_settings import BenchSettings
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.device import start


class LayerRow(NamedTuple):
    """One layer at one capacity.

    Attributes:
        layer: Name of the layer.
        kind: Its class.
        capacity: Share of tokens that it routes.
        dense_ms: Milliseconds of its dense baseline.
        ms: Milliseconds of the routed layer.
        flop_ratio: FLOPs of the dense baseline over executed FLOPs: the limit of the speed-up.
        spread: Distance of the quartiles over the median, the larger of the dense baseline's and the routed layer's.
    """

    layer: str
    kind: str
    capacity: float
    dense_ms: float
    ms: float
    flop_ratio: float
    spread: float

    @property
    def speed_up(self) -> float:
        """Time of the dense baseline over time of the routed layer."""
        return self.dense_ms / self.ms

    @property
    def efficiency(self) -> float:
        """Share of the FLOP ratio that the speed-up reaches."""
        return self.speed_up / self.flop_ratio


def benchmark_layers(
    model: str,
    capacity: Sequence[float],
    bench: BenchSettings = BenchSettings(),  # noqa: B008  # frozen
) -> list[LayerRow]:
    """Time the routed layers of a model, fused and in channels-last memory, dense and at each capacity in turn.

    Args:
        model: Routed model: checkpoint or YAML name.
        capacity: Capacities to measure.
        bench: How it is run, in eager mode and float32.

    Raises:
        ValueError: If the model routes nothing, or a router gives NaN.
    """
    net, image = deployed(model, bench)
    set_capacity(net, 1.0)
    nets = {1.0: net}
    for c in capacity:
        nets[c] = deepcopy(net)
        set_capacity(nets[c], c)
    times = paired_part_latency([(n, dict(routed_layers(n))) for n in nets.values()], image, bench.repeats)
    for routed in nets.values():
        check_finite(routed)
    flops = [executed_gflops_by_layer(n, image.shape[3]) for n in nets.values()]
    return [
        _row(name, layer, c, times[0][name], times[i][name], flops[0][name] / flops[i][name])
        for name, layer in routed_layers(net)
        for i, c in enumerate(nets)
        if i
    ]


def _row(name: str, layer: Any, capacity: float, dense: Latency, routed: Latency, flop_ratio: float) -> LayerRow:
    """Return the row of a layer."""
    spread = max(dense.spread, routed.spread)
    return LayerRow(name, type(layer).__name__, capacity, dense.median, routed.median, flop_ratio, spread)


def deployed(model: str, bench: BenchSettings) -> tuple[Any, torch.Tensor]:
    """Set the CPU threads, and return a network as it is deployed and images (batch, 3, imgsz, imgsz), size rounded."""
    bench = start(bench)
    image = torch.rand(bench.batch, 3, bench.imgsz, bench.imgsz, device=bench.device)
    return as_deployed(load_model(model).model, bench.device), image.to(memory_format=torch.channels_last)


def layer_table(rows: Sequence[LayerRow]) -> str:
    """Return the rows as text."""
    lines = [
        f"{'layer':<18}{'type':<18}{'capacity':>8}{'dense':>11}{'routed':>11}{'speed-up':>10}{'FLOPs':>7}{'eff.':>6}"
    ]
    for row in rows:
        lines.append(
            f"{row.layer:<18}{row.kind:<18}{row.capacity:>8g}{row.dense_ms:>8.1f} ms{row.ms:>8.1f} ms"
            f"{row.speed_up:>10.2f}{row.flop_ratio:>7.2f}{row.efficiency:>6.2f}"
        )
    lines.append("FLOPs: ratio to the dense baseline, the limit of the speed-up; eff.: speed-up / FLOPs")
    return "\n".join(lines + doubts({f"{row.layer} at {row.capacity:g}": row.spread for row in rows}))
