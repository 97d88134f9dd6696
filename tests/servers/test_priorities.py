"""Real servers take priorities (RFC 9218): those that heed them, and those that know nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from allswell import ConnectionEnd, ConnectionPool
from tests.servers.nghttpd import nghttpd
from tests.servers.ngtcp2 import gtlsserver
from tests.support.certificates import certificates
from tests.support.servers import TEN_MB, ServerInfo

pytestmark = pytest.mark.anyio


async def _two_downloads(url: str, path: str, size: int, *, http3: bool) -> ConnectionEnd:
    """Both come whole on one connection, though they change places half-way; how it ended."""
    context = certificates().client_context()
    pool = ConnectionPool(ssl_context=context, http1=False, http3="only" if http3 else False)
    async with pool:
        async with (
            pool.stream("GET", url + path, priority="u=1, i") as first,
            pool.stream("GET", url + path, priority="u=6") as second,
        ):
            got = len(await first.receive())
            first.reprioritize("u=7")
            second.reprioritize("u=0, i")
            assert len(await second.read()) == size
            while piece := await first.receive():
                got += len(piece)
            assert got == size
        response = await pool.request("GET", url + path)
        assert len(await response.read()) == size
    assert pool.close_report is not None
    [end] = pool.close_report.connections
    assert end.exchanges == 3
    return end


async def test_http2(server: ServerInfo) -> None:
    assert server.ended_well(await _two_downloads(server.url, "/10mb", TEN_MB, http3=False))


async def test_nghttpd_without_the_old_priorities() -> None:
    with nghttpd("--no-rfc7540-pri", "--verbose") as server:
        assert server.ended_well(await _two_downloads(server.url, "/10mb", TEN_MB, http3=False))
        log = server.log(1 << 20)
    assert log.count("SETTINGS_NO_RFC7540_PRIORITIES(0x09):1") == 2  # its own, and ours
    assert "(stream_id=1) priority: u=1, i" in log


@pytest.mark.parametrize("name", ["caddy", "hypercorn"])
async def test_http3(servers: Callable[[str], ServerInfo], name: str) -> None:
    assert (await _two_downloads(servers(name).url, "/10mb", TEN_MB, http3=True)).clean


async def test_ngtcp2(tmp_path: Path) -> None:
    with gtlsserver(tmp_path) as (port, _):
        assert (await _two_downloads(f"https://localhost:{port}", "/large", 3_000_000, http3=True)).clean
