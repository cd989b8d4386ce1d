"""Registering all of it with Ultralytics: the composition root, which nothing below imports."""
