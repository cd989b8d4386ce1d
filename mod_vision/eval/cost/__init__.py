"""What a model costs: executed FLOPs, latency, memory."""
