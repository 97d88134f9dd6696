"""The origin of these tests: hypercorn with ``tests.support.app``, one for all.

``ALLSWELL_WAYS=long`` in the environment runs them all without the client's short ways; ``ALLSWELL_WAYS=patched`` as if
a tool had patched httpx2's transport and let all requests pass.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from allswell import _short
from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, run, setup

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
    files = certificates()
    with setup() as made:
        config = made.write(
            "hypercorn.toml",
            f"""
            bind = ["127.0.0.1:{made.port}"]
            insecure_bind = ["127.0.0.1:{made.http_port}"]
            certfile = "{files.chain}"
            keyfile = "{files.key}"
            keep_alive_timeout = 30
            graceful_timeout = 1
            workers = 0
            errorlog = "-"
            websocket_ping_interval = 0.2
            """,
        )
        command: list[str | Path] = [sys.executable, "-m", "hypercorn", "--config", config, "tests.support.app:app"]
        path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        with run("hypercorn", command, made, protocols=["http/1.1", "h2"], env={"PYTHONPATH": path}) as server:
            yield server


@pytest.fixture
def trusting() -> ssl.SSLContext:
    """Trusts our throw-away CA, and nobody else."""
    return certificates().client_context()
