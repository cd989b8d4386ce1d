"""Torch's profiler, without the lines that it writes to the terminal on its own."""

from __future__ import annotations

import os

from torch.profiler import ProfilerActivity, profile


def quiet_profile(device: str, memory: bool = False) -> profile:
    """Return a profiler, to be used in a `with` statement.

    Args:
        device: Where the work runs.
        memory: Whether to note allocations.
    """
    os.environ["KINETO_LOG_LEVEL"] = "99"  # read when the first profile starts; Ultralytics sets 5
    cuda = [ProfilerActivity.CUDA] if device.startswith("cuda") else []
    return profile(activities=[ProfilerActivity.CPU, *cuda], profile_memory=memory)
