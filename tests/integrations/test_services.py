"""A FastAPI service under uvicorn is told to stop: what is in flight is answered, and all ends well within the grace.

uvicorn runs on asyncio and uvloop only. How hypercorn on trio ends a service is in ``tests/shutdown/test_signals.py``.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from allswell.testing import CloseNotify, ConnectionClose, GoAway, Origin, ResponseSent
from tests.integrations.needs import needed
from tests.support.servers import ServerInfo, run, setup
from tests.support.service import MANY, at_rest, send, stop
from tests.testing.clients import Gate

needed("fastapi")
needed("uvicorn")

_ROOT = Path(__file__).parents[2]
_GRACE = 30
_H3_NO_ERROR = 0x100

TERM, INT = signal.SIGTERM, signal.SIGINT

#: What uvicorn's parent says when it has told a worker to stop.
_STARTED = "Application startup complete."
_TOLD = re.compile(r"Terminated child process \[(\d+)\]")


@contextmanager
def _service(origin: Origin, *arguments: str) -> Iterator[ServerInfo]:
    """It runs; ``port`` has plain HTTP."""
    with setup() as made:
        command = [sys.executable, "-m", "uvicorn", "tests.integrations.service:app", "--port", f"{made.port}"]
        env = {
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
            "ORIGIN": origin.url,
            "CA": str(origin.ca_file),
            "VERSION": min(origin.versions),
            "GRACE": str(_GRACE),
        }
        with run("uvicorn", [*command, *arguments], made, protocols=["http/1.1"], plain=False, env=env) as server:
            yield server


def _verdicts(log: list[str]) -> list[str]:
    """The last word of each report's first line: a worker's, whose client has closed."""
    lines = (re.search(r"closed \d+ connections? in .* s grace: (.+)", line) for line in log)
    return [found[1] for found in lines if found]


@pytest.mark.parametrize(
    ("version", "loop", "signalled"),
    [
        ("h1", "asyncio", TERM),
        ("h2", "asyncio", TERM),
        ("h3", "asyncio", TERM),
        ("h2", "uvloop", TERM),
        ("h2", "asyncio", INT),
    ],
)
def test_what_is_in_flight_is_answered(version: Any, loop: str, signalled: signal.Signals) -> None:
    """Fifty requests wait for the origin when the signal comes. uvicorn then ends by that signal."""
    gate = Gate()
    with Origin({f"/{number}": gate for number in range(MANY)}, versions=[version]) as origin:
        with _service(origin, "--loop", loop) as server:
            told = anyio.run(stop, server, server.port, origin, [signalled], gate.let_through)
        assert told.statuses == [200] * MANY
        assert told.code == (-TERM if signalled is TERM else 0)
        assert _verdicts(told.log) == ["clean"], told.log
        _ended_well(origin)


@pytest.mark.parametrize(
    ("version", "signals"),
    [
        ("h1", [TERM, TERM]),
        ("h2", [TERM, TERM]),
        ("h3", [TERM, TERM]),
        ("h2", [INT, INT]),
        ("h2", [TERM, INT]),
    ],
)
def test_a_second_signal_hurries(version: Any, signals: list[signal.Signals]) -> None:
    """It ends although the origin says nothing any more: it has waited neither for answers nor for goodbyes.

    uvicorn would wait without end, the client for 600 s, and its close for the grace. All goodbyes are said.
    """
    with Origin({f"/{number}": Gate() for number in range(MANY)}, versions=[version]) as origin:
        with _service(origin) as server:

            async def tell(each: signal.Signals) -> None:
                origin.silence()
                await send(server, server.port, each)

            told = anyio.run(stop, server, server.port, origin, signals, lambda: None, tell)
        assert told.statuses == [500] * MANY
        assert _verdicts(told.log) == ["not clean"], told.log
        origin.wait_ended(timeout=60)
        assert not origin.record.of(ResponseSent)
        if version == "h2":
            assert [event.code for event in origin.record.of(GoAway)] == [0]
            assert len(origin.record.of(CloseNotify)) == 1
        elif version == "h3":
            assert [event.code for event in origin.record.of(ConnectionClose)] == [_H3_NO_ERROR]
        else:  # a transfer that was cut must not look complete
            assert not origin.record.of(CloseNotify)


def test_a_terminal_and_a_parent_tell_the_same() -> None:
    """On Ctrl-C the terminal tells all processes, and then uvicorn's parent tells its workers. That is no hurry."""
    gate = Gate()
    with Origin({f"/{number}": gate for number in range(MANY)}, versions=["h2"]) as origin:
        with _service(origin, "--workers", "2", "--timeout-worker-healthcheck", "60") as server:

            async def press(each: signal.Signals) -> None:
                with anyio.fail_after(60):
                    # One that has yet to start dies of the signal. (Perhaps the other has all requests.)
                    while server.log().count(_STARTED) < 2:  # noqa: ASYNC110  it tells nobody
                        await anyio.sleep(0.01)
                os.killpg(server.process.pid, each)
                with anyio.fail_after(60):
                    while len(workers := _TOLD.findall(server.log())) < 2:  # noqa: ASYNC110  it tells nobody
                        await anyio.sleep(0.01)
                for worker in workers:
                    await at_rest(int(worker))

            told = anyio.run(stop, server, server.port, origin, [INT], gate.let_through, press)
        assert told.statuses == [200] * MANY
        assert _verdicts(told.log) == ["clean"] * 2, told.log
        _ended_well(origin)


def _ended_well(origin: Origin) -> None:
    """What the origin saw of all its connections."""
    origin.wait_ended(timeout=60)
    origin.assert_ended_gracefully()
    origin.assert_no_reset()
    for number in range(MANY):
        origin.assert_executed_once(f"GET /{number}")
