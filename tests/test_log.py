"""What is said while something is at work: a training in place or in ten lines, sources by short names."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from ultralytics.utils import LOGGER

from mod_vision.yolo.run.log import Steps, warnings_only
from mod_vision.yolo.run.sources import Source, short_names


@pytest.fixture
def said(monkeypatch):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


@pytest.mark.parametrize(("total", "lines"), [(100, 10), (5, 5), (1000, 10)])
def test_a_log_has_ten_lines_of_a_training(said, total, lines):
    steps = Steps("router", total)
    for i in range(total):
        steps.tell(1 / (i + 1))
    assert len(said) == lines
    assert said[-1] == f"router: step {total} of {total}, loss {1 / total:.4f}"


def test_a_training_that_goes_on_tells_the_rest(said):
    steps = Steps("router", 100, done=70)
    for _ in range(30):
        steps.tell(0.5)
    assert [line.split(",")[0] for line in said] == [f"router: step {n} of 100" for n in (80, 90, 100)]


def test_a_terminal_has_one_line_in_place(said, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    steps = Steps("router", 50)
    for _ in range(50):
        steps.tell(0.5)
    assert not said
    assert capsys.readouterr().out.count("\n") <= 1


def test_warnings_alone_pass(said):
    with warnings_only():
        LOGGER.info("a remark")
        LOGGER.warning("a warning")
    assert [line.endswith("a warning") for line in said] == [True]


def test_sources_are_called_by_what_tells_them_apart(tmp_path, monkeypatch):
    def names(*places):
        return short_names([Source(place, "image" if isinstance(place, Path) else "stream") for place in places])

    assert names(tmp_path / "a" / "x.jpg") == ["x.jpg"]
    assert names(tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.jpg") == ["a/x.jpg", "b/x.jpg"]
    assert names("rtsp://gate") == ["rtsp://gate"]
    assert names(tmp_path / "x.jpg", "rtsp://gate") == ["x.jpg", "rtsp://gate"]
    monkeypatch.chdir(tmp_path)
    assert names(Path("a") / "x.jpg", tmp_path / "a" / "y.jpg") == ["x.jpg", "y.jpg"]
