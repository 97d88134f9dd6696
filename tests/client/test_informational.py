"""1xx responses, Expect: 100-continue, early responses, and trailers, against scripted HTTP/1.1 peers."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import httpx2
import pytest

import allswell
from tests.support.lag import LAG
from tests.support.peer import PeerConnection, Script, scripted_peer
from tests.support.scripts import response

pytestmark = pytest.mark.anyio

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_EXPECT = {"Expect": "100-continue"}


async def test_informational_responses_are_heard_at_once_and_listed() -> None:
    """The 103 reaches its hook while the final response is still being made."""

    def script(connection: PeerConnection) -> None:
        while connection.read_request():
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
            connection.stall()
            connection.send(response(b"done"))

    with scripted_peer(script) as peer:
        seen: list[int] = []

        async def hear(head: allswell.ResponseHead) -> None:
            seen.append(head.status)
            if head.status == 103:
                assert head.headers == [(b"Link", b"</a.css>")]
                peer.release()

        async with allswell.AsyncClient(timeout=30) as client:
            answer = await client.get(peer.url, extensions={"informational": hear})
            again = await client.get(peer.url)
        assert seen == [102, 103]
        for each in (answer, again):
            assert each.text == "done"
            assert [head.status for head in each.extensions["informational"]] == [102, 103]
        assert len(peer.connections) == 1


async def test_a_hook_that_fails_ends_the_request() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        connection.read_until_end()

    async def hear(head: allswell.ResponseHead) -> None:
        raise ZeroDivisionError

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            with pytest.raises(ZeroDivisionError):
                await client.get(peer.url, extensions={"informational": hear})
        await peer.ended()
        assert peer.connections[0].saw == ["RST"]


@pytest.mark.parametrize("content", ["bytes", "generator"])
async def test_the_body_waits_for_100(content: str) -> None:
    def script(connection: PeerConnection) -> None:
        for _ in range(2):
            head = connection.read_head()
            assert connection.received == sum(map(len, connection.requests)) + len(head)
            connection.send(_CONTINUE)
            body = connection.read_body(head)
            connection.requests.append(head + body)
            connection.send(response(body))

    async def pieces() -> AsyncIterator[bytes]:
        yield b"the "
        yield b"body"

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            for _ in range(2):
                sent = b"the body" if content == "bytes" else pieces()
                answer = await client.post(peer.url, content=sent, headers=_EXPECT)
                assert answer.content.replace(b"\r\n", b"") in (b"the body", b"4the 4body0")
                assert [head.status for head in answer.extensions["informational"]] == [100]
        assert len(peer.connections) == 1


async def test_the_body_does_not_wait_for_ever() -> None:
    def script(connection: PeerConnection) -> None:
        connection.send(response(connection.read_request()[-4:]))

    with scripted_peer(script) as peer:
        pool = allswell.ConnectionPool(expect_continue_timeout=0.2)
        async with allswell.AsyncClient(timeout=30, pool=pool) as client:
            began = time.monotonic()
            answer = await client.post(peer.url, content=b"body", headers=_EXPECT)
            assert 0.2 <= time.monotonic() - began < LAG
        assert answer.content == b"body"


@pytest.mark.parametrize("status", ["417 Expectation Failed", "413 Content Too Large", "200 OK"])
async def test_a_final_answer_instead_of_100(status: str) -> None:
    """The body never leaves; such a connection carries no other request (RFC 9110 §10.1.1), whose head it would be."""

    def script(connection: PeerConnection) -> None:
        head = connection.read_head()
        connection.requests.append(head)
        connection.send(response(b"no", status=status))
        connection.requests.append(connection.recv())  # what followed, or the end

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 100
        if not status.startswith("200"):
            pytest.fail("the body was not wanted")

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            for _ in range(1 if status.startswith("200") else 2):
                answer = await client.post(peer.url, content=pieces(), headers={**_EXPECT, "Content-Length": "100"})
                assert (answer.status_code, answer.content) == (int(status[:3]), b"no")
        await peer.ended()
        if not status.startswith("200"):
            assert [each.requests[1] for each in peer.connections] == [b"", b""]
        else:
            assert peer.connections[0].received == len(peer.connections[0].requests[0]) + 100


def _refuses(ending: str) -> Script:
    """413 after the first of the body, and the end, with the rest unread."""

    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.raw.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # what is not sent by then, RST throws away
        connection.send(response(b"too much", "Connection: close", status="413 Content Too Large"))
        if ending == "close":
            connection.close()  # unread input: RST
        elif ending == "fin":
            connection.fin()
            connection.read_until_end()
        else:
            connection.read_until_end()

    return script


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("ending", ["close", "fin", "none"])
async def test_413_while_uploading_reaches_the_caller(ending: str, tls: bool) -> None:
    produced = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(5000):
            produced += 1
            yield b"x" * 65_536

    from tests.support.certificates import certificates

    with scripted_peer(_refuses(ending), tls=tls) as peer:
        async with allswell.AsyncClient(timeout=30, verify=certificates().client_context()) as client:
            with anyio.fail_after(30):
                answer = await client.post(peer.url, content=pieces())
                assert (answer.status_code, answer.text) == (413, "too much")
                answer = await client.post(peer.url, content=b"x" * 50_000_000)
                assert (answer.status_code, answer.text) == (413, "too much")
    assert produced < 5000


async def test_the_request_that_follows_a_refused_upload() -> None:
    def script(connection: PeerConnection) -> None:
        head = connection.read_head()
        if head.startswith(b"POST"):
            connection.send(response(b"no", status="403 Forbidden"))
            connection.read_until_end()
        else:
            connection.send(response(b"yes"))

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            await anyio.lowlevel.checkpoint()

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            assert (await client.post(peer.url, content=endless())).status_code == 403
            assert (await client.get(peer.url)).text == "yes"
        assert len(peer.connections) == 2


async def test_a_large_early_answer_does_not_hold_up_the_next_request() -> None:
    """The response is complete and mostly unread, then our upload ends and the connection serves somebody else."""

    def script(connection: PeerConnection) -> None:
        head = connection.read_head()
        connection.send(response(b"y" * 600_000))
        connection.read_body(head)
        connection.read_request()
        connection.send(response(b"next"))

    go = anyio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"
        await go.wait()
        yield b"z"

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            async with client.stream("POST", peer.url, content=pieces()) as first:
                stream = first.aiter_raw()
                size = 0
                while size < 200_000:
                    size += len(await anext(stream))
                go.set()
                async for piece in stream:
                    size += len(piece)
                assert size == 600_000
            assert (await client.get(peer.url)).text == "next"


async def test_trailers_both_ways() -> None:
    def script(connection: PeerConnection) -> None:
        while request := connection.read_request():
            assert request.endswith(b"0\r\nX-Sum: 7\r\n\r\n"), request
            connection.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
                b"3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n"
            )

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1"
        total.append(7)

    total: list[int] = []

    def trailers() -> list[tuple[bytes, bytes]]:
        return [(b"X-Sum", b"%d" % total[-1])]

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            for given in (trailers, [(b"X-Sum", b"7")]):
                async with client.stream("POST", peer.url, content=pieces(), extensions={"trailers": given}) as answer:
                    assert "trailers" not in answer.extensions
                    assert await answer.aread() == b"abc"
                assert answer.extensions["trailers"] == [(b"X-Sum", b"6")]
        assert len(peer.connections) == 1


async def test_bytes_with_trailers_are_sent_chunked_by_choice() -> None:
    def script(connection: PeerConnection) -> None:
        assert connection.read_request().endswith(b"2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n")
        connection.send(response(b""))

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            await client.post(
                peer.url,
                content=b"hi",
                headers={"Transfer-Encoding": "chunked"},
                extensions={"trailers": [(b"X-T", b"1")]},
            )


async def test_illegal_trailers_are_the_callers_error() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.read_until_end()

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            with pytest.raises(httpx2.LocalProtocolError, match="illegal value of the header X-T"):
                await client.post(
                    peer.url,
                    content=b"hi",
                    headers={"Transfer-Encoding": "chunked"},
                    extensions={"trailers": [(b"X-T", b"1\r\nX-Forged: 2")]},
                )


async def test_close_delimited_bodies() -> None:
    from tests.support.certificates import certificates

    def script(connection: PeerConnection) -> None:
        path = connection.read_request().split()[1]
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nsome text")
        if path == b"/whole":
            connection.send_close_notify()
        connection.fin()

    with scripted_peer(script, tls=True) as peer:
        async with allswell.AsyncClient(timeout=30, verify=certificates().client_context()) as client:
            assert (await client.get(peer.url + "/whole")).text == "some text"
            with pytest.raises(httpx2.RemoteProtocolError, match="truncated"):
                await client.get(peer.url + "/cut")


async def test_a_generator_that_fails_fails_the_request() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.read_until_end()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            with pytest.raises(ZeroDivisionError):
                await client.post(peer.url, content=pieces())
        await peer.ended()
        assert peer.connections[0].saw == ["RST"]


@pytest.mark.parametrize("content", [b"too long", b"x"])
async def test_a_body_of_the_wrong_length(content: bytes) -> None:
    with scripted_peer(lambda connection: connection.read_until_end()) as peer:
        async with allswell.AsyncClient(timeout=30) as client:
            with pytest.raises(httpx2.LocalProtocolError):
                await client.post(peer.url, content=content, headers={"Content-Length": "4"})


async def test_uploads_wait_for_the_peer() -> None:
    """Back-pressure: a peer that does not read stops the generator, long before memory is full; then it goes on."""
    produced = 0

    def script(connection: PeerConnection) -> None:
        head = connection.read_head()
        connection.stall()
        connection.send(response(b"%d" % len(connection.read_body(head))))

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(400):
            produced += 1
            yield b"x" * 65_536

    with scripted_peer(script, receive_buffer=65_536) as peer:
        options = [(1, 7, 65_536)]  # SOL_SOCKET, SO_SNDBUF
        async with (
            allswell.AsyncTransport(socket_options=options) as transport,
            httpx2.AsyncClient(transport=transport) as client,
            anyio.create_task_group() as tasks,
        ):

            async def send() -> None:
                headers = {"Content-Length": str(400 * 65_536)}
                assert (await client.post(peer.url, content=pieces(), headers=headers)).text == "26214400"

            tasks.start_soon(send)
            before = -1
            while produced != before or not produced:
                before = produced
                await anyio.sleep(0.05)
            assert produced < 40
            peer.release()
    assert produced == 400
