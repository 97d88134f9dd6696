"""HTTP/3 as users of the client meet it: bad networks, bodies, trailers, tunnels, WebSockets, logs; on uvloop too."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import httpx2
import pytest
import trustme

from allswell import AsyncClient, QuicConfig
from tests.support.certificates import certificates, issue
from tests.support.lag import websocket_servers_end_within
from tests.support.quic_server import QuicServer, ServedConnection, hints_and_trailers
from tests.support.udp_relay import BAD_WEATHER, UdpRelay, Weather

pytestmark = pytest.mark.anyio

Fields = dict[bytes, bytes]


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The event loops; uvloop is asyncio's other one."""
    return ("asyncio", {"use_uvloop": True}) if request.param == "uvloop" else request.param


def client(**settings: Any) -> AsyncClient:
    """Speaks HTTP/3 only, and trusts the servers of these tests."""
    settings.setdefault("verify", certificates().client_context())
    return AsyncClient(http3="only", **settings)


def url(port: int, path: str = "/hello") -> str:
    return f"https://localhost:{port}{path}"


# The network


@pytest.mark.parametrize("weather", BAD_WEATHER.values(), ids=BAD_WEATHER)
async def test_through_a_bad_network(weather: Weather) -> None:
    with QuicServer() as server, UdpRelay(server.port, seed=3, up=weather, down=weather) as relay:
        async with client() as http:
            bodies: list[bytes] = []

            async def get() -> None:
                bodies.append((await http.get(url(relay.port, "/bytes/50000"))).content)

            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(get)
            assert bodies == [b"x" * 50_000] * 4
            assert (await http.post(url(relay.port, "/echo"), content=b"y" * 100_000)).text == "100000"
        assert http.close_report is not None
        assert http.close_report.connections[0].layers[0].said == "GOAWAY"
        assert server.all("goaway") == [(0,)]
        assert len(server.connections) == 1


async def test_a_black_out_of_three_seconds() -> None:
    with QuicServer() as server, UdpRelay(server.port) as relay:
        async with client() as http, http.stream("GET", url(relay.port, "/bytes/3000000")) as response:
            began = monotonic()
            relay.black_out(3)
            assert len(await response.aread()) == 3_000_000
            assert monotonic() - began > 2.5
            assert len(server.connections) == 1


async def test_a_nat_that_rebinds_under_a_download_and_when_idle() -> None:
    with QuicServer() as server, UdpRelay(server.port) as relay:
        async with client() as http:
            async with http.stream("GET", url(relay.port, "/bytes/2000000")) as response:
                relay.rebind()
                assert len(await response.aread()) == 2_000_000
            relay.rebind()
            assert (await http.get(url(relay.port))).text == "hello"
            assert len(server.connections) == 1
        assert server.all("close") == [(0x1D, 0x100)]


# Bodies


async def test_abandoned_at_a_tenth() -> None:
    """STOP_SENDING is seen, the connection serves on, its window is given back whole."""
    with QuicServer() as server:
        async with client() as http:
            for _ in range(3):
                async with http.stream("GET", url(server.port, "/bytes/10000000")) as response:
                    got = 0
                    async with aclosing(response.aiter_raw()) as pieces:
                        async for piece in pieces:
                            got += len(piece)
                            if got >= 1_000_000:
                                break
            assert (await http.get(url(server.port))).text == "hello"
            assert len((await http.get(url(server.port, "/bytes/10000000"))).content) == 10_000_000
            assert server.all("stop") == [(0, 0x10C), (4, 0x10C), (8, 0x10C)]
            assert len(server.connections) == 1
            held = server.call(lambda connection: sum(not number & 3 for number in connection.quic._streams))
            assert held <= 2


async def test_upload_waits_for_the_server() -> None:
    """Its source is asked for no more than the windows, and what one exchange may hold, have room for."""
    asked = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield b"y" * 100_000

    with QuicServer(max_stream_data=200_000, max_data=1_000_000) as server, UdpRelay(server.port) as relay:
        async with client() as http:
            await http.get(url(relay.port))
            relay.up.loss = 1.0
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(http.get, url(relay.port))

                async def post() -> None:
                    assert (await http.post(url(relay.port, "/echo"), content=pieces())).text == "10000000"

                tasks.start_soon(post)
                await anyio.sleep(0.3)
                assert asked <= 6
                relay.up.loss = 0.0
        assert server.all("body")[-1][1] == 10_000_000


async def test_an_answer_before_the_upload_is_over() -> None:
    def refuse(connection: ServedConnection, stream: int, fields: Fields) -> None:
        connection.head(stream, 413)
        connection.quic.stop_stream(stream, 0x100)
        connection.data(stream, b"too much", end=True)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"z" * 10_000
            await anyio.lowlevel.checkpoint()

    with QuicServer({b"/refuse": refuse}) as server:
        async with client() as http:
            response = await http.post(url(server.port, "/refuse"), content=endless())
            assert (response.status_code, response.text) == (413, "too much")
            assert (await http.get(url(server.port))).text == "hello"
            assert len(server.connections) == 1


async def test_trailers_and_early_hints() -> None:
    with QuicServer({b"/t": hints_and_trailers}) as server:
        async with client() as http:
            extensions = {"trailers": [(b"Digest", b"2")]}
            response = await http.post(url(server.port, "/t"), content=b"abc", extensions=extensions)
            assert response.text == "body"
            assert response.http_version == "HTTP/3"
            assert [head.status for head in response.extensions["informational"]] == [103]
            assert response.extensions["trailers"] == [(b"checksum", b"1")]
            with anyio.fail_after(30):
                while not server.all("trailers"):  # noqa: ASYNC110  a thread's doing
                    await anyio.sleep(0.005)
            assert server.all("trailers")[0][1] == [(b"digest", b"2")]


# Tunnels


def tunnel(connection: ServedConnection, stream: int, fields: Fields) -> None:
    """Accepts, and says who was asked for."""
    connection.head(stream, 200)
    connection.data(stream, b"to " + fields.get(b":protocol", b"") + fields[b":authority"])


async def test_connect() -> None:
    with QuicServer({b"": tunnel}) as server:
        async with client() as http:
            target = {"target": b"o.example:443"}
            async with http.stream("CONNECT", url(server.port), extensions=target) as response:
                assert response.status_code == 200
                stream = response.extensions["network_stream"]
                assert await stream.read(100) == b"to o.example:443"
                await stream.write(b"up")
            assert (await http.get(url(server.port))).text == "hello"
            assert len(server.connections) == 1


async def test_websocket_by_extended_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9220, against a server that allows it: httpx2's WebSocket client. (It never ends the stream.)"""
    websocket_servers_end_within(monkeypatch)
    frames: list[bytes] = []

    def websocket(connection: ServedConnection, stream: int, fields: Fields) -> None:
        frames.append(fields[b":method"] + b" " + fields[b":protocol"])
        connection.head(stream, 200)
        connection.data(stream, b"\x81\x05hello")

    with QuicServer({b"/ws": websocket}) as server:
        async with client() as http:
            await http.get(url(server.port))
            async with http.websocket(f"wss://localhost:{server.port}/ws") as talk:
                assert talk.response is not None
                assert talk.response.http_version == "HTTP/3"
                assert await talk.receive_text() == "hello"
            assert (await http.get(url(server.port))).text == "hello"
    assert frames == [b"CONNECT websocket"]


# What is told


async def test_errors_name_host_and_reason() -> None:
    with QuicServer(files=issue(trustme.CA(), "localhost")) as server:
        async with client() as http:
            with pytest.raises(httpx2.ConnectError, match=f"localhost:{server.port}.*issuer"):
                await http.get(url(server.port))


async def test_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QLOGDIR and SSLKEYLOGFILE by the environment, ``qlog_dir`` by the settings; a file for each connection."""
    keys, here, there = tmp_path / "keys", tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    monkeypatch.setenv("QLOGDIR", str(there))
    with QuicServer() as server:
        for quic in (QuicConfig(), QuicConfig(qlog_dir=str(here))):
            async with client(quic=quic) as http:
                assert (await http.get(url(server.port))).text == "hello"
    assert keys.read_text().count("CLIENT_TRAFFIC_SECRET_0") == 2
    for folder in (here, there):
        [log] = [path for path in folder.glob("*.qlog") if "connection_close" in path.read_text()]
        events = json.loads(log.read_text())["traces"][0]["events"]
        assert any(event["name"] == "transport:packet_received" for event in events)
