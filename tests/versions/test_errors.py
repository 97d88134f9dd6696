"""Errors name the origin, whoever is to blame, in every version."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from allswell import AllswellError, LocalProtocolError, PoolClosed
from allswell._config import Timeouts
from tests.versions.peers import VERSIONS, Side, serving

pytestmark = pytest.mark.anyio


async def three() -> AsyncIterator[bytes]:
    yield b"abc"


OURS: dict[str, Callable[[], dict[str, Any]]] = {
    "method": lambda: {"method": "G T"},
    "field name": lambda: {"headers": [(b"a b", b"c")]},
    "field value": lambda: {"headers": [(b"a", b"b\nc")]},
    "no body": lambda: {"headers": [(b"Content-Length", b"5")]},
    "short body": lambda: {"headers": [(b"Content-Length", b"5")], "content": b"abc"},
    "long body": lambda: {"headers": [(b"Content-Length", b"2")], "content": b"abc"},
    "short upload": lambda: {"headers": [(b"Content-Length", b"5")], "content": three()},
    "long upload": lambda: {"headers": [(b"Content-Length", b"2")], "content": three()},
}


@pytest.mark.parametrize("mistake", OURS)
@pytest.mark.parametrize("version", VERSIONS)
async def test_of_the_callers(version: str, mistake: str) -> None:
    request = {"method": "POST", **OURS[mistake]()}
    with serving(version, lambda side: None) as server:
        async with server.pool() as pool:
            with pytest.raises(LocalProtocolError) as caught:
                await pool.request(url=f"{server.url}/", **request)
    assert server.url in str(caught.value)
    assert str(caught.value).count(server.url) == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_of_time_and_the_pool(version: str) -> None:
    def handler(side: Side) -> None:
        if side.path == "/begun":
            side.head(200, length=10)

    with serving(version, handler) as server:
        async with server.pool() as pool:
            with pytest.raises(AllswellError) as caught:
                await pool.request("GET", f"{server.url}/", timeouts=Timeouts(read=0.1))
            assert server.url in str(caught.value)
            async with pool.stream("GET", f"{server.url}/begun") as response:
                await pool.aclose(0.1)
                with pytest.raises(PoolClosed, match=server.url):
                    await response.read()
