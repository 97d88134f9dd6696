"""The pool's limits, and who gets the room that comes: first come, first served, across origins too."""

from __future__ import annotations

import pickle
import threading
import traceback
from functools import partial
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._connection.connection import Connection
from allswell._dial.tcp import TcpBuilder
from allswell._errors import ConnectFailed, LocalProtocolError, RemoteProtocolError, Timeout, TransportError
from allswell._pool import waiters
from allswell.testing import Origin
from tests.support.certificates import certificates
from tests.support.h2_script import MAX_CONCURRENT_STREAMS, Http2Server, Request, Talk, h2_tls
from tests.support.lag import LAG, PATIENCE
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import PeerConnection, Script, scripted_peer
from tests.support.scripts import answers, response

pytestmark = pytest.mark.anyio


class Gate:
    """A server that holds every answer until it is let go, and counts those it holds and connections at once."""

    def __init__(self) -> None:
        self._slots = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.held = 0
        self.most = 0

    def open(self, count: int = 1) -> None:
        """Let so many answers go."""
        self._slots.release(count)

    def script(self, connection: PeerConnection) -> None:
        """Answer each request once let go."""
        while request := connection.read_request():
            with self._lock:
                self.held += 1
                self.most = max(self.most, self.held)
            assert self._slots.acquire(timeout=60)
            with self._lock:
                self.held -= 1
            connection.send(response(request.split(b" ", 2)[1]))

    async def until_held(self, count: int) -> None:
        """Wait until the server holds so many."""
        with anyio.fail_after(30):
            while self.held < count:  # noqa: ASYNC110  nothing tells of what happens in the peer's threads
                await anyio.sleep(0.002)


async def get(pool: ConnectionPool, url: str, done: list[str] | None = None, pool_timeout: float = PATIENCE) -> bytes:
    response = await pool.request("GET", url, timeouts=Timeouts(pool=pool_timeout))
    if done is not None:
        done.append(url)
    return await response.read()


async def test_total_limit_is_kept() -> None:
    gate = Gate()
    with scripted_peer(gate.script) as peer:
        async with ConnectionPool(max_connections=3) as pool, anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(get, pool, f"{peer.url}/{number}")
            await gate.until_held(3)
            gate.open(12)
        assert gate.most == 3
        assert len(peer.connections) == 3
        await peer.ended()


async def test_route_limit_is_kept_and_leaves_others_their_room() -> None:
    gate, other = Gate(), Gate()
    with scripted_peer(gate.script) as peer, scripted_peer(other.script) as second:
        pool = ConnectionPool(max_connections=10, max_connections_per_route=2)
        async with pool, anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(get, pool, f"{peer.url}/{number}")
            await gate.until_held(2)
            tasks.start_soon(get, pool, f"{second.url}/")
            await other.until_held(1)
            other.open()
            gate.open(5)
        assert gate.most == 2
        assert len(peer.connections) == 2
        await peer.ended()
        await second.ended()


async def test_idle_connection_gives_its_place_to_another_origin() -> None:
    """Two idle ones at the limit of two: one ends, exactly one, and the request is served at once."""
    async with Origin(tls=False) as first, Origin(tls=False) as second, Origin(tls=False) as third:
        async with ConnectionPool(max_connections=2) as pool:
            await get(pool, f"{first.url}/")
            await get(pool, f"{second.url}/")
            assert await get(pool, f"{third.url}/3", pool_timeout=LAG) == b"ok"
            await first.ended(timeout=30)
            first.assert_ended_gracefully()
            assert second.record.open() == [1]
            assert await get(pool, f"{second.url}/2", pool_timeout=LAG) == b"ok"
            assert second.record.connections == (1,)
        assert [request.target for request in (*second.requests, *third.requests)] == ["/", "/2", "/3"]


async def test_connection_that_becomes_idle_gives_its_place_to_who_waits_elsewhere() -> None:
    gate = Gate()
    with scripted_peer(gate.script) as first, Origin(tls=False) as second:
        async with ConnectionPool(max_connections=1) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(get, pool, f"{first.url}/")
            await gate.until_held(1)
            done: list[str] = []
            tasks.start_soon(get, pool, f"{second.url}/", done, LAG)
            await anyio.wait_all_tasks_blocked()
            gate.open()
        assert done == [f"{second.url}/"]


@pytest.mark.parametrize("announce", [False, True])
async def test_waiters_of_one_origin_do_not_starve_another(announce: bool) -> None:
    """A queue at one origin that never empties; one request to another, which came second, is served second."""

    def closing(connection: PeerConnection) -> None:
        answers(1, announce=True)(connection)

    script: Script = closing if announce else answers()
    with scripted_peer(script) as busy, Origin(tls=False) as quiet:
        done: list[str] = []
        async with ConnectionPool(max_connections=1) as pool, anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(get, pool, f"{busy.url}/", done)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(get, pool, f"{quiet.url}/", done)
            await anyio.wait_all_tasks_blocked()
            for _ in range(20):
                tasks.start_soon(get, pool, f"{busy.url}/", done)
        assert done.index(f"{quiet.url}/") <= 4
        assert len(done) == 24


async def test_first_come_first_served() -> None:
    async with Origin(tls=False) as origin:
        done: list[str] = []
        async with ConnectionPool(max_connections=1) as pool, anyio.create_task_group() as tasks:
            urls = [f"{origin.url}/{number}" for number in range(10)]
            for url in urls:
                tasks.start_soon(get, pool, url, done)
                await anyio.lowlevel.checkpoint()
        asked = [(request.connection, request.target) for request in origin.requests]
        assert asked == [(1, f"/{number}") for number in range(10)]
        assert sorted(done) == sorted(urls)


async def test_pool_timeout_and_the_pool_goes_on() -> None:
    gate = Gate()
    with scripted_peer(gate.script) as peer:
        async with ConnectionPool(max_connections=1) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(get, pool, f"{peer.url}/1")
            await gate.until_held(1)
            began = monotonic()
            with pytest.raises(Timeout, match=r"no room in the pool within 0\.2 s") as caught:
                await get(pool, f"{peer.url}/2", pool_timeout=0.2)
            assert caught.value.phase == "pool"
            assert 0.2 <= monotonic() - began < 0.2 + LAG
            gate.open(2)
            assert await get(pool, f"{peer.url}/3") == b"/3"
        assert [request.split(b" ")[1] for request in peer.connections[0].requests] == [b"/1", b"/3"]


async def test_a_waiter_that_gives_up_leaves_its_place() -> None:
    gate = Gate()
    with scripted_peer(gate.script) as peer:
        done: list[str] = []
        async with ConnectionPool(max_connections=1) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(get, pool, f"{peer.url}/1", done)
            await gate.until_held(1)
            with anyio.move_on_after(0.05):
                await get(pool, f"{peer.url}/2")
            tasks.start_soon(get, pool, f"{peer.url}/3", done)
            await anyio.wait_all_tasks_blocked()
            gate.open(3)
        assert sorted(url[-2:] for url in done) == ["/1", "/3"]
        assert [request.split(b" ")[1] for request in peer.connections[0].requests] == [b"/1", b"/3"]
        assert len(peer.connections) == 1


async def test_keepalive_count() -> None:
    """Over the limit, those idle for longest end; the rest serve again."""
    gate = Gate()
    with scripted_peer(gate.script, tls=False) as peer:
        async with ConnectionPool(max_keepalive_connections=2) as pool:
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(get, pool, f"{peer.url}/{number}")
                await gate.until_held(5)
                gate.open(5)
            with anyio.fail_after(30):
                while sum(not connection.ended.is_set() for connection in peer.connections) > 2:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            ended = [connection.saw for connection in peer.connections if connection.ended.is_set()]
            assert ended == [["FIN"]] * 3
            gate.open(1)
            await get(pool, f"{peer.url}/again")
            assert len(peer.connections) == 5


@pytest.mark.parametrize("none", [{"max_keepalive_connections": 0}, {"keepalive_expiry": 0.0}], ids=str)
async def test_no_keepalive_at_all(none: dict[str, Any]) -> None:
    """No connection is idle, not for the instant between two requests either."""
    async with Origin(tls=False) as origin:
        async with ConnectionPool(**none) as pool:
            for _ in range(3):
                await get(pool, f"{origin.url}/")
        await origin.ended(3, timeout=30)
        assert len(origin.record.connections) == 3
        origin.assert_ended_gracefully()


async def test_keepalive_expiry() -> None:
    async with Origin(tls=False) as origin, ConnectionPool(keepalive_expiry=4.0) as pool:
        await get(pool, f"{origin.url}/1")
        await anyio.sleep(0.5)
        began = monotonic()
        await get(pool, f"{origin.url}/2")
        await origin.ended(timeout=30)
        assert monotonic() - began > 3.9
        origin.assert_ended_gracefully()
        assert await get(pool, f"{origin.url}/3") == b"ok"
        asked = [(request.connection, request.target) for request in origin.requests]
        assert asked == [(1, "/1"), (1, "/2"), (2, "/3")]


async def test_an_illegal_request_leaves_the_idle_connection_where_it_was() -> None:
    """The connection was idle before and is after: it serves again, and it can be ended for another origin."""
    async with Origin(tls=False) as origin, Origin(tls=False) as other:
        async with ConnectionPool(max_connections=1) as pool:
            await get(pool, f"{origin.url}/1")
            with pytest.raises(LocalProtocolError):
                await pool.request("GET", f"{origin.url}/", headers=[(b"Bad Name", b"1")])
            assert await get(pool, f"{origin.url}/2") == b"ok"
            assert origin.record.connections == (1,)
            with pytest.raises(LocalProtocolError):
                await pool.request("GET", f"{origin.url}/", headers=[(b"X", b"a\r\nInjected: b")])
            assert await get(pool, f"{other.url}/3", pool_timeout=LAG) == b"ok"
        assert [request.target for request in (*origin.requests, *other.requests)] == ["/1", "/2", "/3"]


# The time to connect


def slow_to_greet() -> Script:
    """An HTTP/2 server that takes its time over the first connection's handshake: until it is released."""
    serve = Http2Server()

    def script(connection: PeerConnection) -> None:
        if connection.index == 0:
            connection.stall()
        connection.handshake()
        serve(connection)

    return script


async def test_who_has_less_time_leaves_the_dial_to_the_others() -> None:
    with scripted_peer(slow_to_greet(), tls=h2_tls(), handshake=False) as peer:
        async with ConnectionPool(ssl_context=certificates().client_context()) as pool:

            async def hurried() -> None:
                with pytest.raises(Timeout, match=r"no connection within 0\.1 s") as caught:
                    await pool.request("GET", peer.url, timeouts=Timeouts(connect=0.1))
                assert caught.value.phase == "connect"

            async def patient() -> None:
                assert (await pool.request("GET", f"{peer.url}/patient")).attempts == []

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(patient)
                await anyio.to_thread.run_sync(peer.wait_accepted)
                await hurried()
                peer.release()
        assert len(peer.connections) == 1


async def test_a_dial_that_had_too_little_time_is_repeated_for_who_has_more() -> None:
    """He came when it was under way already."""
    with scripted_peer(slow_to_greet(), tls=h2_tls(), handshake=False) as peer:
        async with ConnectionPool(ssl_context=certificates().client_context()) as pool:

            async def hurried() -> None:
                with pytest.raises(Timeout, match="no connection within 3 s"):
                    await pool.request("GET", peer.url, timeouts=Timeouts(connect=3))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hurried)
                await anyio.to_thread.run_sync(peer.wait_accepted)
                answer = await pool.request("GET", f"{peer.url}/patient")
                assert await answer.read() == b"/patient"
                assert answer.attempts == []
        assert len(peer.connections) == 2


async def test_a_dial_that_may_take_for_ever_does_not_outlive_its_last_waiter(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of ours, and a server that says nothing: nobody else must wait for the same dial in vain."""
    monkeypatch.setattr(waiters, "UNWANTED_FOR", 0.3)
    serve = Http2Server()

    def script(connection: PeerConnection) -> None:
        if connection.index == 0:
            connection.read_until_end()
            return
        connection.handshake()
        serve(connection)

    forever = Timeouts(None, None, None, None)
    with scripted_peer(script, tls=h2_tls(), handshake=False) as peer:
        async with ConnectionPool(ssl_context=certificates().client_context()) as pool:
            async with anyio.create_task_group() as tasks:
                first, second = anyio.CancelScope(), anyio.CancelScope()

                async def waits(scope: anyio.CancelScope) -> None:
                    with scope:
                        await pool.request("GET", peer.url, timeouts=forever)

                tasks.start_soon(waits, first)
                tasks.start_soon(waits, second)
                await anyio.to_thread.run_sync(peer.wait_accepted)
                assert pool.snapshot().dials == 1
                first.cancel()
                await anyio.wait_all_tasks_blocked()
                assert pool.snapshot().dials == 1  # somebody waits for it still; but nobody more will
                with anyio.fail_after(30):
                    await pool.request("GET", peer.url, timeouts=forever)
            assert not second.cancelled_caught  # it was served too, by the other connection
            assert await anyio.to_thread.run_sync(peer.connections[0].ended.wait, 30)
            await anyio.wait_all_tasks_blocked()
            assert pool.snapshot().dials == 0
        assert len(peer.connections) == 2


async def test_routes_that_came_to_nothing_are_forgotten() -> None:
    gate = Gate()
    with scripted_peer(gate.script) as peer:
        async with ConnectionPool(max_connections=1) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(get, pool, peer.url)
            await gate.until_held(1)
            for number in range(3):
                with pytest.raises(Timeout):
                    await get(pool, f"http://host{number}.example/", pool_timeout=0.01)
            assert pool._dispatcher is not None
            assert [route.host for route in pool._dispatcher._routes] == [peer.host]
            gate.open()


async def test_who_needs_a_fresh_connection_holds_up_nobody_else() -> None:
    """It was misdirected, and there is no place for another connection; the one that there is has room."""

    def handle(talk: Talk, request: Request) -> None:
        if request.path == "/events":
            talk.send(talk.headers(request.stream, [(":status", "200")]))
        elif request.path == "/misdirected":
            talk.send(talk.headers(request.stream, [(":status", "421")], end=True))
        else:
            talk.answer(request)

    with scripted_peer(Http2Server(handle)) as peer:
        async with ConnectionPool(http1=False, max_connections=1) as pool:
            await get(pool, peer.url)
            async with pool.stream("GET", f"{peer.url}/events"), anyio.create_task_group() as tasks:
                tasks.start_soon(get, pool, f"{peer.url}/misdirected", None, 60.0)
                with anyio.fail_after(30):
                    while not pool.snapshot().waiting:  # noqa: ASYNC110
                        await anyio.sleep(0.002)
                assert await get(pool, f"{peer.url}/other", pool_timeout=LAG) == b"/other"
                tasks.cancel_scope.cancel()


class _Odd(bytes):
    """A name that HTTP's own checks stumble over."""

    asked = 0

    def lower(self) -> bytes:
        self.asked += 1
        if self.asked > 1:
            raise KeyError("odd")
        return super().lower()


@pytest.mark.parametrize(("name", "kind"), [("näme", LocalProtocolError), (b"odd", KeyError)])
async def test_who_waits_with_what_cannot_be_said_harms_nobody(name: Any, kind: type[Exception]) -> None:
    """It is opened by the task that reads another's response."""
    gate = Gate()
    broken: Any = [(_Odd(name) if isinstance(name, bytes) else name, b"x")]
    with scripted_peer(gate.script) as peer:
        async with ConnectionPool(max_connections=1) as pool, anyio.create_task_group() as tasks:

            async def asks() -> None:
                with pytest.raises(kind):
                    await pool.request("GET", peer.url, headers=broken)

            done: list[str] = []
            tasks.start_soon(get, pool, f"{peer.url}/1", done)
            await gate.until_held(1)
            tasks.start_soon(asks)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(get, pool, f"{peer.url}/2", done)
            await anyio.wait_all_tasks_blocked()
            gate.open(2)
        assert len(done) == 2
        assert len(peer.connections) == 1


async def test_each_of_many_has_an_error_of_his_own() -> None:
    """One dial failed them all. The traceback of an error that all raise would grow with their number."""
    errors: list[ConnectFailed] = []
    async with ConnectionPool() as pool, anyio.create_task_group() as tasks:

        async def ask() -> None:
            with pytest.raises(ConnectFailed) as caught:
                await pool.request("GET", "https://127.0.0.1:1/")
            errors.append(caught.value)

        for _ in range(50):
            tasks.start_soon(ask)
    assert len({id(error) for error in errors}) == 50
    assert all(len(traceback.extract_tb(error.__traceback__)) < 10 for error in errors)
    assert {(str(error), error.phase, error.by) for error in errors} == {(str(errors[0]), "tcp", "network")}
    there = pickle.loads(pickle.dumps(errors[0]))
    assert (type(there), str(there), there.phase) == (ConnectFailed, str(errors[0]), "tcp")


async def test_who_waits_is_served_once_though_more_room_is_heard_of_just_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server allows more streams when the connection is looked at, before a POST goes on it."""
    looking, told = threading.Event(), threading.Event()
    usable = Connection.usable

    def late(connection: Connection) -> bool:
        looking.set()
        assert told.wait(30)
        return usable(connection)

    def allows(talk: Talk, request: Request) -> None:
        first = len(server.served) == 2
        if first:
            assert go_on.wait(30)
        talk.answer(request)
        if first:
            assert looking.wait(30)
            talk.settings(max_concurrent_streams=7)
            told.set()

    go_on = threading.Event()
    server = Http2Server(allows, settings={MAX_CONCURRENT_STREAMS: 1}, complete=True)
    with scripted_peer(server) as peer:
        async with ConnectionPool(http1=False, max_connections=1) as pool, anyio.create_task_group() as tasks:
            await pool.request("GET", f"{peer.url}/0")  # the limit is known
            for path in ("/1", "/2"):
                tasks.start_soon(partial(pool.request, "POST", peer.url + path, content=b"x"))
            await anyio.wait_all_tasks_blocked()
            assert pool.snapshot().waiting == 1
            monkeypatch.setattr(Connection, "usable", late)
            go_on.set()
    assert sorted(server.served) == ["/0", "/1", "/2"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_server_that_ends_before_any_request_is_not_asked_again(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is there when the connection is handed to who waits for it."""
    ended = threading.Event()
    build = TcpBuilder.build

    async def late(*args: Any) -> Any:
        made = await build(*args)
        assert ended.wait(30)
        return made

    def ends(connection: PeerConnection) -> None:
        connection.fin()
        ended.set()

    monkeypatch.setattr(TcpBuilder, "build", late)
    with scripted_peer(ends) as peer:
        async with ConnectionPool() as pool:
            with pytest.raises((RemoteProtocolError, TransportError)):
                await pool.request(method, peer.url)
    assert len(peer.connections) == 1
