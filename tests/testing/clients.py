"""The clients that the witness is tried on: each gets one URL and then ends, in the way of its own. And a handler."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable

import anyio
import httpx2
import pytest

from allswell.testing import Origin, Request, Response


def by_httpx2(origin: Origin, path: str) -> None:
    """httpx2, synchronous."""
    with httpx2.Client(verify=origin.client_context(), http2=True, timeout=60) as client:
        client.get(origin.url + path)


def by_curl(origin: Origin, path: str) -> None:
    """curl."""
    if (curl := shutil.which("curl")) is None:
        pytest.skip("curl is not installed")
    subprocess.run([curl, "-sS", "--cacert", origin.ca_file, origin.url + path], check=True, capture_output=True)


def by_aiohttp(origin: Origin, path: str) -> None:
    """aiohttp."""
    aiohttp = pytest.importorskip("aiohttp")

    async def get() -> None:
        async with aiohttp.ClientSession() as session, session.get(origin.url + path, ssl=origin.client_context()) as r:
            await r.read()
        await origin.ended()  # it ends its connections when its loop goes round again

    asyncio.run(get())


CLIENTS: list[Callable[[Origin, str], None]] = [by_httpx2, by_curl, by_aiohttp]


class Gate:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        self.open = False

    async def __call__(self, request: Request) -> Response:
        while not self.open:  # noqa: ASYNC110  it is another thread that opens it
            await anyio.sleep(0.001)
        return Response(body=request.target.encode())
