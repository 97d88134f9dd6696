"""HTTP/2 in the pool: servers that leave, refuse, or allow few streams; what is replayed, and on which connection."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, RstStreamFrame

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._errors import AllswellError, ConnectFailed, ExchangeReset, RemoteProtocolError, Timeout, TransportError
from allswell._pool import replay
from allswell._request.response import Response
from allswell.testing import Origin, Secured
from tests.support.certificates import certificates
from tests.support.h2_script import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR,
    MAX_CONCURRENT_STREAMS,
    NO_ERROR,
    REFUSED_STREAM,
    Http2Server,
    Request,
    Talk,
    h2_tls,
)
from tests.support.lag import PATIENCE
from tests.support.peer import scripted_peer
from tests.support.scripts import says

pytestmark = pytest.mark.anyio

NEVER = 2**31 - 1
SOON = Timeouts(total=30)


def h2c(**settings: Any) -> ConnectionPool:
    """A pool that speaks HTTP/2 by prior knowledge."""
    return ConnectionPool(http1=False, **settings)


class Batch:
    """Requests at once; their bodies or errors by path."""

    def __init__(self, pool: ConnectionPool, url: str, method: str = "GET", timeouts: Timeouts = SOON) -> None:
        self.responses: dict[str, Response] = {}
        self.errors: dict[str, Exception] = {}
        self._pool, self._url, self._method, self._timeouts = pool, url, method, timeouts

    async def run(self, *paths: str) -> None:
        async with anyio.create_task_group() as tasks:
            for path in paths:
                tasks.start_soon(self.one, path)

    async def one(self, path: str) -> None:
        content = b"body" if self._method == "POST" else None
        try:
            self.responses[path] = await self._pool.request(
                self._method, self._url + path, content=content, timeouts=self._timeouts
            )
        except Exception as error:  # noqa: BLE001  it is what is asserted
            self.errors[path] = error

    async def check(self, *paths: str) -> None:
        """All of them have been answered, each with its own body."""
        assert self.errors == {}
        assert sorted(self.responses) == sorted(paths)
        for path, response in self.responses.items():
            assert await response.read() == path.encode()


class Leaver:
    """A handler: the first connection collects so many requests, then does ``leave`` with them; others answer."""

    def __init__(self, count: int, leave: Any) -> None:
        self._count = count
        self._leave = leave
        self._first: Talk | None = None
        self._collected: list[Request] = []

    def __call__(self, talk: Talk, request: Request) -> None:
        self._first = self._first or talk
        if talk is not self._first:
            talk.answer(request)
            return
        self._collected.append(request)
        if len(self._collected) == self._count:
            self._leave(talk, self._collected)


PATHS = [f"/{number}" for number in range(6)]


def goaway_within(talk: Talk, requests: list[Request]) -> None:
    """The last id is the third one's: three finish here, three go elsewhere."""
    talk.goaway(requests[2].stream)
    for request in requests[:3]:
        talk.answer(request)


def goaway_at(talk: Talk, requests: list[Request]) -> None:
    talk.goaway(requests[-1].stream)
    for request in requests:
        talk.answer(request)


def goaway_above(talk: Talk, requests: list[Request]) -> None:
    talk.goaway(requests[-1].stream + 100)
    for request in requests:
        talk.answer(request)


def goaway_zero(talk: Talk, requests: list[Request]) -> None:
    talk.goaway(0)


def goaway_warned(talk: Talk, requests: list[Request]) -> None:
    """RFC 9113 §6.8: 2^31-1 first, the real one a round trip later."""
    talk.goaway(NEVER)
    talk.ping()
    for request in requests[:2]:
        talk.answer(request)
    talk.goaway(requests[1].stream)


def goaway_with_error(talk: Talk, requests: list[Request]) -> None:
    talk.goaway(requests[0].stream, INTERNAL_ERROR)
    talk.answer(requests[0])


def goaway_and_fin(talk: Talk, requests: list[Request]) -> None:
    for request in requests[:2]:
        talk.answer(request)
    talk.goaway(requests[1].stream)
    talk.end()


def refuse_all(talk: Talk, requests: list[Request]) -> None:
    last = GoAwayFrame(0, last_stream_id=requests[-1].stream)
    talk.send(*(RstStreamFrame(request.stream, error_code=REFUSED_STREAM) for request in requests), last)


def refuse_some(talk: Talk, requests: list[Request]) -> None:
    for request in requests[::2]:
        talk.answer(request)
    last = GoAwayFrame(0, last_stream_id=requests[-1].stream)
    talk.send(*(RstStreamFrame(request.stream, error_code=REFUSED_STREAM) for request in requests[1::2]), last)


SHAPES = {
    goaway_within: [0, 1, 2],
    goaway_at: [0, 1, 2, 3, 4, 5],
    goaway_above: [0, 1, 2, 3, 4, 5],
    goaway_zero: [],
    goaway_warned: [0, 1],
    goaway_with_error: [0],
    goaway_and_fin: [0, 1],
    refuse_all: [],
    refuse_some: [0, 2, 4],
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("leave", SHAPES, ids=lambda leave: leave.__name__)
async def test_a_server_that_leaves_costs_no_request(leave: Any, method: str) -> None:
    """What it disowned goes again, POST too, on one new connection; what it promised to serve is not asked twice."""
    server = Http2Server(Leaver(6, leave), complete=True)
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with ConnectionPool(ssl_context=certificates().client_context()) as pool:
            batch = Batch(pool, peer.url, method)
            await batch.run(*PATHS)
            await batch.check(*PATHS)
            again = await pool.request("GET", f"{peer.url}/after")
            assert await again.read() == b"/after"
        first = [request.path for request in server.talks[0].requests.values()]
        kept = sorted(first[number] for number in SHAPES[leave])
        replayed = sorted(path for path, response in batch.responses.items() if response.attempts)
        assert replayed == sorted(set(PATHS) - set(kept))
        assert all(len(response.attempts) == 1 for response in batch.responses.values() if response.attempts)
        assert len(server.talks) == 2
        assert sorted(server.served) == sorted([*PATHS, *replayed, "/after"])
        await peer.ended(connections=2)
        assert all("RST" not in connection.saw for connection in peer.connections)


async def test_the_new_connection_does_not_wait_for_the_old_one() -> None:
    drain = threading.Event()

    def leave(talk: Talk, requests: list[Request]) -> None:
        talk.goaway(requests[0].stream)
        assert drain.wait(30)
        talk.answer(requests[0])

    server = Http2Server(Leaver(1, leave))
    with scripted_peer(server) as peer:
        async with h2c() as pool, anyio.create_task_group() as tasks:
            batch = Batch(pool, peer.url)
            tasks.start_soon(batch.one, "/slow")
            await anyio.to_thread.run_sync(lambda: server.talk().wait_for("HEADERS"))
            with anyio.fail_after(30):
                while (await pool.request("GET", f"{peer.url}/quick")).stream_id != 1:
                    pass  # the GOAWAY was still on its way: this one was disowned and went again
            assert batch.responses == {}
            drain.set()
        await batch.check("/slow")
        assert len(server.talks) == 2


async def test_goaway_while_requests_are_queued() -> None:
    """One connection allowed, one stream on it: those in the queue are served by its successor."""

    def leave(talk: Talk, requests: list[Request]) -> None:
        talk.goaway(requests[1].stream)
        talk.connection.pause(0.05)
        for request in requests:
            talk.answer(request)

    server = Http2Server(Leaver(2, leave), settings={MAX_CONCURRENT_STREAMS: 2})
    with scripted_peer(server) as peer:
        async with h2c(max_connections=1) as pool:
            batch = Batch(pool, peer.url)
            paths = [f"/{number}" for number in range(20)]
            await batch.run(*paths)
            await batch.check(*paths)
        assert len(server.talks) == 2


async def test_a_server_that_serves_ten_per_connection() -> None:
    """A hundred at once, GOAWAY after every tenth: all are served, none twice."""
    lock = threading.Lock()
    counts: dict[Talk, int] = {}

    def ten(talk: Talk, request: Request) -> None:
        with lock:
            counts[talk] = counts.get(talk, 0) + 1
        if counts[talk] == 10:
            talk.goaway(request.stream)
        if counts[talk] <= 10:
            talk.answer(request)
            answered.append(request.path)

    answered: list[str] = []
    server = Http2Server(ten)
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            batch = Batch(pool, peer.url, "POST", Timeouts(total=30))
            paths = [f"/{number}" for number in range(100)]
            await batch.run(*paths)
            await batch.check(*paths)
        assert sorted(answered) == sorted(paths)
        assert len(server.talks) <= 20


@pytest.mark.parametrize("how", ["goaway", "reset"])
async def test_calm_ends_in_an_error_not_in_a_loop(how: str) -> None:
    def calm(talk: Talk, request: Request) -> None:
        if how == "goaway":
            talk.goaway(0, ENHANCE_YOUR_CALM)
        else:
            talk.rst(request.stream, ENHANCE_YOUR_CALM)

    server = Http2Server(calm)
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            batch = Batch(pool, peer.url)
            await batch.run("/1", "/2", "/3")
        assert len(batch.errors) == 3
        assert all("ENHANCE_YOUR_CALM" in str(error) for error in batch.errors.values())
        assert sorted(server.served) == ["/1", "/2", "/3"][: len(server.served)]
        assert len(server.talks) == 1


async def test_a_server_that_only_refuses_is_asked_a_few_times() -> None:
    """Whatever the timeouts; a POST too, for it says that it did nothing."""
    server = Http2Server(lambda talk, request: talk.rst(request.stream, REFUSED_STREAM))
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            with pytest.raises(ExchangeReset):
                await pool.request("POST", peer.url, content=b"x", timeouts=Timeouts(None, None, None, None))
        assert len(server.served) == 5
        assert len(server.talks) == 1


async def test_connections_that_serve_nothing_are_few() -> None:
    server = Http2Server(lambda talk, request: talk.goaway(0))
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            batch = Batch(pool, peer.url, "POST", Timeouts(None, None, None, None))
            await batch.run(*(f"/{number}" for number in range(10)))
        assert len(batch.errors) == 10
        assert len(server.talks) <= 6


@pytest.mark.parametrize("timeouts", [Timeouts(read=0.05), Timeouts(pool=0.05), Timeouts(total=0.05)])
async def test_a_server_that_only_refuses_is_asked_within_the_timeouts(timeouts: Timeouts) -> None:
    server = Http2Server(lambda talk, request: talk.rst(request.stream, REFUSED_STREAM))
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            with pytest.raises((ExchangeReset, Timeout)):
                await pool.request("GET", peer.url, timeouts=timeouts)
        assert len(server.served) < 5


async def test_a_server_that_refuses_some_goes_on() -> None:
    """Every second request is refused nine times; meanwhile others are answered, which is progress."""
    refused: dict[str, int] = {}

    def moody(talk: Talk, request: Request) -> None:
        number = int(request.path[1:])
        if number % 2 and refused.setdefault(request.path, 0) < 9:
            refused[request.path] += 1
            talk.rst(request.stream, REFUSED_STREAM)
        else:
            talk.answer(request)

    server = Http2Server(moody)
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            batch = Batch(pool, peer.url, "POST", Timeouts(total=30))
            done = False

            async def others() -> None:
                number = 0
                while not done:
                    number += 2
                    await pool.request("GET", f"{peer.url}/{number}")
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(others)
                await batch.run("/1", "/3")
                done = True
            await batch.check("/1", "/3")


def all_but(luckless: str) -> Callable[[Talk, Request], None]:
    """A handler that leaves when it is asked for this, and answers all else, on the connections that it leaves too."""

    def handle(talk: Talk, request: Request) -> None:
        if request.path == luckless:
            talk.goaway(max(0, request.stream - 2))
            for each in talk.requests.values():
                if each.path == "/held" and each.stream < request.stream:
                    talk.answer(each)
        elif request.path != "/held":
            talk.answer(request)

    return handle


@asynccontextmanager
async def served_beside(pool: ConnectionPool, url: str) -> AsyncIterator[None]:
    """Others that are answered all the while, so that each connection that is left has something to serve."""
    async with anyio.create_task_group() as tasks:

        async def work(path: str) -> None:
            while True:
                with suppress(AllswellError):  # some are refused with it
                    await pool.request("GET", url + path, timeouts=Timeouts(None, None, None, None))
                await anyio.lowlevel.checkpoint()

        for path in ("/held", "/held", "/other"):
            tasks.start_soon(work, path)
        yield
        tasks.cancel_scope.cancel()


async def test_what_others_are_served_is_no_licence_for_one_that_is_always_refused() -> None:
    """It is slowed from its fifth attempt on, and given up within its own timeouts."""
    server = Http2Server(all_but("/luckless"))
    with scripted_peer(server) as peer:
        async with h2c() as pool, served_beside(pool, peer.url):
            with pytest.raises(RemoteProtocolError, match="GOAWAY"):
                await pool.request("POST", f"{peer.url}/luckless", content=b"x", timeouts=Timeouts(pool=4))
        assert 5 <= server.served.count("/luckless") < 20


async def test_one_that_is_always_refused_ends_without_timeouts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_FRUITLESS", 100)  # as if others were always served meanwhile, however busy we are
    monkeypatch.setattr(replay, "_PAUSE", 0.01)
    monkeypatch.setattr(replay, "_LONGEST_PAUSE", 0.02)
    server = Http2Server(all_but("/luckless"))
    with scripted_peer(server) as peer:
        async with h2c() as pool, served_beside(pool, peer.url):
            with pytest.raises(RemoteProtocolError):
                await pool.request("GET", f"{peer.url}/luckless", timeouts=Timeouts(None, None, None, None))
        assert server.served.count("/luckless") == 50


# An end without GOAWAY


class Mayfly:
    """A handler: answers four requests on a connection, and ends it, by FIN or RST, in place of the fifth answer."""

    def __init__(self, *, reset: bool) -> None:
        self._reset = reset
        self._counts: dict[Talk, int] = {}

    def __call__(self, talk: Talk, request: Request) -> None:
        if talk.connection.saw:
            return
        self._counts[talk] = self._counts.get(talk, 0) + 1
        if self._counts[talk] < 5:
            talk.answer(request)
        elif self._reset:
            talk.connection.reset()
        elif self._counts[talk] == 5:
            talk.end()


@pytest.mark.parametrize(("workers", "reset"), [(1, False), (1, True), (10, False)])
async def test_end_in_place_of_an_answer_costs_no_idempotent_request(workers: int, reset: bool) -> None:
    server = Http2Server(Mayfly(reset=reset))
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            batch = Batch(pool, peer.url)

            async def worker(number: int) -> None:
                for turn in range(40 // workers):
                    await batch.one(f"/{number}/{turn}")

            async with anyio.create_task_group() as tasks:
                for number in range(workers):
                    tasks.start_soon(worker, number)
        await batch.check(*(f"/{number}/{turn}" for number in range(workers) for turn in range(40 // workers)))
        assert max(len(response.attempts) for response in batch.responses.values()) <= 2


async def test_end_in_place_of_an_answer_fails_what_must_not_be_sent_twice() -> None:
    server = Http2Server(Mayfly(reset=False))
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            for number in range(4):
                await pool.request("POST", f"{peer.url}/{number}", content=b"x")
            with pytest.raises(RemoteProtocolError, match="closed the connection"):
                await pool.request("POST", f"{peer.url}/4", content=b"x")
            assert await (await pool.request("POST", f"{peer.url}/5", content=b"x")).read() == b"/5"
        assert server.served.count("/4") == 1


async def test_end_in_place_of_the_first_answer_is_an_error() -> None:
    server = Http2Server(lambda talk, request: talk.end())
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            with pytest.raises(RemoteProtocolError, match="closed the connection"):
                await pool.request("GET", peer.url)
        assert len(server.talks) == 1


async def test_end_after_the_first_byte_is_an_error() -> None:
    def half(talk: Talk, request: Request) -> None:
        talk.answer(request, b"half", end=request.path == "/1")
        if request.path == "/2":
            talk.end()

    server = Http2Server(half)
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            await pool.request("GET", f"{peer.url}/1")
            with pytest.raises(RemoteProtocolError, match="before the response was complete"):
                await pool.request("GET", f"{peer.url}/2")
        assert server.served == ["/1", "/2"]


# MAX_CONCURRENT_STREAMS


class Gate:
    """A handler that holds answers until the test lets them go, and knows how many it held at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.held: list[tuple[Talk, Request]] = []

    def __call__(self, talk: Talk, request: Request) -> None:
        with self._lock:
            self.held.append((talk, request))

    def open(self) -> None:
        """Answer all that are held."""
        with self._lock:
            held, self.held = self.held, []
        for talk, request in held:
            talk.answer(request)

    async def until_held(self, count: int) -> None:
        with anyio.fail_after(30):
            while len(self.held) < count:  # noqa: ASYNC110  another thread's doing
                await anyio.sleep(0.002)


async def test_full_connection_then_another_then_the_pool_timeout() -> None:
    gate = Gate()
    server = Http2Server(gate, settings={MAX_CONCURRENT_STREAMS: 2})
    with scripted_peer(server) as peer:
        async with h2c(max_connections=2) as pool, anyio.create_task_group() as tasks:
            batch = Batch(pool, peer.url)
            tasks.start_soon(batch.one, "/0")
            await gate.until_held(1)  # its SETTINGS are known
            for number in range(1, 4):
                tasks.start_soon(batch.one, f"/{number}")
                await gate.until_held(number + 1)
            assert [len(talk.requests) for talk in server.talks] == [2, 2]
            with pytest.raises(Timeout, match=r"no room in the pool within 0\.1 s") as caught:
                await pool.request("GET", f"{peer.url}/5", timeouts=Timeouts(pool=0.1))
            assert caught.value.phase == "pool"
            gate.open()
        await batch.check("/0", "/1", "/2", "/3")


async def test_limit_raised_lowered_to_nothing_and_back() -> None:
    gate = Gate()
    server = Http2Server(gate, settings={MAX_CONCURRENT_STREAMS: 1})
    with scripted_peer(server) as peer:
        async with h2c(max_connections=1) as pool, anyio.create_task_group() as tasks:
            batch = Batch(pool, peer.url)
            tasks.start_soon(batch.one, "/0")
            await gate.until_held(1)
            talk = server.talks[0]
            await anyio.to_thread.run_sync(lambda: talk.wait_for("SETTINGS ACK"))
            for number in range(1, 6):
                tasks.start_soon(batch.one, f"/{number}")
            await anyio.wait_all_tasks_blocked()
            assert len(gate.held) == 1
            talk.settings(max_concurrent_streams=3)
            await gate.until_held(3)
            talk.settings(max_concurrent_streams=1)
            await anyio.to_thread.run_sync(lambda: talk.wait_for("SETTINGS ACK", 3))
            talk.answer(gate.held[0][1])
            talk.answer(gate.held[1][1])
            talk.settings(max_concurrent_streams=0)
            await anyio.to_thread.run_sync(lambda: talk.wait_for("SETTINGS ACK", 4))
            del gate.held[:2]
            gate.open()
            talk.ping()
            await anyio.to_thread.run_sync(lambda: talk.wait_for("PING ACK"))
            assert len(talk.requests) == 3
            assert len(batch.responses) == 3
            talk.settings(max_concurrent_streams=2)
            await gate.until_held(2)
            gate.open()
            await gate.until_held(1)
            gate.open()
        await batch.check(*PATHS)
        assert len(server.talks) == 1


@pytest.mark.parametrize("limit", [1, 8])
async def test_a_low_limit_that_is_not_yet_known(limit: int) -> None:
    """Fifty at once, before SETTINGS: what the peer refuses goes elsewhere, and it is not asked for so much again."""
    refused: list[str] = []

    def few(talk: Talk, request: Request) -> None:
        if request.stream > 2 * limit and "SETTINGS ACK" not in talk.seen:
            refused.append(request.path)
            talk.rst(request.stream, REFUSED_STREAM)
        else:
            talk.answer(request)

    server = Http2Server(few, settings={MAX_CONCURRENT_STREAMS: limit})
    with scripted_peer(server) as peer:
        async with h2c(max_connections=10) as pool:
            batch = Batch(pool, peer.url, "POST")
            paths = [f"/{number}" for number in range(50)]
            await batch.run(*paths)
            await batch.check(*paths)
        assert len(refused) < 55
        assert len(server.talks) <= 10


# What the pool asks of a connection


async def test_one_connection_for_all() -> None:
    server = Http2Server()
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with ConnectionPool(ssl_context=certificates().client_context()) as pool:
            batch = Batch(pool, peer.url)
            paths = [f"/{number}" for number in range(100)]
            await batch.run(*paths)
            await batch.check(*paths)
            for number in range(100):
                await pool.request("GET", f"{peer.url}/again/{number}")
        assert len(server.talks) == 1


async def test_alpn_chooses() -> None:
    async with Origin(versions=["h1"]) as origin:
        async with ConnectionPool(ssl_context=origin.client_context()) as pool:
            assert (await pool.request("GET", origin.url)).http_version == b"HTTP/1.1"
        async with ConnectionPool(ssl_context=origin.client_context(), http1=False) as pool:
            with pytest.raises(ConnectFailed, match="does not speak HTTP/2") as caught:
                await pool.request("GET", origin.url)
            assert (caught.value.phase, caught.value.by) == ("tls", "peer")
    async with Origin(versions=["h1", "h2"]) as origin:
        async with ConnectionPool(ssl_context=origin.client_context()) as pool:
            assert (await pool.request("GET", origin.url)).http_version == b"HTTP/2"
        async with ConnectionPool(ssl_context=origin.client_context(), http2=False) as pool:
            assert (await pool.request("GET", origin.url)).http_version == b"HTTP/1.1"
        assert [secured.alpn for secured in origin.record.of(Secured)] == ["h2", "http/1.1"]


async def test_prior_knowledge_of_what_is_not_so() -> None:
    with scripted_peer(says(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")) as peer:
        async with h2c() as pool:
            with pytest.raises((RemoteProtocolError, TransportError)):
                await pool.request("GET", peer.url)


# Idle


async def test_idle_connection_answers_pings_and_settings() -> None:
    server = Http2Server(complete=True)
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            await pool.request("GET", f"{peer.url}/1")
            talk = server.talks[0]
            talk.ping(b"are you?")
            await anyio.to_thread.run_sync(lambda: talk.wait_for("PING ACK"))
            talk.settings(initial_window_size=10)
            await anyio.to_thread.run_sync(lambda: talk.wait_for("SETTINGS ACK", 2))
            response = await pool.request("POST", f"{peer.url}/2", content=b"more than ten bytes")
            assert await response.read() == b"/2"
            assert next(len(frame.data) for frame in talk.frames if isinstance(frame, DataFrame)) == 10
        assert bytes(talk.requests[3].body) == b"more than ten bytes"
        assert len(server.talks) == 1


async def test_ping_keepalive() -> None:
    """Answered, however late, the connection lives on; unanswered, it ends, and a request on it fails for that."""

    def handle(talk: Talk, request: Request) -> None:
        talk.acks_pings = request.path != "/stuck"
        if talk.acks_pings:
            talk.answer(request)

    server = Http2Server(handle)
    with scripted_peer(server) as peer:
        async with h2c(ping_interval=0.1, ping_timeout=PATIENCE, keepalive_expiry=None) as pool:
            await pool.request("GET", peer.url)
            talk = server.talks[0]
            await anyio.to_thread.run_sync(lambda: talk.wait_for("PING", 2))
            assert (await pool.request("GET", peer.url)).stream_id == 3
        async with h2c(ping_interval=0.1, ping_timeout=0.3, keepalive_expiry=None) as pool:
            with pytest.raises(TransportError, match=r"no sign of life within 0\.3 s of a PING"):
                await pool.request("GET", f"{peer.url}/stuck")
            assert "open" not in [each.state for route in pool.snapshot().routes for each in route.connections]


# Abandoned


async def test_abandoned_exchange_is_reset_and_its_siblings_live() -> None:
    gate = Gate()
    server = Http2Server(gate)
    with scripted_peer(server) as peer:
        async with h2c() as pool, anyio.create_task_group() as tasks:
            batch = Batch(pool, peer.url)
            tasks.start_soon(batch.one, "/sibling")
            await gate.until_held(1)
            async with anyio.create_task_group() as abandoned:
                abandoned.start_soon(pool.request, "GET", f"{peer.url}/cancelled")
                await gate.until_held(2)
                abandoned.cancel_scope.cancel()
            with pytest.raises(Timeout):
                await pool.request("GET", f"{peer.url}/late", timeouts=Timeouts(read=0.05))
            talk = server.talks[0]
            await anyio.to_thread.run_sync(lambda: talk.wait_for("RST_STREAM", 2))
            gate.open()  # the answers to the dead ones too: nobody minds
        await batch.check("/sibling")
        assert sorted(name for name in talk.seen if "RST" in name) == [f"RST_STREAM {n} {CANCEL}" for n in (3, 5)]
        assert len(server.talks) == 1


async def test_six_abandoned_bodies_and_a_seventh_request() -> None:
    """The window that they had taken is given back, though nobody ever read them."""
    large = bytes(3_000_000)

    def serve(talk: Talk, request: Request) -> None:
        talk.answer(request, large if request.path != "/7" else b"seventh")

    server = Http2Server(serve)
    with scripted_peer(server) as peer:
        async with h2c(connection_window=4 * 1024 * 1024) as pool:
            for number in range(1, 7):
                async with pool.stream("GET", f"{peer.url}/{number}") as response:
                    assert await response.receive()
            assert await (await pool.request("GET", f"{peer.url}/7", timeouts=SOON)).read() == b"seventh"
        assert len(server.talks) == 1
        assert server.talks[0].seen[-1] == f"GOAWAY {NO_ERROR}"


async def test_a_stalled_reader_holds_only_its_own_stream() -> None:
    large = bytes(3_000_000)
    server = Http2Server()

    def serve(talk: Talk, request: Request) -> None:
        if request.path == "/stalled":
            talk.send(talk.headers(request.stream, [(":status", "200")]))
            talk.body(request, large[: request.window], end=False)  # as far as its window goes
        else:
            talk.answer(request, large)

    server = Http2Server(serve)
    with scripted_peer(server) as peer:
        async with h2c() as pool, pool.stream("GET", f"{peer.url}/stalled") as stalled:
            for _ in range(3):
                assert len(await (await pool.request("GET", peer.url, timeouts=SOON)).read()) == 3_000_000
            assert stalled._exchange.body.buffered <= 2 * 1024 * 1024
            first = await stalled.receive()
            assert first
        assert len(server.talks) == 1


async def test_a_hundred_streams_share_fairly() -> None:
    """Uploads under a window that is always too small: no stream gets far ahead of the others."""
    shares: list[float] = []

    def serve(talk: Talk, request: Request) -> None:
        if len(talk.requests) < 100:
            return
        talk.credits_at_once = True
        while any(not each.ended for each in talk.requests.values()):
            if talk.read() is None:
                return
            sizes = [len(each.body) for each in talk.requests.values()]
            if not shares and sum(sizes) >= 100 * size // 2:
                shares.append(sum(sizes) ** 2 / (100 * sum(each**2 for each in sizes)))
        for each in talk.requests.values():
            talk.answer(each)

    server = Http2Server(serve, settings={MAX_CONCURRENT_STREAMS: 100, INITIAL_WINDOW_SIZE: 16384})
    size = 200_000
    with scripted_peer(server) as peer:
        async with h2c() as pool, anyio.create_task_group() as tasks:

            async def post(number: int) -> None:
                response = await pool.request("POST", f"{peer.url}/{number}", content=bytes(size))
                assert await response.read() == f"/{number}".encode()

            for number in range(100):
                tasks.start_soon(post, number)
        assert len(server.talks) == 1
        # Jain's index, when half of all has come: 1 when all have the same, 0.5 when half of them have all.
        assert shares[0] >= 0.75


async def test_goodbye_that_came_behind_something_else_is_heard_before_a_post_is_sent() -> None:
    """PING and close_notify arrived together, while the event loop was busy: the connection must not be used again."""
    go, said = threading.Event(), threading.Event()

    def handle(talk: Talk, request: Request) -> None:
        talk.answer(request)
        if request.path == "/1":
            assert go.wait(30)
            talk.ping()
            talk.connection.send_close_notify()
            talk.connection.await_acknowledged()
            said.set()

    with scripted_peer(Http2Server(handle), tls=h2_tls()) as peer:
        async with ConnectionPool(ssl_context=certificates().client_context()) as pool:
            await pool.request("GET", f"{peer.url}/1", timeouts=SOON)
            await anyio.wait_all_tasks_blocked()
            go.set()
            assert said.wait(30)  # blocks the event loop
            response = await pool.request("POST", f"{peer.url}/2", content=b"once", timeouts=SOON)
            assert (response.status, response.attempts) == (200, [])
