"""A day in a minute: many workers, origins of every version that misbehave at random; every request is accounted for.

Each origin follows rules under which a client that does everything right loses no GET: a connection's first request is
answered whole, and what was answered is delivered, before it misbehaves. (A client sends what was only *perhaps* not
processed once more on a shared connection, and for the last time as the first request of a new one.) What a POST may
suffer depends on the version: where the protocol proves that it was not processed it goes again, elsewhere its loss
must be told, and it must never be executed twice.

Some requests are in a hurry: their deadline may pass at any moment of their lives. And some workers lose interest. Now
and then the program computes, and the event loop stands still for half a second.

``ALLSWELL_DAY`` sets the seconds per event loop (8 by default), ``ALLSWELL_DAY_SEED`` the seed.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import monotonic

import anyio
import pytest

from allswell import AllswellError, ConnectionEnd, ConnectionPool
from allswell._config import PoolConfig, Timeouts
from allswell._errors import Timeout
from tests.servers.nginx import nginx
from tests.support.certificates import certificates
from tests.support.h2_script import REFUSED_STREAM, Http2Server, Request, Talk, h2_tls
from tests.support.leaks import sockets_closed
from tests.support.peer import ClientGoneError, PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import Ending, end, response, target
from tests.support.servers import HELLO, ServerInfo, binary
from tests.support.udp_relay import UdpRelay, Weather

pytestmark = pytest.mark.anyio

SECONDS = float(os.environ.get("ALLSWELL_DAY", "8"))
SEED = int(os.environ.get("ALLSWELL_DAY_SEED", "1"))
WORKERS = 200
DEADLINE = 40.0
#: Seconds after its deadline when a request must be over; and as many times what a mere sleep was late.
SLACK, TURNS = 2.0, 4
NO_ERROR, REQUEST_REJECTED = 0x100, 0x10B


@dataclass(eq=False)
class Origin:
    """What all origins share: chance, and a count of what they did.

    :ivar executed: how often each POST was, by its path.
    :ivar misdeeds: what went wrong on purpose.
    :ivar echoes: whether it answers with the request's path, and takes POST.
    """

    name: str
    chance: random.Random
    url: str = ""
    executed: Counter[str] = field(default_factory=Counter)
    misdeeds: Counter[str] = field(default_factory=Counter)
    echoes: bool = True
    _left: dict[object, int] = field(default_factory=dict)  # connections that were told where it ends
    _answered: dict[ServedConnection, set[int]] = field(default_factory=dict)  # streams
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def does(self, *others: str, may_misbehave: bool) -> str:
        """What to do with a request; its connection may misbehave once its first request was answered.

        :param others: misdeeds that only this version knows.
        """
        with self._lock:
            if not may_misbehave or self.chance.random() > 0.06:
                return "answer"
            deed = self.chance.choice(["slow", "after", "reset after", "instead", "reset instead", "leave", *others])
            self.misdeeds[deed] += 1
            return deed

    def execute(self, method: str, path: str) -> None:
        """It was acted on."""
        if method == "POST":
            with self._lock:
                self.executed[path] += 1

    # HTTP/1.1

    def http1(self, connection: PeerConnection) -> None:
        """A script: ends after an answer, or in place of one, or announces it; says what nobody asked for.

        An unasked response comes with the one before: later it could cross with a request, and nobody could tell. A 408
        may cross with one, for it says that it is no answer.
        """
        answered = False
        while request := connection.read_request():
            deed = self.does("unasked", "408", may_misbehave=answered)
            if deed.endswith("instead"):
                self._end(connection, reset="reset" in deed)
                return
            if deed == "slow":
                connection.pause(0.05)
            self.execute(request.split(b" ")[0].decode(), target(request).decode())
            answer = response(target(request), *["Connection: close"] * (deed == "leave"))
            connection.send(answer + response(b"nobody asked") if deed == "unasked" else answer)
            answered = True
            if deed == "408":
                connection.pause(0.01)
                connection.send(response(b"late", "Connection: close", status="408 Request Timeout"))
                self._end(connection, reset=False)
                return
            if deed in ("after", "reset after", "leave"):
                self._end(connection, reset="reset" in deed)
                return

    def _end(self, connection: PeerConnection, *, reset: bool) -> None:
        if reset:
            connection.await_acknowledged()
            connection.reset()
        else:
            end(connection, Ending.CLOSE)

    # HTTP/2

    def http2(self, talk: Talk, request: Request) -> None:
        """A handler: GOAWAY before or after an answer, REFUSED_STREAM, RST."""
        if talk in self._left:
            return  # it was told
        talk.read_body(request)
        deed = self.does(may_misbehave=request.stream > 1)
        if deed == "instead":
            talk.rst(request.stream, REFUSED_STREAM)
            return
        if deed == "leave":
            self._leave_h2(talk, request.stream - 2)
            return
        if deed == "reset instead":
            self._end(talk.connection, reset=True)
            raise ClientGoneError
        if deed == "slow":
            talk.connection.pause(0.05)
        self.execute(request.headers[":method"], request.path)
        talk.answer(request)
        if deed == "after":
            self._leave_h2(talk, request.stream)
        elif deed == "reset after":
            self._end(talk.connection, reset=True)
            raise ClientGoneError

    def _leave_h2(self, talk: Talk, last: int) -> None:
        self._left[talk] = last
        talk.goaway(last)
        talk.end()

    # HTTP/3

    def http3(self, connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        """A handler: H3_REQUEST_REJECTED, GOAWAY, CONNECTION_CLOSE. (Streams may come in any order.)"""
        if stream >= self._left.get(connection, stream + 1):
            return  # it was told
        answered = self._answered.setdefault(connection, set())
        deed = self.does(may_misbehave=0 in answered)
        if deed == "reset instead":
            self._close_h3(connection)
            return
        if deed in ("instead", "leave"):
            connection.quic.reset_stream(stream, REQUEST_REJECTED)
            connection.quic.stop_stream(stream, REQUEST_REJECTED)
            if deed == "leave":
                self._leave_h3(connection, max(answered) + 4)
            return
        self.execute(fields[b":method"].decode(), fields[b":path"].decode())
        connection.respond(stream, 200, fields[b":path"])
        answered.add(stream)
        if deed == "after":
            self._leave_h3(connection, max(answered) + 4)
        elif deed == "reset after":
            self._close_h3(connection)

    def _leave_h3(self, connection: ServedConnection, first_refused: int) -> None:
        self._left[connection] = first_refused
        connection.goaway(first_refused)

    def _close_h3(self, connection: ServedConnection) -> None:
        self._left[connection] = 0
        connection.once_delivered(lambda: connection.quic.close(NO_ERROR))


@contextmanager
def again_and_again(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Do it every so many seconds, in a thread."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def origins() -> Iterator[list[Origin]]:
    """One of each, HTTP/3's behind a network that loses datagrams and goes dark; a real nginx that reloads, if any."""
    made = [Origin(name, random.Random(f"{SEED} {name}")) for name in ("http", "https", "h2", "h3")]
    http, https, h2, h3 = made
    with ExitStack() as stack:
        http.url = stack.enter_context(scripted_peer(http.http1)).url
        https.url = stack.enter_context(scripted_peer(https.http1, tls=True)).url
        h2.url = stack.enter_context(scripted_peer(Http2Server(h2.http2), tls=h2_tls())).url
        server = stack.enter_context(QuicServer({b"/r": h3.http3}))
        weather = Weather(loss=0.01)
        relay = stack.enter_context(UdpRelay(server.port, seed=SEED, up=weather, down=weather))
        h3.url = f"https://127.0.0.1:{relay.port}"
        stack.enter_context(again_and_again(3.0, lambda: relay.black_out(0.2)))
        if binary("nginx"):
            real: ServerInfo = stack.enter_context(nginx())
            assert real.http_url is not None
            for name, url in (("nginx h2", real.url), ("nginx http", real.http_url)):
                made.append(Origin(name, random.Random(), url, echoes=False))
            stack.enter_context(again_and_again(0.7, real.reload))
        yield made


async def compute(chance: random.Random, until: float) -> None:
    """Hold the event loop for half a second, now and then, as a program does that computes."""
    while monotonic() < until:
        await anyio.sleep(chance.uniform(1, 3))
        busy_until = monotonic() + 0.5
        while monotonic() < busy_until:
            pass


async def sleep_lightly(tally: Tally) -> None:
    """Note how late the event loop is for somebody who does nothing else, until cancelled."""
    while True:
        began = monotonic()
        try:
            await anyio.sleep(0.05)
        finally:
            tally.held = max(tally.held, monotonic() - began - 0.05)


@dataclass
class Tally:
    """What became of the requests.

    :ivar late: by how many seconds over its deadline each was that was late.
    :ivar held: the seconds that the event loop was late itself, at worst.
    """

    answered: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    posts: Counter[str] = field(default_factory=Counter)
    late: dict[str, float] = field(default_factory=dict)
    held: float = 0.0
    hurried: int = 0
    left: int = 0
    again: int = 0

    @property
    def requests(self) -> int:
        return sum(self.answered.values()) + len(self.lost) + self.posts["failed"] + self.hurried + self.left


class Worker:
    """Sends requests to origins at random and checks each, until the day is over."""

    def __init__(self, number: int, pools: dict[str, ConnectionPool], served: list[Origin], tally: Tally) -> None:
        self._chance = random.Random(f"{SEED} worker {number}")
        self._number, self._pools, self._served, self._tally = number, pools, served, tally

    async def work(self, until: float) -> None:
        count = 0
        while monotonic() < until:
            count += 1
            origin = self._chance.choice(self._served)
            post = origin.echoes and self._chance.random() < 0.3
            await self._one(origin, "POST" if post else "GET", f"/r/{self._number}-{count}" if origin.echoes else "/")

    async def _one(self, origin: Origin, method: str, path: str) -> None:
        tally, chance = self._tally, self._chance
        mood = chance.random()
        deadline = chance.uniform(0, 0.1) if mood < 0.02 else DEADLINE
        began = monotonic()
        try:
            async with self._pools["h3" if origin.name == "h3" else "tcp"].stream(
                method,
                origin.url + path,
                content=b"body" if method == "POST" else None,
                timeouts=Timeouts(deadline, deadline, deadline, deadline, total=deadline),
            ) as answer:
                assert answer.status == 200
                if mood > 0.99:
                    tally.left += 1
                    return
                body = await answer.read()
        except AllswellError as error:
            if deadline < DEADLINE and (isinstance(error, Timeout) or monotonic() - began > deadline):
                tally.hurried += 1
            elif method == "POST" and not isinstance(error, Timeout):
                tally.posts["failed"] += 1
            else:
                tally.lost.append(f"{method} {origin.name} {path} after {monotonic() - began:.1f} s: {error!r}")
            assert origin.executed[path] <= 1
            return
        finally:
            if (took := monotonic() - began) > deadline + SLACK:
                tally.late[f"{method} {origin.name} {path}: {took:.1f} s of {deadline:.1f} s"] = took - deadline
        assert body == (path.encode() if origin.echoes else HELLO)
        tally.answered[origin.name] += 1
        tally.again += len(answer.attempts)
        if method == "POST":
            tally.posts["answered"] += 1
            assert origin.executed[path] == 1


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 90)
async def test_day_in_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    ends: list[ConnectionEnd] = []
    tally = Tally()
    tasks_before = len(anyio.get_running_tasks())
    config = PoolConfig(ssl_context=certificates().client_context(), on_connection_end=ends.append)
    with sockets_closed(), origins() as served:
        async with ConnectionPool(config) as tcp, ConnectionPool(config, http3="only") as quic:
            pools = {"tcp": tcp, "h3": quic}
            until = monotonic() + SECONDS
            async with anyio.create_task_group() as beside:
                beside.start_soon(sleep_lightly, tally)
                async with anyio.create_task_group() as tasks:
                    for number in range(WORKERS):
                        tasks.start_soon(Worker(number, pools, served, tally).work, until)
                    tasks.start_soon(compute, random.Random(f"{SEED} computes"), until)
                beside.cancel_scope.cancel()  # not before the last request is over, which may be long after
            for pool in pools.values():
                taken = pool.snapshot()
                assert (taken.exchanges, taken.waiting) == (0, 0), str(taken)
    await anyio.wait_all_tasks_blocked()  # (what was cancelled has its turn to end)
    assert len(anyio.get_running_tasks()) == tasks_before, anyio.get_running_tasks()
    report(tally, served, ends, capsys)
    assert not tally.lost, "\n".join(tally.lost)
    late = [each for each, seconds in tally.late.items() if seconds > SLACK + TURNS * tally.held]
    assert not late, "\n".join([f"the event loop was {tally.held:.1f} s late, and", *late])
    for origin in served:
        assert tally.answered[origin.name]
        assert max(origin.executed.values(), default=0) <= 1, origin.name


def report(tally: Tally, served: list[Origin], ends: list[ConnectionEnd], capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of the day."""
    connections = Counter(each.route for each in ends)
    with capsys.disabled():
        print(
            f"\n{tally.requests} requests in {SECONDS:g} s, {tally.again} went again; "
            f"POSTs: {tally.posts['answered']} answered, {tally.posts['failed']} failed; "
            f"{tally.hurried} had no time, {tally.left} were left; {len(tally.lost)} lost; "
            f"{len(ends)} connections: {1000 * len(ends) / tally.requests:.0f} per 1,000 requests; "
            f"{sum(origin.misdeeds.total() for origin in served)} misdeeds"
        )
        for origin in served:
            opened, answered = connections[origin.url], tally.answered[origin.name]
            print(
                f"  {origin.name:10}  {answered:6} answered, {opened:4} connections: "
                f"{1000 * opened / max(1, answered):.0f} per 1,000; {dict(origin.misdeeds)}"
            )
