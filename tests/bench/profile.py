"""What holds our own speed: a profile of the hot path, in microseconds per request.

    python -m tests.bench.profile                       # the pool, HTTP/1.1, 50 at once
    python -m tests.bench.profile --client allswell --version h2 --scenario json --sort cumulative

cProfile makes Python functions look dearer than they are beside C ones: compare rows, and believe ``make bench``.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
from pathlib import Path

from tests.bench.clients import CLIENTS, VERSIONS
from tests.bench.origin import caddy
from tests.bench.scenarios import SCENARIOS
from tests.bench.worker import Job, run, runner


def main() -> None:
    """Profile one client, print the dearest functions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--client", choices=list(CLIENTS), default="allswell pool")
    parser.add_argument("--version", choices=list(VERSIONS), default="h1")
    parser.add_argument(
        "--scenario", choices=[name for name, each in SCENARIOS.items() if each.way != "fresh"], default="50"
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--sort", choices=["own", "cumulative"], default="own")
    parser.add_argument("--rows", type=int, default=45)
    asked = parser.parse_args()
    profiler = cProfile.Profile()
    with caddy() as origin:
        job = Job(asked.client, asked.version, asked.loop, asked.scenario, asked.seconds, origin.url, str(origin.ca))
        profiler.enable()
        done = runner(job.loop)(run(job, warm_up=0.0))
        profiler.disable()
    print(f"{done.requests / done.seconds:.0f} requests/s under the profiler, {done.requests} in all\n")
    print(_rows(pstats.Stats(profiler), done.requests, asked.sort, asked.rows))


def _rows(stats: pstats.Stats, requests: int, sort: str, count: int) -> str:
    lines = [f"{'own µs':>8}{'with callees':>14}{'calls':>8}   per request"]
    found = stats.stats.items()  # type: ignore[attr-defined]  # typeshed has no word for it
    for (file, line, name), (_, calls, own, cumulative, _) in sorted(
        found, key=lambda item: -item[1][2 if sort == "own" else 3]
    )[:count]:
        where = f"{_short(file)}:{line} {name}" if line else name
        lines.append(
            f"{own / requests * 1e6:>8.2f}{cumulative / requests * 1e6:>14.2f}{calls / requests:>8.2f}   {where}"
        )
    return "\n".join(lines)


def _short(file: str) -> str:
    path = Path(file)
    for folder in map(Path, sorted(sys.path, key=len, reverse=True)):
        if folder.name and path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return str(path)


if __name__ == "__main__":
    main()
