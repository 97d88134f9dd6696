"""The origin answers in every version of HTTP, and sees how a client ends that ends well."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import httpx
import httpx2
import pytest

import allswell
from allswell.testing import (
    CloseNotify,
    ConnectionClose,
    Ended,
    Fin,
    GoAway,
    Origin,
    Request,
    RequestExecuted,
    RequestReceived,
    Response,
    ResponseSent,
    Rst,
    Said,
    Secured,
    StreamReset,
    Violation,
)

pytestmark = pytest.mark.anyio

VERSIONS = ["h1", "h2", "h3"]
NAMES = {"h1": "HTTP/1.1", "h2": "HTTP/2", "h3": "HTTP/3"}
#: What this client says last, from the top of its stack down.
GOODBYES: dict[str, list[type[Any]]] = {
    "h1": [CloseNotify, Fin],
    "h2": [GoAway, CloseNotify, Fin],
    "h3": [GoAway, ConnectionClose],
}


@asynccontextmanager
async def client_of(origin: Origin, version: str, **settings: Any) -> AsyncIterator[allswell.AsyncClient]:
    """Our client, which ends well, for this version."""
    if version == "h3":
        settings["http3"] = "only"
    context = origin.client_context() if origin.url.startswith("https") else True
    async with allswell.AsyncClient(verify=context, base_url=origin.url, **settings) as client:
        yield client


def kinds(origin: Origin, *of: type[Any]) -> list[type[Any]]:
    return [type(event) for event in origin.record.events if isinstance(event, of)]


@pytest.mark.parametrize("version", VERSIONS)
async def test_graceful_end(version: Any) -> None:
    async with Origin(versions=[version]) as origin:
        async with client_of(origin, version) as client:
            response = await client.get("/a?b=c")
            assert (response.http_version, response.text) == (NAMES[version], "ok")
        await origin.ended()
        origin.assert_ended_gracefully()
        origin.assert_no_reset()
        origin.assert_executed_once("/a?b=c")
        origin.assert_executed_once("GET /a?b=c")
        origin.assert_executed_once(response.request)
        goodbyes = GOODBYES[version]
        assert kinds(origin, GoAway, CloseNotify, Fin, Rst, ConnectionClose) == goodbyes
        story = [RequestReceived, RequestExecuted, ResponseSent, *goodbyes, Ended]
        assert kinds(origin, *story) == story
        assert [event.at for event in origin.record.events] == sorted(event.at for event in origin.record.events)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_versions_of_tls(version: ssl.TLSVersion) -> None:
    async with Origin() as origin:
        context = origin.client_context()
        context.maximum_version = version
        async with allswell.AsyncClient(verify=context) as client:
            await client.get(origin.url)
        await origin.ended()
        origin.assert_ended_gracefully()
        [secured] = origin.record.of(Secured)
        assert secured.version == version.name.replace("_", ".")


@pytest.mark.parametrize("http2", [False, True])
async def test_without_tls(http2: bool) -> None:
    async with Origin(tls=False) as origin:
        async with allswell.AsyncClient(http1=not http2, http2=http2) as client:
            assert (await client.get(origin.url)).http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        await origin.ended()
        origin.assert_ended_gracefully()


@pytest.mark.parametrize("version", VERSIONS)
async def test_routes(version: Any) -> None:
    """Responses, functions and coroutine functions; bodies larger than any window; concurrent requests."""

    async def slowly(request: Request) -> Response:
        await anyio.sleep(0.01)
        return Response(201, request.body[::-1], {"X-From": request.http_version})

    big = bytes(range(256)) * 1200
    async with Origin({"/big": Response(body=big), "/slowly": slowly}, versions=[version]) as origin:
        origin.route("/echo", lambda request: Response(body=request.body))
        async with client_of(origin, version) as client:
            assert (await client.get("/big")).content == big
            assert (await client.post("/echo", content=big)).content == big
            assert (await client.head("/big")).headers["content-length"] == str(len(big))
            assert (await client.get("/elsewhere")).status_code == 404

            async def one(number: int) -> None:
                response = await client.post("/slowly", content=b"abc%d" % number)
                assert (response.status_code, response.content) == (201, b"%dcba" % number)
                assert response.headers["x-from"] == NAMES[version]

            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(one, number)
        await origin.ended()
        origin.assert_ended_gracefully()
        assert [request.method for request in origin.requests[:3]] == ["GET", "POST", "HEAD"]
        with pytest.raises(AssertionError, match="POST /slowly was executed 8 times"):
            origin.assert_executed_once("POST /slowly")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_framing(framing: Any) -> None:
    async with Origin({"/": Response(body=b"x" * 70_000, framing=framing)}, versions=["h1"]) as origin:
        async with client_of(origin, "h1") as client:
            response = await client.get("/")
            assert response.content == b"x" * 70_000
            length, chunked = response.headers.get("content-length"), response.headers.get("transfer-encoding")
            assert (length, chunked) == {
                "length": ("70000", None),
                "chunked": (None, "chunked"),
                "close": (None, None),
            }[framing]
        await origin.ended()
        origin.assert_ended_gracefully()
        assert bool(framing == "close") == (kinds(origin, Said, CloseNotify)[0] is Said)  # who left first


@pytest.mark.parametrize("kind", [list, httpx.Headers, httpx2.Headers])
@pytest.mark.parametrize("version", VERSIONS)
async def test_header_fields_as_pairs(version: Any, kind: Any) -> None:
    """A field may come twice."""
    headers = kind([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    with Origin({"/": Response(headers=headers)}, versions=[version]) as origin:
        async with client_of(origin, version) as client:
            assert (await client.get("/")).headers.get_list("set-cookie") == ["a=1", "b=2"]


async def test_large_uploads_are_invited() -> None:
    routes = {"/": lambda request: Response(body=b"%d" % len(request.body))}
    async with Origin(routes, versions=["h1"]) as origin, client_of(origin, "h1") as client:
        response = await client.put("/", content=bytes(3_000_000), headers={"Expect": "100-continue"})
        assert response.text == "3000000"


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_a_cancelled_request_is_seen_as_a_stream_reset(version: Any) -> None:
    async with Origin({"/": Response(body=b"x" * 1000)}, versions=[version]) as origin:
        origin.stall()
        async with client_of(origin, version) as client:
            async with client.stream("GET", "/") as response, aclosing(response.aiter_raw()) as pieces:
                await anext(pieces)
            await origin.seen(StreamReset)
        await origin.ended()
        origin.assert_ended_gracefully()
        with pytest.raises(AssertionError, match=r"RST_STREAM 0x8|STOP_SENDING 0x10c|RESET_STREAM 0x10c"):
            origin.assert_no_reset()


async def test_a_failing_handler_fails_the_test() -> None:
    def fail(request: Request) -> Response:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        async with Origin({"/": fail}) as origin, client_of(origin, "h1") as client:
            assert (await client.get("/")).status_code == 500


async def test_a_handler_must_return_a_response() -> None:
    with pytest.raises(TypeError, match="the handler of / returned None"):
        async with Origin({"/": lambda request: None}) as origin, client_of(origin, "h1") as client:  # type: ignore[dict-item, return-value]  # that is what is tried
            assert (await client.get("/")).status_code == 500


@pytest.mark.parametrize(
    ("error", "words", "make"),
    [
        (ValueError, "versions must be", lambda: Origin(versions=[])),
        (ValueError, "versions must be", lambda: Origin(versions=["h4"])),  # type: ignore[list-item]  # as above
        (ValueError, "HTTP/3 needs TLS", lambda: Origin(versions=["h3"], tls=False)),
        (ValueError, "does not begin with a slash", lambda: Origin({"hello": Response()})),
        (TypeError, "must be a Response or a handler", lambda: Origin({"/": "hello"})),  # type: ignore[dict-item]  # as above
        (ValueError, "from 200 to 999", lambda: Response(103)),
        (ValueError, "framing must be", lambda: Response(framing="none")),  # type: ignore[arg-type]  # as above
        (TypeError, "headers must be a mapping, or pairs", lambda: Response(headers=["a: b"])),  # type: ignore[list-item]  # as above
        (TypeError, "headers must be a mapping, or pairs", lambda: Response(headers={"a": 1})),  # type: ignore[dict-item]  # as above
        (TypeError, "headers must be a mapping, or pairs", lambda: Response(headers=iter([]))),  # type: ignore[arg-type]  # as above
        (ValueError, "must be more than 0", lambda: Origin().slow(0)),
        (ValueError, "times must be at least 1", lambda: Origin().refuse(0)),
        (ValueError, "must not be negative", lambda: Origin().goaway(-1)),
        (ValueError, "must not be negative", lambda: Origin().restart(-1)),
        (RuntimeError, "is not running", lambda: Origin().reset()),
        (RuntimeError, "is not running", lambda: Origin().stall()),
    ],
)
def test_bad_settings(error: type[Exception], words: str, make: Any) -> None:
    with pytest.raises(error, match=words):
        make()


def test_it_runs_once() -> None:
    with Origin() as origin:
        pass
    with pytest.raises(RuntimeError, match="an origin runs only once"):
        origin.__enter__()


async def test_waits_that_fail_tell_what_was_seen() -> None:
    async with Origin() as origin, client_of(origin, "h2") as client:
        await client.get("/hello")
        with pytest.raises(TimeoutError, match=r"Rst was not seen 1 time in 0\.1 s(.|\n)*executed GET /hello"):
            await origin.seen(Rst, timeout=0.1)
        with pytest.raises(TimeoutError, match=r"1 connection had not come and ended in 0\.1 s(.|\n)*GET /hello"):
            await origin.ended(timeout=0.1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n: x\r\n\r\n", "illegal header line"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x01\x05\x00\x00\x00\x01", "without :method"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01", "16777215 bytes"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x09\x04\x00\x00\x00\x01", "CONTINUATION without a header"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x01\x01\x04\x00\x00\x00\x01\xff", "HPACK"),
    ],
)
def test_a_client_that_breaks_its_protocol(data: bytes, why: str) -> None:
    with Origin(tls=False) as origin, socket.create_connection(("127.0.0.1", origin.port)) as sock:
        sock.sendall(data)
        origin.wait_seen(Violation)
        [violation] = origin.record.of(Violation)
        assert why in violation.why


@pytest.mark.parametrize("size", [1, 7])
def test_requests_in_pieces(size: int) -> None:
    """Two pipelined requests, a few bytes at a time: each is answered, in order."""
    head = b"GET /%d HTTP/1.1\r\nHost: a\r\n%b\r\n"
    data = head % (1, b"") + head % (2, b"Connection: close\r\n")
    pieces: Sequence[bytes] = [data[start : start + size] for start in range(0, len(data), size)]
    with Origin(tls=False) as origin:
        with socket.create_connection(("127.0.0.1", origin.port)) as sock:
            for piece in pieces:
                sock.sendall(piece)
            answer = b""
            while more := sock.recv(1000):
                answer += more
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert [request.target for request in origin.requests] == ["/1", "/2"]


async def test_httpx2_requests_are_judged_by_method_and_target() -> None:
    async with Origin() as origin, client_of(origin, "h1") as client:
        await client.post("/a")
        origin.assert_executed_once(httpx2.Request("POST", origin.url + "/a"))
        with pytest.raises(AssertionError, match="GET /a was executed 0 times"):
            origin.assert_executed_once(Request("GET", "/a"))
