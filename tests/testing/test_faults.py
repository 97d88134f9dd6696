"""The origin misbehaves when it is told to: what its clients see of it, and what it sees of them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest
from hyperframe.frame import HeadersFrame

from allswell.testing import (
    CloseNotify,
    Connected,
    ConnectionClose,
    Fin,
    GoAway,
    Origin,
    Request,
    RequestExecuted,
    RequestReceived,
    RequestRefused,
    Response,
    Said,
)
from tests.support.lag import those_there_are_silent_after
from tests.testing.clients import Gate
from tests.testing.test_assertions import GET, WHOLE, by_hand_over_http2
from tests.testing.test_origin import VERSIONS, client_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("version", VERSIONS)
async def test_goaway_with_a_request_under_way(version: Any) -> None:
    """What is under way is answered; what comes next goes to another connection; both end well."""
    gate = Gate()
    async with Origin({"/slow": gate, "/next": Response()}, versions=[version]) as origin:
        async with client_of(origin, version) as client, anyio.create_task_group() as tasks:
            answers: list[bytes] = []

            async def slow() -> None:
                answers.append((await client.get("/slow")).content)

            tasks.start_soon(slow)
            await origin.seen(RequestExecuted)
            origin.goaway()
            assert (await client.get("/next")).status_code == 200
            gate.open = True
        assert answers == [b"/slow"]
        await origin.ended(2)
        origin.assert_ended_gracefully()
        origin.assert_executed_once("/slow")
        origin.assert_executed_once("/next")


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_goaway_that_leaves_requests_out(version: Any) -> None:
    """Of five at once it takes two; the others go elsewhere, and none is executed twice."""
    async with Origin({f"/{number}": Response() for number in range(6)}, versions=[version]) as origin:
        async with client_of(origin, version) as client:
            await client.get("/5")
            origin.goaway(after=2)
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(client.get, f"/{number}")
        await origin.ended(2)
        for number in range(6):
            origin.assert_executed_once(f"GET /{number}")
        assert len(origin.record.of(RequestExecuted, connection=1)) == 3
        assert next(event.word for event in origin.record.of(Said, connection=1)) == "GOAWAY"
        origin.assert_ended_gracefully()


def test_a_second_goaway_takes_no_more_than_the_first() -> None:
    """RFC 9113, section 6.8: the last stream must not grow. The client here is one that does not heed the first."""
    with Origin() as origin:
        with by_hand_over_http2(origin) as tls:
            origin.goaway()
            origin.goaway(after=2)
            for stream in (3, 5):
                tls.sendall(HeadersFrame(stream, GET, flags=WHOLE).serialize())
            origin.wait_seen(RequestReceived, 3, timeout=30)
        origin.wait_ended(timeout=30)
        assert len(origin.record.of(RequestExecuted)) == 1
        assert [event.word for event in origin.record.of(Said)].count("GOAWAY") == 1


async def test_goaway_over_http1_closes_what_is_idle() -> None:
    async with Origin(versions=["h1"]) as origin, client_of(origin, "h1") as client:
        await client.get("/")
        origin.goaway()
        await origin.ended()
        origin.assert_ended_gracefully()
        assert [type(each) for each in origin.record.events if isinstance(each, Said | CloseNotify)][:1] == [Said]
        assert (await client.get("/")).text == "ok"


@pytest.mark.parametrize("version", VERSIONS)
async def test_reset(version: Any) -> None:
    """Of what is under way, an error; of what is idle, nothing is seen but another connection."""
    async with Origin({"/slow": Gate(), "/": Response()}, versions=[version]) as origin:
        async with client_of(origin, version) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_when_executed, origin, origin.reset)
                with pytest.raises((httpx2.ReadError, httpx2.RemoteProtocolError)):
                    await client.post("/slow")
            assert (await client.get("/")).status_code == 200
            origin.reset()
            assert (await client.get("/")).status_code == 200
        await origin.ended(3)
        origin.assert_ended_gracefully()
        assert sum(each.cut for each in origin.record.of(Said)) == 2


async def _when_executed(origin: Origin, action: Callable[[], None]) -> None:
    await origin.seen(RequestExecuted)
    action()


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_cancel(version: Any) -> None:
    """An exchange is reset; the connection goes on."""
    async with Origin({"/slow": Gate(), "/": Response()}, versions=[version]) as origin:
        async with client_of(origin, version) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(_when_executed, origin, origin.cancel)
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.post("/slow")
            assert (await client.get("/")).status_code == 200
        await origin.ended()
        origin.assert_ended_gracefully()
        assert len(origin.record.of(Connected)) == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_stall(version: Any) -> None:
    """Half of the body comes; the rest when it behaves again."""
    async with Origin({"/": Response(body=b"0123456789")}, versions=[version]) as origin:
        origin.stall()
        async with client_of(origin, version) as client, client.stream("GET", "/") as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"01234"
            origin.behave()
            assert b"".join([piece async for piece in pieces]) == b"56789"
        await origin.ended()
        origin.assert_ended_gracefully()


@pytest.mark.parametrize("version", VERSIONS)
async def test_stall_without_a_body(version: Any) -> None:
    async with Origin({"/": Response(204)}, versions=[version]) as origin, client_of(origin, version) as client:
        origin.stall()
        with pytest.raises(httpx2.ReadTimeout):
            await client.get("/", timeout=httpx2.Timeout(60, read=0.2))


@pytest.mark.parametrize("version", VERSIONS)
async def test_silence(version: Any) -> None:
    """The origin reads on and says nothing: what the client said last is seen, and the client waits in vain."""
    async with Origin(versions=[version]) as origin:
        async with client_of(origin, version) as client:
            await client.get("/")
            origin.silence()
            report = await client.aclose(timeout=0.3)
        await origin.ended()
        said = [type(each) for each in origin.record.events if isinstance(each, CloseNotify | Fin | ConnectionClose)]
        assert said == ([ConnectionClose] if version == "h3" else [CloseNotify, Fin])
        assert not origin.record.of(Said)
        assert not report.clean


async def test_silence_before_tls() -> None:
    async with Origin() as origin:
        origin.silence()
        async with client_of(origin, "h1", timeout=httpx2.Timeout(60, connect=3)) as client:
            with pytest.raises(httpx2.ConnectTimeout):
                await client.get("/")
        await origin.ended()
        with pytest.raises(AssertionError, match="there is no connection to judge"):
            origin.assert_ended_gracefully()


@pytest.mark.parametrize("version", VERSIONS)
async def test_refuse(version: Any) -> None:
    """What was not executed is sent again."""
    async with Origin(versions=[version]) as origin:
        async with client_of(origin, version) as client:
            await client.get("/first")
            origin.refuse(1)
            assert (await client.get("/second")).text == "ok"
        await origin.ended()
        assert len(origin.record.of(RequestRefused)) == 1
        assert [each.target for each in origin.record.of(RequestReceived)] == ["/first", "/second", "/second"]
        origin.assert_executed_once("/second")
        if version != "h1":  # there, a request that was not answered looks like one that was cut
            origin.assert_ended_gracefully()
            origin.assert_no_reset()


@pytest.mark.parametrize("version", VERSIONS)
async def test_restart(version: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Origin(versions=[version]) as origin:
        async with client_of(origin, version) as client:
            await client.get("/before")
            those_there_are_silent_after(monkeypatch)
            port = origin.port
            origin.restart()
            assert (await client.get("/after")).text == "ok"
            assert origin.port == port
        await origin.ended(2)
        origin.assert_ended_gracefully()
        origin.assert_executed_once("/after")
        assert [each.connection for each in origin.record.of(RequestExecuted)] == [1, 2]


async def test_nobody_listens_during_a_restart() -> None:
    async with Origin() as origin:
        origin.restart(down=60)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", origin.port))


@pytest.mark.parametrize("version", VERSIONS)
async def test_it_comes_back_after_a_restart(version: Any) -> None:
    async with Origin(versions=[version]) as origin, client_of(origin, version) as client:
        origin.restart(down=0.2)
        with anyio.fail_after(60):
            while True:
                try:
                    await client.get("/")
                except httpx2.ConnectError:
                    await anyio.sleep(0.05)
                else:
                    break


@pytest.mark.parametrize("version", VERSIONS)
async def test_slow(version: Any) -> None:
    async with Origin({"/": Response(body=b"x" * 1000)}, versions=[version]) as origin:
        origin.slow(2000)
        async with client_of(origin, version) as client:
            began = anyio.current_time()
            assert len((await client.get("/")).content) == 1000
            assert anyio.current_time() - began > 0.45
            origin.behave()
        await origin.ended()
        origin.assert_ended_gracefully()


def test_words_do_not_wait_for_a_client_that_does_not_read() -> None:
    with (
        Origin({"/": Response(body=bytes(30_000_000))}, tls=False) as origin,
        socket.create_connection(("127.0.0.1", origin.port)) as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        origin.wait_seen(RequestExecuted)
        sock.recv(1)
        origin.stall()
        origin.behave()
        origin.goaway()
        origin.cancel()
        origin.wait_ended()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_truncate(framing: Any) -> None:
    """This client takes no half for a whole, whatever told where the body ends."""
    async with Origin({"/": Response(body=b"0123456789", framing=framing)}, versions=["h1"]) as origin:
        origin.truncate(1)
        async with client_of(origin, "h1") as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.get("/")
            assert (await client.get("/")).content == b"0123456789"
        await origin.ended(2)


async def test_a_truncated_body_that_httpx2_takes_for_a_whole_one() -> None:
    async with Origin({"/": Response(body=b"0123456789", framing="close")}, versions=["h1"]) as origin:
        origin.truncate()
        async with httpx2.AsyncClient(verify=origin.client_context()) as client:
            assert (await client.get(origin.url)).content == b"01234"


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_truncate_with_streams(version: Any) -> None:
    async with Origin({"/": Response(body=b"0123456789")}, versions=[version]) as origin:
        origin.truncate(1)
        async with client_of(origin, version) as client:
            with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
                await client.get("/")
            assert (await client.get("/")).content == b"0123456789"
        await origin.ended(2)
        origin.assert_ended_gracefully()
        assert [each.cut for each in origin.record.of(Said, connection=1)] == [True]


async def test_httpx2_at_a_goaway() -> None:
    """It says none itself, so its end is not graceful; that the origin said one excuses that."""
    async with Origin(versions=["h2"]) as origin:
        async with httpx2.AsyncClient(verify=origin.client_context(), http2=True) as client:
            await client.get(origin.url)
            origin.goaway()
        await origin.ended()
        assert not origin.record.of(GoAway)
        with pytest.raises(AssertionError) as raised:
            origin.assert_ended_gracefully()
        assert "no GOAWAY" not in str(raised.value)
        assert "RST" in str(raised.value)


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_an_answer_that_comes_as_its_stream_is_reset_is_not_said(
    version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler has its result, and its task has yet to hear of both."""
    result = asyncio.Event()

    async def handler(request: Request) -> Response:
        await result.wait()
        return Response(body=b"late")

    async with Origin({"/": handler}, versions=[version]) as origin:
        async with client_of(origin, version) as client, anyio.create_task_group() as tasks:

            async def get() -> None:
                with pytest.raises(httpx2.RemoteProtocolError):
                    await client.get("/")

            tasks.start_soon(get)
            await origin.seen(RequestExecuted, timeout=30)
            [connection] = origin._connections
            assert connection.engine is not None
            said: list[int] = []
            monkeypatch.setattr(connection.engine, "head", lambda stream, *_, **__: said.append(stream))

            def both() -> None:
                result.set()
                connection.cancel()

            origin._call(both)
        await origin.ended(timeout=30)
        assert not said


def test_a_wait_that_is_cancelled_keeps_no_thread() -> None:
    """A program would not end before it."""
    before = set(threading.enumerate())

    async def wait() -> None:
        async with Origin(versions=["h1"]) as origin:
            with anyio.move_on_after(0.1):
                await origin.ended(timeout=600)

    anyio.run(wait)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
