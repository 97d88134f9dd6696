"""All that httpx2 does above a transport, done over ours against a real server; on uvloop too."""

from __future__ import annotations

import hashlib
import io
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest

import allswell
from tests.support.app import PASSWORD, USER
from tests.support.servers import ServerInfo

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The event loops; uvloop is asyncio's other one."""
    return ("asyncio", {"use_uvloop": True}) if request.param == "uvloop" else request.param


@pytest.fixture(params=["h1", "h1-tls", "h2"])
async def client(
    request: pytest.FixtureRequest, origin: ServerInfo, trusting: ssl.SSLContext
) -> AsyncIterator[allswell.AsyncClient]:
    """A client with a base URL, for each way to talk to the origin; afterwards it must have ended cleanly."""
    base = origin.http_url if request.param == "h1" else origin.url
    assert base is not None
    http2 = request.param == "h2"
    # Without TLS, hypercorn does not answer our FIN until its own timeout: do not wait for it.
    grace = 0.1 if request.param == "h1" else 30.0
    async with allswell.AsyncClient(base_url=base, verify=trusting, http2=http2, grace=grace) as client:
        yield client
    assert client.close_report is not None
    assert client.close_report.connections
    assert request.param == "h1" or client.close_report.clean, str(client.close_report)


def _tls_client(trusting: ssl.SSLContext, origin: ServerInfo, **settings: Any) -> allswell.AsyncClient:
    return allswell.AsyncClient(base_url=origin.url, verify=trusting, **settings)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "PURGE"])
async def test_every_method_arrives(client: allswell.AsyncClient, method: str) -> None:
    shown = (await client.request(method, "/anything")).json()
    assert shown["method"] == method
    assert shown["body"] == ""


async def test_shortcuts_for_methods(client: allswell.AsyncClient) -> None:
    for call in (client.get, client.post, client.put, client.patch, client.delete, client.options):
        shown = (await call("/anything")).json()
        assert shown["method"] == call.__name__.upper()


async def test_head_has_no_body(client: allswell.AsyncClient) -> None:
    response = await client.head("/bytes/1000")
    assert response.headers["content-length"] == "1000"
    assert response.content == b""
    assert (await client.get("/bytes/10")).content == b"0123456789"


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_body(client: allswell.AsyncClient, status: int) -> None:
    response = await client.get(f"/status/{status}")
    assert (response.status_code, response.content) == (status, b"")
    assert (await client.get("/status/200")).content == b"as you wish"


async def test_json_data_and_params(client: allswell.AsyncClient) -> None:
    shown = (await client.post("/anything", json={"a": [1]}, params={"q": "ä b"})).json()
    assert shown["body"] == '{"a":[1]}'
    assert shown["headers"]["content-type"] == "application/json"
    assert shown["query"] == "q=%C3%A4+b"
    shown = (await client.post("/anything", data={"a": "1", "b": "x y"})).json()
    assert shown["body"] == "a=1&b=x+y"
    assert shown["headers"]["content-length"] == "9"


async def test_files_as_multipart(client: allswell.AsyncClient) -> None:
    big = b"0123456789abcdef" * 20_000
    files: dict[str, Any] = {"small": ("a.txt", b"hello", "text/plain"), "big": ("b.bin", io.BytesIO(big))}
    shown = (await client.post("/anything", files=files, data={"field": "value"})).json()
    assert shown["headers"]["content-type"].startswith("multipart/form-data; boundary=")
    assert int(shown["headers"]["content-length"]) == len(shown["body"])
    assert 'name="small"; filename="a.txt"' in shown["body"]
    assert 'name="field"' in shown["body"]
    assert big.decode() in shown["body"]


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
async def test_bytes_of_any_size(client: allswell.AsyncClient, size: int) -> None:
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    counted = (await client.post("/count", content=content)).json()
    assert counted == {"size": size, "sha256": hashlib.sha256(content).hexdigest()}


async def test_async_generator_is_sent_chunked(client: allswell.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d," % number
            yield b""  # says nothing: in particular not that this is the end

    shown = (await client.post("/anything", content=pieces())).json()
    assert shown["body"] == "".join(f"{number}," for number in range(100))
    assert "content-length" not in shown["headers"]


async def test_async_generator_with_a_length(client: allswell.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"hel"
        yield b"lo"

    shown = (await client.post("/anything", content=pieces(), headers={"Content-Length": "5"})).json()
    assert (shown["body"], shown["headers"]["content-length"]) == ("hello", "5")


async def test_sync_iterables_are_refused_as_by_httpx2(client: allswell.AsyncClient) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x"

    with pytest.raises(RuntimeError, match="sync request"):
        await client.post("/anything", content=pieces())
    assert (await client.get("/status/200")).status_code == 200


async def test_upload_and_download_at_once(client: allswell.AsyncClient) -> None:
    """Each piece is sent only when the echo of the one before has come: both directions are open at once."""
    import anyio

    heard = anyio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal heard
        for number in range(5):
            heard = anyio.Event()
            yield b"<%d>" % number
            await heard.wait()

    got = b""
    with anyio.fail_after(30):
        async with client.stream("POST", "/echo", content=pieces()) as response:
            async for piece in response.aiter_bytes():
                got += piece
                if got.endswith(b">"):
                    heard.set()
    assert got == b"<0><1><2><3><4>"


async def test_streaming_responses(client: allswell.AsyncClient) -> None:
    async with client.stream("GET", "/lines/50") as response:
        lines = [line async for line in response.aiter_lines()]
    assert lines == [f"line {number}" for number in range(50)]
    async with client.stream("GET", "/bytes/300000") as response:
        sizes = [len(chunk) async for chunk in response.aiter_bytes(chunk_size=100_000)]
    assert sizes == [100_000] * 3
    assert response.num_bytes_downloaded == 300_000
    async with client.stream("GET", "/bytes/1000") as response:
        assert len(await response.aread()) == 1000
    assert response.elapsed.total_seconds() > 0


async def test_gzip_is_decoded(client: allswell.AsyncClient) -> None:
    response = await client.get("/gzip/hello")
    assert (response.text, response.headers["content-encoding"]) == ("hello", "gzip")


async def test_server_sent_events(client: allswell.AsyncClient) -> None:
    async with client.sse("/events/3") as source:
        events = [(event.event, event.id, event.data) async for event in source]
    assert events == [("tick", "0", "0"), ("tick", "1", "1"), ("tick", "2", "2")]


async def test_redirects_reuse_the_connection(client: allswell.AsyncClient) -> None:
    response = await client.get("/redirect/5", follow_redirects=True)
    assert response.json()["path"] == "/anything"
    assert [each.status_code for each in response.history] == [302] * 5
    ports = {each.extensions["network_stream"].get_extra_info("client_addr") for each in [*response.history, response]}
    assert len(ports) == 1
    response = await client.get("/redirect/1")
    assert response.next_request is not None
    with pytest.raises(httpx2.TooManyRedirects):
        await client.get("/redirect/30", follow_redirects=True)


async def test_redirect_sends_the_body_again(client: allswell.AsyncClient) -> None:
    response = await client.post("/redirect/2?status=307", content=b"again", follow_redirects=True)
    assert (response.json()["method"], response.json()["body"]) == ("POST", "again")

    async def once() -> AsyncIterator[bytes]:
        yield b"once"

    with pytest.raises(httpx2.StreamConsumed):
        await client.post("/redirect/1?status=307", content=once(), follow_redirects=True)
    assert (await client.get("/status/200")).status_code == 200


async def test_cookies_persist(client: allswell.AsyncClient) -> None:
    await client.get("/set-cookie/vanilla")
    assert client.cookies["flavour"] == "vanilla"
    assert (await client.get("/anything")).json()["headers"]["cookie"] == "flavour=vanilla"


async def test_auth_flows(client: allswell.AsyncClient) -> None:
    assert (await client.get("/basic")).status_code == 401
    assert (await client.get("/basic", auth=(USER, PASSWORD))).text == "come in"
    response = await client.post("/digest", auth=httpx2.DigestAuth(USER, PASSWORD), content=b"body")
    assert response.text == "come in"
    assert [each.status_code for each in response.history] == [401]

    class Custom(httpx2.Auth):
        requires_response_body = True

        def auth_flow(self, request: httpx2.Request) -> Any:
            response = yield request
            request.headers["X-Seen"] = response.text
            yield request

    assert (await client.get("/anything", auth=Custom())).json()["headers"]["x-seen"].startswith("{")


async def test_informational_responses(origin: ServerInfo, trusting: ssl.SSLContext) -> None:
    """On HTTP/2, the only version in which hypercorn can; HTTP/1.1 is in test_informational.py."""
    seen: list[allswell.ResponseHead] = []

    async def hear(head: allswell.ResponseHead) -> None:
        seen.append(head)

    async with _tls_client(trusting, origin) as client:
        response = await client.get("/hints", extensions={"informational": hear})
    assert response.text == "hinted"
    assert [head.status for head in seen] == [103]
    assert [(name.lower(), value) for name, value in seen[0].headers if name.lower() == b"link"] == [
        (b"link", b"</style.css>; rel=preload; as=style")
    ]
    assert response.extensions["informational"] == seen


async def test_websocket(origin: ServerInfo, trusting: ssl.SSLContext) -> None:
    """Although the client speaks HTTP/2 with the same origin: there is no Upgrade header in that."""
    import anyio

    async with _tls_client(trusting, origin) as client:
        async with client.websocket(f"wss://localhost:{origin.port}/talk", subprotocols=["chat"]) as talk:
            assert talk.subprotocol == "chat"
            assert (await client.get("/status/200")).http_version == "HTTP/2"
            await talk.send_text("hello")
            assert await talk.receive_text() == "hello"
            await talk.send_bytes(b"\x00" * 60_000)
            assert await talk.receive_bytes() == b"\x00" * 60_000
            with anyio.fail_after(30):
                await (await talk.ping()).wait()
        async with client.websocket(f"ws://127.0.0.1:{origin.http_port}/talk") as talk:
            await talk.send_json({"a": 1})
            assert await talk.receive_json() == {"a": 1}
            with anyio.fail_after(30):
                await talk.close()
    assert client.close_report is not None
    assert client.close_report.clean, str(client.close_report)


async def test_websocket_closed_by_the_server(origin: ServerInfo, trusting: ssl.SSLContext) -> None:
    import anyio
    from httpx2.websockets import WebSocketDisconnect

    ends: list[allswell.ConnectionEnd] = []
    pool = allswell.ConnectionPool(ssl_context=trusting, on_connection_end=ends.append)
    async with allswell.AsyncClient(pool=pool) as client:
        with anyio.fail_after(30):
            async with client.websocket(f"wss://localhost:{origin.port}/talk") as talk:
                await talk.send_text("bye")
                with pytest.raises(WebSocketDisconnect) as caught:
                    await talk.receive_text()
                assert (caught.value.code, caught.value.reason) == (4000, "as you said")
    # (The server may be gone by now, and its kernel answer our last words with RST.)
    assert [layer.said for layer in ends[0].layers][:2] == ["", "close_notify"]


async def test_websocket_refused(origin: ServerInfo, trusting: ssl.SSLContext) -> None:
    from httpx2.websockets import WebSocketUpgradeError

    async with _tls_client(trusting, origin) as client:
        with pytest.raises(WebSocketUpgradeError) as caught:
            async with client.websocket(f"wss://localhost:{origin.port}/refuse"):
                pytest.fail("the server refused")
        assert caught.value.response.status_code == 403


async def test_event_hooks_and_default_headers(origin: ServerInfo, trusting: ssl.SSLContext) -> None:
    seen: list[object] = []

    async def on_request(request: httpx2.Request) -> None:
        request.headers["X-Hook"] = "was here"
        seen.append(request.method)

    async def on_response(response: httpx2.Response) -> None:
        seen.append(response.status_code)

    hooks = {"request": [on_request], "response": [on_response]}
    async with _tls_client(
        trusting, origin, event_hooks=hooks, headers={"X-Default": "1"}, params={"p": "1"}
    ) as client:
        shown = (await client.get("/anything", params={"q": "2"})).json()
    assert seen == ["GET", 200]
    assert (shown["headers"]["x-hook"], shown["headers"]["x-default"], shown["query"]) == ("was here", "1", "p=1&q=2")


async def test_raise_for_status_and_charset(client: allswell.AsyncClient) -> None:
    with pytest.raises(httpx2.HTTPStatusError):
        (await client.get("/status/500")).raise_for_status()
    response = await client.get("/lines/1")
    assert response.charset_encoding == "utf-8"
    assert response.text == "line 0\n"
