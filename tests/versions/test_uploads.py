"""A body is the caller's code: it sees the caller's context variables, and what it raises reaches the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import anyio.lowlevel
import pytest

from allswell import AsyncClient
from allswell._config import Timeouts
from allswell._messages import Headers, ResponseHead
from tests.versions.peers import VERSIONS, Side, serving

pytestmark = pytest.mark.anyio

SOON = Timeouts(total=30)
request_id: ContextVar[str] = ContextVar("request_id", default="nobody's")


class Interrupted(BaseException):
    """Like KeyboardInterrupt, SystemExit, or what pytest.fail raises: not an Exception."""


def _echo_when_sent(side: Side) -> None:
    side.informational(103)
    side.when_sent(lambda: side.answer(200, b"done"))


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_callers_code_sees_the_callers_context(version: str) -> None:
    seen: dict[str, str] = {}

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await anyio.lowlevel.checkpoint()
        seen["body"] = request_id.get()
        yield b"y"

    def trailers() -> Headers:
        seen["trailers"] = request_id.get()
        return []

    async def hear(head: ResponseHead) -> None:
        seen["informational"] = request_id.get()

    async def trace(name: str, info: dict[str, Any]) -> None:
        seen[name.rpartition(".")[0].rpartition(".")[2]] = request_id.get()

    with serving(version, _echo_when_sent) as server:
        async with server.pool() as pool, AsyncClient(pool=pool) as client:
            for name in ("first", "second"):
                request_id.set(name)
                seen.clear()
                extensions = {"trailers": trailers, "informational": hear, "trace": trace, "total_timeout": 20}
                answer = await client.post(f"{server.url}/", content=body(), extensions=extensions)
                assert answer.text == "done"
                assert {"body", "trailers", "informational", "send_request_headers"} <= set(seen)
                assert set(seen.values()) == {name}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), Interrupted(), ZeroDivisionError()], ids=repr)
@pytest.mark.parametrize("where", ["body", "trailers", "informational", "trace"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_what_the_callers_code_raises_reaches_the_caller(version: str, where: str, error: BaseException) -> None:
    def fail(here: str) -> None:
        if here == where:
            raise error

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        fail("body")

    def trailers() -> Headers:
        fail("trailers")
        return []

    async def hear(head: ResponseHead) -> None:
        fail("informational")

    async def trace(name: str, info: dict[str, Any]) -> None:
        if "receive_response_headers" in name:
            fail("trace")

    with serving(version, _echo_when_sent) as server:
        async with server.pool() as pool, AsyncClient(pool=pool) as client:
            extensions = {"trailers": trailers, "informational": hear, "trace": trace, "total_timeout": 20}
            with pytest.raises(type(error)) as caught:
                await client.post(f"{server.url}/", content=body(), extensions=extensions)
            assert caught.value is error
            where = "nowhere"
            answer = await client.post(f"{server.url}/", content=body(), extensions=extensions)
            assert answer.text == "done"
