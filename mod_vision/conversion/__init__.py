"""Which blocks of a trained dense model to route, measured."""
