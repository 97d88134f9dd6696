"""What idle connections cost: ``python -m tests.bench.idle``.

Each is real: TLS, to an origin of its own (``n17.idle.example``, all of them one Caddy in another process). So what a
client keeps for each origin is counted, too. Each has carried one small request. For each client, version of HTTP and
number of connections, in a process of its own:

- memory: what the process holds more with them than without, for each;
- CPU time of a request on another connection, beside fifty of them and beside all (the least of many runs);
- CPU time of a second in which nothing happens; tasks and timers at its end;
- the close: time and CPU time until all goodbyes are said and answered, and how many were.

``--connections 10000`` needs as many file descriptors (``ulimit -Hn``), in both processes. aiohttp says no goodbyes.
(httpx2 looks at all its connections for each request. So it is not here.)
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter, process_time
from typing import NamedTuple
from urllib.parse import urlsplit

import trustme

from tests.bench.clients import OURS
from tests.bench.memory import held
from tests.bench.origin import caddy
from tests.support.certificates import NAMES, issue

_HOSTS = "idle.example"
#: Connections that are there before anything is counted.
_FIRST = 50
_AT_ONCE = 20


class Job(NamedTuple):
    """What to measure."""

    client: str
    version: str
    connections: int
    url: str
    ca: str


class Cost(NamedTuple):
    """What so many idle connections cost. Memory in KB, times in seconds.

    :ivar memory: of one connection.
    :ivar beside_few: CPU time of a request beside :data:`_FIRST` of them.
    :ivar beside_all: the same beside all.
    :ivar second: CPU time of one second.
    :ivar closing: by the clock.
    :ivar closing_cpu: CPU time of the same.
    :ivar answered: how many goodbyes were heard in full; ``None``: the client does not say.
    """

    memory: float
    beside_few: float
    beside_all: float
    second: float
    tasks: int
    timers: int
    closing: float
    closing_cpu: float
    answered: int | None


class Client(NamedTuple):
    """An open client.

    :ivar get: makes a request and returns the status.
    :ivar close: closes it. Returns how many connections ended cleanly, if that is known.
    """

    get: Callable[[str], Awaitable[int]]
    close: Callable[[], Awaitable[int | None]]


async def _here(host: str) -> list[str]:
    return ["127.0.0.1"]


@asynccontextmanager
async def _allswell(job: Job, context: ssl.SSLContext) -> AsyncIterator[Client]:
    import allswell

    pool = allswell.ConnectionPool(
        ssl_context=context,
        resolver=_here,
        coalescing=False,
        max_connections=None,
        max_keepalive_connections=None,
        keepalive_expiry=600,
        **OURS[job.version],
    )

    async def get(url: str) -> int:
        return (await pool.request("GET", url)).status

    async def close() -> int:
        return sum(end.clean for end in (await pool.aclose(timeout=60)).connections)

    yield Client(get, close)


@asynccontextmanager
async def _aiohttp(job: Job, context: ssl.SSLContext) -> AsyncIterator[Client]:
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Resolver(AbstractResolver):  # type: ignore[misc]  # aiohttp is not installed for this check
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
            family = socket.AF_INET
            return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

        async def close(self) -> None:
            return None

    connector = aiohttp.TCPConnector(ssl=context, limit=0, keepalive_timeout=600, resolver=Resolver())
    session = aiohttp.ClientSession(connector=connector)

    async def get(url: str) -> int:
        async with session.get(url) as response:
            await response.read()
            return int(response.status)

    yield Client(get, session.close)


_CLIENTS = {
    "allswell": (_allswell, ("h1", "h2", "h3")),
    "aiohttp": (_aiohttp, ("h1",)),
}


async def measure(job: Job) -> Cost:
    """Do it, in this process."""
    context = ssl.create_default_context(cafile=job.ca)
    port = urlsplit(job.url).port
    open_client, _ = _CLIENTS[job.client]
    async with open_client(job, context) as client:

        async def get(url: str) -> None:
            if await client.get(url) != 200:
                raise RuntimeError(f"another status for {url}")

        async def connect(numbers: range) -> None:
            left = iter(numbers)

            async def some() -> None:
                for number in left:
                    await get(f"https://n{number}.{_HOSTS}:{port}/small/{number}")

            await asyncio.gather(*(some() for _ in range(_AT_ONCE)))

        async def request(runs: int = 15, times: int = 100) -> float:
            taken = []
            for _ in range(runs):
                began = process_time()
                for number in range(times):
                    await get(f"{job.url}/small/{number}")
                taken.append((process_time() - began) / times)
            return min(taken)

        await connect(range(_FIRST))
        beside_few = await request()
        gc.collect()
        before = held().now
        await connect(range(_FIRST, _FIRST + job.connections))
        gc.collect()
        memory = (held().now - before) * 1024 / job.connections
        beside_all = await request()
        await asyncio.sleep(1)  # what has just ended may have something to do
        began = process_time()
        await asyncio.sleep(3)
        second = (process_time() - began) / 3
        timers = len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]  # there is no other way
        tasks = len(asyncio.all_tasks()) - 1
        wall, began = perf_counter(), process_time()
        answered = await client.close()
        closing, closing_cpu = perf_counter() - wall, process_time() - began
    return Cost(memory, beside_few, beside_all, second, tasks, timers, closing, closing_cpu, answered)


def measure_apart(client: str, version: str, connections: int) -> Cost:
    """The same, in a process of its own, with a server of its own."""
    with caddy(issue(trustme.CA(), *NAMES, f"*.{_HOSTS}")) as origin:
        job = Job(client, version, connections, origin.url, str(origin.ca))
        command = [sys.executable, "-m", "tests.bench.idle", "--job", json.dumps(job)]
        return Cost(*json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def _allow_files(count: int) -> None:
    import resource  # not on Windows

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < count:
        raise RuntimeError(f"this needs {count} file descriptors, and the limit is {most}: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


_HEAD = (
    f"{'':<24}{'memory':>10}{'a request, beside':>24}{'a second':>11}{'tasks':>7}{'timers':>8}{'closing':>11}"
    f"{'its CPU':>11}{'answered':>10}\n{'':<24}{'each':>10}{f'{_FIRST}':>12}{'all':>12}{'of nothing':>11}"
)


def line(name: str, cost: Cost) -> str:
    """As the terminal has it."""
    return (
        f"{name:<24}{cost.memory:>7.1f} KB{cost.beside_few * 1e6:>9.0f} µs{cost.beside_all * 1e6:>9.0f} µs"
        f"{cost.second * 1e3:>8.1f} ms{cost.tasks:>7}{cost.timers:>8}{cost.closing * 1e3:>8.0f} ms"
        f"{cost.closing_cpu * 1e3:>8.0f} ms{'–' if cost.answered is None else cost.answered:>10}"
    )


def main() -> None:
    """Measure what the command line says, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", choices=list(_CLIENTS), default=["allswell", "aiohttp"])
    parser.add_argument("--versions", nargs="+", choices=["h1", "h2", "h3"], default=["h1", "h2", "h3"])
    parser.add_argument("--connections", nargs="+", type=int, default=[1000])
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job is not None:
        job = Job(*asked.job)
        _allow_files(job.connections + 200)
        print(json.dumps(asyncio.run(measure(job))))
        return
    print(_HEAD)
    for connections in asked.connections:
        for version in asked.versions:
            for name in asked.clients:
                if version in _CLIENTS[name][1]:
                    told = f"{name}, {version}, {connections}"
                    print(line(told, measure_apart(name, version, connections)), flush=True)


if __name__ == "__main__":
    main()
