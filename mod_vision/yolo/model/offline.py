"""No network for what is built on the word of a file: an unpickled checkpoint, the rows of a model YAML."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from mod_vision.env import TRUST

REFUSED = (  # events of Python's audit that reach a host, or start a program that could
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
)

_thread = threading.local()  # other threads, such as those of a server, keep their network


@contextmanager
def offline(now: bool = True) -> Iterator[None]:
    """Refuse connections, names of hosts and programs to this thread, whoever asks for them.

    Args:
        now: Whether to; False changes nothing.

    Raises:
        ValueError: From inside, where one is asked for. No error of a network: libraries would try those again.
    """
    if now:
        _listen()
    before = getattr(_thread, "offline", False)
    _thread.offline = before or now
    try:
        yield
    finally:
        _thread.offline = before


@contextmanager
def builds_offline(now: bool = True) -> Iterator[None]:
    """Let models that this thread builds use no network, see `offline`; all else, such as a logger of a training, may.

    Args:
        now: Whether to.
    """
    before = builds_are_offline()
    _thread.builds = now
    try:
        yield
    finally:
        _thread.builds = before


def builds_are_offline() -> bool:
    """Return whether this thread is within `builds_offline`."""
    return getattr(_thread, "builds", False)


@cache
def _listen() -> None:
    """Listen to Python's audit, once: who listens cannot leave."""
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Refuse what would reach the network."""
    if event in REFUSED and getattr(_thread, "offline", False):
        raise ValueError(
            f"what a file of others builds may not use {event}. If you trust whoever made it, set the environment "
            f"variable {TRUST}=1."
        )
