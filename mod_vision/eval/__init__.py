"""What one measures: COCO metrics, executed FLOPs, latency, object recall of the router."""
