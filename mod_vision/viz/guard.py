"""Who may ask the app for what: other pages in the same browser may not, nor may an upload be of any size."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

READING = ("GET", "HEAD", "OPTIONS")
OWN_PAGE = (None, "same-origin", "none")  # of Sec-Fetch-Site: no browser, the page itself, and what the user typed


class Guard:
    """Middleware that answers requests which it refuses, and hands on the others.

    A page of another site can reach a server on this computer through the user's browser. It cannot hide its name: in
    `Host` if it has its name point here (DNS rebinding), else in `Sec-Fetch-Site`.

    Args:
        app: What is guarded.
        host: Address or name that the server listens on.
        max_bytes: Largest request.
    """

    def __init__(self, app: Any, host: str, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.names = {name.lower() for name in ("localhost", host, socket.gethostname())}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        refused = self._refuse(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else None
        answer = self.app if refused is None else PlainTextResponse(refused[1], refused[0])
        await answer(scope, receive, send)

    def _refuse(self, method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return status and reason if a request is refused."""
        name = _name(headers.get("host", ""))
        if name not in self.names and not _is_address(name):
            return 421, f"This page has no name {name!r}: open it by an address, or start it with host={name}."
        if method in READING:
            return None
        if headers.get("sec-fetch-site") not in OWN_PAGE:
            return 403, "Other pages cannot use this one."
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or not length.isdecimal():
            return 411, "The length of the request must be told."
        if int(length) > self.max_bytes:
            return 413, f"Files exceed the {self.max_bytes >> 20} MB of an upload."
        return None


def _name(host: str) -> str:
    """Return a `Host` without its port and the brackets of IPv6."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower()


def _is_address(name: str) -> bool:
    """Return whether a name is an IP address, which nobody can have point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
