"""The clients that the witness is tried on: each gets one URL and then ends, in the way of its own. And a handler."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from typing import Literal

import anyio
import httpx2
import pytest

import allswell
from allswell.testing import Origin, Request, Response

Get = Callable[[Origin, str], bytes]


def by_allswell(origin: Origin, path: str) -> bytes:
    """This client."""

    async def get() -> bytes:
        http3: Literal["only", False] = "only" if origin.versions == {"h3"} else False
        async with allswell.AsyncClient(verify=origin.client_context(), http3=http3) as client:
            return (await client.get(origin.url + path)).content

    return asyncio.run(get())


def by_httpx2(origin: Origin, path: str) -> bytes:
    """httpx2, synchronous."""
    with httpx2.Client(verify=origin.client_context(), http2=True, timeout=60) as client:
        return client.get(origin.url + path).content


def by_curl(origin: Origin, path: str) -> bytes:
    """curl."""
    if (curl := shutil.which("curl")) is None:
        pytest.skip("curl is not installed")
    command = [curl, "-sS", "--cacert", str(origin.ca_file), origin.url + path]
    return subprocess.run(command, check=True, capture_output=True).stdout


def by_aiohttp(origin: Origin, path: str) -> bytes:
    """aiohttp."""
    aiohttp = pytest.importorskip("aiohttp")

    async def get() -> bytes:
        session = aiohttp.ClientSession()
        try:
            async with session.get(origin.url + path, ssl=origin.client_context()) as response:
                body: bytes = await response.read()
                return body
        finally:
            await session.close()
            await origin.ended()  # it ends its connections when its loop goes round again

    return asyncio.run(get())


def by_niquests(origin: Origin, path: str) -> bytes:
    """niquests. It speaks HTTP/3 when it is told that an origin does."""
    niquests = pytest.importorskip("niquests")
    known = {("localhost", origin.port): ("localhost", origin.port)} if origin.versions == {"h3"} else None

    async def get() -> bytes:
        async with niquests.AsyncSession(quic_cache_layer=known) as session:
            body: bytes = (await session.get(origin.url + path, verify=str(origin.ca_file))).content
            return body

    return asyncio.run(get())


def by_curl_cffi(origin: Origin, path: str) -> bytes:
    """curl_cffi. It speaks HTTP/3 when it is told to."""
    curl_cffi = pytest.importorskip("curl_cffi")
    http_version = "v3only" if origin.versions == {"h3"} else None
    with curl_cffi.Session() as session:
        body: bytes = session.get(origin.url + path, verify=str(origin.ca_file), http_version=http_version).content
        return body


#: Of others.
CLIENTS: list[Get] = [by_httpx2, by_curl, by_aiohttp]


class Gate:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        self.open = False

    def let_through(self) -> None:
        """Answer all that wait, and all to come."""
        self.open = True

    async def __call__(self, request: Request) -> Response:
        while not self.open:  # noqa: ASYNC110  it is another thread that opens it
            await anyio.sleep(0.001)
        return Response(body=request.target.encode())
