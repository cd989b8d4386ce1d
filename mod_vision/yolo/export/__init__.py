"""Exporting a model, and checking the export, routes included."""
