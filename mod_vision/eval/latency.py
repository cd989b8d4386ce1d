"""Latency, measured in turn so that a noisy machine disturbs all candidates alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch


class Latency(NamedTuple):
    """Milliseconds per call: median, and the quartiles as spread."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.1f} ms ({self.low:.1f}-{self.high:.1f})"


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
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, call in candidates.items():
            _await(device)
            start = time.perf_counter()
            call()
            _await(device)
            if turn >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: Latency(*np.percentile(t, (50, 25, 75)).tolist()) for name, t in times.items()}


def _await(device: str) -> None:
    """Wait for the device's queue."""
    if str(device).startswith("cuda"):
        torch.cuda.synchronize(device)
