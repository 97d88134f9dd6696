"""What a tunnel costs: ``python -m tests.bench.proxies``. Apache is the proxy, Caddy the origin, HTTP/1.1 inside.

For each client: a request in a tunnel of its own, a request in a tunnel that is there, and a megabyte. The best of so
many rounds; the clients take turns, in one process, one request at a time.
"""

from __future__ import annotations

import argparse
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import perf_counter

import anyio
import httpx2

import allswell
from tests.servers.caddy import caddy
from tests.servers.proxies import apache_proxy
from tests.support.certificates import certificates

#: From a URL, and whether to close the connection afterwards, to the size of the body.
Fetch = Callable[[str, bool], Awaitable[int]]

_CLOSE = {"Connection": "close"}
_TIMES = 100
_BYTES = 10_000_000


def _context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates().ca))


@asynccontextmanager
async def allswell_client(proxy: str) -> AsyncIterator[Fetch]:
    async with allswell.AsyncClient(verify=_context(), proxy=proxy, http2=False) as client:

        async def fetch(url: str, close: bool) -> int:
            return len((await client.get(url, headers=_CLOSE if close else None)).content)

        yield fetch


@asynccontextmanager
async def httpx2_client(proxy: str) -> AsyncIterator[Fetch]:
    async with httpx2.AsyncClient(verify=_context(), proxy=proxy) as client:

        async def fetch(url: str, close: bool) -> int:
            return len((await client.get(url, headers=_CLOSE if close else None)).content)

        yield fetch


@asynccontextmanager
async def aiohttp_client(proxy: str) -> AsyncIterator[Fetch]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=_context())) as session:

        async def fetch(url: str, close: bool) -> int:
            async with session.get(url, proxy=proxy, headers=_CLOSE if close else None) as response:
                return len(await response.read())

        yield fetch


@asynccontextmanager
async def curl_cffi_client(proxy: str) -> AsyncIterator[Fetch]:
    from curl_cffi import CurlHttpVersion
    from curl_cffi.requests import AsyncSession

    ca = str(certificates().ca)
    async with AsyncSession(verify=ca, proxy=proxy, http_version=CurlHttpVersion.V1_1) as session:

        async def fetch(url: str, close: bool) -> int:
            return len((await session.get(url, headers=_CLOSE if close else None)).content)

        yield fetch


CLIENTS: dict[str, Callable[[str], AbstractAsyncContextManager[Fetch]]] = {
    "allswell": allswell_client,
    "httpx2": httpx2_client,
    "aiohttp": aiohttp_client,
    "curl_cffi": curl_cffi_client,
}


async def _measure(fetch: Fetch, url: str) -> tuple[float, float, float]:
    """Milliseconds for each of the three."""
    await fetch(url, False)
    began = perf_counter()
    for _ in range(_TIMES):
        await fetch(url, False)
    kept = perf_counter()
    for _ in range(_TIMES // 4):
        await fetch(url, True)
    fresh = perf_counter()
    assert await fetch(f"{url}/10mb", False) == _BYTES
    bulk = perf_counter()
    return (
        1000 * (fresh - kept) / (_TIMES // 4),
        1000 * (kept - began) / _TIMES,
        1000 * (bulk - fresh) / (_BYTES / 1e6),
    )


async def _main(rounds: int) -> None:
    best: dict[str, tuple[float, ...]] = {}
    with apache_proxy() as proxy, caddy() as origin:
        assert proxy.http_url is not None
        for _ in range(rounds):
            for name, make in CLIENTS.items():
                async with make(proxy.http_url) as fetch:
                    seen = await _measure(fetch, origin.url)
                best[name] = tuple(map(min, best.get(name, seen), seen))
    print(f"{'client':<12}{'new tunnel':>14}{'kept tunnel':>14}{'megabyte':>14}")
    for name, (fresh, kept, bulk) in best.items():
        print(f"{name:<12}{fresh:>11.2f} ms{kept:>11.2f} ms{bulk:>11.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    anyio.run(_main, parser.parse_args().rounds)
