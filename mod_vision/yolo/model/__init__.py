"""A model: its YAML rows, settings, capacity, loading, what is trusted, conversion of its graph."""
