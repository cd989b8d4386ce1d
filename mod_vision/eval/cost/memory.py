"""Peak memory of a forward."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from mod_vision.eval.cost.profiler import quiet_profile


def free_memory(device: str) -> None:
    """Give back what torch keeps of a GPU's memory; the CPU's is kept on purpose, see `keep_memory`."""
    if device.startswith("cuda"):
        gc.collect()
        torch.cuda.empty_cache()


def peak_megabytes(call: Callable[[], object], device: str = "cpu") -> float:
    """Return the megabytes (1e6 bytes) that torch allocates at most during a call, beyond what it held before.

    Args:
        call: A forward.
        device: Where it runs; on the CPU the allocator's own events are added up.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with quiet_profile(device, memory=True) as profiled:
        call()
    results = profiled.profiler.kineto_results if profiled.profiler else None
    assert results is not None
    events = sorted((event for event in results.events() if event.name() == "[memory]"), key=lambda e: e.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6
