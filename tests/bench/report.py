"""What the runs say: medians, spreads, ratios to ours, and whether the goals were reached."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from tests.bench.origin import TEN_MB
from tests.bench.worker import Run

OURS = ("allswell pool", "allswell")

#: By name: requests at once; 0 for downloads of 10 MB, one after another; -1 for uploads.
SCENARIOS = {"1": 1, "50": 50, "10mb": 0, "upload": -1}

_TITLES = {
    "1": "small GETs, one at a time",
    "50": "small GETs, 50 at once",
    "10mb": "10 MB downloads",
    "upload": "10 MB uploads",
}


class Cell(NamedTuple):
    """What one figure is about."""

    version: str
    scenario: str
    client: str


class Goal(NamedTuple):
    """Ours is to reach so many times the rate of another."""

    version: str
    scenario: str
    ours: str
    other: str
    times: float


GOALS = (
    Goal("h1", "50", "allswell pool", "aiohttp", 1.0),
    Goal("h1", "50", "allswell pool", "httpcore2", 3.0),
    Goal("h1", "50", "allswell", "httpx2", 2.2),
    Goal("h1", "10mb", "allswell pool", "aiohttp", 1.0),
    Goal("h2", "50", "allswell pool", "httpcore2", 3.0),
    Goal("h2", "50", "allswell pool", "curl_cffi", 1.0),
    Goal("h2", "50", "allswell", "httpx2", 2.2),
    Goal("h2", "10mb", "allswell pool", "niquests", 1.0),
    Goal("h2", "10mb", "allswell pool", "httpx2", 2.0),
    Goal("h3", "10mb", "allswell pool", "aioquic", 2.5),
    Goal("h3", "50", "allswell pool", "aioquic", 1.4),
    Goal("h3", "50", "allswell pool", "niquests", 3.0),
    Goal("h3", "upload", "allswell pool", "aioquic", 2.0),
)

Results = dict[Cell, list[Run | str]]


class Figures(NamedTuple):
    """The median of a cell's runs.

    :ivar rate: requests per second, or MB/s.
    :ivar spread: half the distance between the best and the worst run, as a part of the median.
    :ivar cpu: microseconds of CPU time per request, or per MB.
    :ivar rss: MB of memory at most.
    """

    rate: float
    spread: float
    cpu: float
    rss: float


def figures(cell: Cell, results: Results) -> Figures | None:
    """A cell's figures; ``None`` where no run succeeded."""
    runs = [run for run in results.get(cell, []) if isinstance(run, Run)]
    if not runs:
        return None
    per_request = TEN_MB / 1e6 if SCENARIOS[cell.scenario] <= 0 else 1
    rates = [run.requests * per_request / run.seconds for run in runs]
    return Figures(
        median(rates),
        (max(rates) - min(rates)) / 2 / median(rates),
        median(run.cpu / run.requests / per_request * 1e6 for run in runs),
        median(run.rss for run in runs),
    )


def failures(cell: Cell, results: Results) -> list[str]:
    """Why those that failed did."""
    return [run for run in results[cell] if isinstance(run, str)]


def table(version: str, results: Results) -> str:
    """All scenarios of a version. ``pool is`` and ``client is``: ours over theirs, so above 1 where we are faster."""
    lines = []
    for scenario, title in _TITLES.items():
        cells = [cell for cell in results if (cell.version, cell.scenario) == (version, scenario)]
        if not cells:
            continue
        unit, each = ("MB/s", "MB") if SCENARIOS[scenario] <= 0 else ("req/s", "req")
        lines.append(f"{version}: {title}")
        lines.append(f"  {'':<14}{unit:>9}{'±':>6}{'pool is':>10}{'client is':>11}{f'µs CPU/{each}':>13}{'MB RSS':>8}")
        ours = [figures(Cell(version, scenario, name), results) for name in OURS]
        for cell in cells:
            lines.append(f"  {cell.client:<14}" + _row(figures(cell, results), ours))
            for reason, count in _counted(failures(cell, results)).items():
                lines.append(f"    {count} of {len(results[cell])} runs failed: {reason[:100]}")
        lines.append("")
    return "\n".join(lines)


def _row(theirs: Figures | None, ours: list[Figures | None]) -> str:
    if theirs is None:
        return "  failed"
    ratios = [f"{each.rate / theirs.rate:.2f} ×" if each else "" for each in ours]
    return (
        f"{theirs.rate:>9.0f}{theirs.spread:>6.0%}{ratios[0]:>10}{ratios[1]:>11}{theirs.cpu:>13.0f}{theirs.rss:>8.0f}"
    )


def _counted(reasons: list[str]) -> dict[str, int]:
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def verdicts(results: Results) -> str:
    """The goals, and how far they are reached; those whose cells were run."""
    lines = []
    for goal in GOALS:
        ours, theirs = (figures(Cell(goal.version, goal.scenario, name), results) for name in (goal.ours, goal.other))
        if ours and theirs:
            times = ours.rate / theirs.rate
            word = "reached" if times >= goal.times else "not reached"
            where = f"{goal.version} {goal.scenario}"
            lines.append(f"  {where:<10}{goal.ours} ≥ {goal.times} × {goal.other}: {times:.2f} ×, {word}")
    return "\n".join(["goals", *lines]) if lines else ""
