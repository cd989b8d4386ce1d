"""Running a model: images and sources, prediction, validation."""
