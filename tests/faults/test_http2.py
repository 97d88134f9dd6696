"""Hostile HTTP/2 servers: each costs its own exchanges a typed error, little memory, and the pool goes on."""

from __future__ import annotations

import resource
from collections.abc import Callable

import anyio
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._errors import AllswellError, ExchangeReset, RemoteProtocolError
from allswell._report import ConnectionEnd
from tests.support.h2_script import (
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    INTERNAL_ERROR,
    NO_ERROR,
    Http2Server,
    Request,
    Talk,
)
from tests.support.peer import scripted_peer

pytestmark = pytest.mark.anyio

FLOOD = 200_000
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 8, 9


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame's bytes."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def flood(talk: Talk, one: bytes, count: int = FLOOD) -> None:
    """The same frame over and over, until the client has had enough."""
    block = one * 1000
    for _ in range(count // 1000):
        talk.connection.send(block)


def pings(talk: Talk, request: Request) -> None:
    flood(talk, frame(_PING, 0, 0, b"12345678"))


def settings(talk: Talk, request: Request) -> None:
    flood(talk, frame(_SETTINGS, 0, 0, b"\0\4\0\1\0\0"))


def continuations(talk: Talk, request: Request) -> None:
    talk.connection.send(frame(_HEADERS, 0, request.stream, b"\x88"))
    flood(talk, frame(_CONTINUATION, 0, request.stream, b"\0" * 1000), 20_000)


def empty_continuations(talk: Talk, request: Request) -> None:
    talk.connection.send(frame(_HEADERS, 0, request.stream, b"\x88"))
    flood(talk, frame(_CONTINUATION, 0, request.stream))


def empty_data(talk: Talk, request: Request) -> None:
    talk.answer(request, b"", end=False, fields=[("content-length", "5")])
    flood(talk, frame(_DATA, 0, request.stream))


def window_updates(talk: Talk, request: Request) -> None:
    flood(talk, frame(_WINDOW_UPDATE, 0, request.stream, b"\0\0\0\1"))


def resets(talk: Talk, request: Request) -> None:
    """The first is this exchange's end, the others are for what is no more."""
    flood(talk, frame(_RST, 0, request.stream, INTERNAL_ERROR.to_bytes(4, "big")))


def overflow(talk: Talk, request: Request) -> None:
    flood(talk, frame(_WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), 1000)


def too_much_data(talk: Talk, request: Request) -> None:
    """More than the window of a stream, whatever the client says."""
    talk.answer(request, b"", end=False)
    flood(talk, frame(_DATA, 0, request.stream, bytes(16384)), 1000)


def large_fields(talk: Talk, request: Request) -> None:
    """HPACK's bomb: one large field, said again and again by one byte each."""
    name = b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4000  # a literal that enters the table
    talk.connection.send(frame(_HEADERS, 0x4, request.stream, b"\x88" + name + b"\xbe" * 10_000))


def informational(talk: Talk, request: Request) -> None:
    one = talk.headers(request.stream, [(":status", "103")]).serialize()
    flood(talk, one, 5_000)


BROKEN: dict[Callable[[Talk, Request], None], int] = {
    pings: ENHANCE_YOUR_CALM,
    settings: ENHANCE_YOUR_CALM,
    continuations: ENHANCE_YOUR_CALM,
    empty_continuations: ENHANCE_YOUR_CALM,
    empty_data: ENHANCE_YOUR_CALM,
    window_updates: ENHANCE_YOUR_CALM,
    resets: ENHANCE_YOUR_CALM,
    overflow: FLOW_CONTROL_ERROR,
    too_much_data: FLOW_CONTROL_ERROR,
    large_fields: ENHANCE_YOUR_CALM,
}


async def read_late(pool: ConnectionPool, url: str, ends: list[ConnectionEnd]) -> None:
    """Fetch it, and read when the connection has ended: who reads opens the window that is to be exceeded."""
    async with pool.stream("GET", url, timeouts=Timeouts(total=60)) as response:
        with anyio.fail_after(30):
            while not ends:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        await response.read()


@pytest.mark.parametrize("attack", BROKEN, ids=lambda attack: attack.__name__)
async def test_attack_ends_its_connection_and_the_pool_goes_on(attack: Callable[[Talk, Request], None]) -> None:
    def serve(talk: Talk, request: Request) -> None:
        if request.path == "/attack":
            attack(talk, request)
        else:
            talk.answer(request)

    ends: list[ConnectionEnd] = []
    server = Http2Server(serve)
    with scripted_peer(server) as peer:
        async with ConnectionPool(http1=False, on_connection_end=ends.append) as pool:
            await pool.request("GET", f"{peer.url}/warm")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with pytest.raises(AllswellError) as caught:
                await read_late(pool, f"{peer.url}/attack", ends)
            assert isinstance(caught.value, RemoteProtocolError | ExchangeReset)
            assert caught.value.by == "peer"
            with anyio.fail_after(30):
                while not ends:  # noqa: ASYNC110  a reset ends the exchange, the flood behind it the connection
                    await anyio.sleep(0.005)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert after - before < 24 * 1024  # KiB, this test's server included
            fine = await pool.request("GET", f"{peer.url}/fine", timeouts=Timeouts(total=60))
            assert await fine.read() == b"/fine"
        assert len(server.talks) == 2
        assert not ends[0].clean
        assert ends[0].layers[0].said == "GOAWAY"
        told = [name for name in server.talks[0].seen if name.startswith("GOAWAY")]
        assert told in ([], [f"GOAWAY {BROKEN[attack]}"])  # [] where our RST overtook it in the server's own backlog
        assert f"GOAWAY {NO_ERROR}" in server.talks[1].seen


async def test_endless_informational_responses_end_their_exchange_alone() -> None:
    server = Http2Server(
        lambda talk, request: informational(talk, request) if request.path == "/attack" else talk.answer(request)
    )
    with scripted_peer(server) as peer:
        async with ConnectionPool(http1=False) as pool:
            with pytest.raises(RemoteProtocolError):
                await pool.request("GET", f"{peer.url}/attack", timeouts=Timeouts(total=60))
            fine = await pool.request("GET", f"{peer.url}/fine", timeouts=Timeouts(total=60))
            assert await fine.read() == b"/fine"


async def test_a_header_list_that_is_too_large_fails_alone() -> None:
    def serve(talk: Talk, request: Request) -> None:
        fields = [(f"x-{number}", "v" * 100) for number in range(120)] if request.path == "/large" else []
        talk.answer(request, fields=fields)

    server = Http2Server(serve)
    with scripted_peer(server) as peer:
        async with ConnectionPool(http1=False, max_header_size=10_000) as pool:
            with pytest.raises(RemoteProtocolError, match="header section") as caught:
                await pool.request("GET", f"{peer.url}/large")
            assert caught.value.reach == "exchange"
            assert await (await pool.request("GET", f"{peer.url}/fine")).read() == b"/fine"
        assert len(server.talks) == 1
