"""Servers whose connections live for a few answers, and end in every way that their version knows: all are answered.

After the last answer or in place of the next one; under ten workers and under a hundred requests at once. (HTTP/1.1
that ends *after* an answer is in `tests/pool/test_pipelining.py` and `test_http1.py`.)
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from tests.support.certificates import certificates
from tests.support.h2_script import MAX_CONCURRENT_STREAMS, Http2Server, Request, Talk, h2_tls
from tests.support.peer import ClientGoneError, PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import Ending, answers, response, target

pytestmark = pytest.mark.anyio

NO_ERROR = 0x100
SOON = Timeouts(connect=150, read=150, pool=150, total=150)  # a hundred handshakes on a busy machine


class Mayfly:
    """Handlers that answer so many requests on each connection, then end it.

    :param ending: ``"FIN"``, ``"RST"``, ``"GOAWAY"``, ``"CONNECTION_CLOSE"``.
    :param instead: in place of the next answer, not with the last one.
    """

    def __init__(self, answers: int, ending: str, *, instead: bool) -> None:
        self._answers, self._ending, self._instead = answers, ending, instead
        self._answered: Counter[object] = Counter()
        self._ended: set[object] = set()
        self._lock = threading.Lock()

    def http2(self, talk: Talk, request: Request) -> None:
        """HTTP/2's."""
        if (last := self._serve(talk, lambda: talk.answer(request))) is None:
            return
        if self._ending == "GOAWAY":
            talk.goaway(request.stream if last else request.stream - 2)
        elif self._ending == "FIN":
            talk.end()
        else:
            talk.connection.await_acknowledged()
            talk.connection.reset()
            raise ClientGoneError

    def http3(self, connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        """HTTP/3's. (On the loopback streams come in order.)"""
        last = self._serve(connection, lambda: connection.respond(stream, 200, fields[b":path"]))
        if last is None:
            return
        if self._ending == "GOAWAY":
            connection.goaway(stream + 4 if last else stream)
        else:
            connection.once_delivered(lambda: connection.quic.close(NO_ERROR))

    def _serve(self, connection: object, answer: Callable[[], None]) -> bool | None:
        """Answer, unless the connection's time is over; whether this was its last answer, ``None`` to go on."""
        with self._lock:
            if connection in self._ended:
                return None
            last = self._answered[connection] + 1 == self._answers
            over = self._answered[connection] == self._answers
            self._answered[connection] += 1
            if over or (last and not self._instead):
                self._ended.add(connection)
        if not over:
            answer()
        return last if connection in self._ended else None


@contextmanager
def mayfly(version: str, count: int, ending: str, *, instead: bool) -> Iterator[tuple[str, ConnectionPool]]:
    """A server, and a pool for it."""
    pool = ConnectionPool(
        http3="only" if version == "h3" else False, http2=version == "h2", ssl_context=certificates().client_context()
    )
    server = Mayfly(count, ending, instead=instead)
    if version == "h3":
        with QuicServer({b"/r": server.http3}) as quic:
            yield f"https://127.0.0.1:{quic.port}/r/", pool
    elif version == "h2":
        with scripted_peer(Http2Server(server.http2), tls=h2_tls()) as peer:
            yield f"{peer.url}/r/", pool
    else:
        how = {"FIN": Ending.POLITE, "close()": Ending.CLOSE, "RST": Ending.RST}[ending]
        with scripted_peer(answers(count, instead=instead, ending=how), tls=True) as peer:
            yield f"{peer.url}/r/", pool


WAYS = [
    *(("h1", ending, True) for ending in ("FIN", "close()", "RST")),
    *(("h2", ending, instead) for ending in ("FIN", "RST", "GOAWAY") for instead in (False, True)),
    *(("h3", ending, instead) for ending in ("GOAWAY", "CONNECTION_CLOSE") for instead in (False, True)),
]
ways = pytest.mark.parametrize(
    ("version", "ending", "instead"),
    WAYS,
    ids=[f"{version} {ending} {'instead' if instead else 'after'}" for version, ending, instead in WAYS],
)


async def fetch(pool: ConnectionPool, url: str, number: int, answered: list[int]) -> None:
    response = await pool.request("GET", f"{url}{number}", timeouts=SOON)
    assert await response.read() == f"/r/{number}".encode()
    answered.append(number)


@ways
async def test_ten_workers_and_five_answers(version: str, ending: str, instead: bool) -> None:
    answered: list[int] = []
    left = list(range(100))

    async def work(pool: ConnectionPool, url: str) -> None:
        while left:
            await fetch(pool, url, left.pop(), answered)

    with mayfly(version, 5, ending, instead=instead) as (url, pool):
        async with pool, anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(work, pool, url)
    assert sorted(answered) == list(range(100))


async def test_those_who_need_connections_of_their_own_need_not_wait_in_turn() -> None:
    """Who was lost twice is the first on his third connection. TLS takes a while, and theirs are made side by side."""
    greets = Http2Server(Mayfly(1, "FIN", instead=True).http2)

    def script(connection: PeerConnection) -> None:
        connection.pause(0.2)
        connection.handshake()
        greets(connection)

    answered: list[int] = []
    with scripted_peer(script, tls=h2_tls(), handshake=False) as peer:
        async with ConnectionPool(ssl_context=certificates().client_context()) as pool:
            with anyio.fail_after(30):  # in turn it would be eight
                async with anyio.create_task_group() as tasks:
                    for number in range(40):
                        tasks.start_soon(fetch, pool, f"{peer.url}/r/", number, answered)
    assert sorted(answered) == list(range(40))


@ways
async def test_a_hundred_at_once_and_ten_answers(version: str, ending: str, instead: bool) -> None:
    answered: list[int] = []
    with mayfly(version, 10, ending, instead=instead) as (url, pool):
        async with pool, anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(fetch, pool, url, number, answered)
    assert sorted(answered) == list(range(100))


async def test_a_request_is_not_refused_by_one_spent_connection_after_another() -> None:
    """Each of eight connections has given all its answers, and says so when the next request comes there."""
    together = threading.Barrier(8)

    def once(talk: Talk, request: Request) -> None:
        if request.stream > 1:
            talk.goaway(1)
            return
        if request.path not in ("/first", "/last"):
            together.wait(60)  # so that no connection has two of them
        talk.answer(request)

    server = Http2Server(once, settings={MAX_CONCURRENT_STREAMS: 1})
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with ConnectionPool(ssl_context=certificates().client_context()) as pool:
            await pool.request("GET", f"{peer.url}/first")  # it tells how many streams there are to be
            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(partial(pool.request, "GET", f"{peer.url}/{number}", timeouts=SOON))
            assert len(server.talks) == 9  # the first one is gone
            response = await pool.request("POST", f"{peer.url}/last", content=b"x", timeouts=SOON)
            assert await response.read() == b"/last"
            assert len(response.attempts) == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_who_waits_does_not_go_on_a_connection_that_has_ended_behind_its_answer(tls: bool) -> None:
    """A POST that was sent there would be lost: nobody could tell that it was not processed."""
    ended = threading.Event()

    def ends(connection: PeerConnection) -> None:
        if not (request := connection.read_request()):
            return
        connection.stall()
        connection.send(response(target(request)))
        connection.send_close_notify()
        connection.fin()
        ended.set()

    async def post(number: int) -> None:
        answer = await pool.request("POST", f"{peer.url}/{number}", content=b"x", timeouts=SOON)
        assert await answer.read() == b"/%d" % number
        assert answer.attempts == []

    with scripted_peer(ends, tls=tls) as peer:
        context = certificates().client_context()
        async with ConnectionPool(max_connections=1, ssl_context=context) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(post, 1)
            tasks.start_soon(post, 2)
            with anyio.fail_after(30):
                while not (pool.snapshot().exchanges == pool.snapshot().waiting == 1):  # noqa: ASYNC110  to be seen only
                    await anyio.sleep(0.005)
            peer.release()
            ended.wait(30)  # blocking the event loop: it will find the answer and the end together
        assert len(peer.connections) == 2
