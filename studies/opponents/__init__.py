"""Routed windows against all that a user would try instead: the same images, the same machine, one run."""
