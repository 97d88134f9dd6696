"""SDKs with our client inside, against fake services: they work, and every connection ends clean.

Here nothing is about an SDK's features; it is about what an SDK asks of its HTTP client: answers, streams, retries,
timeouts and cancellation, each on a connection that goes on afterwards.
"""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from allswell import ConnectionPool
from tests.integrations.fakes import ANSWER, PARTS
from tests.integrations.needs import needed
from tests.integrations.sdks import SDKS, Place, Sdk, Talk
from tests.support.certificates import certificates
from tests.support.hypercorn import hypercorn
from tests.support.servers import ServerInfo

_ROOT = Path(__file__).parents[2]
_LONG = 60.0  # seconds: nothing here is about how quick the machine is

pytestmark = pytest.mark.anyio


def _those(loops: Callable[[Sdk], tuple[str, ...]]) -> pytest.MarkDecorator:
    """The SDKs that can, each on the event loops where it can."""
    chosen = [
        pytest.param(sdk, loop, id=f"{sdk.name}-{loop}", marks=_marks(sdk))
        for sdk in SDKS.values()
        for loop in loops(sdk)
    ]
    return pytest.mark.parametrize(("sdk", "anyio_backend"), chosen)


def _marks(sdk: Sdk) -> list[pytest.MarkDecorator]:
    return [] if sdk.broken is None else [pytest.mark.xfail(raises=sdk.broken, strict=True)]


_ALL = _those(lambda sdk: sdk.loops)
_STREAMING = _those(lambda sdk: sdk.streams)
_RETRYING = _those(lambda sdk: sdk.loops if sdk.retries else ())


@pytest.fixture(scope="session")
def services() -> Iterator[ServerInfo]:
    """All fake services, behind one real server."""
    with hypercorn("tests.integrations.fakes:app", "keep_alive_timeout = 300") as server:
        yield server


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return certificates().client_context()


@pytest.fixture
def word() -> str:
    return uuid4().hex


def _error(sdk: Sdk) -> type[Exception]:
    module, _, name = sdk.timeout.rpartition(".")
    error: type[Exception] = getattr(importlib.import_module(module), name)
    return error


def _all_well(pool: ConnectionPool) -> None:
    """Everything that this pool did ended clean, over HTTP/2."""
    assert pool.close_report is not None
    assert pool.close_report.connections
    assert pool.close_report.clean, str(pool.close_report)
    assert {end.http_version for end in pool.close_report.connections} == {"HTTP/2"}


async def _until_called(services: ServerInfo, trusting: ssl.SSLContext, word: str) -> None:
    """Wait until the service has the call: a machine may be slow."""
    async with ConnectionPool(ssl_context=trusting) as asking:
        url = f"{services.url}/calls/{word}/"
        while await (await asking.request("GET", url)).read() == b"0":  # noqa: ASYNC110  # it is in another process
            await anyio.sleep(0.01)


@_ALL
async def test_an_answer(sdk: Sdk, services: ServerInfo, trusting: ssl.SSLContext, word: str) -> None:
    needed(sdk.module)
    async with sdk.open(Place(f"{services.url}/plain/{word}", trusting, _LONG)) as talk:
        assert await talk.ask() == ANSWER
        assert await talk.ask() == ANSWER
    _all_well(talk.pool)


@_STREAMING
async def test_a_stream(sdk: Sdk, services: ServerInfo, trusting: ssl.SSLContext, word: str) -> None:
    needed(sdk.module)
    async with sdk.open(Place(f"{services.url}/plain/{word}", trusting, _LONG)) as talk:
        assert talk.stream is not None
        assert [part async for part in talk.stream() if part] == PARTS
        assert await talk.ask() == ANSWER
    _all_well(talk.pool)


@_RETRYING
async def test_a_busy_service(sdk: Sdk, services: ServerInfo, trusting: ssl.SSLContext, word: str) -> None:
    """The SDK calls again by itself."""
    needed(sdk.module)
    async with sdk.open(Place(f"{services.url}/busy/{word}", trusting, _LONG)) as talk:
        assert await talk.ask() == ANSWER
    _all_well(talk.pool)


@_ALL
async def test_a_service_that_says_nothing(sdk: Sdk, services: ServerInfo, trusting: ssl.SSLContext, word: str) -> None:
    """The SDK's own error of a timeout."""
    needed(sdk.module)
    async with sdk.open(Place(f"{services.url}/mute/{word}", trusting, 0.2)) as talk:
        with pytest.raises(_error(sdk)):
            await talk.ask()
    assert talk.pool.close_report is not None


@_ALL
async def test_a_call_that_is_cancelled(sdk: Sdk, services: ServerInfo, trusting: ssl.SSLContext, word: str) -> None:
    """The next one is answered, on a connection that was not harmed."""
    needed(sdk.module)
    async with sdk.open(Place(f"{services.url}/stall/{word}", trusting, _LONG)) as talk:
        async with anyio.create_task_group() as calls:
            calls.start_soon(talk.ask)
            await _until_called(services, trusting, word)
            calls.cancel_scope.cancel()
        assert await talk.ask() == ANSWER
    _all_well(talk.pool)


@_STREAMING
async def test_a_stream_that_is_left(sdk: Sdk, services: ServerInfo, trusting: ssl.SSLContext, word: str) -> None:
    """Cancelled in the middle, while the service makes it wait for more."""
    needed(sdk.module)
    async with sdk.open(Place(f"{services.url}/stall/{word}", trusting, _LONG)) as talk:
        seen = await _cut_after_the_first(talk)
        assert seen in (PARTS[:1], PARTS[:2])  # what has come already may be told after the cancellation
        assert await talk.ask() == ANSWER
    _all_well(talk.pool)


async def _cut_after_the_first(talk: Talk) -> list[str]:
    seen: list[str] = []
    parts = count()
    with anyio.CancelScope() as scope:
        assert talk.stream is not None
        async for part in talk.stream():
            if part:
                seen.append(part)
                if next(parts) == 0:
                    scope.cancel()
    return seen


async def test_a_websocket_of_httpx_ws(services: ServerInfo, trusting: ssl.SSLContext, anyio_backend: str) -> None:
    """It is made for httpx, and takes the raw stream from our transport."""
    httpx_ws = needed("httpx_ws")
    place = Place(services.url.replace("https", "wss"), trusting, _LONG)
    transport = place.transport()
    async with place.older_client(transport) as client, httpx_ws.aconnect_ws(place.url + "/talk", client) as socket:
        await socket.send_text(ANSWER)
        assert await socket.receive_text() == ANSWER
    assert transport.pool.close_report.clean, str(transport.pool.close_report)
