"""Routed windows on a GPU, by one command: checks, an epoch of training, times. See `tools/gpu.py`."""
