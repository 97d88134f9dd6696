"""The demo: requests over each version of HTTP to a local origin, then the close, layer by layer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import perf_counter

import anyio

import allswell
from demo.origin import TEN_MB, Origin, origin, silent_origin

#: Every version that the client speaks, and the settings that make it speak no other.
VERSIONS: Mapping[str, dict[str, bool | str]] = {
    "HTTP/1.1": {"http2": False},
    "HTTP/2": {"http1": False},
    "HTTP/3": {"http3": "only"},
}


async def talk(to: Origin, settings: Mapping[str, bool | str]) -> None:
    """A request, three at once, ten megabytes; and a close while a response is still on its way."""
    client = allswell.AsyncClient(verify=to.trust, base_url=to.url, timeout=30.0, grace=10.0, **settings)  # type: ignore[arg-type]  # see VERSIONS

    began = perf_counter()
    response = await client.get("/")
    _tell(f"GET /             {response.status_code} over {response.http_version}: {response.text.strip()!r}", began)

    began = perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(client.get, "/")
    _tell("GET / three times, at once", began)

    began = perf_counter()
    size = 0
    async with client.stream("GET", "/10mb") as response:
        async for piece in response.aiter_bytes():
            size += len(piece)
    assert size == TEN_MB
    _tell(f"GET /10mb         {size / 1e6 / (perf_counter() - began):.0f} MB/s, piece by piece", began)

    under_way = anyio.Event()

    async def trace(name: str, info: object) -> None:
        if name.endswith("send_request_headers.complete"):
            under_way.set()

    async def slow() -> None:
        began = perf_counter()
        response = await client.get("/slow", extensions={"trace": trace})
        _tell(f"GET /slow         {response.status_code}, whole, though the client was closing already", began)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slow)
        await under_way.wait()
        report = await client.aclose()
    print(f"\n{report}\n")


async def main() -> int:
    """Run it all; the exit status."""
    print(f"allswell {allswell.__version__}: an HTTP client that ends well\n")
    with origin() as to:
        print(f"An origin runs at {to.url} (hypercorn, with a certificate made a moment ago).\n")
        for version, settings in VERSIONS.items():
            print(f"━━ {version} " + "━" * (70 - len(version)))
            await talk(to, settings)

    print("━━ A server without manners " + "━" * 45)
    with silent_origin() as to:
        async with allswell.AsyncClient(verify=to.trust, grace=0.5) as client:
            began = perf_counter()
            response = await client.get(to.url)
            _tell(f"GET /             {response.status_code}; after that it never says another word", began)
    print(f"\n{client.close_report}\n")
    print(
        "We said all there was to say, waited no longer than the grace of 0.5 s, and the report tells who was silent."
    )
    print("Next: README.md for the code, `make test`, `make bench`.")
    return 0


def _tell(what: str, began: float) -> None:
    print(f"  {what:<72}{(perf_counter() - began) * 1000:>7.1f} ms")


if __name__ == "__main__":
    sys.exit(anyio.run(main))
