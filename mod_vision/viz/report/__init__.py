"""A page about what a routed model skips: one HTML file that needs no network."""

from mod_vision.viz.report.page import write_report

__all__ = ("write_report",)
