"""HTTP/3 against servers that nobody here wrote: Caddy (quic-go) and ngtcp2's gtlsserver."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from allswell import AsyncClient, ConnectionPool
from allswell._config import Timeouts
from allswell._quic_store import QuicMemory
from allswell._report import ConnectionEnd, Outcome
from tests.servers.caddy import caddy
from tests.servers.ngtcp2 import gtlsserver
from tests.support.certificates import certificates
from tests.support.lag import LAG
from tests.support.quic_client import quic_client, quic_settings, read
from tests.support.servers import HELLO, TEN_MB, ServerInfo, reload_twice

pytestmark = pytest.mark.anyio

PATIENT = Timeouts()


async def test_caddy() -> None:
    with caddy() as server:
        async with quic_client(server.port) as client:
            head, _ = await client.get("/")
            assert head.status in (200, 404)
            assert head.http_version == b"HTTP/3"
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(client.get, "/")
            end = await client.aclose()
            assert end.clean
            assert [layer.said for layer in end.layers] == ["GOAWAY", "CONNECTION_CLOSE(0x100)", ""]


def trusting(**settings: Any) -> ConnectionPool:
    """A pool that trusts these servers."""
    settings.setdefault("grace", 3 * LAG)  # what answers is not waited for that long, on the slowest machine
    return ConnectionPool(ssl_context=certificates().client_context(), **settings)


@pytest.mark.parametrize("name", ["caddy", "hypercorn"])
async def test_only_http3(servers: Callable[[str], ServerInfo], name: str) -> None:
    server = servers(name)
    async with trusting(http3="only") as pool:
        response = await pool.request("GET", f"{server.url}/", timeouts=PATIENT)
        assert (response.http_version, await response.read()) == (b"HTTP/3", HELLO)
        if name == "caddy":  # the other one would take its time
            assert len(await (await pool.request("GET", f"{server.url}/10mb", timeouts=PATIENT)).read()) == TEN_MB
        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(_hello, pool, server.url)
        report = await pool.aclose()
    assert report.clean
    assert [layer.said for layer in report.connections[0].layers] == ["GOAWAY", "CONNECTION_CLOSE(0x100)", ""]


async def _hello(pool: ConnectionPool, url: str) -> None:
    response = await pool.request("GET", f"{url}/", timeouts=PATIENT)
    assert await response.read() == HELLO


async def test_alt_svc_of_caddy(servers: Callable[[str], ServerInfo]) -> None:
    """The first request goes over TCP and learns of HTTP/3; a new connection is QUIC's."""
    server = servers("caddy")
    versions = []
    async with trusting(http3=True, keepalive_expiry=0.05) as pool:
        for _ in range(2):
            response = await pool.request("GET", f"{server.url}/", timeouts=PATIENT)
            versions.append(response.http_version)
            with anyio.fail_after(30):
                while pool.snapshot().connections:  # noqa: ASYNC110  it expires
                    await anyio.sleep(0.01)
    assert versions == [b"HTTP/2", b"HTTP/3"]


async def test_known_origin(servers: Callable[[str], ServerInfo]) -> None:
    server = servers("caddy")
    async with AsyncClient(http3=True, http3_origins=[server.url], verify=certificates().client_context()) as client:
        response = await client.get(server.url)
        assert (response.http_version, response.content) == ("HTTP/3", HELLO)
    assert client.close_report is not None
    assert client.close_report.clean


async def test_echo_both_ways_at_once(servers: Callable[[str], ServerInfo]) -> None:
    server = servers("hypercorn")

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(30):
            yield b"%02d" % number * 25_000

    async with trusting(http3="only") as pool:
        response = await pool.request("POST", f"{server.url}/echo", content=pieces(), timeouts=PATIENT)
        assert await response.read() == b"".join(b"%02d" % number * 25_000 for number in range(30))


async def test_caddy_reloads_under_fifty_workers() -> None:
    """Its listeners are replaced twice; no request fails."""
    ends: list[ConnectionEnd] = []
    with caddy() as server:
        done = 0
        over = anyio.Event()
        async with trusting(http3="only", max_connections=None, on_connection_end=ends.append) as pool:

            async def worker() -> None:
                nonlocal done
                while not over.is_set():
                    await _hello(pool, server.url)
                    done += 1

            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(worker)
                await reload_twice(server, ends, lambda: done, before=300, after=600)
                over.set()


_MEMORY = """
import sys, anyio, allswell, ssl
from tests.support.lag import be_patient

be_patient()

def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

async def download(pool, url):
    await (await pool.request("GET", url + "/10mb")).read()
    start = most = rss()
    got = looked = 0
    async with pool.stream("GET", url + "/huge") as response:
        while piece := await response.receive():
            got += len(piece)
            if got - looked > 2_000_000:
                looked = got
                if got < 10_000_000:
                    await anyio.sleep(0.3)  # the slow reader: the server is far ahead of it from here on
                most = max(most, rss())
    print(got, most - start)

async def requests(pool, url):
    async def some(count):
        for _ in range(count):
            await pool.request("GET", url + "/")
    async def many(count):
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(some, count // 40)
    await many(2000)
    start = rss()
    await many(8000)
    print(len(pool._dispatcher.endings.connections), rss() - start)

async def main():
    context = ssl.create_default_context(cafile=sys.argv[3])
    async with allswell.ConnectionPool(http3="only", ssl_context=context) as pool:
        await globals()[sys.argv[1]](pool, sys.argv[2])

anyio.run(main, backend=sys.argv[4])
"""


def _memory(what: str, url: str, backend: str) -> tuple[int, int]:
    command = [sys.executable, "-c", _MEMORY, what, url, str(certificates().ca), backend]
    first, second = subprocess.run(command, check=True, capture_output=True, timeout=280).stdout.split()
    return int(first), int(second)


def _huge(server: ServerInfo, size: int) -> None:
    """A file of zeros for it to serve (sparse: it takes no room)."""
    with (server.log_file.parent / "www" / "huge").open("wb") as file:
        file.truncate(size)


@pytest.mark.timeout(300)  # a busy machine takes so long
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_slow_reader_of_a_large_body(servers: Callable[[str], ServerInfo], backend: str) -> None:
    """Of 128 MB, twice what may be kept of it; of a gigabyte with ``ALLSWELL_BODY_MB=1024``, in half a minute."""
    server = servers("caddy")
    size = int(os.environ.get("ALLSWELL_BODY_MB", "128")) << 20
    _huge(server, size)
    got, grown = _memory("download", server.url, backend)
    assert got == size
    assert grown < 64 << 20


@pytest.mark.timeout(300)
def test_ten_thousand_requests_on_one_connection(servers: Callable[[str], ServerInfo]) -> None:
    connections, grown = _memory("requests", servers("caddy").url, "asyncio")
    assert connections == 1
    assert grown < 4 << 20


@pytest.fixture
def ngtcp2(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[int, Path]]:
    """gtlsserver on a free port, with options if the test has some; its log tells what it saw."""
    with gtlsserver(tmp_path, *getattr(request, "param", [])) as running:
        yield running


async def test_ngtcp2_sees_goaway_and_then_the_close(ngtcp2: tuple[int, Path]) -> None:
    port, log = ngtcp2
    async with quic_client(port) as client:
        assert (await client.get("/ten"))[1] == b"0123456789"
        assert len((await client.get("/large"))[1]) == 3_000_000
        half = client.open("/large")
        await half.receive()
        half.abandon()
        assert await read(client.open("/ten")) == b"0123456789"
        end = await client.aclose()
        assert end.layers[1].outcome is Outcome.CLEAN
    with anyio.fail_after(30):
        seen = r"rx.*CONNECTION_CLOSE\(0x1d\).*error_code=.*\(0x100\)"
        while not re.search(seen, log.read_text(errors="replace")):  # noqa: ASYNC110  # another process
            await anyio.sleep(0.05)


class Forgetful(QuicMemory):
    """Tickets only: a server that validates addresses answers each connection with Retry."""

    def put_token(self, server: str, token: bytes) -> None:
        """Forget it."""


@pytest.mark.parametrize("ngtcp2", [["--validate-addr"]], indirect=True)
async def test_ngtcp2_answers_early_data_with_retry(ngtcp2: tuple[int, Path]) -> None:
    port, log = ngtcp2
    settings = quic_settings(store=Forgetful())
    async with quic_client(port, settings) as client:
        assert (await client.get("/ten"))[1] == b"0123456789"
        await client.aclose()
    async with quic_client(port, replace(settings, early_data=True)) as client:
        assert not client.quic.connection.handshake_complete
        early = [client.open("/ten") for _ in range(20)]
        with anyio.fail_after(30):
            assert [await read(each) for each in early] == [b"0123456789"] * 20
        assert client.quic.connection.engine.tls.early_data_accepted
        await client.aclose()
    assert log.read_text(errors="replace").count("Sending Retry packet") >= 2  # one at least for each connection
