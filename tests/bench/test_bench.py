"""The benchmark itself: every scenario does what it says with our clients, and the report says what the runs do.

Nothing is timed, and no other client is needed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from mmap import PAGESIZE, mmap
from pathlib import Path
from xml.etree import ElementTree

import pytest

import allswell
from tests.bench import fairness
from tests.bench.__main__ import main, run_apart
from tests.bench.chart import chart
from tests.bench.clients import CLIENTS, Answer, Fetch, Setting
from tests.bench.memory import held, restart_peak
from tests.bench.origin import Origin, caddy
from tests.bench.report import (
    GOALS,
    NATIVE,
    OURS,
    Cell,
    Results,
    as_json,
    figures,
    markdown,
    table,
    verdict_lines,
    verdicts,
)
from tests.bench.scenarios import ALL_VERSIONS, SCENARIOS, Request, requests
from tests.bench.worker import Job, Run, run


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with caddy() as running:
        yield running


def job(origin: Origin, client: str, version: str, scenario: str) -> Job:
    return Job(client, version, "asyncio", scenario, 0.0, origin.url, str(origin.ca))


@pytest.mark.parametrize("version", ALL_VERSIONS)
@pytest.mark.parametrize("client", OURS)
def test_every_scenario_runs(origin: Origin, client: str, version: str) -> None:
    """Which includes that each response is the right one: version, status, size, and an ETag that is new."""
    for name, scenario in SCENARIOS.items():
        if version in scenario.versions and scenario.way != "fresh":
            done = asyncio.run(run(job(origin, client, version, name), warm_up=0.0))
            assert done.requests == scenario.at_once
            assert done.cpu > 0
            assert done.seconds > 0
            assert (done.closing > 0) == (scenario.way == "cold")


def test_a_fresh_process_counts_its_imports(origin: Origin) -> None:
    done = run_apart(job(origin, "allswell", "h1", "fresh"))
    assert isinstance(done, Run), done
    assert done.requests == 1
    # Its imports take memory; a run in a process that has them does not.
    for _ in range(2):
        warm = asyncio.run(run(job(origin, "allswell", "h1", "fresh")))
    assert done.first > warm.first


def test_the_client_runs_with_the_compiled_loop(
    origin: Origin, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of it fails where it is not used: it would be a run of the other one."""
    with_it, source = job(origin, NATIVE, "h3", "10mb"), str(Path(allswell.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(built), source]))
    done = run_apart(with_it)
    assert isinstance(done, Run), done
    (tmp_path / "allswell_native.py").write_text("ABI = 0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), source]))
    assert "allswell-native is not installed, not fit, or switched off" in str(run_apart(with_it))
    assert isinstance(run_apart(with_it._replace(client="allswell")), Run)


def test_the_measured_process_has_no_client_before_it_opens_one() -> None:
    heavy = {"allswell", "anyio", "cryptography", "h11", "h2", "httpx2", "httpcore2", "aioquic", "trustme", "certifi"}
    program = "import json, sys, tests.bench.worker; print(json.dumps(list(sys.modules)))"
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=root).stdout
    assert heavy.isdisjoint(json.loads(printed))


def test_no_two_requests_are_alike() -> None:
    for scenario in SCENARIOS.values():
        some = list(islice(requests("https://origin", scenario), 100))
        assert len({request.url for request in some}) == 100
        assert len({request.headers["traceparent"] for request in some}) == 100
        if scenario.sends == "json":
            bodies = {request.body for request in some if request.body is not None}
            assert len(bodies) == 100
            assert all(1000 <= len(body) <= 1100 and json.loads(body) for body in bodies)


def test_every_client_is_given_the_same_requests() -> None:
    once, again = (list(islice(requests("https://origin", SCENARIOS["json"]), 10)) for _ in range(2))
    assert once == again


def test_the_responses_are_as_in_life(origin: Origin) -> None:
    two = asyncio.run(_two_heads(origin, "fields"))
    assert [len(head) for head in two] == [16, 16]
    assert len({head[b"etag"] for head in two}) == 2
    assert {name for name in two[0] if two[0][name] != two[1][name]} <= {b"etag", b"date"}
    for head in asyncio.run(_two_heads(origin, "chunked")):
        assert head[b"transfer-encoding"] == b"chunked"


async def _two_heads(origin: Origin, scenario: str) -> list[dict[bytes, bytes]]:
    context = ssl.create_default_context(cafile=str(origin.ca))
    async with allswell.ConnectionPool(ssl_context=context, http2=False) as pool:
        urls = [request.url for request in islice(requests(origin.url, SCENARIOS[scenario]), 2)]
        responses = [await pool.request("GET", url) for url in urls]
    return [{name.lower(): value for name, value in response.headers} for response in responses]


def test_a_run_that_fails_is_shown(origin: Origin) -> None:
    cell = Cell("h1", "1", "allswell")
    nobody = job(origin, "allswell", "h1", "1")._replace(ca="/nowhere")
    results: Results = {cell: [run_apart(nobody)]}
    text = table("h1", results)
    assert "failed" in text
    assert "1 of 1 runs failed: FileNotFoundError" in text
    assert "failed" in chart(results)
    assert "failed" in markdown(results)
    assert as_json(results)["cells"][0]["figures"] is None


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (Answer("HTTP/1.1", 200, 18, "x"), "it was to speak h2, and spoke 'HTTP/1.1'"),
        (Answer("HTTP/2", 502, 18, "x"), "502 with 18 bytes came, not 200 with 18"),
        (Answer("HTTP/2", 200, 17, "x"), "200 with 17 bytes came, not 200 with 18"),
    ],
)
def test_a_wrong_response_fails_the_run(monkeypatch: pytest.MonkeyPatch, answer: Answer, complaint: str) -> None:
    class Wrong:
        def __init__(self, setting: Setting) -> None:
            assert setting.version == "h2"

        async def __aenter__(self) -> Fetch:
            async def fetch(request: Request) -> Answer:
                return answer

            return fetch

        async def __aexit__(self, *_: object) -> None:
            pass

    monkeypatch.setitem(CLIENTS, "allswell", (Wrong, frozenset({"h2"})))
    wanted = Job("allswell", "h2", "asyncio", "1", 0.0, "https://origin", "")
    with pytest.raises(RuntimeError, match=complaint):
        asyncio.run(run(wanted))


def results_of(**cpu: list[float]) -> Results:
    """Runs of h1, 50 at once, by client: seconds of CPU time for a thousand requests. The clock says the reverse."""
    return {
        Cell("h1", "50", name.replace("_", " ")): [Run(1000, 1 / each, each, 30.0, 0.0) for each in runs]
        for name, runs in cpu.items()
    }


def test_the_median_by_cpu_decides() -> None:
    results = results_of(allswell=[0.1, 9.0, 0.2], aiohttp=[0.4, 0.24, 0.1])
    found = figures(Cell("h1", "50", "allswell"), results)
    assert found is not None
    assert found.cpu == pytest.approx(0.0002)
    assert found.cpu_spread == pytest.approx(8.9 / 2 / 0.2)
    (verdict,) = verdicts(results)
    assert (verdict.goal.ours, verdict.goal.other) == ("allswell", "aiohttp")
    assert verdict.by_cpu == pytest.approx(1.2)
    assert verdict.by_wall == pytest.approx(1 / 1.2)
    assert verdict.reached
    text = table("h1", results)
    assert "1.20 ×" in text


@pytest.mark.parametrize(("ours", "reached"), [(0.11, True), (0.2, False)])
def test_goals_are_said_to_be_reached_or_not(ours: float, reached: bool) -> None:
    results: Results = {
        Cell(goal.version, goal.scenario, name): [Run(1, cpu, cpu, 30.0, 0.0)]
        for goal in GOALS
        if goal.at_most
        for name, cpu in ((goal.ours, ours), (goal.other, 0.12))
    }
    assert [verdict.reached for verdict in verdicts(results)] == [reached, reached]
    lines = verdict_lines(results).splitlines()[1:]
    assert all(("NOT REACHED" in line) != reached for line in lines)


def test_goals_are_about_cells_that_there_are() -> None:
    for goal in GOALS:
        assert goal.version in SCENARIOS[goal.scenario].versions
        assert all(goal.version in CLIENTS[name][1] for name in (goal.ours, goal.other))


def test_the_benchmark_of_turns_downloads_what_it_says(origin: Origin) -> None:
    """It fails when not all bytes come."""
    done = asyncio.run(fairness.measure("h1, 30 MB", f"{origin.url}/10mb/fair", str(origin.ca), total=50.0))
    assert done.end == "complete"


def test_memory_is_seen() -> None:
    """Also what is given back at once. (Pages of its own, which no earlier test has left to be used again.)"""
    gc.collect()
    before = restart_peak()
    with mmap(-1, 50 << 20) as pages:
        for start in range(0, len(pages), PAGESIZE):
            pages[start] = 1
    assert held().peak - before >= 45


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables, all runs, figures and chart; with our clients only, as no other that is asked for speaks HTTP/2."""
    asked = ["--versions", "h2", "--scenarios", "1", "--clients", "aiohttp", "--repeat", "1", "--seconds", "0.01"]
    main([*asked, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "h2 1: small GETs, one at a time" in printed
    assert "failed" not in printed
    saved = json.loads((tmp_path / "results.json").read_text())
    assert [cell["client"] for cell in saved["cells"]] == list(OURS)
    assert all(cell["figures"]["cpu"] > 0 for cell in saved["cells"])
    ElementTree.parse(tmp_path / "chart.svg")
    head, _, row = (tmp_path / "figures.md").read_text().splitlines()
    assert head == "| CPU time | allswell pool | allswell |"
    assert row.startswith("| h2, small GETs, one at a time: µs per request | ")
