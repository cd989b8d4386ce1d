"""The local page as the tests serve it, its model, and a zone."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mod_vision.viz.explore import Explorer

MODEL, IMGSZ, MAX_MB = "yolo26n-mod-hybrid-seg.pt", 160, 1
HALF = [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]


@pytest.fixture(scope="module")
def explorer():
    return Explorer(MODEL, IMGSZ)


@contextlib.contextmanager
def serving(model: str, imgsz: int) -> Iterator[Any]:
    """Serve the page of a model at a port that is free."""
    from mod_vision.viz.app import start

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(model, imgsz, "cpu", "127.0.0.1", port, MAX_MB)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def page_server() -> Iterator[Any]:
    with serving(MODEL, IMGSZ) as server:
        yield server
