"""What one response may cost the others, whatever its server sends: the time that it holds the event loop, and memory.

``python -m tests.bench.fairness [NAME]``; part of ``make bench``. A task that does nothing but have its turn measures
the CPU time of the event loop's thread between two turns, so a busy machine changes little. Hostile servers run in
processes of their own, and a total timeout of a second must end what they send; an honest one is asked for 30 MB.
Memory is what this process holds at most, above what it held with the connection made.
"""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, thread_time
from typing import Any, NamedTuple

from allswell import AllswellError, ConnectionPool
from allswell._config import Timeouts
from tests.bench.hostile import INPUTS
from tests.bench.memory import held, restart_peak
from tests.bench.origin import Origin, caddy
from tests.bench.scenarios import TEN_MB

#: The goals: seconds of CPU time that others wait at most, until a total timeout of 1 s has ended a request; MB.
SLICE, END, MEMORY = 0.020, 1.5, 40

_SETTINGS: dict[str, dict[str, Any]] = {"h1": {"http2": False}, "h2": {"http1": False}, "h3": {"http3": "only"}}


class Measured(NamedTuple):
    """What one input did.

    :ivar slice: the longest time that others waited, in seconds of CPU time.
    :ivar seconds: until the request was over.
    :ivar end: how.
    :ivar memory: MB at most.
    """

    name: str
    slice: float
    seconds: float
    end: str
    memory: float

    @property
    def good(self) -> bool:
        """Whether the goals are reached."""
        return self.slice <= SLICE and (self.end == "complete" or self.seconds <= END) and self.memory <= MEMORY


async def measure(name: str, url: str, ca: str, *, times: int = 1, total: float = 1.0) -> Measured:
    """Ask for it so many times, one after another."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last = thread_time()
        while True:
            await asyncio.sleep(0)
            now = thread_time()
            longest = max(longest, now - last)
            last = now

    context = ssl.create_default_context(cafile=ca)
    async with ConnectionPool(ssl_context=context, grace=0, **_SETTINGS[name[:2]]) as pool:
        await _connect(pool, url)
        gc.collect()
        gc.freeze()  # a full collection takes as long as there are modules: that is not what a response costs
        before = restart_peak()
        watcher = asyncio.create_task(watch())
        began = monotonic()
        end = "complete"
        size = 0
        for _ in range(times):
            try:
                async with pool.stream("GET", url, timeouts=Timeouts(read=None, total=total)) as response:
                    while piece := await response.receive():
                        size += len(piece)
            except AllswellError as error:
                end = str(error)
        if end == "complete" and size != times * TEN_MB:
            raise RuntimeError(f"{size} bytes came")
        seconds = monotonic() - began
        watcher.cancel()
    return Measured(name, longest, seconds, end, held().peak - before)


async def _connect(pool: ConnectionPool, url: str) -> None:
    """What is imported, and made, for the first connection is not what is measured."""
    await asyncio.sleep(0)
    if "/10mb/" in url:
        await pool.request("GET", url.replace("/10mb/", "/small/"))


@contextmanager
def hostile(name: str) -> Iterator[Origin]:
    """Its server, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.hostile", name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        yield Origin(said["url"], said["ca"])
    finally:
        process.kill()
        process.communicate()


def measure_all() -> Iterator[Measured]:
    """One input after another."""
    with caddy() as origin:
        for version in _SETTINGS:
            yield asyncio.run(
                measure(f"{version}, 30 MB", f"{origin.url}/10mb/fair", str(origin.ca), times=3, total=120.0)
            )
    for name in INPUTS:
        yield measure_hostile(name)


def measure_hostile(name: str) -> Measured:
    """One of the inputs that never end."""
    with hostile(name) as server:
        return asyncio.run(measure(name, server.url, str(server.ca)))


def line(one: Measured) -> str:
    """As the terminal has it."""
    verdict = "" if one.good else f"  over the goal of {SLICE * 1000:g} ms, {END:g} s, {MEMORY} MB"
    figures = f"{one.slice * 1000:7.1f} ms {one.seconds:7.2f} s {one.memory:5.1f} MB"
    return f"{one.name:<28} {figures}  {one.end[:60]}{verdict}"


def main() -> list[Measured]:
    """Measure all, line by line."""
    print(f"\n{'one response holds others up':<28} {'at most':>10} {'over after':>9} {'memory':>8}")
    found = []
    for one in measure_all():
        print(line(one), flush=True)
        found.append(one)
    return found


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure_hostile(sys.argv[1])._asdict()))
    else:
        main()
