"""How HTTP/2 connections end, as their peer saw it: GOAWAY after the last frame, close_notify, FIN, and no RST."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._errors import RemoteProtocolError
from allswell._report import ConnectionEnd, Outcome
from allswell.testing import GoAway, Origin, RequestExecuted, Response
from tests.support.certificates import certificates
from tests.support.h2_script import (
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    Http2Server,
    Request,
    Talk,
    h2_tls,
)
from tests.support.lag import LAG
from tests.support.peer import scripted_peer

pytestmark = pytest.mark.anyio

POLITE = ["close_notify", "FIN"]


def trusting(**settings: Any) -> ConnectionPool:
    """A pool that trusts the peers of these tests."""
    settings.setdefault("grace", 3 * LAG)  # what answers is not waited for that long, on the slowest machine
    settings.setdefault("ssl_context", certificates().client_context())
    return ConnectionPool(**settings)


async def test_idle_connection() -> None:
    async with Origin(versions=["h2"]) as origin:
        async with trusting(ssl_context=origin.client_context()) as pool:
            assert (await pool.request("GET", f"{origin.url}/1")).http_version == b"HTTP/2"
            report = await pool.aclose()
        await origin.ended(timeout=30)
        origin.assert_ended_gracefully()
        assert [each.code for each in origin.record.of(GoAway)] == [NO_ERROR]
    assert report.clean
    [end] = report.connections
    assert [(layer.layer, layer.said, layer.heard) for layer in end.layers] == [
        ("h2", "GOAWAY", ""),
        ("tls", "close_notify", "close_notify"),
        ("tcp", "FIN", "FIN"),
    ]


async def test_exchange_in_flight_is_waited_for() -> None:
    """A response of which the rest comes when the pool closes: it arrives whole, then come the goodbyes."""
    async with Origin({"/": Response(body=b"first, second")}, versions=["h2"]) as origin:
        origin.stall()
        pool = trusting(ssl_context=origin.client_context())
        bodies: list[bytes] = []

        async def get() -> None:
            bodies.append(await (await pool.request("GET", origin.url)).read())

        async def rest() -> None:
            await anyio.wait_all_tasks_blocked()
            assert pool.state == "closing"
            origin.behave()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await origin.seen(RequestExecuted, timeout=30)
            tasks.start_soon(rest)
            report = await pool.aclose()
        await origin.ended(timeout=30)
        assert bodies == [b"first, second"]
        origin.assert_ended_gracefully()
        origin.assert_no_reset()
    assert report.clean
    assert report.seconds < 2 * LAG


async def test_exchange_over_its_time_is_reset_and_the_connection_ends_politely() -> None:
    """RST_STREAM(CANCEL) says that the one was given up; GOAWAY(NO_ERROR) that all else was well."""

    def half(talk: Talk, request: Request) -> None:
        talk.answer(request, b"half", end=False)

    server = Http2Server(half)
    with scripted_peer(server, tls=h2_tls()) as peer:
        pool = trusting()
        async with pool.stream("GET", peer.url) as response:
            assert await response.receive() == b"half"
            report = await pool.aclose(2.0)
        await peer.ended()
        assert server.talks[0].seen[-2:] == ["RST_STREAM 1 8", f"GOAWAY {NO_ERROR}"]
        assert peer.connections[0].saw == POLITE
    assert not report.clean
    assert report.connections[0].cut == 1
    assert report.seconds < 2.0 + LAG


async def test_many_connections_side_by_side() -> None:
    server = Http2Server(settings={3: 1})
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with trusting() as pool:
            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(pool.request, "GET", f"{peer.url}/{number}")
            report = await pool.aclose()
        await peer.ended()
        assert [connection.saw for connection in peer.connections] == [POLITE] * len(peer.connections)
        assert [talk.said_last for talk in server.talks] == [f"GOAWAY {NO_ERROR}"] * len(server.talks)
    assert report.clean


@pytest.mark.parametrize("tls", [True, False])
async def test_goaway_to_an_idle_connection_ends_it_at_once(tls: bool) -> None:
    ends: list[ConnectionEnd] = []
    server = Http2Server()
    with scripted_peer(server, tls=h2_tls() if tls else False) as peer:
        async with trusting(http1=False, on_connection_end=ends.append) as pool:
            await pool.request("GET", f"{peer.url}/1")
            server.talks[0].goaway(1)
            await peer.ended()
            assert server.talks[0].said_last == f"GOAWAY {NO_ERROR}"
            assert peer.connections[0].saw == (POLITE if tls else ["FIN"])
            assert (await pool.request("GET", f"{peer.url}/2")).attempts == []
            assert len(server.talks) == 2
    assert ends[0].clean
    assert (ends[0].layers[0].said, ends[0].layers[0].heard) == ("GOAWAY", "GOAWAY")
    assert ends[0].layers[0].outcome is Outcome.PEER_FIRST


@pytest.mark.parametrize("tls", [True, False])
async def test_end_of_an_idle_connection_is_answered_at_once(tls: bool) -> None:
    """close_notify and FIN without a GOAWAY: ours follow, and no connection stays in CLOSE_WAIT."""
    ends: list[ConnectionEnd] = []

    def leave(talk: Talk, request: Request) -> None:
        talk.answer(request)
        if request.path == "/1":
            talk.connection.stall()
            talk.end()

    server = Http2Server(leave)
    with scripted_peer(server, tls=h2_tls() if tls else False) as peer:
        async with trusting(http1=False, on_connection_end=ends.append) as pool:
            await pool.request("GET", f"{peer.url}/1")
            peer.release()
            await peer.ended()
            assert peer.connections[0].saw == (POLITE if tls else ["FIN"])
            assert (await pool.request("GET", f"{peer.url}/2")).attempts == []
    assert ends[0].clean
    assert ends[0].layers[0].said == ""  # nothing was said to who has ended, and nothing is claimed
    assert "GOAWAY" not in str(server.talks[0].seen)


@pytest.mark.parametrize(
    ("garbage", "code"),
    [
        (lambda talk: talk.raw(0x0, 0, 0, b"DATA on stream 0"), PROTOCOL_ERROR),
        (lambda talk: talk.raw(0x8, 0, 0, b"\x7f\xff\xff\xff"), FLOW_CONTROL_ERROR),
        (lambda talk: talk.raw(0x1, 0x4, 1, b"\x80"), 9),  # HPACK: index 0
        (lambda talk: talk.raw(0x6, 0, 0, b"short"), 6),
    ],
    ids=["protocol", "window", "compression", "frame size"],
)
async def test_protocol_error_is_told_and_nothing_is_pretended(garbage: object, code: int) -> None:
    """GOAWAY with the code, no close_notify: what was in flight was not completed."""

    def break_it(talk: Talk, request: Request) -> None:
        assert callable(garbage)
        garbage(talk)

    ends: list[ConnectionEnd] = []
    server = Http2Server(break_it)
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with trusting(on_connection_end=ends.append) as pool:
            with pytest.raises(RemoteProtocolError) as caught:
                await pool.request("GET", peer.url)
            assert caught.value.by == "peer"
            await peer.ended()
        assert server.talks[0].said_last == f"GOAWAY {code}"
        assert "close_notify" not in peer.connections[0].saw
        assert "FIN" in peer.connections[0].saw or "RST" in peer.connections[0].saw
    assert not ends[0].clean
    assert ends[0].cut == 1


async def test_idle_expiry_is_polite() -> None:
    server = Http2Server()
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with trusting(keepalive_expiry=0.1) as pool:
            await pool.request("GET", peer.url)
            await peer.ended()
        assert server.talks[0].said_last == f"GOAWAY {NO_ERROR}"
        assert peer.connections[0].saw == POLITE


async def test_frames_that_cross_our_goaway_do_no_harm() -> None:
    def late(talk: Talk, request: Request) -> None:
        talk.answer(request)
        talk.wait_for_goaway()
        talk.ping()
        talk.settings(max_concurrent_streams=7)
        talk.goaway(1)

    server = Http2Server(late)
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with trusting() as pool:
            await pool.request("GET", peer.url)
            report = await pool.aclose()
        await peer.ended()
        assert server.talks[0].said_last == f"GOAWAY {NO_ERROR}"
        assert peer.connections[0].saw == POLITE
    assert report.clean


async def test_calm_is_no_reason_to_pretend_either() -> None:
    """The peer's own error: GOAWAY(ENHANCE_YOUR_CALM). Its requests fail; the connection ends as the peer wants."""

    def calm(talk: Talk, request: Request) -> None:
        talk.goaway(0, ENHANCE_YOUR_CALM, b"too many")

    server = Http2Server(calm)
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with trusting() as pool:
            with pytest.raises(RemoteProtocolError, match=r"ENHANCE_YOUR_CALM \(too many\)"):
                await pool.request("GET", peer.url, timeouts=Timeouts(total=5))
        await peer.ended()
        assert len(peer.connections) == 1
        assert peer.connections[0].saw == POLITE
