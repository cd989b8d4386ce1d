"""A trained dense model into one that runs on windows: what is chosen, measured and said."""
