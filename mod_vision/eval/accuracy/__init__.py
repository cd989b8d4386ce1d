"""How accurate a model is: COCO metrics."""
