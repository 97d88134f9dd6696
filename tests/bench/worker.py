"""One run of one client in this process: warm up, fetch until the time is over, print what it took as JSON."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from tests.bench.clients import CLIENTS, VERSIONS, Fetch, Setting
from tests.bench.origin import TEN_MB

WARM_UP = 0.3


@dataclass(frozen=True)
class Job:
    """What to run.

    :ivar loop: ``"asyncio"`` or ``"uvloop"``.
    :ivar concurrency: small requests at once, or 0: download 10 MB, again and again; -1: upload as much.
    """

    client: str
    version: str
    loop: str
    concurrency: int
    seconds: float
    url: str
    ca: str


@dataclass(frozen=True)
class Run:
    """What came of it.

    :ivar cpu: seconds of this process's CPU time, of its threads too.
    :ivar rss: the most memory it held, in MB.
    """

    requests: int
    seconds: float
    cpu: float
    rss: float


async def run(job: Job, warm_up: float = WARM_UP) -> Run:
    """Do it.

    :raises RuntimeError: when the client does not speak the version that it was told to, or a body is not whole.
    """
    open_client, _ = CLIENTS[job.client]
    url, size = (job.url + "/10mb", TEN_MB) if job.concurrency == 0 else (job.url + "/", 5)
    body = bytes(TEN_MB) if job.concurrency < 0 else None
    if body is not None:
        url += "upload"
    async with open_client(Setting(job.version, job.ca, max(1, job.concurrency))) as fetch:
        spoken, got = await fetch(url, body)
        if spoken not in VERSIONS[job.version]:
            raise RuntimeError(f"{job.client} was to speak {job.version}, and spoke {spoken!r}")
        if got != size:
            raise RuntimeError(f"{got} bytes came, not {size}")
        await _fetch_for(warm_up, fetch, url, body, size, job.concurrency)
        began, cpu = perf_counter(), _cpu()
        requests = await _fetch_for(job.seconds, fetch, url, body, size, job.concurrency)
        seconds, cpu = perf_counter() - began, _cpu() - cpu
    return Run(requests, seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


async def _fetch_for(seconds: float, fetch: Fetch, url: str, body: bytes | None, size: int, concurrency: int) -> int:
    until = perf_counter() + seconds

    async def one_after_another() -> int:
        count = 0
        while perf_counter() < until:
            _, got = await fetch(url, body)
            if got != size:
                raise RuntimeError(f"{got} bytes came, not {size}")
            count += 1
        return count

    if concurrency <= 1:
        return await one_after_another()
    async with asyncio.TaskGroup() as tasks:
        all_of_them = [tasks.create_task(one_after_another()) for _ in range(concurrency)]
    return sum(task.result() for task in all_of_them)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def runner(loop: str) -> Callable[[Coroutine[Any, Any, Run]], Run]:
    """``asyncio.run``, or uvloop's."""
    if loop == "asyncio":
        return asyncio.run
    import uvloop

    return uvloop.run


if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[1]))
    json.dump(asdict(runner(job.loop)(run(job))), sys.stdout)
