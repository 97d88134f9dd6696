"""One run of one client in this process: warm up, fetch until so much CPU time is used, print what it took as JSON.

It is CPU time that ends a run, so that a busy machine makes it longer, and not of fewer requests.

The process that is measured imports little but the client, and begins to count before it does (:data:`PROGRAM`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from time import perf_counter, process_time
from typing import Any, NamedTuple

from tests.bench.clients import CLIENTS, VERSIONS, Answer, Fetch, Setting
from tests.bench.memory import held, restart_peak
from tests.bench.scenarios import SCENARIOS, Request, Scenario, requests

WARM_UP = 0.15
_LONGEST = 10  # times as long by the clock as what is asked for of the CPU

#: What the process runs: the clocks are read before anything is imported.
PROGRAM = """\
from time import perf_counter, process_time
began = perf_counter(), process_time()
from tests.bench.worker import Clocks, main
main(Clocks(*began))
"""


class Job(NamedTuple):
    """What to run.

    :ivar loop: ``"asyncio"`` or ``"uvloop"``.
    :ivar scenario: a name of :data:`SCENARIOS`.
    :ivar seconds: of CPU time to measure.
    :ivar url: the origin's.
    """

    client: str
    version: str
    loop: str
    scenario: str
    seconds: float
    url: str
    ca: str


class Run(NamedTuple):
    """What came of it.

    :ivar cpu: seconds of CPU time, user and system, of all threads of this process.
    :ivar rss: the most memory that the process held, in MB.
    :ivar first: how much more memory the first request took at its height than was held before it, in MB.
    :ivar closing: seconds of CPU time that closing the clients took, which is not in ``cpu`` (``"cold"`` only).
    """

    requests: int
    seconds: float
    cpu: float
    rss: float
    first: float
    closing: float = 0.0


class Clocks(NamedTuple):
    """Both at one moment."""

    wall: float
    cpu: float


def now() -> Clocks:
    """Both now. The CPU's is that of all threads."""
    return Clocks(perf_counter(), process_time())


class _Budget:
    """So many seconds of CPU time; asked after each request, it looks at that clock every 5 ms only, as that costs."""

    def __init__(self, seconds: float) -> None:
        wall, cpu = now()
        self._cpu_end = cpu + seconds
        self._wall_end = wall + seconds * _LONGEST
        self._look = wall
        self._spent = False

    def spent(self) -> bool:
        wall = perf_counter()
        if wall >= self._look:
            self._look = wall + 0.005
            self._spent = wall >= self._wall_end or process_time() >= self._cpu_end
        return self._spent


async def run(job: Job, warm_up: float = WARM_UP, began: Clocks | None = None) -> Run:
    """Do it.

    :param began: when the process began.
    :raises RuntimeError: when the client does not speak the version that it was told to, or a response is not what it
        should be.
    """
    scenario = SCENARIOS[job.scenario]
    job_requests = requests(job.url, scenario)
    match scenario.way:
        case "kept":
            return await _kept(job, scenario, job_requests, warm_up)
        case "cold":
            return await _cold(job, scenario, job_requests, warm_up)
        case "fresh":
            return await _fresh(job, scenario, job_requests, began or now())


async def _kept(job: Job, scenario: Scenario, all_requests: Iterator[Request], warm_up: float) -> Run:
    opening = SCENARIOS["1"]
    async with _opened(job, scenario) as fetch:
        await _checked(fetch, next(requests(job.url, opening, seed=1)), opening, job.version)
        request = next(all_requests)
        before = restart_peak()
        await _checked(fetch, request, scenario, job.version)
        first = held().peak - before
        if warm_up:
            await _fetch_for(warm_up, fetch, all_requests, scenario, job.version)
        began = now()
        count = await _fetch_for(job.seconds, fetch, all_requests, scenario, job.version)
        ended = now()
    return Run(count, ended.wall - began.wall, ended.cpu - began.cpu, held().peak, first)


async def _cold(job: Job, scenario: Scenario, all_requests: Iterator[Request], warm_up: float) -> Run:
    count, wall, cpu, closing, first = 0, 0.0, 0.0, 0.0, 0.0
    memory_before = restart_peak()
    for seconds in (warm_up, job.seconds):
        budget = _Budget(seconds)
        count, wall, cpu, closing = 0, 0.0, 0.0, 0.0
        while not count or not budget.spent():
            request = next(all_requests)
            began = now()
            async with _opened(job, scenario) as fetch:
                await _checked(fetch, request, scenario, job.version)
                ended = now()
            count, wall, cpu = count + 1, wall + ended.wall - began.wall, cpu + ended.cpu - began.cpu
            closing += now().cpu - ended.cpu
            first = first or held().peak - memory_before
    return Run(count, wall, cpu, held().peak, first, closing)


async def _fresh(job: Job, scenario: Scenario, all_requests: Iterator[Request], began: Clocks) -> Run:
    memory_before = held().now
    async with _opened(job, scenario) as fetch:
        await _checked(fetch, next(all_requests), scenario, job.version)
        ended = now()
    memory = held().peak
    return Run(1, ended.wall - began.wall, ended.cpu - began.cpu, memory, memory - memory_before)


def _opened(job: Job, scenario: Scenario) -> Any:
    open_client, _ = CLIENTS[job.client]
    return open_client(Setting(job.version, job.ca, scenario.at_once))


async def _fetch_for(
    seconds: float, fetch: Fetch, all_requests: Iterator[Request], scenario: Scenario, version: str
) -> int:
    budget = _Budget(seconds)

    async def one_after_another() -> int:
        count, last = 0, None
        while not count or not budget.spent():
            answer = await _checked(fetch, next(all_requests), scenario, version)
            if answer.etag == last:
                raise RuntimeError("the response is the last one again: it should vary")
            last = answer.etag
            count += 1
        return count

    if scenario.at_once == 1:
        return await one_after_another()
    async with asyncio.TaskGroup() as tasks:
        all_of_them = [tasks.create_task(one_after_another()) for _ in range(scenario.at_once)]
    return sum(task.result() for task in all_of_them)


async def _checked(fetch: Fetch, request: Request, scenario: Scenario, version: str) -> Answer:
    answer = await fetch(request)
    if answer.version not in VERSIONS[version]:
        raise RuntimeError(f"it was to speak {version}, and spoke {answer.version!r}")
    if answer.status != 200 or answer.size != scenario.size:
        raise RuntimeError(f"{answer.status} with {answer.size} bytes came, not 200 with {scenario.size}")
    return answer


def runner(loop: str) -> Callable[[Coroutine[Any, Any, Run]], Run]:
    """``asyncio.run``, or uvloop's."""
    if loop == "asyncio":
        return asyncio.run
    import uvloop

    return uvloop.run


def main(began: Clocks) -> None:
    """Run the job that the command line has, and print."""
    job = Job(**json.loads(sys.argv[1]))
    json.dump(runner(job.loop)(run(job, began=began))._asdict(), sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # how a client's threads take the end of the interpreter is not what is measured
