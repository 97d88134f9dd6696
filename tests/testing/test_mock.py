"""The mock: the origin's words without a socket, for any client of httpx2's kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import httpx2
import pytest

import allswell
from allswell.testing import MockOrigin, Request, RequestExecuted, RequestRefused, Response, ResponseSent

pytestmark = pytest.mark.anyio

CLIENTS = [httpx2.AsyncClient, allswell.AsyncClient]
URL = "https://example.org"


@pytest.fixture(params=CLIENTS, ids=["httpx2", "allswell"])
def client_class(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_routes_and_record(client_class: Any) -> None:
    async def create(request: Request) -> Response:
        await anyio.lowlevel.checkpoint()
        return Response(201, request.body.upper(), {"X-Kind": "made"})

    origin = MockOrigin({"/hello": Response(body=b"hello"), "/orders": create})
    async with client_class(transport=origin, base_url=URL) as client:
        assert (await client.get("/hello?a=b")).text == "hello"
        response = await client.post("/orders", content=b"one")
        assert (response.status_code, response.text, response.headers["x-kind"]) == (201, "ONE", "made")
        assert (await client.head("/hello")).headers["content-length"] == "5"
        assert (await client.get("/elsewhere")).status_code == 404
    origin.assert_executed_once("POST /orders")
    origin.assert_executed_once(response.request)
    origin.assert_executed_once("GET /hello?a=b")
    with pytest.raises(AssertionError, match=r"/hello was executed 0 times(.|\n)*executed GET /hello\?a=b"):
        origin.assert_executed_once("GET /hello")
    assert [request.method for request in origin.requests] == ["GET", "POST", "HEAD", "GET"]
    assert len(origin.record.of(ResponseSent)) == 4


@pytest.mark.parametrize("request_", [httpx.Request("GET", URL), httpx2.URL(URL), 3])
async def test_what_is_no_request_is_told(request_: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^the request must be text, an allswell\.testing\.Request or an httpx2\.Request"
    ):
        MockOrigin().assert_executed_once(request_)


async def test_header_fields_as_pairs() -> None:
    origin = MockOrigin({"/": Response(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])})
    async with allswell.AsyncClient(transport=origin, base_url=URL) as client:
        response = await client.get("/")
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert response.headers["content-length"] == "0"


async def test_a_failing_handler() -> None:
    def fail(request: Request) -> Response:
        raise LookupError("no such thing")

    origin = MockOrigin({"/": fail})
    async with allswell.AsyncClient(transport=origin, base_url=URL) as client:
        assert (await client.get("/")).status_code == 500
    with pytest.raises(LookupError, match="no such thing"):
        origin.raise_failures()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (MockOrigin.silence, httpx2.ReadTimeout),
        (MockOrigin.stall, httpx2.ReadTimeout),
        (MockOrigin.refuse, httpx2.ConnectError),
        (MockOrigin.truncate, httpx2.RemoteProtocolError),
        (MockOrigin.reset, httpx2.ReadError),
        (MockOrigin.restart, httpx2.RemoteProtocolError),
    ],
)
async def test_faults(client_class: Any, fault: Callable[[MockOrigin], None], error: type[Exception]) -> None:
    origin = MockOrigin({"/": Response(body=b"0123456789")})
    async with client_class(transport=origin, base_url=URL) as client:
        fault(origin)
        with pytest.raises(error):
            await client.get("/")
        origin.behave()
        assert (await client.get("/")).text == "0123456789"


@pytest.mark.parametrize("fault", [MockOrigin.reset, MockOrigin.restart])
async def test_a_fault_that_met_no_request_can_be_taken_back(fault: Callable[[MockOrigin], None]) -> None:
    origin = MockOrigin()
    async with allswell.AsyncClient(transport=origin, base_url=URL) as client:
        fault(origin)
        origin.behave()
        assert (await client.get("/")).text == "ok"


async def test_half_a_body_comes_before_the_fault(client_class: Any) -> None:
    origin = MockOrigin({"/": Response(body=b"0123456789")})
    origin.truncate(1)
    async with client_class(transport=origin, base_url=URL) as client, client.stream("GET", "/") as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"01234"
        with pytest.raises(httpx2.RemoteProtocolError):
            await anext(pieces)


async def test_reset_while_a_response_is_read(client_class: Any) -> None:
    origin = MockOrigin({"/": Response(body=b"0123456789")})
    async with client_class(transport=origin, base_url=URL) as client:
        async with client.stream("GET", "/") as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"01234"
            origin.reset()
            with pytest.raises(httpx2.ReadError):
                await anext(pieces)
        assert (await client.get("/")).text == "0123456789"


async def test_what_is_refused_is_not_executed(client_class: Any) -> None:
    origin = MockOrigin()
    origin.refuse(1)
    async with client_class(transport=origin, base_url=URL) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get("/")
        assert (await client.get("/")).text == "ok"
    assert len(origin.record.of(RequestRefused)) == len(origin.record.of(RequestExecuted)) == 1
    origin.assert_executed_once("/")


async def test_slow(client_class: Any) -> None:
    origin = MockOrigin({"/": Response(body=b"x" * 100)})
    origin.slow(1000)
    async with client_class(transport=origin, base_url=URL) as client:
        began = anyio.current_time()
        assert len((await client.get("/")).content) == 100
        assert anyio.current_time() - began > 0.08
