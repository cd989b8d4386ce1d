"""Latency, measured in turn so that a noisy machine disturbs all candidates alike."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGE = 1 << 30
DOUBTFUL = 0.2  # quartiles farther apart than this, over the median, come from a busy machine


class Latency(NamedTuple):
    """Milliseconds per call: median, and the quartiles as spread."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median."""
        return (self.high - self.low) / self.median

    def __str__(self) -> str:
        return f"{self.median:.1f} ms ({self.low:.1f}-{self.high:.1f})"


def doubts(spreads: Mapping[str, float]) -> list[str]:
    """Return the line that names the figures not to be trusted, by the spread of each; no line if all can be."""
    doubtful = [f"{name} ({100 * spread:.0f} %)" for name, spread in spreads.items() if spread > DOUBTFUL]
    if not doubtful:
        return []
    apart = f"quartiles more than {100 * DOUBTFUL:.0f} % apart"
    return [f"not to be trusted, {apart}: {', '.join(doubtful)}; time again when nothing else runs"]


def as_deployed(net: Any, device: Any = "cpu") -> Any:
    """Bring an Ultralytics model into the form it is deployed in: for inference, fused, in channels-last memory."""
    return net.to(device).eval().fuse(verbose=False).to(memory_format=torch.channels_last)


@cache
def keep_memory() -> bool:
    """Let the C library keep freed memory for the next forward, and return whether it does.

    By default glibc gives large tensors back to the system after each forward, and fetches them anew in the next,
    unless something larger was freed before: 10 of 110 ms, or none, by chance. For other C libraries nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(mallopt(parameter, LARGE) == 1 for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def paired_latency(
    candidates: Mapping[str, Callable[[], object]], repeats: int = 15, warmup: int = 2, device: str = "cpu"
) -> dict[str, Latency]:
    """Time the candidates in turn, A B A B, and return each one's median and quartiles in milliseconds.

    Args:
        candidates: Calls to time, by name.
        repeats: Timed rounds.
        warmup: Rounds before, not timed.
        device: Where they run; CUDA work is awaited before the clock is read.
    """
    keep_memory()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, call in candidates.items():
            wait_for(device)
            start = time.perf_counter()
            call()
            wait_for(device)
            if turn >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: _latency(t) for name, t in times.items()}


def paired_part_latency(
    networks: Sequence[tuple[nn.Module, Mapping[Any, nn.Module]]], x: torch.Tensor, repeats: int = 7
) -> list[dict[Any, Latency]]:
    """Run networks in turn on x, and return the milliseconds of some parts of each, by the parts' keys.

    Parts are timed within their network: alone, with warm caches and memory, a layer can be several times faster.
    """
    keep_memory()
    times: list[dict[Any, list[float]]] = [{key: [] for key in parts} for _, parts in networks]
    device = str(x.device)

    def mark(seen: list[float], begins: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            wait_for(device)
            now = time.perf_counter()
            seen.append(-now if begins else seen.pop() + now)

        return hook

    with torch.inference_mode(), ExitStack() as hooks:
        for (_, parts), seen in zip(networks, times, strict=True):
            for key, part in parts.items():
                hooks.callback(part.register_forward_pre_hook(mark(seen[key], True)).remove)
                hooks.callback(part.register_forward_hook(mark(seen[key], False)).remove)
        for _ in range(1 + repeats):
            for network, _ in networks:
                network(x)
    return [{key: _latency([1e3 * s for s in seconds[1:]]) for key, seconds in seen.items()} for seen in times]


def _latency(times: Sequence[float]) -> Latency:
    """Return median and quartiles of some times."""
    return Latency(*np.percentile(times, (50, 25, 75)).tolist())


def wait_for(device: Any) -> None:
    """Wait for the device's queue."""
    if str(device).startswith("cuda"):
        torch.cuda.synchronize(device)
