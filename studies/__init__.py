"""The experiments behind the figures in the docs, and their results; not part of the package that is installed."""
