"""Pipelining through the pool: who follows whom, and servers that end in the middle of a line."""

from __future__ import annotations

import socket
import threading
from typing import Any

import anyio
import pytest

from allswell import AsyncClient, ConnectionPool
from allswell._config import Timeouts
from allswell._errors import PoolClosed, TransportError
from allswell._report import ConnectionEnd
from tests.servers.lighttpd import lighttpd
from tests.support.certificates import certificates
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import PeerConnection, Script, scripted_peer
from tests.support.scripts import Ending, answers, body_of, end, response, target

pytestmark = pytest.mark.anyio

both = pytest.mark.parametrize("tls", [False, True])


def pool_for(**settings: Any) -> ConnectionPool:
    settings = {"pipelining": 4, "ssl_context": certificates().client_context(), **settings}
    return ConnectionPool(**settings)


class Line:
    """A server that answers only when told: so many at once. It reads on all the while."""

    def __init__(self) -> None:
        self.targets: list[bytes] = []  # over all connections, as they came
        self._allowed = threading.Semaphore(0)
        self._changed = threading.Condition()

    def allow(self, count: int = 1) -> None:
        self._allowed.release(count)

    async def came(self, count: int) -> list[bytes]:
        """Wait until so many requests have come."""

        def wait() -> None:
            with self._changed:
                assert self._changed.wait_for(lambda: len(self.targets) >= count, 30), self.targets

        await anyio.to_thread.run_sync(wait)
        return self.targets

    def script(self, connection: PeerConnection) -> None:
        answering = threading.Thread(target=self._answer, args=[connection, queue := []], daemon=True)
        answering.start()
        while request := connection.read_request():
            with self._changed:
                self.targets.append(target(request))
                queue.append(target(request))
                self._changed.notify_all()

    def _answer(self, connection: PeerConnection, queue: list[bytes]) -> None:
        while not connection.ended.is_set():
            with self._changed:
                if not self._changed.wait_for(lambda: bool(queue), 0.1):
                    continue
                name = queue.pop(0)
            while not self._allowed.acquire(timeout=0.1):
                if connection.ended.is_set():
                    return
            try:
                connection.send(response(name))
            except Exception:  # noqa: BLE001  the client has left, as the reading side notes: not answered after all
                self._allowed.release()
                return


async def warmed(pool: ConnectionPool, url: str, line: Line) -> None:
    line.allow()
    assert await (await pool.request("GET", f"{url}/warm")).read() == b"/warm"


async def test_followed_on_one_connection_in_order() -> None:
    line = Line()
    answered: list[int] = []
    tell, told = anyio.create_memory_object_stream[None](7)
    with scripted_peer(line.script) as peer:
        async with pool_for(max_connections=1) as pool, tell, told:
            await warmed(pool, peer.url, line)

            async def get(number: int) -> None:
                answer = await pool.request("GET", f"{peer.url}/{number}")
                assert await answer.read() == b"/%d" % number
                answered.append(number)
                tell.send_nowait(None)

            async with anyio.create_task_group() as tasks:
                for number in range(7):
                    tasks.start_soon(get, number)
                first = (await line.came(6))[1:]
                assert len(first) == 5  # the one at work and four behind it; two wait
                for count in range(1, 8):
                    line.allow()
                    await told.receive()
                    assert len(answered) == count
        assert len(peer.connections) == 1
        assert [b"/%d" % number for number in answered][:5] == first
        assert pool.close_report is not None
        assert pool.close_report.clean, str(pool.close_report)


async def test_nothing_follows_the_first_request_of_a_connection() -> None:
    line = Line()
    with scripted_peer(line.script) as peer:
        async with pool_for(max_connections=2) as pool, anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(pool.request, "GET", f"{peer.url}/{number}")
            await line.came(2)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            assert len(line.targets) == 2
            line.allow(6)


async def test_idle_connections_are_preferred() -> None:
    line = Line()
    with scripted_peer(line.script) as peer:
        async with pool_for() as pool:
            async with anyio.create_task_group() as tasks:
                for number in range(2):
                    tasks.start_soon(pool.request, "GET", f"{peer.url}/{number}")
                await line.came(2)
                line.allow(2)
            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(pool.request, "GET", f"{peer.url}/{number}")
                await line.came(6)
                line.allow(4)
        assert sorted(len(each.requests) for each in peer.connections) == [3, 3]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_others_do_not_follow_and_are_not_passed(method: str) -> None:
    line = Line()
    with scripted_peer(line.script) as peer:
        async with pool_for(max_connections=1) as pool:
            await warmed(pool, peer.url, line)
            async with anyio.create_task_group() as tasks:
                for number, each in enumerate(["GET", "GET", method, "GET"]):
                    tasks.start_soon(pool.request, each, f"{peer.url}/{number}")
                    for _ in range(3):
                        await anyio.lowlevel.checkpoint()
                assert await line.came(3) == [b"/warm", b"/0", b"/1"]
                line.allow(1)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert len(line.targets) == 3  # it waits for an idle connection, and who came later waits too
                line.allow(1)
                assert (await line.came(4))[3] == b"/2"
                line.allow(2)
            assert line.targets[3:] == [b"/2", b"/3"]
        assert len(peer.connections) == 1


#: (A FIN without close_notify, over TLS, is a truncation: `tests/faults` has it.)
ENDINGS = [
    (False, Ending.FIN),
    *((tls, each) for tls in (False, True) for each in (Ending.POLITE, Ending.CLOSE, Ending.RST)),
]


@pytest.mark.parametrize(("tls", "ending"), ENDINGS)
@pytest.mark.parametrize("announce", [False, True], ids=["silent", "announced"])
@pytest.mark.parametrize("pipelining", [0, 1, 4, 50])
async def test_a_server_that_ends_at_its_fifth_answer(
    pipelining: int, announce: bool, ending: Ending, tls: bool
) -> None:
    """Ten workers, 100 GETs: 100 answers, each its own."""
    with scripted_peer(answers(5, announce=announce, ending=ending), tls=tls) as peer:
        async with pool_for(pipelining=pipelining, http2=False) as pool:
            left = list(range(100))
            right: set[int] = set()

            async def work() -> None:
                while left:
                    number = left.pop()
                    answer = await pool.request("GET", f"{peer.url}/{number}")
                    assert await answer.read() == b"/%d" % number
                    right.add(number)

            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(work)
        assert right == set(range(100))


@pytest.mark.parametrize("grace", [0.0, 0.4])
async def test_what_a_close_cuts_is_counted_once_and_told_of_the_close(grace: float) -> None:
    """Each is told of the close: none is sent elsewhere because the one before it was cut."""
    line = Line()
    told: list[str] = []
    with scripted_peer(line.script) as peer:
        pool = pool_for(max_connections=1)
        await warmed(pool, peer.url, line)

        async def get(number: int) -> None:
            with pytest.raises(PoolClosed) as caught:
                await pool.request("GET", f"{peer.url}/{number}")
            told.append(str(caught.value))

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(get, number)
            await line.came(4)
            report = await pool.aclose(grace)
    [end] = report.connections
    assert (end.exchanges, end.cut) == (4, 3)
    assert len(told) == 3
    assert all("was not complete within its grace" in each for each in told)


async def test_those_behind_one_that_was_abandoned_are_counted_once() -> None:
    line = Line()
    ends: list[ConnectionEnd] = []
    with scripted_peer(line.script) as peer:
        async with pool_for(max_connections=1, on_connection_end=ends.append) as pool:
            await warmed(pool, peer.url, line)
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as first:

                    async def others() -> None:
                        await line.came(2)
                        for number in range(2):
                            tasks.start_soon(pool.request, "GET", f"{peer.url}/{number}")
                        await line.came(4)
                        first.cancel()

                    tasks.start_soon(others)
                    await pool.request("GET", f"{peer.url}/first")
                await line.came(5)  # one of them again, on another connection
                await anyio.to_thread.run_sync(peer.connections[0].ended.wait)
                line.allow(2)
    assert ends[0].cut == 2


def cut_in_the_middle(at: int, ending: Ending) -> Script:
    """Answer four, then so many bytes of a fifth, and end, on the first connection; later ones answer all."""
    seen = threading.Lock()

    def script(connection: PeerConnection) -> None:
        with seen:
            first = connection.index == 0
        if not first:
            answers()(connection)
            return
        for _ in range(4):
            connection.send(response(target(connection.read_request())))
        connection.send(response(target(connection.read_request()))[:at])
        end(connection, ending)

    return script


@pytest.mark.parametrize("ending", [Ending.FIN, Ending.RST, Ending.CLOSE])
@pytest.mark.parametrize("at", [0, 1, 30])
async def test_cut_in_the_middle_of_a_response(at: int, ending: Ending) -> None:
    with scripted_peer(cut_in_the_middle(at, ending)) as peer:
        async with pool_for(max_connections=1, pipelining=9) as pool:
            outcomes: dict[int, bytes | None] = {}
            for number in range(2):
                await pool.request("GET", f"{peer.url}/w{number}")

            async def get(number: int) -> None:
                try:
                    outcomes[number] = await (await pool.request("GET", f"{peer.url}/{number}")).read()
                except Exception:  # noqa: BLE001  told by what is missing
                    outcomes[number] = None

            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(get, number)
        served = [target(request) for each in peer.connections for request in each.requests]
        failed = [number for number, body in outcomes.items() if body is None]
        assert all(body == b"/%d" % number for number, body in outcomes.items() if body is not None)
        if at == 0:
            assert failed == []
        elif ending is Ending.FIN:
            # The one whose answer had begun, and only that; it did not go again. (A reset may overtake its bytes.)
            assert len(failed) == 1
            assert served.count(b"/%d" % failed[0]) == 1
        else:
            assert len(failed) <= 1


@pytest.mark.parametrize("which", [0, 1, 3])
async def test_abandoned_in_a_line(which: int) -> None:
    """The first, one in the middle, the last: everybody else gets his own answer."""
    line = Line()
    with scripted_peer(line.script) as peer:
        async with pool_for(max_connections=1) as pool:
            await warmed(pool, peer.url, line)
            scopes: dict[int, anyio.CancelScope] = {}
            bodies: dict[int, bytes] = {}
            abandoned = anyio.Event()

            async def get(number: int) -> None:
                with anyio.CancelScope() as scopes[number]:
                    bodies[number] = await (await pool.request("GET", f"{peer.url}/{number}")).read()
                if scopes[number].cancelled_caught:
                    abandoned.set()

            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(get, number)
                sent = [int(each[1:]) for each in (await line.came(5))[1:]]
                scopes[sent[which]].cancel()
                await abandoned.wait()  # before any answer can come
                line.allow(20)
            assert bodies == {number: b"/%d" % number for number in range(4) if number != sent[which]}
            # Those before it were answered where they were; those behind it went again.
            again = [int(each[1:]) for each in line.targets[5:]]
            assert sorted(again) == sorted(sent[which + 1 :])
            assert await (await pool.request("GET", f"{peer.url}/after")).read() == b"/after"


async def test_the_read_timeout_begins_when_a_request_is_the_first() -> None:
    """Three answers of 3 s each, with a read timeout of 5.5 s."""
    with scripted_peer(answers(delay=3)) as peer:
        async with pool_for(max_connections=1) as pool:
            await pool.request("GET", f"{peer.url}/warm")

            async def get(number: int) -> None:
                answer = await pool.request("GET", f"{peer.url}/{number}", timeouts=Timeouts(read=5.5))
                assert answer.attempts == []

            async with anyio.create_task_group() as tasks:
                for number in range(2):
                    tasks.start_soon(get, number)
        assert len(peer.connections) == 1


async def test_who_waits_too_long_in_line_goes_elsewhere() -> None:
    """The first response trickles for ever; who stands behind it is answered by another connection."""
    trickling = threading.Event()

    def script(connection: PeerConnection) -> None:
        while request := connection.read_request():
            if target(request) == b"/endless":
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                while True:
                    connection.send(b"x")
                    trickling.set()
                    connection.pause(0.02)
            connection.send(response(target(request)))

    with scripted_peer(script) as peer:
        async with pool_for() as pool:
            await pool.request("GET", f"{peer.url}/warm")
            async with pool.stream("GET", f"{peer.url}/endless") as endless:
                answer = await pool.request("GET", f"{peer.url}/short", timeouts=Timeouts(read=3))
                assert await answer.read() == b"/short"
                assert [each.processed for each in answer.attempts] == ["perhaps"]
                assert await endless.receive()
        assert len(peer.connections) == 2


@both
async def test_tiny_buffers_never_mix_requests(tls: bool) -> None:
    """Requests of 40 kB each through a socket that takes 4: whole and in order, also when one is cancelled."""

    def options() -> tuple[tuple[int, int, int], ...]:
        return ((socket.SOL_SOCKET, socket.SO_SNDBUF, 4096),)

    filling = b"0123456789" * 4000

    def script(connection: PeerConnection) -> None:
        while request := connection.read_request():
            content = target(request) + filling
            if body_of(request) != content:  # cut by the end of the connection, and nothing else
                assert content.startswith(body_of(request)), request[:100]
                assert connection.recv() == b""
                return
            connection.send(response(target(request)))

    with scripted_peer(script, tls=tls, receive_buffer=4096) as peer:
        async with pool_for(max_connections=1, socket_options=options(), pipelining=8, http2=False) as pool:
            bodies: dict[int, bytes] = {}
            scopes: dict[int, anyio.CancelScope] = {}

            async def put(number: int) -> None:
                name = b"/%d" % number
                with anyio.CancelScope() as scopes[number]:
                    answer = await pool.request("PUT", peer.url + name.decode(), content=name + filling)
                    bodies[number] = await answer.read()

            await put(0)
            async with anyio.create_task_group() as tasks:
                for number in range(1, 20):
                    tasks.start_soon(put, number)
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                scopes[7].cancel()
            assert bodies == {number: b"/%d" % number for number in range(20) if number != 7}


@pytest.mark.server("lighttpd")
@both
@pytest.mark.parametrize("pipelining", [0, 4])
async def test_lighttpd_that_ends_after_ten(pipelining: int, tls: bool) -> None:
    with lighttpd(requests_per_connection=10) as server:
        url = server.url if tls else server.http_url
        async with AsyncClient(verify=certificates().client_context(), http2=False, pipelining=pipelining) as client:
            statuses: list[int] = []

            async def work() -> None:
                for _ in range(20):
                    answer = await client.get(f"{url}/index.html")
                    statuses.append(answer.status_code)

            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(work)
        assert statuses == [200] * 200


async def test_back_pressure_of_the_first_holds_the_line() -> None:
    """An answer that nobody reads is not read for ever, and once it is, the next one comes."""
    big = b"x" * 20_000_000

    def script(connection: PeerConnection) -> None:
        while request := connection.read_request():
            connection.send(response(big if target(request) == b"/big" else target(request)))

    with scripted_peer(script) as peer:
        async with pool_for(max_connections=1) as pool:
            await pool.request("GET", f"{peer.url}/warm")
            async with pool.stream("GET", f"{peer.url}/big") as first:
                small: list[bytes] = []

                async def get() -> None:
                    small.append(await (await pool.request("GET", f"{peer.url}/small")).read())

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(get)
                    await first.receive()
                    for _ in range(50):
                        await anyio.lowlevel.checkpoint()
                    assert first._exchange.body.buffered < 1_000_000
                    assert small == []
                    assert len(await first.read()) > 18_000_000
                assert small == [b"/small"]
        assert len(peer.connections) == 1


async def test_broken_first_fails_alone() -> None:
    """Its response had begun: that one fails, typed; those behind it go again."""
    ready = threading.Event()

    def script(connection: PeerConnection) -> None:
        while request := connection.read_request():
            if target(request) == b"/broken":
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nten bytes.")
                assert ready.wait(30)
                connection.reset()
                return
            connection.send(response(target(request)))

    with scripted_peer(script) as peer:
        async with pool_for(max_connections=1) as pool:
            await pool.request("GET", f"{peer.url}/warm")
            results: list[bytes] = []

            async def get(number: int) -> None:
                results.append(await (await pool.request("GET", f"{peer.url}/{number}")).read())

            async with anyio.create_task_group() as tasks, pool.stream("GET", f"{peer.url}/broken") as broken:
                for number in range(3):
                    tasks.start_soon(get, number)
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                ready.set()
                with pytest.raises(TransportError):
                    await broken.read()
            assert sorted(results) == [b"/0", b"/1", b"/2"]
