"""``make bench``: runs of many clients side by side, each in a process of its own, repeated in turns.

make bench                                  # everything, about half an hour
make bench ARGS=--quick                     # only what the goals compare, in about two minutes
make bench ARGS="--clients aiohttp --versions h1 --scenarios 50 json --repeat 9 --loop uvloop"

CPU time leads: user and system, of all threads of the client's process, per request or MB. It hardly depends on
what else the machine does. Each round runs every cell once, neighbours are those that are compared, and the
rounds go forwards and backwards: a busy moment hits all alike.

Where allswell-native is installed (``make native``), the client also runs with it, over HTTP/3: "allswell, native".
All else runs without it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tests.bench import fairness
from tests.bench.chart import chart
from tests.bench.clients import CLIENTS
from tests.bench.origin import caddy
from tests.bench.report import GOALS, NATIVE, OURS, Cell, Results, as_json, markdown, table, verdict_lines
from tests.bench.scenarios import ALL_VERSIONS, SCENARIOS
from tests.bench.worker import PROGRAM, Job, Run

#: For the estimate: how long a run takes by the clock beside what it measures (to start a process, import, connect and
#: warm up), and how much longer that takes than its CPU time, on a quiet machine.
_BESIDE, _LONGER = 1.0, 1.8


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for; tables and goals on the terminal, all runs and a chart on disk."""
    asked = _arguments(arguments)
    cells = _cells(asked)
    minutes = len(cells) * asked.repeat * (asked.seconds * _LONGER + _BESIDE) / 60
    print(f"{len(cells)} cells, {asked.repeat} runs of {asked.seconds:g} s of CPU each: about", end=" ")
    print(f"{max(1, round(minutes))} min", flush=True)
    results: Results = {cell: [] for cell in cells}
    with caddy() as origin:
        for number, cell in enumerate(_turns(cells, asked.repeat), 1):
            _progress(f"{number} of {len(cells) * asked.repeat}: {cell.version} {cell.scenario}, {cell.client}")
            job = Job(cell.client, cell.version, asked.loop, cell.scenario, asked.seconds, origin.url, str(origin.ca))
            results[cell].append(run_apart(job))
    _progress("")
    for spoken in asked.versions:
        print(table(spoken, results))
    print(verdict_lines(results))
    whole = not asked.clients and asked.scenarios == list(SCENARIOS)
    _save(asked, results, fairness.main() if whole else [])


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    others = [name for name in CLIENTS if name not in (*OURS, NATIVE)]
    scenarios = "\n".join(f"{name}: {scenario.title}" for name, scenario in SCENARIOS.items())
    parser.add_argument("--clients", nargs="*", choices=others, help="beside ours; all by default")
    parser.add_argument("--versions", nargs="*", choices=ALL_VERSIONS, default=ALL_VERSIONS)
    parser.add_argument("--scenarios", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS), help=scenarios)
    parser.add_argument("--repeat", type=int, help="runs of each cell, of which the median counts (5)")
    parser.add_argument("--seconds", type=float, help="of CPU time that each run measures (0.5)")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--quick", action="store_true", help="only the cells of goals, 3 runs of 0.2 s")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-results"), help="the folder for results.json, figures.md, chart.svg"
    )
    asked = parser.parse_args(arguments)
    asked.repeat = asked.repeat or (3 if asked.quick else 5)
    asked.seconds = asked.seconds or (0.2 if asked.quick else 0.5)
    return asked


def _cells(asked: argparse.Namespace) -> list[Cell]:
    ours = (*OURS, NATIVE) if find_spec("allswell_native") is not None else OURS
    compared = {
        Cell(goal.version, goal.scenario, name)
        for goal in GOALS
        if goal.ours in ours
        for name in (goal.ours, goal.other)
    }
    every = (
        Cell(spoken, scenario, name)
        for spoken in asked.versions
        for scenario in asked.scenarios
        for name in CLIENTS
        if spoken in CLIENTS[name][1]
        and spoken in SCENARIOS[scenario].versions
        and (name in ours if name in (*OURS, NATIVE) else not asked.clients or name in asked.clients)
    )
    return [cell for cell in every if cell in compared or not asked.quick]


def _turns(cells: list[Cell], repeat: int) -> Iterator[Cell]:
    for turn in range(repeat):
        yield from reversed(cells) if turn % 2 else cells


def run_apart(job: Job) -> Run | str:
    """The run, in a process of its own; or why it failed."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(job._asdict())]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "ALLSWELL_NATIVE": "1" if job.client == NATIVE else "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=job.seconds * 10 + 30, cwd=root, env=environment
        )
    except subprocess.TimeoutExpired:
        return "hung"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    if done.returncode:
        return next(iter(done.stderr.strip().splitlines()[-1:]), f"exit {done.returncode}").strip(" |+-")
    return Run(**json.loads(done.stdout))


def _save(asked: argparse.Namespace, results: Results, turns: list[fairness.Measured]) -> None:
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "repeat": asked.repeat,
        "seconds": asked.seconds,
        "loop": asked.loop,
        "python": sys.version,
        "machine": f"{platform.platform()}, {os.cpu_count()} CPUs",
        "clients": {cell.client: _release(cell.client) for cell in results},
    }
    fair = [{**each._asdict(), "reached": each.good} for each in turns]
    saved = {"settings": settings, **as_json(results), "fairness": fair}
    (asked.out / "results.json").write_text(json.dumps(saved, indent=1))
    (asked.out / "chart.svg").write_text(chart(results))
    (asked.out / "figures.md").write_text(markdown(results))
    print(f"\nin {asked.out}: results.json (all runs), figures.md, chart.svg")


def _release(client: str) -> str:
    try:
        return version("allswell" if client in OURS else "allswell-native" if client == NATIVE else client)
    except PackageNotFoundError:
        return "not installed"


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
