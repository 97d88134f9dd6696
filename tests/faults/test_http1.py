"""What goes wrong with HTTP/1.1: cancellation at every step, servers that leave, bodies that are cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._errors import AllswellError, RemoteProtocolError, TransportError
from allswell._request.response import Response
from allswell.testing import Origin
from tests.support.certificates import certificates
from tests.support.peer import PeerConnection, Script, scripted_peer
from tests.support.scripts import Ending, answers, close_delimited, huge, response, says, target

pytestmark = pytest.mark.anyio

both = pytest.mark.parametrize("tls", [False, True])


def pool_for(**settings: Any) -> ConnectionPool:
    return ConnectionPool(ssl_context=certificates().client_context(), **settings)


async def get(pool: ConnectionPool, url: str, **more: Any) -> bytes:
    return await (await pool.request("GET", url, **more)).read()


# Cancellation

BODY = b"0123456789" * 2000


def slow_answer(connection: PeerConnection) -> None:
    """Answer in pieces, with a 103 before, so that there are many moments to be cancelled at."""
    while request := connection.read_request():
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        connection.pause(0.001)
        answer = response(target(request) + BODY)
        connection.send(answer[:30])
        connection.pause(0.001)
        connection.send(answer[30:9000])
        connection.pause(0.001)
        connection.send(answer[9000:])


async def after_steps(steps: int, scope: anyio.CancelScope) -> None:
    """Cancel once the event loop has gone round so many times."""
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def upload() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"piece"
        await anyio.lowlevel.checkpoint()


async def _get(pool: ConnectionPool, url: str) -> None:
    async with pool.stream("GET", url) as streamed:
        async for _ in streamed:
            pass


async def _post(pool: ConnectionPool, url: str) -> None:
    await pool.request("POST", url, content=upload())


@both
@pytest.mark.parametrize("request_", [_get, _post])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_cancelled_at_every_step(
    request_: Callable[[ConnectionPool, str], Awaitable[None]], warm: bool, tls: bool
) -> None:
    """The next request is answered with its own answer; nothing is left behind."""
    with scripted_peer(slow_answer, tls=tls) as peer:
        url = peer.url.replace("localhost", "127.0.0.1")
        cancelled = 0
        # Every step at first, where most of ours happen; then ever wider apart, until the requests go through.
        steps = [*range(30), *(int(30 * 1.15**n) for n in range(40))]
        through = 0
        async with pool_for(grace=5.0) as pool:
            for number in steps:
                if warm:
                    assert await get(pool, f"{url}/w{number}") == b"/w%d" % number + BODY
                done = False
                async with anyio.create_task_group() as tasks:
                    with anyio.CancelScope() as scope:
                        tasks.start_soon(after_steps, number, scope)
                        await request_(pool, f"{url}/cancelled{number}")
                        done = True
                    tasks.cancel_scope.cancel()
                cancelled += not done
                through = through + 1 if done else 0
                assert await get(pool, f"{url}/{number}") == b"/%d" % number + BODY
                if through >= 3:
                    break
        assert cancelled > 5
        assert pool.close_report is not None
        assert pool.close_report.clean, str(pool.close_report)


@both
async def test_ten_percent_read_and_left(tls: bool) -> None:
    with scripted_peer(huge(10_000_000), tls=tls) as peer:
        async with pool_for() as pool:
            for _ in range(3):
                size = 0
                async with pool.stream("GET", f"{peer.url}/") as streamed:
                    async for piece in streamed:
                        size += len(piece)
                        if size >= 1_000_000:
                            break
            await peer.ended(connections=3)
            assert len(peer.connections) == 3
            assert [len(connection.requests) for connection in peer.connections] == [1, 1, 1]
            assert [connection.saw for connection in peer.connections] == [["RST"]] * 3


async def test_received_and_unread_keeps_its_connection() -> None:
    with scripted_peer(answers()) as peer:
        async with pool_for() as pool:
            for number in range(3):
                async with pool.stream("GET", f"{peer.url}/{number}") as streamed:
                    assert streamed.status == 200  # the body came with the head: 2 bytes
            assert await get(pool, f"{peer.url}/last") == b"/last"
        assert len(peer.connections) == 1


async def test_closed_response_raises_instead_of_waiting() -> None:
    with scripted_peer(huge(10_000_000)) as peer:
        async with pool_for() as pool:
            streamed: Response
            async with pool.stream("GET", f"{peer.url}/", timeouts=Timeouts(read=None)) as streamed:
                await streamed.receive()
            with (
                anyio.fail_after(30),
                pytest.raises(TransportError, match="was closed before its body was read") as caught,
            ):
                await streamed.receive()
            assert caught.value.by == "us"


async def test_reading_on_after_a_cancelled_read_raises() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
        connection.stall()

    with scripted_peer(script) as peer:
        async with pool_for() as pool, pool.stream("GET", f"{peer.url}/", timeouts=Timeouts(read=None)) as streamed:
            with anyio.move_on_after(0.05):
                await streamed.receive()
            with anyio.fail_after(30), pytest.raises(TransportError):
                await streamed.receive()


# Servers that leave


@both
@pytest.mark.parametrize("at_once", [1, 50])
@pytest.mark.parametrize("announce", [False, True])
async def test_a_hundred_requests_to_a_server_that_leaves_after_ten(announce: bool, at_once: int, tls: bool) -> None:
    with scripted_peer(answers(10, announce=announce, ending=Ending.CLOSE), tls=tls) as peer:
        url = peer.url.replace("localhost", "127.0.0.1")
        got: list[bytes] = []
        numbers = iter(range(100))

        async def worker(pool: ConnectionPool) -> None:
            for number in numbers:
                got.append(await get(pool, f"{url}/{number}"))  # noqa: PERF401

        async with pool_for(max_connections=10) as pool, anyio.create_task_group() as tasks:
            for _ in range(at_once):
                tasks.start_soon(worker, pool)
        assert sorted(got) == sorted(b"/%d" % number for number in range(100))


async def test_stale_connection_an_idempotent_request_goes_again() -> None:
    """The server takes the second request of each connection and closes without a byte."""
    with scripted_peer(answers(1, instead=True)) as peer:
        async with pool_for() as pool:
            assert await get(pool, f"{peer.url}/1") == b"/1"
            response = await pool.request("GET", f"{peer.url}/2")
            assert await response.read() == b"/2"
            assert len(response.attempts) == 1
        assert [len(connection.requests) for connection in peer.connections] == [2, 1]


async def test_stale_connection_goes_again_on_a_fresh_one() -> None:
    """Three connections, all stale: not one after the other is tried, but a new one."""
    barrier = threading.Barrier(3)

    def script(connection: PeerConnection) -> None:
        if connection.index >= 3:
            answers()(connection)
            return
        connection.read_request()
        barrier.wait(30)
        connection.send(response(b"one"))
        if connection.read_request():
            connection.fin()

    with scripted_peer(script) as peer:
        async with pool_for() as pool:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(get, pool, f"{peer.url}/")
            assert await get(pool, f"{peer.url}/2") == b"/2"
        assert [len(connection.requests) for connection in peer.connections].count(2) == 1
        assert len(peer.connections) == 4


@pytest.mark.parametrize("ending", [Ending.POLITE, Ending.RST])
async def test_stale_connection_a_post_is_not_sent_twice(ending: Ending) -> None:
    with scripted_peer(answers(1, instead=True, ending=ending)) as peer:
        async with pool_for() as pool:
            assert await get(pool, f"{peer.url}/1") == b"/1"
            with pytest.raises(AllswellError):
                await pool.request("POST", f"{peer.url}/2", content=b"once")
        posts = [
            request for connection in peer.connections for request in connection.requests if request[:4] == b"POST"
        ]
        assert len(posts) == 1


async def test_post_finds_a_connection_that_has_ended_and_takes_another() -> None:
    """The server ended it before the request, and the socket knows: no byte of the POST goes there."""
    ended = threading.Event()

    def script(connection: PeerConnection) -> None:
        if connection.index:
            answers()(connection)
            return
        connection.read_request()
        connection.send(response(b"1"))
        connection.fin()
        ended.set()

    with scripted_peer(script) as peer:
        async with pool_for() as pool:
            await get(pool, f"{peer.url}/1")
            assert ended.wait(30)  # with the event loop held: it cannot have noticed
            assert await (await pool.request("POST", f"{peer.url}/2", content=b"x")).read() == b"/2"
        assert [len(connection.requests) for connection in peer.connections] == [1, 1]


async def test_once_a_byte_of_the_response_came_nothing_goes_again() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(response(b"1"))
        if connection.read_request():
            connection.send(b"H")
            connection.fin()

    with scripted_peer(script) as peer:
        async with pool_for() as pool:
            await get(pool, f"{peer.url}/1")
            with pytest.raises(RemoteProtocolError):
                await get(pool, f"{peer.url}/2")
        assert len(peer.connections) == 1


# Bodies that are cut


@pytest.mark.parametrize(("ending", "whole"), [(Ending.POLITE, True), (Ending.CLOSE, True), (Ending.FIN, False)])
async def test_close_delimited_over_tls(ending: Ending, whole: bool) -> None:
    body = close_delimited(b"until the end", ending)

    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = ending is not Ending.FIN
        body(connection)

    with scripted_peer(script, tls=True) as peer:
        async with pool_for() as pool:
            if whole:
                assert await get(pool, f"{peer.url}/") == b"until the end"
            else:
                with pytest.raises(RemoteProtocolError, match="without close_notify") as caught:
                    await get(pool, f"{peer.url}/")
                assert caught.value.by == "peer"


def _content_late(connection: PeerConnection) -> None:
    """Answer by a 204 that announces content, and send that only when there is another request."""
    if connection.index:
        answers()(connection)
    elif connection.read_request():
        connection.send(b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n")
        if connection.read_request():
            connection.send(b"{}" + response(b"of another"))


async def test_late_content_of_a_204_meets_no_other_request() -> None:
    with scripted_peer(_content_late) as peer:
        async with pool_for() as pool:
            assert (await pool.request("DELETE", f"{peer.url}/1")).status == 204
            assert await get(pool, f"{peer.url}/2") == b"/2"
        await peer.ended(connections=2)
        assert [connection.saw for connection in peer.connections] == [["FIN"], ["FIN"]]


async def test_close_delimited_over_plain_tcp() -> None:
    with scripted_peer(close_delimited(b"until the end", Ending.FIN)) as peer:
        async with pool_for() as pool:
            assert await get(pool, f"{peer.url}/") == b"until the end"


WHOLE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


async def test_cut_at_every_byte() -> None:
    def script(connection: PeerConnection) -> None:
        request = connection.read_request()
        connection.send(WHOLE[: int(target(request)[1:])])
        connection.fin()

    with scripted_peer(script) as peer:
        async with pool_for() as pool:
            for cut in range(len(WHOLE)):
                with pytest.raises(RemoteProtocolError):
                    await get(pool, f"{peer.url}/{cut}")
            assert await get(pool, f"{peer.url}/{len(WHOLE)}") == b"hello"


async def test_every_byte_by_itself() -> None:
    with scripted_peer(says(WHOLE, pieces=1), tls=True) as peer:
        async with pool_for() as pool:
            assert await get(pool, f"{peer.url}/") == b"hello"


# Uploads


@both
async def test_large_upload_through_tiny_buffers(tls: bool) -> None:
    """Every write is partial; the bytes arrive whole and in order."""
    content = b"".join(number.to_bytes(4, "big") for number in range(300_000))
    seen: list[bytes] = []

    def body(request: bytes) -> bytes:
        seen.append(request.partition(b"\r\n\r\n")[2])
        return b"done"

    script: Script = answers(body=body)
    with scripted_peer(script, tls=tls, receive_buffer=4096) as peer:
        async with pool_for(socket_options=[(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]) as pool:
            answer = await pool.request("POST", f"{peer.url}/", content=content)
            assert await answer.read() == b"done"
            again = await pool.request("PUT", f"{peer.url}/", content=content[::-1])
            assert await again.read() == b"done"
        assert seen == [content, content[::-1]]
        assert len(peer.connections) == 1


async def test_answer_before_the_upload_ends_and_more_behind_it() -> None:
    """A second response behind the first, while we still upload, is nobody's: the connection is not used again."""
    go_on = threading.Event()

    def script(connection: PeerConnection) -> None:
        if connection.index:
            answers()(connection)
            return
        connection.read_head()
        connection.send(response(b"first"))
        connection.pause(0.1)
        connection.send(response(b"poison"))
        go_on.set()
        connection.read_until_end()

    async def content() -> AsyncIterator[bytes]:
        yield b"x"
        await anyio.to_thread.run_sync(go_on.wait, 30)
        yield b"y"

    with scripted_peer(script) as peer:
        async with pool_for() as pool:
            answer = await pool.request("POST", f"{peer.url}/", content=content())
            assert await answer.read() == b"first"
            for number in range(5):
                assert await get(pool, f"{peer.url}/{number}") == b"/%d" % number
                await anyio.sleep(0.05)


async def test_failing_body_reaches_the_caller() -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    async with Origin(tls=False) as origin, pool_for() as pool:
        with pytest.raises(ZeroDivisionError):
            await pool.request("POST", f"{origin.url}/", content=content())
        assert await get(pool, f"{origin.url}/after") == b"ok"
        assert [request.target for request in origin.requests] == ["/after"]


# Errors


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (says(b"SSH-2.0-OpenSSH_9\r\n"), "broke HTTP/1.1: its answer begins with b'SSH-2.0'"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "broke HTTP/1.1: bad Content-Length"),
        (says(b"", Ending.POLITE), "ended the connection without a response"),
    ],
)
async def test_an_error_names_who_and_what(script: Script, what: str) -> None:
    with scripted_peer(script) as peer:
        async with pool_for() as pool:
            with anyio.fail_after(30), pytest.raises(RemoteProtocolError) as caught:
                await get(pool, f"{peer.url}/x")
        assert str(caught.value) == f"{peer.url} {what}"
        assert caught.value.by == "peer"


async def test_two_readers_of_one_response() -> None:
    """Not an assertion (which -O takes away, and then the first would wait for ever)."""

    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        connection.read_until_end()

    errors: list[BaseException] = []
    with scripted_peer(script) as peer:
        async with pool_for() as pool, pool.stream("GET", peer.url) as streamed, anyio.create_task_group() as tasks:

            async def receive() -> None:
                try:
                    await streamed.receive()
                except (RuntimeError, TransportError) as error:
                    errors.append(error)

            tasks.start_soon(receive)
            tasks.start_soon(receive)
    assert [type(each) for each in errors] == [RuntimeError, TransportError]
