"""What the runs say: medians, spreads, how ours compare, and whether the goals were reached; CPU time first.

CPU time is the client's own and holds on a busy machine; the clock depends on the origin, and on what else runs.
"""

from __future__ import annotations

from statistics import median
from typing import Any, NamedTuple

from tests.bench.scenarios import SCENARIOS
from tests.bench.worker import Run

OURS = ("allswell pool", "allswell")
#: The client with the compiled loop (``native/``). All others run without it.
NATIVE = "allswell, native"


class Cell(NamedTuple):
    """What one figure is about."""

    version: str
    scenario: str
    client: str


class Goal(NamedTuple):
    """Ours is to be at least so many times as cheap as another, by CPU time; or, ``at_most``, cost so many times it."""

    version: str
    scenario: str
    ours: str
    other: str
    times: float
    at_most: bool = False


GOALS = (
    Goal("h1", "50", "allswell", "aiohttp", 1.15),
    Goal("h1", "1", "allswell", "aiohttp", 1.1),
    Goal("h1", "fields", "allswell", "aiohttp", 1.0),
    Goal("h1", "json", "allswell", "aiohttp", 1.0),
    Goal("h1", "50", "allswell pool", "aiohttp", 1.6),
    Goal("h1", "50", "allswell pool", "pyreqwest", 0.6),
    Goal("h2", "50", "allswell", "curl_cffi", 1.9),
    Goal("h2", "50", "allswell pool", "curl_cffi", 2.8),
    Goal("h2", "50", "allswell pool", "pyreqwest", 0.7),
    Goal("h1", "10mb", "allswell", "curl_cffi", 1.4),
    Goal("h2", "10mb", "allswell", "niquests", 2.5),
    Goal("h1", "upload", "allswell", "curl_cffi", 1.0),
    Goal("h2", "upload", "allswell", "curl_cffi", 0.8),
    Goal("h1", "fresh", "allswell", "httpx2", 1.0, at_most=True),
    Goal("h3", "10mb", "allswell", "niquests", 0.6),
    Goal("h3", "upload", "allswell", "niquests", 1.1),
    Goal("h3", "10mb", NATIVE, "niquests", 1.1),
    Goal("h3", "10mb", NATIVE, "curl_cffi", 1.0),
    Goal("h3", "4x10mb", NATIVE, "niquests", 1.1),
    Goal("h3", "4x10mb", NATIVE, "curl_cffi", 1.0),
    Goal("h3", "upload", NATIVE, "niquests", 1.4),
    Goal("h3", "50", "allswell pool", "curl_cffi", 2.3),
    Goal("h3", "50", "allswell", "curl_cffi", 1.6),
    Goal("h3", "cold", "allswell pool", "aioquic", 1.2, at_most=True),
)

Results = dict[Cell, list[Run | str]]


class Figures(NamedTuple):
    """The median of a cell's runs; seconds are per request, or per MB.

    :ivar cpu: seconds of CPU time, user and system, of all threads of the client's process.
    :ivar cpu_spread: half the distance between the best and the worst run, as a part of the median.
    :ivar wall: seconds by the clock.
    :ivar wall_spread: as ``cpu_spread``.
    :ivar rss: MB of memory at most.
    :ivar first: MB that the first request took beyond what was held.
    :ivar closing: seconds of CPU time for closing the client; not in ``cpu``.
    """

    cpu: float
    cpu_spread: float
    wall: float
    wall_spread: float
    rss: float
    first: float
    closing: float


def figures(cell: Cell, results: Results) -> Figures | None:
    """A cell's figures; ``None`` where no run succeeded."""
    runs = [run for run in results.get(cell, []) if isinstance(run, Run)]
    if not runs:
        return None
    units = SCENARIOS[cell.scenario].units
    cpu = [run.cpu / run.requests / units for run in runs]
    wall = [run.seconds / run.requests / units for run in runs]
    return Figures(
        median(cpu),
        _spread(cpu),
        median(wall),
        _spread(wall),
        median(run.rss for run in runs),
        median(run.first for run in runs),
        median(run.closing / run.requests for run in runs),
    )


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / 2 / median(values)


def failures(cell: Cell, results: Results) -> dict[str, int]:
    """Why those that failed did, and how often."""
    reasons = [run for run in results[cell] if isinstance(run, str)]
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def scale(scenario: str) -> tuple[str, float]:
    """The unit of time to show a scenario's figures in, and how many of it make a second."""
    return ("µs", 1e6) if SCENARIOS[scenario].way == "kept" else ("ms", 1e3)


def table(version: str, results: Results) -> str:
    """All scenarios of a version. ``pool is`` and ``client is``: above 1 where ours takes less CPU time than theirs."""
    lines = []
    for name, scenario in SCENARIOS.items():
        cells = [cell for cell in results if (cell.version, cell.scenario) == (version, name)]
        if not cells:
            continue
        unit = f"{scale(name)[0]} {{}}/{scenario.per}"
        lines.append(f"{version} {name}: {scenario.title}")
        lines.append(
            f"  {'':<16}{unit.format('CPU'):>15}{'±':>6}{'pool is':>10}{'client is':>11}"
            f"{unit.format('wall'):>17}{'±':>6}{'MB RSS':>8}{'MB first':>10}"
            + (f"{'ms CPU to close':>17}" if scenario.way == "cold" else "")
        )
        ours = [figures(Cell(version, name, our), results) for our in OURS]
        for cell in cells:
            lines.append(f"  {cell.client:<16}" + _row(name, figures(cell, results), ours))
            for reason, count in failures(cell, results).items():
                lines.append(f"    {count} of {len(results[cell])} runs failed: {reason[:110]}")
        lines.append("")
    return "\n".join(lines)


def _row(scenario: str, theirs: Figures | None, ours: list[Figures | None]) -> str:
    if theirs is None:
        return f"{'failed':>15}"
    times = scale(scenario)[1]
    ratios = [f"{theirs.cpu / each.cpu:.2f} ×" if each else "" for each in ours]
    return (
        f"{_figure(theirs.cpu * times):>15}{theirs.cpu_spread:>6.0%}{ratios[0]:>10}{ratios[1]:>11}"
        f"{_figure(theirs.wall * times):>17}{theirs.wall_spread:>6.0%}{theirs.rss:>8.0f}{theirs.first:>10.1f}"
        + (f"{theirs.closing * 1e3:>17.1f}" if SCENARIOS[scenario].way == "cold" else "")
    )


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def markdown(results: Results) -> str:
    """CPU time of every cell, as docs/explanation/speed.md has it."""
    clients = list(dict.fromkeys(cell.client for cell in results))
    rows: dict[tuple[str, str], list[str]] = {(cell.version, cell.scenario): [] for cell in results}
    for (spoken, name), row in rows.items():
        unit, times = scale(name)
        row.append(f"{spoken}, {SCENARIOS[name].title}: {unit} per {SCENARIOS[name].per}")
        for client in clients:
            cell = Cell(spoken, name, client)
            found = figures(cell, results)
            row.append(_figure(found.cpu * times) if found else "failed" if cell in results else "–")
    lines = [["CPU time", *clients], ["---"] * (len(clients) + 1), *rows.values()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


class Verdict(NamedTuple):
    """A goal, and how far it was reached: the same ratio by CPU time, which decides, and by the clock."""

    goal: Goal
    by_cpu: float
    by_wall: float

    @property
    def reached(self) -> bool:
        """Whether it was."""
        return self.by_cpu <= self.goal.times if self.goal.at_most else self.by_cpu >= self.goal.times


def verdicts(results: Results) -> list[Verdict]:
    """Those goals whose cells were run."""
    found = []
    for goal in GOALS:
        ours, theirs = (figures(Cell(goal.version, goal.scenario, name), results) for name in (goal.ours, goal.other))
        if ours and theirs:
            less, more = (theirs, ours) if goal.at_most else (ours, theirs)
            found.append(Verdict(goal, more.cpu / less.cpu, more.wall / less.wall))
    return found


def verdict_lines(results: Results) -> str:
    """The goals in words."""
    lines = []
    for goal, by_cpu, by_wall, reached in ((*each, each.reached) for each in verdicts(results)):
        wanted = f"{'≤' if goal.at_most else '≥'} {goal.times:g} × {goal.other}"
        lines.append(
            f"  {goal.version + ' ' + goal.scenario:<11}{goal.ours:<17}{wanted:<19}{by_cpu:>6.2f} ×  "
            f"{'reached' if reached else 'NOT REACHED':<13}({by_wall:.2f} × by the clock)"
        )
    return "\n".join(["goals, by CPU time (≥: so many times as cheap; ≤: at most so dear)", *lines]) if lines else ""


def as_json(results: Results) -> dict[str, Any]:
    """Every run, its cell's figures, and the goals."""
    return {
        "cells": [
            {
                **cell._asdict(),
                "per": SCENARIOS[cell.scenario].per,
                "figures": found._asdict() if (found := figures(cell, results)) else None,
                "runs": [run if isinstance(run, str) else run._asdict() for run in runs],
            }
            for cell, runs in results.items()
        ],
        "goals": [
            {**each.goal._asdict(), "by_cpu": each.by_cpu, "by_wall": each.by_wall, "reached": each.reached}
            for each in verdicts(results)
        ],
    }
