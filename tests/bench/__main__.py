"""``make bench``: whole runs side by side, repeated and interleaved: a busy moment of the machine hits all alike.

make bench                                  # everything, some minutes
make bench ARGS=--quick                     # the same shape, in about two minutes
make bench ARGS="--clients aiohttp --versions h1 --repeat 9 --loop uvloop"
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.bench.chart import chart
from tests.bench.clients import CLIENTS
from tests.bench.origin import caddy
from tests.bench.report import OURS, SCENARIOS, Cell, Results, table, verdicts
from tests.bench.worker import Job, Run


def main() -> None:
    """Run what was asked for; table on the terminal, JSON and chart on disk."""
    asked = _arguments()
    names = [name for name in CLIENTS if name in OURS or not asked.clients or name in asked.clients]
    cells = [
        Cell(version, scenario, name)
        for version in asked.versions
        for scenario in asked.scenarios
        for name in names
        if version in CLIENTS[name][1] and (scenario != "upload" or version == "h3")
    ]
    results: Results = {cell: [] for cell in cells}
    with caddy() as origin:
        for number, (cell, left) in enumerate(_interleaved(cells, asked.repeat), 1):
            _progress(f"{number} of {number + left}: {cell.version} {cell.scenario}, {cell.client}")
            job = Job(
                cell.client,
                cell.version,
                asked.loop,
                SCENARIOS[cell.scenario],
                asked.seconds,
                origin.url,
                str(origin.ca),
            )
            results[cell].append(_run(job))
    _progress("")
    for version in asked.versions:
        print(table(version, results))
    print(verdicts(results))
    _save(asked, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    spoken = sorted(CLIENTS["allswell"][1])
    others = [name for name in CLIENTS if name not in OURS]
    parser.add_argument("--clients", nargs="*", choices=others, help="beside ours; all by default")
    parser.add_argument("--versions", nargs="*", choices=spoken, default=spoken)
    parser.add_argument("--scenarios", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--repeat", type=int, help="runs of each client, of which the median counts (5)")
    parser.add_argument("--seconds", type=float, help="how long each run measures (3)")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--quick", action="store_true", help="3 runs of 1 s")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="the folder for JSON and chart")
    asked = parser.parse_args()
    asked.repeat = asked.repeat or (3 if asked.quick else 5)
    asked.seconds = asked.seconds or (1.0 if asked.quick else 3.0)
    return asked


def _interleaved(cells: list[Cell], repeat: int) -> Iterator[tuple[Cell, int]]:
    """Each round runs every cell once; each starts elsewhere. With how many are still to come."""
    left = len(cells) * repeat
    for turn in range(repeat):
        start = turn * len(cells) // repeat
        for cell in cells[start:] + cells[:start]:
            left -= 1
            yield cell, left


def _run(job: Job) -> Run | str:
    """The run, in a process of its own; or why it failed."""
    command = [sys.executable, "-m", "tests.bench.worker", json.dumps(asdict(job))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=job.seconds + 30)
    except subprocess.TimeoutExpired:
        return "hung"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    if done.returncode:
        return next(iter(done.stderr.strip().splitlines()[-1:]), f"exit {done.returncode}")
    return Run(**json.loads(done.stdout))


def _save(asked: argparse.Namespace, results: Results) -> None:
    asked.out.mkdir(parents=True, exist_ok=True)
    runs = [
        {**cell._asdict(), "runs": [run if isinstance(run, str) else asdict(run) for run in all_runs]}
        for cell, all_runs in results.items()
    ]
    settings = {"repeat": asked.repeat, "seconds": asked.seconds, "loop": asked.loop, "python": sys.version}
    (asked.out / "results.json").write_text(json.dumps({"settings": settings, "results": runs}, indent=1))
    (asked.out / "chart.svg").write_text(chart(results))
    print(f"\nall runs: {asked.out / 'results.json'}; chart: {asked.out / 'chart.svg'}")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
