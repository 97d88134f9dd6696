"""How HTTP/3 connections end, as their peer saw it: GOAWAY, then CONNECTION_CLOSE 0x1d with H3_NO_ERROR."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import anyio
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._errors import AllswellError, PoolClosed
from allswell._report import ConnectionEnd, Outcome
from tests.support.certificates import certificates
from tests.support.lag import LAG, long_closing_period, those_there_are_silent_after
from tests.support.leaks import sockets_closed
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.udp_relay import UdpRelay, Weather

pytestmark = pytest.mark.anyio

PATIENT = Timeouts()
NO_ERROR, REQUEST_CANCELLED = 0x100, 0x10C
#: What a server sees of a client that ends well.
POLITE = [("goaway", 0), ("close", 0x1D, NO_ERROR)]


def trusting(**settings: Any) -> ConnectionPool:
    """A pool that speaks HTTP/3 only and trusts the peers of these tests."""
    settings.setdefault("grace", 3 * LAG)  # what answers is not waited for that long, on the slowest machine
    return ConnectionPool(http3="only", ssl_context=certificates().client_context(), **settings)


def url(port: int, path: str = "/hello") -> str:
    return f"https://127.0.0.1:{port}{path}"


def goodbyes(server: QuicServer) -> list[tuple[Any, ...]]:
    """What was said to the server that ends something, in order."""
    return [entry for entry in list(server.seen) if entry[0] in ("goaway", "close", "reset", "stop")]


async def until(server: QuicServer, *word: Any, count: int = 1) -> None:
    """Wait until the server has seen entries that begin so."""
    with anyio.fail_after(30):
        while sum(entry[: len(word)] == word for entry in list(server.seen)) < count:  # noqa: ASYNC110  a thread's doing
            await anyio.sleep(0.005)


def half(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    """The head and half of a body."""
    connection.head(stream, 200)
    connection.data(stream, b"first, ")


async def test_idle_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    long_closing_period(monkeypatch)
    with QuicServer(answer_close=True) as server, UdpRelay(server.port) as relay:
        async with trusting() as pool:
            assert (await pool.request("GET", url(relay.port))).http_version == b"HTTP/3"
            assert goodbyes(server) == []
            report = await pool.aclose()
        await until(server, "close")
        assert goodbyes(server) == POLITE
        relay.settle()
        last = relay.went_up[-1]
        assert set(relay.went_up[relay.went_up.index(last) :]) == {last}  # and nothing after that, but copies
    assert report.clean
    assert report.seconds < LAG
    [end] = report.connections
    assert [(layer.layer, layer.said, layer.heard) for layer in end.layers] == [
        ("h3", "GOAWAY", ""),
        ("quic", "CONNECTION_CLOSE(0x100)", "CONNECTION_CLOSE(0x100)"),
        ("udp", "", ""),
    ]


async def test_a_server_that_answers_nothing_costs_three_probe_timeouts() -> None:
    """aioquic's servers hear the close and fall silent, as RFC 9000 §10.2.2 allows."""
    with QuicServer() as server, UdpRelay(server.port) as relay:
        async with trusting() as pool:
            await pool.request("GET", url(relay.port))
            report = await pool.aclose()
        await until(server, "close")
        assert goodbyes(server) == POLITE
        with anyio.fail_after(30):
            while relay.went_up.count(relay.went_up[-1]) < 3:  # noqa: ASYNC110  the relay lives in another thread
                await anyio.sleep(0.005)
        # Three copies; perhaps to what was on its way when the server fell silent.
        assert relay.went_up.count(relay.went_up[-1]) in (3, 4, 5)
    assert report.clean
    assert report.seconds < LAG


async def test_a_server_that_is_gone_costs_ten_probe_timeouts_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven until three probes behind the GOAWAY have no answer, and three for the closing period."""
    with QuicServer() as server:
        async with trusting(keepalive_expiry=None) as pool:
            await pool.request("GET", url(server.port))
            those_there_are_silent_after(monkeypatch)
            server.call(lambda connection: setattr(connection, "silent", True))
            report = await pool.aclose()
        await until(server, "close")  # it hears, it only does not speak
        assert goodbyes(server) == POLITE
    assert not report.clean
    assert report.connections[0].layers[0].outcome is Outcome.TIMED_OUT
    assert report.seconds < 2 * LAG


@pytest.mark.parametrize("grace", [0.0, 0.05])
async def test_never_longer_than_the_grace(grace: float) -> None:
    with QuicServer() as server, UdpRelay(server.port, down=Weather(delay=(0.1, 0.1))) as relay:
        async with trusting() as pool:
            await pool.request("GET", url(relay.port))
            report = await pool.aclose(grace)
        await until(server, "close")
        assert goodbyes(server)[-1] == ("close", 0x1D, NO_ERROR)
    assert report.seconds < grace + LAG


async def test_exchange_in_flight_is_waited_for() -> None:
    """A response that takes another moment: it arrives whole, then come the goodbyes."""
    with QuicServer({b"/slow": half}) as server:
        pool = trusting()
        bodies: list[bytes] = []

        async def get() -> None:
            bodies.append(await (await pool.request("GET", url(server.port, "/slow"))).read())

        async def rest() -> None:
            await anyio.wait_all_tasks_blocked()
            assert pool.state == "closing"
            server.call(lambda connection: connection.data(0, b"second", end=True))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await until(server, "request")
            tasks.start_soon(rest)
            report = await pool.aclose()
        assert bodies == [b"first, second"]
        assert goodbyes(server) == POLITE
    assert report.clean
    assert report.seconds < 2 * LAG


async def test_exchange_over_its_time_is_reset_and_the_connection_ends_politely() -> None:
    """The exchange is given up by name; H3_NO_ERROR says that all else was well."""
    with QuicServer({b"/slow": half}) as server:
        pool = trusting()
        async with pool.stream("GET", url(server.port, "/slow")) as response:
            assert await response.receive() == b"first, "
            report = await pool.aclose(2.0)
            with pytest.raises(AllswellError):
                await response.read()
        await until(server, "close")
        assert goodbyes(server) == [("stop", 0, REQUEST_CANCELLED), *POLITE]
    assert not report.clean
    assert report.connections[0].cut == 1
    assert report.seconds < 2.0 + LAG


async def test_request_that_waits_for_its_answer_ends_typed() -> None:
    with QuicServer() as server:
        pool = trusting()
        errors: list[Exception] = []

        async def get() -> None:
            try:
                await pool.request("POST", url(server.port, "/echo"), content=never(), timeouts=PATIENT)
            except AllswellError as error:
                errors.append(error)

        began = monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await until(server, "request")
            report = await pool.aclose(2.0)
        assert monotonic() - began < 2.0 + 2 * LAG
        assert len(errors) == 1
        await until(server, "close")
        # Half an upload must not pass for all of it: RESET_STREAM, and no end of the stream.
        assert ("reset", 0, REQUEST_CANCELLED) in goodbyes(server)
        assert server.all("body") == []
        assert goodbyes(server)[-2:] == POLITE
    assert report.seconds < 2.0 + LAG


async def never() -> AsyncIterator[bytes]:
    """A body of which half comes."""
    yield b"half"
    await anyio.sleep_forever()


async def test_left_by_an_exception_the_exchange_is_cut_and_the_rest_is_polite() -> None:
    class Oops(Exception):
        pass

    async def leave(port: int) -> None:
        async with trusting() as pool:
            await pool.request("GET", url(port))
            async with pool.stream("GET", url(port, "/slow")) as response:
                assert await response.receive() == b"first, "
                raise Oops

    with QuicServer({b"/slow": half}) as server, sockets_closed():
        with pytest.raises(Oops):
            await leave(server.port)
        await until(server, "close")
        assert goodbyes(server)[0][0] == "stop"
        assert goodbyes(server)[-2:] == POLITE


async def test_cancelled_while_closing_the_exchange_in_flight_is_all_that_is_aborted() -> None:
    with QuicServer({b"/slow": half}) as server, sockets_closed():
        over = anyio.Event()
        pool = trusting(on_connection_end=lambda end: over.set())
        async with pool.stream("GET", url(server.port, "/slow")) as slow:
            assert await slow.receive() == b"first, "
            with anyio.move_on_after(0.1) as scope:
                await pool.aclose(20)
            assert scope.cancelled_caught
        await over.wait()  # the connection hears the answer in the background
        assert goodbyes(server) == [("stop", 0, REQUEST_CANCELLED), *POLITE]


async def test_many_connections_side_by_side() -> None:
    servers = [QuicServer() for _ in range(5)]
    for server in servers:
        server.__enter__()
    try:
        async with trusting() as pool:
            for server in servers:
                await pool.request("GET", url(server.port))
            report = await pool.aclose()
        for server in servers:
            await until(server, "close")
            assert goodbyes(server) == POLITE
    finally:
        for server in servers:
            server.__exit__(None, None, None)
    assert report.clean
    assert max(end.began for end in report.connections) < min(end.began + end.seconds for end in report.connections)


async def test_with_a_third_lost_the_server_still_learns_of_it() -> None:
    """A loss of 30 % each way, from the moment of the close: 97 of 100 learn of it, and it is over within the grace."""
    runs = 40
    with QuicServer() as server, UdpRelay(server.port, seed=5) as relay:
        pools = [trusting(keepalive_expiry=None) for _ in range(runs)]
        for pool in pools:
            await pool.request("GET", url(relay.port))
        relay.up = relay.down = Weather(loss=0.3)
        began = monotonic()
        async with anyio.create_task_group() as tasks:
            for pool in pools:
                tasks.start_soon(pool.aclose, 4.0)
        assert monotonic() - began < 4.0 + LAG
        relay.settle()
        server.settle()
        learnt = [each for each in server.connections if each.quic._close_event is not None]
        assert len(learnt) >= runs - 7  # fewer: once in 50,000 times; if the close were said once, 19 times in 20
        assert {entry[1:] for entry in goodbyes(server) if entry[0] == "close"} == {(0x1D, NO_ERROR)}


async def test_the_server_closes_an_idle_connection() -> None:
    ends: list[ConnectionEnd] = []
    with QuicServer() as server:
        async with trusting(on_connection_end=ends.append) as pool:
            await pool.request("GET", url(server.port))
            server.call(lambda connection: connection.quic.close(error_code=NO_ERROR))
            with anyio.fail_after(30):
                while not ends:  # noqa: ASYNC110  the hook's doing
                    await anyio.sleep(0.005)
            assert (await pool.request("GET", url(server.port))).attempts == []
            assert len(server.connections) == 2
    quic = ends[0].layers[-2]
    assert (quic.outcome, quic.heard) == (Outcome.PEER_FIRST, "CONNECTION_CLOSE(0x100)")
    assert "GOAWAY" not in [layer.said for layer in ends[0].layers]  # nothing is claimed that nobody could hear


async def test_the_servers_goaway_ends_an_idle_connection_at_once() -> None:
    ends: list[ConnectionEnd] = []
    with QuicServer(answer_close=True) as server:
        async with trusting(on_connection_end=ends.append) as pool:
            await pool.request("GET", url(server.port))
            server.call(lambda connection: connection.goaway(4))
            await until(server, "close")
            assert goodbyes(server) == POLITE
            assert (await pool.request("GET", url(server.port))).attempts == []
    assert ends[0].clean
    assert (ends[0].layers[0].said, ends[0].layers[0].heard) == ("GOAWAY", "GOAWAY")


async def test_idle_expiry_is_polite() -> None:
    with QuicServer() as server:
        async with trusting(keepalive_expiry=0.1) as pool:
            await pool.request("GET", url(server.port))
            await until(server, "close")
            assert goodbyes(server) == POLITE


async def test_a_server_that_breaks_http3_is_told_so() -> None:
    def break_it(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.raw(connection.control_stream, b"\x00\x01x")  # DATA on the control stream

    ends: list[ConnectionEnd] = []
    with QuicServer({b"/break": break_it}) as server:
        async with trusting(on_connection_end=ends.append) as pool:
            with pytest.raises(AllswellError) as caught:
                await pool.request("GET", url(server.port, "/break"))
            assert caught.value.by == "peer"
            await until(server, "close")
            assert [entry for entry in goodbyes(server) if entry[0] == "close"] == [("close", 0x1D, 0x105)]
    assert not ends[0].clean
    assert ends[0].cut == 1


async def test_a_port_that_closes_ends_it_at_once() -> None:
    with QuicServer() as server:
        pool = trusting()
        await pool.request("GET", url(server.port))
        server.stop_listening()
        report = await pool.aclose()
    assert report.seconds < LAG
    assert report.connections[0].layers[1].heard == "port unreachable"


async def test_requests_after_the_close_are_refused() -> None:
    with QuicServer() as server:
        pool = trusting()
        await pool.request("GET", url(server.port))
        await pool.aclose()
        with pytest.raises(PoolClosed):
            await pool.request("GET", url(server.port))
