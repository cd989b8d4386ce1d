"""Data sets of others: the keys of their YAML, their folder, and the caches in it."""
