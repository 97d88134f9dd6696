"""Responses that come before the request was sent: what becomes of the rest, and of the response, in every version."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from allswell import AsyncClient
from allswell._config import Timeouts
from tests.versions.peers import VERSIONS, Side, serving

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

#: No timeouts: what would wait for ever hangs.
PATIENT = Timeouts(None, None, None, None, None)
SIZE = 200_000

#: How the peer sees that the rest of a request will not come (NO_ERROR, H3_NO_ERROR).
STOPPED = {"h1": "the connection", "h2": 0, "h3": 0x100}
#: And that an exchange was given up (CANCEL, H3_REQUEST_CANCELLED).
CANCELLED = {"h1": "the connection", "h2": 8, "h3": 0x10C}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


class Pieces:
    """A body that is given piece by piece, and what became of it.

    :param size: bytes of it; ``None`` for one without end.
    :param first: awaited before the first piece.
    :ivar stopped: set when it was told to stop.
    """

    def __init__(self, size: int | None = SIZE, first: Callable[[], Awaitable[None]] | None = None) -> None:
        self._size = size
        self._first = first
        self._given = 0
        self.stopped = anyio.Event()

    @property
    def over(self) -> bool:
        """Whether it was stopped, perhaps before it began."""
        return self.stopped.is_set() or not self._given

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            if self._first is not None:
                await self._first()
            while self._size is None or self._given < self._size:
                self._given += 10_000
                yield bytes(10_000)
                await anyio.lowlevel.checkpoint()
        except BaseException:
            self.stopped.set()
            raise


def accepted(side: Side) -> None:
    """202 at once, complete; and the request is read to its end."""
    side.answer(202, b"later")


# Below 300: the upload goes on


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
async def test_all_is_sent_behind_an_early_success(version: str, kind: str) -> None:
    with serving(version, accepted, window=20_000) as server:
        async with server.pool() as pool:
            for path in ("/1", "/2"):
                content = bytes(SIZE) if kind == "bytes" else aiter(Pieces())
                response = await pool.request("POST", server.url + path, content=content, timeouts=PATIENT)
                assert (response.status, await response.read()) == (202, b"later")
                saw = await server.ended(path)
                assert (saw.size, saw.whole, saw.stopped) == (SIZE, True, None)
            assert len(pool.snapshot().routes[0].connections) == 1


async def test_all_is_sent_by_the_client_too(version: str) -> None:
    with serving(version, accepted, window=20_000) as server:
        async with server.pool() as pool, AsyncClient(pool=pool, timeout=None) as client:
            answer = await client.post(f"{server.url}/1", content=aiter(Pieces()))
            assert (answer.status_code, answer.text) == (202, "later")
            async with client.stream("POST", f"{server.url}/2", content=aiter(Pieces())) as answer:
                assert await answer.aread() == b"later"
            for path in ("/1", "/2"):
                saw = await server.ended(path)
                assert (saw.size, saw.whole, saw.stopped) == (SIZE, True, None)


async def test_all_is_sent_before_a_late_end(version: str) -> None:
    def handler(side: Side) -> None:
        side.head(200)
        side.when_sent(lambda: side.data(b"all", end=True))

    with serving(version, handler, window=20_000) as server:
        async with server.pool() as pool:
            response = await pool.request("POST", f"{server.url}/", content=aiter(Pieces()), timeouts=PATIENT)
            assert (response.status, await response.read()) == (200, b"all")
            saw = await server.ended("/")
            assert (saw.size, saw.whole, saw.stopped) == (SIZE, True, None)


async def test_the_end_is_there_before_the_upload_has_ended(version: str) -> None:
    """A body that waits for the end of the response."""
    answered = anyio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await answered.wait()
        yield b"second"

    with serving(version, accepted) as server:
        async with server.pool() as pool:
            async with pool.stream("POST", f"{server.url}/", content=body(), timeouts=PATIENT) as response:
                assert await response.read() == b"later"
                answered.set()
            saw = await server.ended("/")
            assert (saw.size, saw.whole, saw.stopped) == (11, True, None)


async def test_a_body_that_stalls_behind_the_response_is_stopped(version: str) -> None:
    stopped = anyio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    with serving(version, accepted) as server:
        async with server.pool() as pool:
            timeouts = Timeouts(read=3)
            response = await pool.request("POST", f"{server.url}/", content=body(), timeouts=timeouts)
            assert (response.status, await response.read()) == (202, b"later")
            assert stopped.is_set()
            assert (await server.ended("/")).stopped == CANCELLED[version]


async def test_a_body_that_resists_is_not_waited_for_long(version: str) -> None:
    go, over = anyio.Event(), anyio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        with anyio.fail_after(30, shield=True):
            await server.say("/", lambda side: side.answer(403, b"no"))
            await go.wait()
        over.set()

    with serving(version, lambda side: None) as server:
        async with server.pool() as pool:
            timeouts = Timeouts(read=3)
            response = await pool.request("POST", f"{server.url}/", content=body(), timeouts=timeouts)
            assert (response.status, await response.read()) == (403, b"no")
            assert not over.is_set()
            go.set()
            await over.wait()


async def test_a_caller_that_fails_waits_for_nothing(version: str) -> None:
    held, go, over = anyio.Event(), anyio.Event(), anyio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        with anyio.fail_after(30, shield=True):
            held.set()
            await go.wait()
        over.set()

    with serving(version, accepted) as server:
        async with server.pool() as pool:
            streamed = pool.stream("POST", f"{server.url}/", content=body(), timeouts=PATIENT)
            assert await (await streamed.__aenter__()).read() == b"later"
            await held.wait()
            error = ZeroDivisionError()
            assert not await streamed.__aexit__(type(error), error, None)  # it goes on
            assert not over.is_set()
            go.set()
            await over.wait()


async def test_a_server_that_takes_no_more_is_not_waited_for_long(version: str) -> None:
    def handler(side: Side) -> None:
        side.reads = False
        side.answer(202, b"later")

    pieces = Pieces(None)
    with serving(version, handler, window=20_000) as server:
        async with server.pool() as pool:
            timeouts = Timeouts(write=6, read=3)
            response = await pool.request("POST", f"{server.url}/", content=pieces, timeouts=timeouts)
            assert (response.status, await response.read()) == (202, b"later")
            assert pieces.over
            assert (await server.ended("/")).stopped == CANCELLED[version]


async def test_progress_behind_the_response_is_waited_for(version: str) -> None:
    """Each piece comes within the read timeout; all of them do not."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield b"x"
            await anyio.sleep(0.6)

    with serving(version, accepted) as server:
        async with server.pool() as pool:
            timeouts = Timeouts(read=3)
            await pool.request("POST", f"{server.url}/", content=body(), timeouts=timeouts)
            saw = await server.ended("/")
            assert (saw.size, saw.whole, saw.stopped) == (6, True, None)


async def test_a_response_that_nobody_read_may_be_closed_twice(version: str) -> None:
    with serving(version, accepted) as server:
        async with server.pool() as pool, pool.stream("GET", f"{server.url}/", timeouts=PATIENT) as response:
            while pool.snapshot().exchanges:  # until all of it is there
                await anyio.lowlevel.checkpoint()
            await response.aclose()
            await response.aclose()


async def test_what_the_body_raised_before_the_caller_leaves_is_not_lost(version: str) -> None:
    read, failed = anyio.Event(), anyio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await read.wait()
        failed.set()
        raise ZeroDivisionError

    with serving(version, accepted) as server:
        async with server.pool() as pool:
            streamed = pool.stream("POST", f"{server.url}/", content=body(), timeouts=PATIENT)
            response = await streamed.__aenter__()
            await response.read()
            read.set()
            await failed.wait()
            while pool.snapshot().exchanges:
                await anyio.lowlevel.checkpoint()
            with pytest.raises(ZeroDivisionError):
                await streamed.__aexit__(None, None, None)


async def test_what_the_body_raises_behind_the_response_reaches_the_caller(version: str) -> None:
    answered = anyio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await answered.wait()
        raise ZeroDivisionError

    with serving(version, accepted) as server:
        async with server.pool() as pool:
            streamed = pool.stream("POST", f"{server.url}/", content=body(), timeouts=PATIENT)
            response = await streamed.__aenter__()
            assert await response.read() == b"later"
            answered.set()
            with pytest.raises(ZeroDivisionError):
                await streamed.__aexit__(None, None, None)
            assert (await server.ended("/")).stopped == CANCELLED[version]


# 300 and above: the upload stops when the head comes


@pytest.mark.parametrize("status", [303, 403, 503])
@pytest.mark.parametrize("client", ["pool", "AsyncClient"])
async def test_a_refusal_needs_no_timeout(version: str, status: int, client: str) -> None:
    """HAProxy's 403 over HTTP/3 is of this kind: no more credit, and no STOP_SENDING."""

    def handler(side: Side) -> None:
        side.reads = side.path != "/refused"
        side.answer(status if side.path == "/refused" else 200, b"no")

    pieces = Pieces(None)
    with serving(version, handler, window=20_000) as server:
        async with server.pool() as pool:
            if client == "pool":
                response = await pool.request("POST", f"{server.url}/refused", content=pieces, timeouts=PATIENT)
                assert (response.status, await response.read()) == (status, b"no")
            else:
                async with AsyncClient(pool=pool, timeout=None) as short:
                    answer = await short.post(f"{server.url}/refused", content=pieces)
                    assert (answer.status_code, answer.content) == (status, b"no")
                return
            assert pieces.over
            saw = await server.ended("/refused")
            assert (saw.whole, saw.stopped) == (False, STOPPED[version])
            assert (await pool.request("GET", f"{server.url}/next", timeouts=PATIENT)).status == 200


async def test_the_head_of_a_refusal_stops_the_upload(version: str) -> None:
    """The rest of the response comes later, and is not lost; only then is the peer told."""

    async def refuse() -> None:
        await server.say("/", lambda side: side.head(403))

    pieces = Pieces(None, refuse)
    with serving(version, lambda side: None) as server:
        async with server.pool() as pool:
            url = f"{server.url}/"
            async with pool.stream("POST", url, content=pieces, timeouts=PATIENT) as response:
                assert response.status == 403
                await pieces.stopped.wait()
                assert server.saw["/"].stopped is None
                await server.say("/", lambda side: side.data(b"because", end=True))
                assert await response.read() == b"because"
            saw = await server.ended("/")
            assert (saw.whole, saw.stopped) == (False, STOPPED[version])


# The server says that it wants no more


async def test_connection_close_stops_the_upload() -> None:
    pieces = Pieces(None)
    with serving("h1", lambda side: side.answer(200, b"bye", ("Connection", "close"))) as server:
        async with server.pool() as pool:
            response = await pool.request("POST", f"{server.url}/", content=pieces, timeouts=PATIENT)
            assert (response.status, await response.read()) == (200, b"bye")
            assert pieces.over
            assert (await server.ended("/")).stopped == "the connection"


async def test_rst_stream_behind_a_response_stops_the_upload() -> None:
    def handler(side: Side) -> None:
        side.answer(200, b"enough")
        side.stop()

    pieces = Pieces(None)
    with serving("h2", handler) as server:
        async with server.pool() as pool:
            response = await pool.request("POST", f"{server.url}/", content=pieces, timeouts=PATIENT)
            assert (response.status, await response.read()) == (200, b"enough")
            assert pieces.over
            assert server.saw["/"].stopped is None  # there is nothing left to reset
            assert (await pool.request("GET", f"{server.url}/", timeouts=PATIENT)).status == 200
            assert len(pool.snapshot().routes[0].connections) == 1


@pytest.mark.parametrize("code", [0x100, 0x102, 0x10B, 0x10C, 0x21])
@pytest.mark.parametrize("when", ["before", "within", "behind"])
@pytest.mark.parametrize("status", [200, 413])
async def test_stop_sending_costs_no_response(code: int, when: str, status: int) -> None:
    """RFC 9114 §4.1: "Clients MUST NOT discard complete responses as a result of having their request terminated"."""

    def handler(side: Side) -> None:
        if when == "before":
            side.stop(code)
        side.head(status, length=5)
        if when == "within":
            side.stop(code)
        side.data(b"large", end=True)
        if when == "behind":
            side.stop(code)

    pieces = Pieces(None)
    with serving("h3", handler) as server:
        async with server.pool() as pool:
            response = await pool.request("POST", f"{server.url}/", content=pieces, timeouts=PATIENT)
            assert (response.status, await response.read()) == (status, b"large")
            assert pieces.over
            assert (await server.ended("/")).stopped in (code, 0x100)
            assert not pool.snapshot().exchanges


@pytest.mark.parametrize("uploads", [False, True])
@pytest.mark.parametrize("status", [200, 413])
@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_a_reset_without_an_error_completes_what_has_all_come(version: str, status: int, uploads: bool) -> None:
    """The content is as long as its Content-Length, and the reset names no error (NO_ERROR, H3_NO_ERROR)."""

    def handler(side: Side) -> None:
        side.head(status, length=5)
        side.data(b"large", end=False)
        side.abort(0)

    pieces = Pieces(None) if uploads else None
    with serving(version, handler) as server:
        async with server.pool() as pool:
            response = await pool.request("POST", f"{server.url}/", content=pieces, timeouts=PATIENT)
            assert (response.status, await response.read()) == (status, b"large")
            assert not pool.snapshot().exchanges
