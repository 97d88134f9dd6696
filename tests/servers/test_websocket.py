"""WebSockets with real servers, in each version of HTTP that they take them in: what sessions carry, how they end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
from httpx2.websockets import AsyncWebSocketSession
from wsproto.events import BytesMessage, TextMessage

from allswell import AsyncClient
from tests.servers.caddy import run_caddy
from tests.servers.hypercorn import hypercorn
from tests.support.certificates import certificates
from tests.support.lag import websocket_servers_end_within
from tests.support.servers import HELLO, ServerInfo, setup

pytestmark = pytest.mark.anyio

_ONLY: dict[str, dict[str, Any]] = {
    "HTTP/1.1": {"http2": False},
    "HTTP/2": {"http1": False},
    "HTTP/3": {"http3": "only"},
}
_TAKES = [
    ("hypercorn", "HTTP/1.1"),
    ("hypercorn", "HTTP/2"),
    ("hypercorn", "HTTP/3"),
    ("haproxy", "HTTP/1.1"),
    ("haproxy", "HTTP/2"),
    ("caddy", "HTTP/1.1"),
    ("caddy", "HTTP/2"),
    ("caddy", "HTTP/3"),
]

#: Messages that a session may have unanswered. hypercorn 0.18 hands them to its application through a queue of ten.
#: When that is full, its HTTP/3 drops messages: its timer handles events too, and each packet sent cancels the timer.
_UNANSWERED = {("hypercorn", "HTTP/3"): 8}


@pytest.fixture(autouse=True)
def _hypercorn_never_ends_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    websocket_servers_end_within(monkeypatch)


@contextmanager
def _proxying(godebug: str = "") -> Iterator[ServerInfo]:
    """Caddy before hypercorn."""
    files = certificates()
    with hypercorn() as behind, setup() as made:
        sites = f"""
            https://:{made.port} {{
                bind 127.0.0.1
                tls {files.chain} {files.key}
                reverse_proxy 127.0.0.1:{behind.http_port}
            }}
            http://:{made.http_port} {{
                bind 127.0.0.1
                respond / 200
            }}
            """
        options = "default_sni localhost\nservers {\nprotocols h1 h2 h3\n}"
        with run_caddy(made, sites, options, godebug=godebug) as server:
            yield server


@pytest.fixture(scope="module")
def caddy_with_extended_connect() -> Iterator[ServerInfo]:
    """Go offers it over HTTP/2 when it is told to."""
    with _proxying("http2xconnect=1") as server:
        yield server


@pytest.fixture(params=_TAKES, ids=["-".join(each) for each in _TAKES])
def taking(request: pytest.FixtureRequest, servers: Callable[[str], ServerInfo]) -> tuple[ServerInfo, str]:
    """A server, and a version of HTTP in which it takes WebSockets."""
    name, version = request.param
    if name == "caddy":
        return request.getfixturevalue("caddy_with_extended_connect"), version
    return servers(name), version


def _client(**settings: Any) -> AsyncClient:
    return AsyncClient(verify=certificates().client_context(), timeout=60, **settings)


@asynccontextmanager
async def _session(client: AsyncClient, server: ServerInfo, version: str) -> AsyncIterator[AsyncWebSocketSession]:
    """A session, with room for large messages."""
    size = 8 * 1024 * 1024
    url = f"{server.url.replace('https', 'wss')}/chat"
    async with client.websocket(url, max_message_size_bytes=size, keepalive_ping_interval_seconds=None) as talk:
        assert talk.response is not None
        assert talk.response.http_version == version
        yield talk


async def test_what_a_session_carries(taking: tuple[ServerInfo, str]) -> None:
    """A thousand messages each way at once, pings, fragments, megabytes; requests beside it; a clean end."""
    server, version = taking
    heard: list[str] = []
    unanswered = anyio.Semaphore(_UNANSWERED.get((server.name, version), 1000))
    with anyio.fail_after(240):
        async with _client(**_ONLY[version]) as client:
            async with _session(client, server, version) as talk:

                async def listen() -> None:
                    for _ in range(1000):
                        heard.append(await talk.receive_text())
                        unanswered.release()

                async def speak() -> None:
                    for number in range(1000):
                        await unanswered.acquire()
                        await talk.send_text(f"message {number}")

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(listen)
                    tasks.start_soon(speak)
                    for _ in range(5):
                        assert (await client.get(server.url)).content == HELLO
                assert heard == [f"message {number}" for number in range(1000)]

                await (await talk.ping(b"are you there?")).wait()
                for part, last in (("one ", False), ("two ", False), ("three", True)):
                    await talk.send(TextMessage(part, message_finished=last))
                assert await talk.receive_text() == "one two three"
                large = os.urandom(3 * 1024 * 1024)
                for _ in range(2):
                    await talk.send_bytes(large)
                    assert await talk.receive_bytes() == large
                for start in range(0, len(large), 1 << 20):
                    last = start + (1 << 20) >= len(large)
                    await talk.send(BytesMessage(large[start : start + (1 << 20)], message_finished=last))
                assert await talk.receive_bytes() == large
            assert (await client.get(server.url)).content == HELLO
            report = await client.aclose()
    assert report.clean, report


async def test_many_sessions_on_one_connection(taking: tuple[ServerInfo, str]) -> None:
    """Twenty at once: in HTTP/2 and HTTP/3 on one connection, which goes on when they have ended."""
    server, version = taking
    with anyio.fail_after(240):
        async with _client(**_ONLY[version]) as client:
            opened, all_open = [], anyio.Event()

            async def one(name: str) -> None:
                async with _session(client, server, version) as talk:
                    opened.append(name)
                    if len(opened) == 20:
                        all_open.set()
                    await all_open.wait()
                    for number in range(10):
                        await talk.send_text(f"{name} {number}")
                        assert await talk.receive_text() == f"{name} {number}"

            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(one, f"session {number}")
            assert (await client.get(server.url)).content == HELLO
            report = await client.aclose()
    assert report.clean, report
    if version != "HTTP/1.1":
        [end] = report.connections
        assert end.exchanges == 21


async def test_caddy_offers_it_over_http3_only() -> None:
    """What it does as it comes: over HTTP/2 a session takes an HTTP/1.1 connection, beside the one that is open."""
    with _proxying() as server:
        async with _client() as client:
            assert (await client.get(server.url)).http_version == "HTTP/2"
            async with _session(client, server, "HTTP/1.1") as talk:
                await talk.send_text("hello")
                assert await talk.receive_text() == "hello"
            assert (await client.get(server.url)).http_version == "HTTP/2"
            report = await client.aclose()
        assert report.clean, report
        async with _client(http3=True, http3_origins=[server.url]) as client:
            assert (await client.get(server.url)).http_version == "HTTP/3"
            async with _session(client, server, "HTTP/3") as talk:
                await talk.send_text("hello")
                assert await talk.receive_text() == "hello"


async def test_haproxy_and_the_default_client(servers: Callable[[str], ServerInfo]) -> None:
    """It offers RFC 8441, and asks an HTTP/1.1 server behind it for an Upgrade. Both ends end, and nothing is reset."""
    server = servers("haproxy")
    async with _client() as client:
        assert (await client.get(server.url)).http_version == "HTTP/2"
        async with _session(client, server, "HTTP/2") as talk:
            await talk.send_text("hello")
            assert await talk.receive_text() == "hello"
        report = await client.aclose()
    assert report.clean, report
    assert len(report.connections) == 1
