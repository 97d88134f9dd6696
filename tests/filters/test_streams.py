"""One conformance suite for every ByteStream: TCP, and TLS 1.2 and 1.3 over it, against peers on blocking sockets."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import monotonic

import anyio
import pytest

from allswell._deadline import Deadline
from allswell._dial.lookups import resolve
from allswell._dial.sockets import connect_tcp
from allswell._errors import TransportError
from allswell._filters.goodbye_timeout import GoodbyeTimeout
from allswell._filters.interface import ByteStream, ReceiveBuffer
from allswell._filters.stack import Stack
from allswell._filters.tcp import TcpFilter
from allswell._filters.tls import TlsFilter
from allswell._report import Outcome
from tests.support.certificates import certificates
from tests.support.lag import LAG, PATIENCE
from tests.support.leaks import await_client_states
from tests.support.peer import PeerConnection, Script, ScriptedPeer, scripted_peer

pytestmark = pytest.mark.anyio


@dataclass
class Made:
    """A connected stream and what it stands on."""

    top: ByteStream
    stack: Stack[ByteStream]
    peer: ScriptedPeer


class Over:
    """Makes connected streams of one kind."""

    def __init__(self, version: ssl.TLSVersion | None, *, small: bool = False) -> None:
        self.version = version
        self.goodbye = ["FIN"] if version is None else ["close_notify", "FIN"]
        self._small = small

    @asynccontextmanager
    async def __call__(
        self,
        script: Script,
        goodbye_timeout: tuple[GoodbyeTimeout, GoodbyeTimeout] | None = None,
        receive_buffer: int | None = None,
    ) -> AsyncIterator[Made]:
        context = None if self.version is None else certificates().server_context(version=self.version)
        with scripted_peer(script, tls=context or False, receive_buffer=receive_buffer) as peer:
            buffer = ReceiveBuffer(1024) if self._small else ReceiveBuffer()

            async def dial() -> socket.socket:
                options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)] if receive_buffer else []
                return await connect_tcp("127.0.0.1", peer.port, options=options, ask=resolve)

            with_tls, with_tcp = goodbye_timeout or (GoodbyeTimeout(), GoodbyeTimeout())
            tcp = TcpFilter("the peer", dial, buffer, with_tcp)
            top: ByteStream = tcp
            stack: Stack[ByteStream] = Stack(tcp)
            if self.version is not None:
                top = TlsFilter(
                    tcp,
                    peer="the peer",
                    context=certificates().client_context(),
                    server_name="localhost",
                    alpn=["http/1.1"],
                    buffer=buffer,
                    goodbye_timeout=with_tls,
                )
                stack = Stack(top, tcp)
            await stack.connect()
            try:
                yield Made(top, stack, peer)
            finally:
                stack.abort()


@pytest.fixture(
    params=[
        Over(None),
        Over(ssl.TLSVersion.TLSv1_2),
        Over(ssl.TLSVersion.TLSv1_3),
        Over(None, small=True),
        Over(ssl.TLSVersion.TLSv1_3, small=True),
    ],
    ids=["tcp", "tls1.2", "tls1.3", "tcp-small", "tls1.3-small"],
)
def over(request: pytest.FixtureRequest) -> Over:
    """Every kind of stream."""
    kind: Over = request.param
    return kind


async def read(stream: ByteStream, size: int | None = None) -> bytes:
    """So many bytes, or all until the end."""
    data = bytearray()
    with anyio.fail_after(30):
        while size is None or len(data) < size:
            piece = stream.receive_nowait()
            if piece is None:
                await stream.wait_readable()
            elif not len(piece):
                assert size is None, f"ended after {len(data)} of {size} bytes"
                break
            else:
                data += piece
    return bytes(data)


def echo(connection: PeerConnection) -> None:
    """Send back what comes."""
    while data := connection.recv():
        connection.send(data)


def says(data: bytes, *, pieces: int | None = None, then: Callable[[PeerConnection], None] | None = None) -> Script:
    def script(connection: PeerConnection) -> None:
        connection.send(data, pieces=pieces)
        if then is not None:
            then(connection)

    return script


BYTES = bytes(range(256)) * 4000


async def test_there_and_back(over: Over) -> None:
    async with over(echo) as made:
        for size in (1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 100_000):
            made.top.transmit(BYTES[:size])
            await made.top.flush()
            assert await read(made.top, size) == BYTES[:size]
        assert made.top.unsent == 0
        assert not made.top.dead


@pytest.mark.parametrize("pieces", [1000, None])
async def test_all_that_comes_in_order(over: Over, pieces: int | None) -> None:
    async with over(says(BYTES, pieces=pieces)) as made:
        assert await read(made.top, len(BYTES)) == BYTES
        assert made.top.receive_nowait() is None


async def test_byte_by_byte(over: Over) -> None:
    def script(connection: PeerConnection) -> None:
        connection.send_raw(connection.encrypt(BYTES[:600]), pieces=1)

    async with over(script) as made:
        assert await read(made.top, 600) == BYTES[:600]


async def test_partial_writes_keep_order(over: Over) -> None:
    seen = bytearray()

    def script(connection: PeerConnection) -> None:
        connection.pause(0.1)
        while data := connection.recv():
            seen.extend(data)

    async with over(script, receive_buffer=4096) as made:
        for start in range(0, len(BYTES), 50_000):
            made.top.transmit(BYTES[start : start + 50_000])
        assert made.top.unsent > 0
        with anyio.fail_after(30):
            await made.top.flush()
        assert made.top.unsent == 0
        await made.stack.shutdown(Deadline.after(PATIENCE))
        await made.peer.ended()
        assert bytes(seen) == BYTES


async def test_polite_end(over: Over) -> None:
    async with over(echo) as made:
        ends = await made.stack.shutdown(Deadline.after(PATIENCE))
        assert [end.said for end in ends] == over.goodbye
        assert [end.heard for end in ends] == over.goodbye
        assert {end.outcome for end in ends} == {Outcome.CLEAN}
        await made.peer.ended()
        assert made.peer.connections[0].saw == over.goodbye
        assert await made.stack.shutdown(Deadline.after(PATIENCE)) == ends
        assert made.stack.abort() == ends


async def test_polite_end_with_much_unread(over: Over) -> None:
    """What the peer still sends is read and dropped, until its goodbye: no RST."""
    async with over(says(BYTES * 3)) as made:
        await read(made.top, 10)
        ends = await made.stack.shutdown(Deadline.after(PATIENCE))
        assert {end.outcome for end in ends} == {Outcome.CLEAN}
        await made.peer.ended()
        assert made.peer.connections[0].saw == over.goodbye


async def test_peer_first(over: Over) -> None:
    def script(connection: PeerConnection) -> None:
        connection.send(b"last words")
        connection.send_close_notify()
        connection.fin()

    async with over(script) as made:
        assert await read(made.top) == b"last words"
        assert not made.top.truncated
        for _ in range(3):
            end = made.top.receive_nowait()
            assert end is not None
            assert not len(end)
        ends = await made.stack.shutdown(Deadline.after(PATIENCE))
        assert ends[0].outcome is Outcome.PEER_FIRST
        assert [end.said for end in ends] == [end.heard for end in ends] == over.goodbye
        await made.peer.ended()
        assert made.peer.connections[0].saw == over.goodbye


async def test_end_without_goodbye_is_told_from_a_whole_one(over: Over) -> None:
    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        connection.send(b"last words")
        connection.fin()

    async with over(script) as made:
        assert await read(made.top) == b"last words"
        assert made.top.truncated is (over.version is not None)
        ends = await made.stack.shutdown(Deadline.after(PATIENCE))
        assert [end.said for end in ends] == over.goodbye
        if over.version is not None:
            assert ends[0].heard == "EOF"
        await made.peer.ended()
        assert made.peer.connections[0].saw == over.goodbye


async def test_silent_peer_costs_the_deadline_and_less_the_next_time(over: Over) -> None:
    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        connection.read_until_end()
        connection.stall()

    goodbye_timeout = (GoodbyeTimeout(), GoodbyeTimeout())
    seconds = []
    for time in 2.0, 2.0, 3 * LAG:  # twice: if the first layer's wait takes all of the time, the next learns nothing
        async with over(script, goodbye_timeout) as made:
            began = monotonic()
            ends = await made.stack.shutdown(Deadline.after(time))
            seconds.append(monotonic() - began)
            assert {end.outcome for end in ends} == {Outcome.TIMED_OUT}
            assert [end.said for end in ends] == over.goodbye
            await made.peer.ended()
            assert made.peer.connections[0].saw == over.goodbye
    assert seconds[0] > 1.9
    assert seconds[2] < LAG


async def test_no_time_left_says_all_and_waits_for_nothing(over: Over) -> None:
    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        connection.read_until_end()
        connection.stall()

    async with over(script) as made:
        began = monotonic()
        ends = await made.stack.shutdown(Deadline.after(0))
        assert monotonic() - began < LAG
        assert [end.said for end in ends] == over.goodbye
        await made.peer.ended()
        assert made.peer.connections[0].saw == over.goodbye


async def test_tightened_while_it_waits(over: Over) -> None:
    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        connection.read_until_end()
        connection.stall()

    async with over(script) as made:
        deadline = Deadline.after(3 * LAG)
        began = monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.stack.shutdown, deadline)
            await anyio.sleep(0.1)
            deadline.tighten(monotonic() + 0.1)
        assert monotonic() - began < LAG
        await made.peer.ended()
        assert made.peer.connections[0].saw == over.goodbye


async def test_cancelled_shutdown_has_said_all(over: Over) -> None:
    """Whichever layer's answer it waited for, the goodbyes of those below are said."""

    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        connection.read_until_end()
        connection.stall()

    async with over(script) as made:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(made.stack.shutdown, Deadline.after(20))
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert made.stack.extra("socket") is None
        await made.peer.ended()
        assert made.peer.connections[0].saw == over.goodbye
        assert [(end.said, end.outcome) for end in made.stack.abort()] == [
            (said, Outcome.TIMED_OUT) for said in over.goodbye
        ]


async def test_goodbyes_without_a_wait(over: Over) -> None:
    """All in one synchronous step; the answers can be heard later."""
    async with over(echo) as made:
        made.top.transmit(b"before")
        made.stack.say_goodbye()
        made.stack.say_goodbye()
        made.top.transmit(b"after")
        await made.peer.ended()
        connection = made.peer.connections[0]
        assert connection.saw == over.goodbye
        assert connection.received == len(b"before")
        ends = await made.stack.shutdown(Deadline.after(PATIENCE))
        assert [(end.said, end.heard, end.outcome) for end in ends] == [
            (said, said, Outcome.CLEAN) for said in over.goodbye
        ]


async def test_goodbyes_without_a_wait_and_no_answer_heard(over: Over) -> None:
    """The answers lie unread when it is closed: no RST, and what was said is told."""
    async with over(echo) as made:
        await read_nothing_more(made)
        made.stack.say_goodbye()
        await_client_states(made.peer.port, {"TIME_WAIT"})  # the peer's FIN has come
        ends = made.stack.abort()
        await made.peer.ended()
        assert made.peer.connections[0].saw == over.goodbye
        assert [end.said for end in ends] == over.goodbye


async def read_nothing_more(made: Made) -> None:
    """Have the peer answer once; what it says behind that (tickets) is left where it is."""
    made.top.transmit(b"x")
    assert await read(made.top, 1) == b"x"


@contextmanager
def held_by_a_child(sock: socket.socket) -> Iterator[None]:
    """Another process has the socket, too, as one that was forked has all of its parent's."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdout.write('here'); sys.stdout.flush(); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[sock.fileno()],
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read(4) == b"here"
        yield  # leaving closes its standard input, so it ends


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere RST goes with the last holder of a socket")
@pytest.mark.parametrize("how", ["shutdown", "say_goodbye", "abort by RST", "abort by FIN"])
async def test_what_is_said_does_not_wait_for_a_child_that_has_the_socket(over: Over, how: str) -> None:
    async with over(echo) as made:
        await read_nothing_more(made)
        with held_by_a_child(made.stack.extra("socket")):
            if how == "shutdown":
                ends = await made.stack.shutdown(Deadline.after(PATIENCE))
            elif how == "say_goodbye":
                made.stack.say_goodbye()
                ends = made.stack.abort()
            else:
                ends = made.stack.abort(reset=how == "abort by RST")
            await made.peer.ended()
            assert made.peer.connections[0].saw == [end.said for end in ends if end.said]
        assert ends[-1].said == ("RST" if how == "abort by RST" else "FIN")


async def test_aborted_while_shutting_down(over: Over) -> None:
    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        connection.read_until_end()
        connection.stall()

    async with over(script) as made:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.stack.shutdown, Deadline.after(20))
            await anyio.sleep(0.1)
            made.stack.abort()
        assert made.stack.extra("socket") is None


async def test_abort(over: Over) -> None:
    async with over(echo) as made:
        ends = made.stack.abort()
        assert made.stack.abort() == ends
        assert [end.outcome for end in ends] == [Outcome.ABORTED] * len(ends)
        assert ends[-1].said == "RST"
        await made.peer.ended()
        assert made.peer.connections[0].saw == ["RST"]
        with pytest.raises(TransportError, match="closed"):
            made.top.receive_nowait()
        made.top.transmit(b"nobody")
        assert made.top.unsent == 0


async def test_abort_wakes_the_reader(over: Over) -> None:
    async with over(echo) as made, anyio.create_task_group() as tasks:

        async def reader() -> None:
            with pytest.raises(TransportError):
                await read(made.top)

        tasks.start_soon(reader)
        await anyio.wait_all_tasks_blocked()
        made.stack.abort()


async def test_reset_by_the_peer(over: Over) -> None:
    def script(connection: PeerConnection) -> None:
        connection.recv()
        connection.reset()

    async with over(script) as made:
        made.top.transmit(b"x")
        with pytest.raises(TransportError, match="reset the connection") as caught:
            await read(made.top)
        assert caught.value.by == "peer"
        ends = await made.stack.shutdown(Deadline.after(PATIENCE))
        assert ends[-1].heard == "RST"
        assert ends[-1].outcome is Outcome.ABORTED


async def test_writing_to_a_peer_that_is_gone_is_found_by_reading(over: Over) -> None:
    def script(connection: PeerConnection) -> None:
        connection.recv()
        connection.reset()

    async with over(script) as made:
        made.top.transmit(b"x")
        await made.peer.ended()
        for _ in range(5):
            made.top.transmit(BYTES)
        assert made.top.dead
        assert made.top.unsent == 0
        with pytest.raises(TransportError):
            await read(made.top)


async def test_reset_while_the_rest_is_written(over: Over) -> None:
    """The loss is met by the write itself, with bytes queued behind it."""

    def script(connection: PeerConnection) -> None:
        connection.recv()
        connection.pause(0.05)
        connection.reset()

    async with over(script, receive_buffer=4096) as made:
        for _ in range(3):
            made.top.transmit(BYTES)
        assert made.top.unsent > 0
        with anyio.fail_after(30), pytest.raises(TransportError, match="reset the connection"):
            await made.top.flush()
        assert made.top.dead
        assert made.top.unsent == 0


async def test_facts(over: Over) -> None:
    async with over(echo) as made:
        assert made.stack.extra("server_addr") == ("127.0.0.1", made.peer.port)
        assert made.stack.extra("client_addr")[0] == "127.0.0.1"
        assert isinstance(made.stack.extra("socket"), socket.socket)
        assert (made.stack.extra("ssl_object") is not None) is (over.version is not None)
        assert made.stack.extra("nonsense") is None


async def test_alpn() -> None:
    async with Over(ssl.TLSVersion.TLSv1_3)(echo) as made:
        assert isinstance(made.top, TlsFilter)
        assert made.top.alpn_protocol == "http/1.1"
