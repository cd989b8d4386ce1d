"""Time and memory of a training step, routed against dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mod_vision.eval.cost.benchmark import load_models
from mod_vision.eval.cost.latency import Latency, doubts, paired_latency
from mod_vision.eval.cost.training_batch import training_batch, training_loss
from mod_vision.run_settings import BenchSettings
from mod_vision.yolo.run.device import start


class StepRow(NamedTuple):
    """One model.

    Attributes:
        name: Model and capacity.
        latency: Milliseconds of forward, loss and backward of a batch.
        saved_mb: Megabytes (1e6 bytes) of activations that the forward keeps for the backward.
    """

    name: str
    latency: Latency
    saved_mb: float


def benchmark_step(
    model: str,
    capacity: Sequence[float],
    baselines: Sequence[str] = (),
    bench: BenchSettings = BenchSettings(),  # noqa: B008  # frozen
) -> list[StepRow]:
    """Measure a training step of the dense baseline, of the routed model at each capacity, and of others, in turn.

    Args:
        model: Routed model: checkpoint or YAML name.
        capacity: Capacities to measure.
        baselines: Other models of the same task.
        bench: How it is run, in eager mode and float32.

    Raises:
        ValueError: If the model routes nothing.
    """
    bench = start(bench)
    models = load_models(model, capacity, baselines, bench)
    segment = next(iter(models.values())).task == "segment"
    data = training_batch(bench.batch, bench.imgsz, segment, torch.device(bench.device))
    nets = {name: yolo.model.to(bench.device).train().requires_grad_() for name, yolo in models.items()}
    times = paired_latency({name: _step(net, data) for name, net in nets.items()}, bench.repeats, device=bench.device)
    return [StepRow(name, times[name], saved_megabytes(net, data)) for name, net in nets.items()]


def _step(net: nn.Module, data: dict[str, Any]) -> Callable[[], None]:
    """Return a training step without the optimiser's, which is the same for all."""

    def step() -> None:
        training_loss(net, data).backward()
        net.zero_grad(set_to_none=True)

    return step


def saved_megabytes(net: nn.Module, data: dict[str, Any]) -> float:
    """Return the megabytes (1e6 bytes) that a forward in training keeps for the backward, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = training_loss(net, data)
    del loss
    return sum(sizes.values()) / 1e6


def step_table(rows: list[StepRow]) -> str:
    """Return the rows as text, as ratios to the first."""
    dense = rows[0]
    lines = [f"{'model':<36}{'step, median (quartiles)':<30}{'speed-up':>8}{'saved MB':>10}{'ratio':>7}"]
    for row in rows:
        lines.append(
            f"{row.name:<36}{row.latency!s:<30}{dense.latency.median / row.latency.median:>8.2f}"
            f"{row.saved_mb:>10.0f}{row.saved_mb / dense.saved_mb:>7.2f}"
        )
    return "\n".join(lines + doubts({row.name: row.latency.spread for row in rows}))
