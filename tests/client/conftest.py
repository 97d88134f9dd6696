"""The origin of these tests: hypercorn with ``tests.support.app``, one for all.

``ALLSWELL_WAYS=long`` in the environment runs them all without the client's short ways; ``ALLSWELL_WAYS=patched`` as if
a tool had patched httpx2's transport and let all requests pass.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from allswell import _short
from tests.support.certificates import certificates
from tests.support.hypercorn import hypercorn
from tests.support.servers import ServerInfo

_ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _the_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    way = os.environ.get("ALLSWELL_WAYS")
    if way == "long":
        monkeypatch.setattr(_short, "ON", False)
    elif way == "patched":
        own = httpx2.AsyncHTTPTransport.handle_async_request

        async def handle_async_request(self: Any, request: httpx2.Request) -> httpx2.Response:
            return await own(self, request)

        monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", handle_async_request)


@pytest.fixture(scope="session")
def origin() -> Iterator[ServerInfo]:
    """It speaks HTTP/1.1 and HTTP/2 over TLS (``.url``), and HTTP without (``.http_url``)."""
    settings = "keep_alive_timeout = 30\nwebsocket_ping_interval = 0.2"
    with hypercorn("tests.support.app:app", settings) as server:
        yield server


@pytest.fixture
def trusting() -> ssl.SSLContext:
    """Trusts our throw-away CA, and nobody else."""
    return certificates().client_context()
