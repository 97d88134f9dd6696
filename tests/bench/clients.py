"""The clients that are compared, each behind one shape: an async context that gives a function from URL to response.

Each is set up as its documentation says for the job: one client for all requests, room for all that run at once, the
throw-away CA trusted, one version of HTTP and no other. Each reads the whole body, the status, and one field. With a
body to send, it is a POST.

A client is imported when it is opened: that is part of what a fresh process takes.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.bench.scenarios import Request


class Answer(NamedTuple):
    """What came.

    :ivar version: the version of HTTP that was spoken, in the client's own words.
    :ivar size: of the body.
    """

    version: Any
    status: int
    size: int
    etag: str | bytes


Fetch = Callable[[Request], Awaitable[Answer]]
Opened = AbstractAsyncContextManager[Fetch]

#: The versions of HTTP, and the words that clients have for each.
VERSIONS: dict[str, tuple[Any, ...]] = {
    "h1": ("HTTP/1.1", b"HTTP/1.1", (1, 1), 11, 2),
    "h2": ("HTTP/2", "HTTP/2.0", b"HTTP/2", 20, 3),
    "h3": ("HTTP/3", "HTTP/3.0", b"HTTP/3", 30),
}


class Setting(NamedTuple):
    """What a client has to know.

    :ivar version: ``"h1"``, ``"h2"`` or ``"h3"``.
    :ivar ca: the path of the CA's certificate.
    :ivar concurrency: requests that will run at once.
    """

    version: str
    ca: str
    concurrency: int


@cache
def _context(setting: Setting) -> ssl.SSLContext:
    """One for all clients of a process, as programs have that make several. The first client of a process makes it."""
    return ssl.create_default_context(cafile=setting.ca)


def _method(request: Request) -> str:
    return "GET" if request.body is None else "POST"


def _etag(headers: list[tuple[bytes, bytes]]) -> bytes:
    return next(value for name, value in headers if name.lower() == b"etag")


#: What tells allswell which version to speak.
OURS: dict[str, dict[str, Any]] = {
    "h1": {"http2": False},
    "h2": {"http1": False},
    "h3": {"http3": "only"},
}


@asynccontextmanager
async def allswell_pool(setting: Setting) -> AsyncIterator[Fetch]:
    """Ours, the engine alone."""
    import allswell

    limit = setting.concurrency
    async with allswell.ConnectionPool(
        ssl_context=_context(setting), max_keepalive_connections=limit, **OURS[setting.version]
    ) as pool:

        async def fetch(request: Request) -> Answer:
            url, headers, body = request
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            response = await pool.request(_method(request), url, headers=raw, content=body)
            return Answer(response.http_version, response.status, len(await response.read()), _etag(response.headers))

        yield fetch


@asynccontextmanager
async def allswell_client(setting: Setting) -> AsyncIterator[Fetch]:
    """Ours, with httpx2's interface."""
    import httpx2

    import allswell

    limits = httpx2.Limits(max_keepalive_connections=setting.concurrency)
    async with allswell.AsyncClient(verify=_context(setting), limits=limits, **OURS[setting.version]) as client:

        async def fetch(request: Request) -> Answer:
            response = await client.request(
                _method(request), request.url, headers=request.headers, content=request.body
            )
            return Answer(response.http_version, response.status_code, len(response.content), response.headers["etag"])

        yield fetch


@asynccontextmanager
async def allswell_native(setting: Setting) -> AsyncIterator[Fetch]:
    """The same, with the compiled loop for QUIC packets (``native/``)."""
    from allswell._quic import native

    if native.loops is None:
        raise RuntimeError("allswell-native is not installed, not fit, or switched off")
    async with allswell_client(setting) as fetch:
        yield fetch


@asynccontextmanager
async def httpx2(setting: Setting) -> AsyncIterator[Fetch]:
    """The continuation of httpx, on httpcore2."""
    import httpx2

    limits = httpx2.Limits(max_keepalive_connections=setting.concurrency)
    http2 = setting.version == "h2"
    async with httpx2.AsyncClient(verify=_context(setting), limits=limits, http1=not http2, http2=http2) as client:

        async def fetch(request: Request) -> Answer:
            response = await client.request(
                _method(request), request.url, headers=request.headers, content=request.body
            )
            return Answer(response.http_version, response.status_code, len(response.content), response.headers["etag"])

        yield fetch


@asynccontextmanager
async def httpcore2(setting: Setting) -> AsyncIterator[Fetch]:
    """httpx2's engine alone."""
    import httpcore2

    http2 = setting.version == "h2"
    async with httpcore2.AsyncConnectionPool(
        ssl_context=_context(setting), max_connections=100, http1=not http2, http2=http2
    ) as pool:

        async def fetch(request: Request) -> Answer:
            url, headers, body = request
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            response = await pool.request(_method(request), url, headers=raw, content=body)
            version = response.extensions["http_version"]
            return Answer(version, response.status, len(response.content), _etag(response.headers))

        yield fetch


@asynccontextmanager
async def aiohttp(setting: Setting) -> AsyncIterator[Fetch]:
    """aiohttp, its parser in C. A long body is given as a file, as it asks for: that is cheaper."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=_context(setting))) as session:

        async def fetch(request: Request) -> Answer:
            url, headers, body = request
            data = BytesIO(body) if body and len(body) > 1 << 20 else body
            async with session.request(_method(request), url, headers=headers, data=data) as response:
                size = len(await response.read())
                return Answer(tuple(response.version or ()), response.status, size, response.headers["etag"])

        yield fetch


@asynccontextmanager
async def niquests(setting: Setting) -> AsyncIterator[Fetch]:
    """The continuation of requests."""
    import niquests

    wanted = setting.version
    async with niquests.AsyncSession(
        disable_http1=wanted != "h1",
        disable_http2=wanted != "h2",
        disable_http3=wanted != "h3",
        pool_maxsize=setting.concurrency,
    ) as session:

        async def fetch(request: Request) -> Answer:
            url, headers, body = request
            response = await session.request(
                _method(request), url, headers=headers, data=body, verify=setting.ca
            )  # the session's own loses to the environment's
            size = len(response.content or b"")
            return Answer(response.http_version, response.status_code or 0, size, response.headers["etag"])

        yield fetch


@asynccontextmanager
async def curl_cffi(setting: Setting) -> AsyncIterator[Fetch]:
    """libcurl.

    Over HTTP/2 a long download now and then stalls when its first window is full (libcurl 8.23: WINDOW_UPDATE is not
    sent), without a harness too. Such a run is shown as failed, after ten seconds; the others count.
    """
    import curl_cffi

    versions = curl_cffi.CurlHttpVersion
    wanted = {"h1": versions.V1_1, "h2": versions.V2TLS, "h3": versions.V3ONLY}[setting.version]
    verify: Any = setting.ca  # a path will do, though the type says otherwise
    async with curl_cffi.AsyncSession(
        max_clients=setting.concurrency, verify=verify, http_version=wanted, timeout=10
    ) as session:

        async def fetch(request: Request) -> Answer:
            url, headers, body = request
            response = await session.request(_method(request), url, headers=headers, data=body)
            size = len(response.content)
            return Answer(response.http_version, response.status_code, size, response.headers["etag"] or "")

        yield fetch


@asynccontextmanager
async def pyreqwest(setting: Setting) -> AsyncIterator[Fetch]:
    """Rust's reqwest, on hyper and rustls, its event loop in a thread of its own.

    That thread sometimes aborts an interpreter that ends (PyGILState_Release while finalizing): see the worker's end.
    """
    from pathlib import Path

    from pyreqwest.client import ClientBuilder

    builder = ClientBuilder().add_root_certificate_pem(Path(setting.ca).read_bytes())
    builder = builder.http2_prior_knowledge() if setting.version == "h2" else builder.http1_only()
    async with builder.build() as client:

        async def fetch(request: Request) -> Answer:
            url, headers, body = request
            made = (client.get(url) if body is None else client.post(url).body_bytes(body)).headers(headers)
            response = await made.build().send()
            return Answer(response.version, response.status, len(await response.bytes()), response.headers["etag"])

        yield fetch


@asynccontextmanager
async def aioquic(setting: Setting) -> AsyncIterator[Fetch]:
    """aioquic's own asyncio client, as its example has it: one connection, made by the first request."""
    from tests.bench.aioquic_client import fetcher

    async with AsyncExitStack() as stack:
        opened: list[Fetch] = []

        async def fetch(request: Request) -> Answer:
            if not opened:
                to = urlsplit(request.url)
                assert to.hostname is not None
                assert to.port is not None
                opened.append(await stack.enter_async_context(fetcher(to.hostname, to.port, setting.ca)))
            return await opened[0](request)

        yield fetch


#: By name: how to open it, and which versions it speaks.
CLIENTS: dict[str, tuple[Callable[[Setting], Opened], frozenset[str]]] = {
    "allswell pool": (allswell_pool, frozenset(OURS)),
    "allswell": (allswell_client, frozenset(OURS)),
    "allswell, native": (allswell_native, frozenset({"h3"})),
    "httpcore2": (httpcore2, frozenset({"h1", "h2"})),
    "httpx2": (httpx2, frozenset({"h1", "h2"})),
    "aiohttp": (aiohttp, frozenset({"h1"})),
    "niquests": (niquests, frozenset({"h1", "h2", "h3"})),
    "curl_cffi": (curl_cffi, frozenset({"h1", "h2", "h3"})),
    "aioquic": (aioquic, frozenset({"h3"})),
    "pyreqwest": (pyreqwest, frozenset({"h1", "h2"})),
}
