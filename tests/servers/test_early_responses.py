"""Uploads that real servers answer before they have read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio.lowlevel
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from tests.support.certificates import certificates
from tests.support.servers import HELLO, ServerInfo

pytestmark = pytest.mark.anyio

#: hypercorn over HTTP/1.1 says 202, and may read no further.
READS_NO_FURTHER = {("hypercorn", "h1"): Timeouts(write=4)}
VERSIONS: dict[str, dict[str, Any]] = {
    "h1": {"http2": False},
    "h2": {"http1": False},
    "h3": {"http3": "only"},
}


async def pieces() -> AsyncIterator[bytes]:
    """More than any buffer takes."""
    for _ in range(100):
        yield bytes(100_000)
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(("path", "status"), [("/accepted", 202), ("/denied", 403)])
@pytest.mark.parametrize(
    ("name", "version"),
    [
        *(("nginx", version) for version in ("h1", "h2")),
        *(("haproxy", version) for version in ("h1", "h2")),
        *(("caddy", version) for version in VERSIONS),
        *(("hypercorn", version) for version in ("h1", "h2")),  # its HTTP/3 dies of a body behind its answer
    ],
)
async def test_the_answer_arrives_and_the_next_too(
    servers: Callable[[str], ServerInfo], name: str, version: str, path: str, status: int
) -> None:
    server = servers(name)
    timeouts = READS_NO_FURTHER.get((name, version), Timeouts())
    async with ConnectionPool(ssl_context=certificates().client_context(), **VERSIONS[version]) as pool:
        for content in (pieces(), bytes(3_000_000)):
            response = await pool.request("POST", server.url + path, content=content, timeouts=timeouts)
            assert response.status == status
            after = await pool.request("GET", f"{server.url}/", timeouts=timeouts)
            assert (after.status, await after.read()) == (200, HELLO)
