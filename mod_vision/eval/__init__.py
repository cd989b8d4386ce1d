"""What one measures: COCO metrics, executed FLOPs, latency, routing truth."""
