"""Retries: what failed for now is tried again where the caller asked for that, alike in every version."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from time import time
from typing import Any

import anyio
import httpx2
import pytest

import allswell
from allswell import AsyncClient, Retry
from allswell._pool import retries
from allswell.testing import Origin
from tests.support.peer import scripted_peer
from tests.support.peer_connection import PeerConnection
from tests.support.scripts import answers
from tests.versions.peers import VERSIONS, Server, Side, serving

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which are not waited for."""
    found: list[float] = []

    async def wait(_: object, seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(retries.Pauses, "wait", wait)
    return found


class Failing:
    """Answers so often with a status, then with 200.

    :ivar requests: how many came.
    """

    def __init__(self, times: int, status: int = 503, *fields: tuple[str, str]) -> None:
        self.times, self.status, self.fields = times, status, fields
        self.requests = 0

    def __call__(self, side: Side) -> None:
        side.when_sent(lambda: self._answer(side))

    def _answer(self, side: Side) -> None:
        self.requests += 1
        if self.requests <= self.times:
            side.answer(self.status, b"not now", *self.fields)
        else:
            side.answer(200, b"now")


@asynccontextmanager
async def client(server: Server, retry: Retry | None) -> AsyncIterator[AsyncClient]:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(server.pool())
        yield await stack.enter_async_context(AsyncClient(pool=pool, retry=retry))


async def test_it_is_off_by_default(version: str) -> None:
    with serving(version, failing := Failing(1)) as server:
        async with server.pool() as pool, AsyncClient(pool=pool) as made:
            assert (await made.get(server.url)).status_code == 503
    assert failing.requests == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_status_is_tried_again_and_the_ledger_tells(version: str, status: int, pauses: list[float]) -> None:
    with serving(version, failing := Failing(2, status)) as server:
        async with client(server, Retry()) as made:
            response = await made.get(server.url)
            assert made.pool is not None
            state = made.pool.snapshot()
    assert (response.status_code, response.content) == (200, b"now")
    assert [each.why for each in response.extensions["attempts"]] == [f"the server answered {status}"] * 2
    assert {each.processed for each in response.extensions["attempts"]} == {"perhaps"}
    assert {each.http_version for each in response.extensions["attempts"]} == {response.http_version}
    assert failing.requests == 3
    assert len(pauses) == 2
    assert state.connections == 1  # what was not wanted was read


async def test_the_last_attempt_is_the_answer(version: str, pauses: list[float]) -> None:
    with serving(version, failing := Failing(9)) as server:
        async with client(server, Retry(attempts=4)) as made:
            response = await made.get(server.url)
    assert (response.status_code, response.content) == (503, b"not now")
    assert failing.requests == 4
    assert len(response.extensions["attempts"]) == 3


async def test_other_statuses_are_answers(version: str, pauses: list[float]) -> None:
    with serving(version, Failing(9, 500)) as server:
        async with client(server, Retry()) as made:
            assert (await made.get(server.url)).status_code == 500
            again = await made.get(server.url, extensions={"retry": Retry(statuses=frozenset({500}))})
            assert len(again.extensions["attempts"]) == 2


async def test_only_what_does_no_harm_twice_unless_it_is_named(version: str, pauses: list[float]) -> None:
    with serving(version, failing := Failing(1)) as server:
        async with client(server, Retry()) as made:
            assert (await made.post(f"{server.url}/a", content=b"body")).status_code == 503
            failing.requests = 0
            assert (await made.put(f"{server.url}/b", content=b"body")).status_code == 200
            failing.requests = 0
            named = {"retry": Retry(methods=frozenset({"POST"}))}
            assert (await made.post(f"{server.url}/c", content=b"body", extensions=named)).status_code == 200
            assert [server.saw[path].size for path in ("/a", "/b", "/c")] == [4, 8, 8]  # whole each time


async def test_a_body_that_is_spent_is_not_sent_again(version: str, pauses: list[float]) -> None:
    async def once() -> AsyncIterator[bytes]:
        yield b"body"

    with serving(version, failing := Failing(1)) as server:
        async with client(server, Retry()) as made:
            assert (await made.put(server.url, content=once())).status_code == 503
    assert failing.requests == 1
    assert not pauses


async def test_it_can_be_said_for_one_request(version: str, pauses: list[float]) -> None:
    with serving(version, failing := Failing(1)) as server:
        async with client(server, None) as made:
            assert (await made.get(server.url, extensions={"retry": Retry()})).status_code == 200
        failing.requests = 0
        async with client(server, Retry()) as made:
            assert (await made.get(server.url, extensions={"retry": None})).status_code == 503
            wrong: Any = {"retry": 3}
            with pytest.raises(TypeError, match=r"allswell\.Retry"):
                await made.get(server.url, extensions=wrong)


class Theirs:
    """A setting of another package's, which wraps our transport."""


async def test_an_extension_of_the_same_name_is_not_ours(version: str, pauses: list[float]) -> None:
    with serving(version, failing := Failing(1)) as server:
        async with client(server, Retry()) as made:
            theirs: Any = {"retry": Theirs()}
            assert (await made.get(server.url, extensions=theirs)).status_code == 200
        failing.requests = 0
        async with client(server, None) as made:
            assert (await made.get(server.url, extensions=theirs)).status_code == 503


# --- how long


async def test_retry_after_is_waited_for(version: str, pauses: list[float]) -> None:
    with serving(version, Failing(2, 429, ("retry-after", "7"))) as server:
        async with client(server, Retry(backoff=0.1)) as made:
            assert (await made.get(server.url)).status_code == 200
    assert pauses == [7.0, 7.0]


async def test_retry_after_may_be_a_date(version: str, pauses: list[float]) -> None:
    with serving(version, Failing(1, 503, ("retry-after", formatdate(time() + 20, usegmt=True)))) as server:
        async with client(server, Retry(backoff=0.1)) as made:
            assert (await made.get(server.url)).status_code == 200
    assert 0.1 < pauses[0] <= 20


@pytest.mark.parametrize("said", ["31", "1" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_server_that_asks_for_too_much_is_answered_with_its_response(said: str, pauses: list[float]) -> None:
    with serving("h1", failing := Failing(9, 503, ("retry-after", said))) as server:
        async with client(server, Retry()) as made:
            assert (await made.get(server.url)).status_code == 503
    assert failing.requests == 1


DATES = ["Mon, 01 Jan 1990 00:00:00 GMT", f"1 Jan {10**20} 00:00:00 GMT", f"1 Jan 2026 00:00:00 +{10**16}"]


@pytest.mark.parametrize("said", ["soon", "-1", "", "Fri, 99 Foo 2026", "٣", *DATES])
async def test_what_asks_for_nothing_is_a_pause_as_any_other(said: str, pauses: list[float]) -> None:
    fields = () if not said.isascii() else (("retry-after", said),)
    with serving("h1", Failing(1, 503, *fields)) as server:
        async with client(server, Retry(backoff=0.25)) as made:
            assert (await made.get(server.url)).status_code == 200
    assert 0 <= pauses[0] <= 0.25
    assert not retries.retry_after([(b"Retry-After", said.encode())])


async def test_pauses_are_jittered_in_full_and_double(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    monkeypatch.setattr("allswell._pool.retries.random.uniform", uniform)
    with serving("h1", Failing(9)) as server:
        async with client(server, Retry(attempts=6, backoff=0.5, longest=3.0)) as made:
            await made.get(server.url)
    assert bounds == [(0.0, 0.5), (0.0, 1.0), (0.0, 2.0), (0.0, 3.0), (0.0, 3.0)]
    assert pauses == [high for _, high in bounds]


async def test_it_ends_with_the_total_timeout(version: str, pauses: list[float]) -> None:
    with serving(version, failing := Failing(9, 503, ("retry-after", "20"))) as server:
        async with client(server, Retry()) as made:
            assert (await made.get(server.url, extensions={"total_timeout": 15.0})).status_code == 503
    assert failing.requests == 1


async def test_closing_ends_a_pause(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pausing = anyio.Event()
    wait = retries.Pauses.wait

    async def told(self: retries.Pauses, seconds: float) -> None:
        pausing.set()
        await wait(self, seconds)

    monkeypatch.setattr(retries.Pauses, "wait", told)
    with serving(version, Failing(9, 503, ("retry-after", "29"))) as server:
        async with client(server, Retry()) as made, anyio.create_task_group() as tasks:

            async def get() -> None:
                with pytest.raises(httpx2.CloseError):
                    await made.get(server.url)

            tasks.start_soon(get)
            await pausing.wait()
            with anyio.fail_after(20):
                await made.pool.aclose()  # type: ignore[union-attr]  # it is the server's


async def test_a_body_that_is_not_wanted_is_not_waited_for(pauses: list[float]) -> None:
    def stalls(connection: PeerConnection) -> None:
        connection.read_request()
        if connection is peer.connections[0]:
            connection.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\nno")
            connection.read_until_end()
        else:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with scripted_peer(stalls) as peer:
        async with AsyncClient(retry=Retry(), timeout=None) as made:
            with anyio.fail_after(30):
                assert (await made.get(peer.url)).status_code == 200
    assert len(peer.connections) == 2


async def test_no_pause_begins_when_the_pool_closes() -> None:
    """Its answer came within the grace: it is what there is."""

    def unavailable(connection: PeerConnection) -> None:
        connection.read_request()
        connection.stall()
        connection.send(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 29\r\nContent-Length: 0\r\n\r\n")
        connection.read_until_end()

    with scripted_peer(unavailable) as peer:
        async with AsyncClient(retry=Retry(), grace=20) as made, anyio.create_task_group() as tasks:

            async def get() -> None:
                response = await made.get(peer.url)
                assert (response.status_code, response.extensions["attempts"]) == (503, [])

            tasks.start_soon(get)
            while not (made.pool and made.pool.snapshot().exchanges):  # noqa: ASYNC110  to be seen only
                await anyio.sleep(0.005)
            tasks.start_soon(made.aclose)
            while not (made.pool and made.pool.closing):  # noqa: ASYNC110  to be seen only
                await anyio.sleep(0.005)
            with anyio.fail_after(20):
                peer.release()
                await made.aclose()


async def test_a_pause_takes_its_time(version: str) -> None:
    with serving(version, Failing(1)) as server:
        async with client(server, Retry(backoff=0.02)) as made:
            assert (await made.get(server.url)).status_code == 200


async def test_requests_to_an_origin_share_a_budget(pauses: list[float]) -> None:
    with serving("h1", failing := Failing(99)) as server, serving("h1", other := Failing(99)) as elsewhere:
        async with client(server, Retry(attempts=2, budget=0.0)) as made:
            for _ in range(15):
                await made.get(server.url)
            assert failing.requests == 15 + 10
            await made.get(elsewhere.url)
            assert other.requests == 2  # another origin has its own
            await made.get(server.url, extensions={"retry": Retry(attempts=2, budget=1.0)})
            assert failing.requests == 25 + 2  # this one has earned a retry
            await made.get(server.url, extensions={"retry": Retry(attempts=3, budget=None)})
            assert failing.requests == 27 + 3


# --- errors


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have something done in the first pause."""

    def at_first_pause(action: Callable[[], object]) -> None:
        done: list[object] = []

        async def wait(*_: object) -> None:
            if not done:
                done.append(action())

        monkeypatch.setattr(retries.Pauses, "wait", wait)

    return at_first_pause


async def test_a_refused_connection_is_tried_again_even_for_post(started: Callable[..., None]) -> None:
    async with AsyncExitStack() as stack:
        held = stack.enter_context(socket.socket())  # so that nobody else listens there
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]

        def listen() -> None:
            held.close()
            stack.enter_context(scripted_peer(answers(), port=port))

        started(listen)
        async with AsyncClient(retry=Retry(), trust_env=False) as made:
            response = await made.post(f"http://127.0.0.1:{port}/", content=b"body")
    [attempt] = response.extensions["attempts"]
    assert (attempt.processed, attempt.http_version) == ("no", "")
    assert "refused" in str(attempt)


def _mute_once(connection: PeerConnection, count: list[int]) -> None:
    connection.read_request()
    count.append(1)
    if len(count) == 1:
        connection.read_until_end()
    else:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnow")
        connection.read_until_end()


async def test_a_read_timeout_is_tried_again(pauses: list[float]) -> None:
    count: list[int] = []
    with scripted_peer(lambda connection: _mute_once(connection, count)) as peer:
        async with AsyncClient(retry=Retry(), timeout=httpx2.Timeout(60.0, read=3)) as made:
            response = await made.get(peer.url)
    assert response.content == b"now"
    [attempt] = response.extensions["attempts"]
    assert (attempt.processed, attempt.http_version) == ("perhaps", "HTTP/1.1")


async def test_a_post_that_may_have_been_processed_is_not(pauses: list[float]) -> None:
    count: list[int] = []
    with scripted_peer(lambda connection: _mute_once(connection, count)) as peer:
        async with AsyncClient(retry=Retry(), timeout=httpx2.Timeout(60.0, read=2)) as made:
            with pytest.raises(httpx2.ReadTimeout):
                await made.post(peer.url, content=b"body")
    assert count == [1]


async def test_a_lost_connection_is_tried_again(pauses: list[float]) -> None:
    count: list[int] = []

    def leaves_once(connection: PeerConnection) -> None:
        connection.read_request()
        count.append(1)
        if len(count) > 1:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnow")
        connection.fin()

    with scripted_peer(leaves_once) as peer:
        async with AsyncClient(retry=Retry()) as made:
            assert (await made.get(peer.url)).content == b"now"


async def test_the_last_error_is_raised(pauses: list[float], closed_port: int) -> None:
    async with AsyncClient(retry=Retry(attempts=3), trust_env=False) as made:
        with pytest.raises(httpx2.ConnectError) as raised:
            await made.get(f"http://127.0.0.1:{closed_port}/")
    assert isinstance(raised.value.__cause__, allswell.ConnectFailed)
    assert len(pauses) == 2


async def test_what_will_not_pass_is_not_tried_again(pauses: list[float]) -> None:
    async with Origin(versions=["h1"]) as origin, AsyncClient(retry=Retry()) as made:
        with pytest.raises(httpx2.ConnectError, match="not trusted"):
            await made.get(origin.url)
        with pytest.raises(httpx2.UnsupportedProtocol):
            await made.get("ftp://127.0.0.1/")
    assert not pauses


async def test_through_a_proxy_that_forwards(pauses: list[float]) -> None:
    with serving("h1", failing := Failing(2)) as proxy:
        async with AsyncClient(proxy=proxy.url, retry=Retry(), trust_env=False) as made:
            response = await made.get("http://name.example/")
    assert response.status_code == 200
    assert failing.requests == 3
    assert len(response.extensions["attempts"]) == 2


def test_settings_are_checked() -> None:
    assert Retry(statuses=[503], methods={"POST"}) == Retry(statuses=frozenset({503}), methods=frozenset({"POST"}))
    with pytest.raises(ValueError, match="at least 1"):
        Retry(attempts=0)
    with pytest.raises(ValueError, match="budget must be at least 0, or None, not -1"):
        Retry(budget=-1)
    with pytest.raises(ValueError, match="longest must be a number, not NaN"):
        Retry(longest=math.nan)
    with pytest.raises(TypeError, match="statuses must be a whole number, not str"):
        Retry(statuses={"503"})  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="statuses must be at least 100"):
        Retry(statuses={True})
    with pytest.raises(TypeError, match="methods must be str, not bytes"):
        Retry(methods={b"POST"})  # type: ignore[arg-type]  # what is tested
    wrong: Any = "POST"
    with pytest.raises(TypeError, match="methods"):
        Retry(methods=wrong)
    with pytest.raises(TypeError, match="Retry"):
        AsyncClient(retry=3)  # type: ignore[arg-type]  # what is tested
