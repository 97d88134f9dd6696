"""A service with many requests in flight, each of which waits for an origin, is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import httpx2

from allswell.testing import Origin, RequestExecuted
from tests.support.servers import ServerInfo

MANY = 50


class Stopped(NamedTuple):
    """What became of it.

    :ivar statuses: of the answers to all requests.
    :ivar code: that it exited with; a signal's number, negative, if that ended it.
    :ivar log: the lines that it wrote.
    """

    statuses: list[int]
    code: int
    log: list[str]


async def at_rest(pid: int) -> None:
    """Wait until a process has nothing to do but to look at its clock, where the system tells (Linux)."""
    await _same(Path(f"/proc/{pid}/stat"), _cpu_time, times=1)


async def asleep(pid: int) -> None:
    """Wait until a process has nothing to do, and does not even wake, where the system tells (Linux).

    trio raises KeyboardInterrupt in the task that runs, whichever it is, and in its main task if none does.
    """
    await _same(Path(f"/proc/{pid}/status"), _naps, times=3)


def _cpu_time(told: str) -> str | None:
    _, _, fields = told.rpartition(") ")
    return " ".join(fields.split()[11:13]) if fields[0] == "S" else None


def _naps(told: str) -> str | None:
    """How often its main thread has fallen asleep."""
    return told.partition("voluntary_ctxt_switches:")[2].split()[0] if "(sleeping)" in told else None


async def _same(told: Path, what: Callable[[str], str | None], times: int) -> None:
    before, same = None, 0
    with anyio.fail_after(60):
        while told.exists() and same < times:
            now = what(told.read_text())
            same = same + 1 if now is not None and now == before else 0
            before = now
            await anyio.sleep(0.1)


async def stop(
    server: ServerInfo,
    port: int | None,
    origin: Origin,
    signals: Sequence[signal.Signals],
    then: Callable[[], None] = lambda: None,
    tell: Callable[[signal.Signals], Awaitable[None]] | None = None,
    rest: Callable[[int], Awaitable[None]] = at_rest,
) -> Stopped:
    """Have many requests in flight through it, send it these signals, and wait for its end.

    :param port: where it speaks plain HTTP. It asks the origin for each path that it is asked for.
    :param then: what happens when it has been told to stop.
    :param rest: waits until the process with that number has passed all requests on.
    :param tell: sends a signal, and returns when it was heard; by default, :func:`send`.
    """
    statuses: list[int] = []

    async def get(client: httpx2.AsyncClient, number: int) -> None:
        statuses.append((await client.get(f"http://127.0.0.1:{port}/{number}")).status_code)

    limits = httpx2.Limits(max_connections=MANY)
    async with httpx2.AsyncClient(timeout=600, limits=limits) as client, anyio.create_task_group() as tasks:
        for number in range(MANY):
            tasks.start_soon(get, client, number)
        await origin.seen(RequestExecuted, MANY, timeout=60)
        await rest(server.process.pid)
        for each in signals:
            await (tell(each) if tell is not None else send(server, port, each))
        then()
    code = await anyio.to_thread.run_sync(server.process.wait, 60)
    return Stopped(statuses, code, server.log_file.read_text().splitlines())


async def send(server: ServerInfo, port: int | None, each: signal.Signals) -> None:
    """Tell its process, and wait until it listens no more."""
    server.process.send_signal(each)
    with anyio.fail_after(60):
        while await _listens(port):  # noqa: ASYNC110  it tells nobody
            await anyio.sleep(0.01)


async def _listens(port: int | None) -> bool:
    assert port is not None
    try:
        stream = await anyio.connect_tcp("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True
