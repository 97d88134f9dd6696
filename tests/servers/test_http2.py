"""HTTP/2 against real servers: what they serve, how they restart under load, what reuse they see, how we end."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest

from allswell import AsyncClient, ConnectionPool
from allswell._config import Timeouts
from allswell._errors import ConnectFailed
from allswell._report import ConnectionEnd
from tests.servers.caddy import caddy
from tests.servers.haproxy import haproxy
from tests.servers.nginx import nginx
from tests.support.capture import Capture, capture, needs_capture
from tests.support.certificates import certificates
from tests.support.lag import websocket_servers_end_within
from tests.support.servers import HELLO, TEN_MB, ServerInfo, reload_twice

pytestmark = pytest.mark.anyio

PATIENT = Timeouts()


def trusting(**settings: Any) -> ConnectionPool:
    """A pool for these servers, that speaks HTTP/2 only."""
    return ConnectionPool(ssl_context=certificates().client_context(), http1=False, **settings)


def client_words(seen: Capture) -> list[str]:
    """SYN, FIN and RST as our side said them."""
    ours = [packet for packet in seen.packets if packet.from_client]
    return [word for packet in ours for word in ("SYN", "FIN", "RST") if word in packet.flags]


async def spread(total: int, workers: int, one: Callable[[int], Any]) -> None:
    """``one(number)`` so many times in all, by so many workers at once."""
    numbers = iter(range(total))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    async with anyio.create_task_group() as tasks:
        for _ in range(workers):
            tasks.start_soon(worker)


@needs_capture
async def test_serves(server: ServerInfo) -> None:
    """A small answer, ten megabytes, an echo where there is one, two hundred requests at fifty; a clean end, no RST."""
    ends: list[ConnectionEnd] = []
    with capture(server.port, "127.0.0.1") as seen:
        async with trusting(on_connection_end=ends.append) as pool:
            response = await pool.request("GET", f"{server.url}/", timeouts=PATIENT)
            assert (response.status, response.http_version) == (200, b"HTTP/2")
            assert await response.read() == HELLO
            size = 0
            async with pool.stream("GET", f"{server.url}/10mb", timeouts=PATIENT) as large:
                async for piece in large:
                    size += len(piece)
            assert size == TEN_MB
            if server.echoes:
                content = bytes(range(256)) * 4000
                echoed = await pool.request("POST", f"{server.url}/echo", content=content, timeouts=PATIENT)
                assert await echoed.read() == content

            async def get(_: int) -> None:
                response = await pool.request("GET", f"{server.url}/", timeouts=PATIENT)
                assert await response.read() == HELLO

            await spread(200, 50, get)
            report = await pool.aclose()
        await anyio.to_thread.run_sync(seen.sync)
    assert report.connections
    assert all(map(server.ended_well, ends)), ends
    assert "RST" not in client_words(seen)
    # lighttpd takes eight streams on a connection, the others all of them.
    assert len(ends) <= (10 if server.name == "lighttpd" else 1)


@needs_capture
async def test_abandoned_downloads(server: ServerInfo) -> None:
    """Seven downloads, each dropped after its first piece: the connection lives, its window too, and ends cleanly."""
    with capture(server.port, "127.0.0.1") as seen:
        async with trusting(connection_window=8 * 1024 * 1024) as pool:
            for _ in range(7):
                async with pool.stream("GET", f"{server.url}/10mb", timeouts=PATIENT) as large:
                    assert await large.receive()
            response = await pool.request("GET", f"{server.url}/", timeouts=PATIENT)
            assert await response.read() == HELLO
            assert response.stream_id == 15
            [end] = (await pool.aclose()).connections
        await anyio.to_thread.run_sync(seen.sync)
    assert server.ended_well(end), end
    assert "RST" not in client_words(seen)


@pytest.mark.parametrize("make", [caddy, nginx, haproxy])
async def test_graceful_restart_under_load(make: Any) -> None:
    """Fifty workers while it reloads twice: no request fails."""
    served = 0
    ends: list[ConnectionEnd] = []
    with make() as server:
        async with trusting(max_connections=None, on_connection_end=ends.append) as pool:
            done = anyio.Event()

            async def worker() -> None:
                nonlocal served
                while not done.is_set():
                    response = await pool.request("GET", f"{server.url}/", timeouts=PATIENT)
                    assert await response.read() == HELLO
                    served += 1

            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(worker)
                await reload_twice(server, ends, lambda: served, before=300, after=900)
                done.set()
    assert served >= 1800
    assert all(map(server.ended_well, ends)), ends


@contextmanager
def counting_origin(folder: Path) -> Iterator[tuple[int, Path]]:
    """An HTTP/1.1 origin that writes down each request's body, one a line; its port and that file."""
    log = folder / "requests"
    command = [sys.executable, "-m", "tests.servers.counting", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), log
        finally:
            process.terminate()


async def test_nothing_is_executed_twice_in_a_restart(tmp_path: Path) -> None:
    """Fifty workers post numbered bodies through HAProxy, which restarts: each reaches the origin exactly once."""
    ends: list[ConnectionEnd] = []
    with counting_origin(tmp_path) as (origin, log), haproxy(origin=origin) as server:
        async with trusting(max_connections=None, on_connection_end=ends.append) as pool:
            sent = 0
            done = anyio.Event()

            async def worker() -> None:
                nonlocal sent
                while not done.is_set():
                    sent += 1
                    body = f"{sent}".encode()
                    response = await pool.request("POST", f"{server.url}/", content=body, timeouts=PATIENT)
                    assert await response.read() == body

            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(worker)
                await reload_twice(server, ends, lambda: sent, before=200, after=500)
                done.set()
    numbers = sorted(int(line) for line in log.read_text().split())
    assert numbers == list(range(1, sent + 1))


@pytest.mark.parametrize("workers", [1, 50])
async def test_haproxy_sees_perfect_reuse(servers: Callable[[str], ServerInfo], workers: int) -> None:
    """``http-reuse always``: one connection for all, by our count and by its log of accepted connections."""
    server = servers("haproxy")
    opened = 0
    total = 1000

    with capture(server.port, "127.0.0.1") as seen:
        async with trusting() as pool:

            async def get(_: int) -> None:
                nonlocal opened
                response = await pool.request("GET", f"{server.url}/", timeouts=PATIENT)
                assert await response.read() == HELLO
                opened += response.stream_id == 1

            await spread(total, workers, get)
        await anyio.to_thread.run_sync(seen.sync)
    ideal = 1
    dialled = client_words(seen).count("SYN")
    assert dialled == opened
    assert abs(dialled - ideal) <= total // 100
    assert dialled == ideal


@pytest.mark.parametrize("scheme", ["wss", "ws"])
async def test_websocket_on_a_stream(
    servers: Callable[[str], ServerInfo], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8441: httpx2's WebSocket client over HTTP/2, beside other requests on the same connection."""
    websocket_servers_end_within(monkeypatch)  # hypercorn 0.18 never ends the stream
    server = servers("hypercorn")
    url = server.url if scheme == "wss" else server.http_url
    assert url is not None
    chat = f"{scheme}{url[url.index(':') :]}/chat"
    async with (
        AsyncClient(http1=False, verify=certificates().client_context()) as client,
        client.websocket(chat) as talk,
        client.websocket(chat) as second,
    ):
        assert talk.response is not None
        assert talk.response.http_version == "HTTP/2"
        await talk.send_text("one")
        await second.send_bytes(b"two" * 20_000)
        beside = await client.get(url)
        assert beside.content == HELLO
        assert await talk.receive_text() == "one"
        assert await second.receive_bytes() == b"two" * 20_000
        assert second.response is not None
        ids = [each.extensions["stream_id"] for each in (talk.response, second.response, beside)]
        assert ids == [1, 3, 5]


async def test_http2_only_and_a_server_without_it() -> None:
    with nginx(http2=False) as server:
        async with trusting() as pool:
            with pytest.raises(ConnectFailed) as caught:
                await pool.request("GET", server.url)
            assert caught.value.phase == "tls"
            assert re.search("HTTP/2|no application protocol", str(caught.value))


async def test_extended_connect_by_extension(servers: Callable[[str], ServerInfo]) -> None:
    """What a caller who speaks WebSocket's frames himself asks for: a raw stream, also as the first request of all."""
    server = servers("hypercorn")
    headers = {"Sec-WebSocket-Version": "13", "Origin": server.url}
    async with AsyncClient(verify=certificates().client_context()) as client:
        for _ in range(2):
            request = client.build_request(
                "CONNECT", f"{server.url}/chat", headers=headers, extensions={"protocol": b"websocket"}
            )
            response = await client.send(request, stream=True)
            assert response.status_code == 200
            assert response.http_version == "HTTP/2"
            stream = response.extensions["network_stream"]
            await stream.write(b"\x81\x83\0\0\0\0abc")  # a masked text frame
            assert await stream.read(100, timeout=60) == b"\x81\x03abc"
            await response.aclose()
        assert (await client.get(server.url)).content == HELLO
        report = await client.aclose()
    assert len(report.connections) == 1
    assert report.clean, report


async def test_extended_connect_where_it_is_not_offered(servers: Callable[[str], ServerInfo]) -> None:
    server = servers("nginx")
    async with AsyncClient(verify=certificates().client_context()) as client:
        with pytest.raises(httpx2.LocalProtocolError, match="does not offer extended CONNECT"):
            await client.request("CONNECT", server.url, extensions={"protocol": b"websocket"})
        assert (await client.get(server.url)).content == HELLO
