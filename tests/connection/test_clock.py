"""Tools that freeze time for tests (freezegun and its kind) must not freeze connections."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread
import pytest

import allswell
from allswell import Timeout
from allswell._config import Timeouts
from tests.support.told import VERSIONS, Version, told

pytestmark = pytest.mark.anyio

#: What keeps its clock: event loops (as with freezegun's ``real_asyncio``) and what the tests' peers are made of.
_RUNS_ON = ("asyncio", "trio", "uvloop", "threading", "queue", "tests", "time")


@contextmanager
def frozen(monkeypatch: pytest.MonkeyPatch, backend: str) -> Iterator[None]:
    """Do as freezegun does: put a clock that stands still wherever a module has one that runs as an attribute."""
    running = {clock: clock for clock in (time.monotonic, time.perf_counter, time.time)}
    now = time.time()  # freezegun's monotonic clock tells this, too

    def still() -> float:
        return now

    with monkeypatch.context() as patch:
        if backend == "asyncio":
            patch.setattr(asyncio.get_running_loop(), "time", time.monotonic, raising=False)
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in _RUNS_ON or not hasattr(module, "__name__"):
                continue
            for attribute, value in list(vars(module).items()):
                if any(value is clock for clock in running):
                    patch.setattr(module, attribute, still)
        for each in ("monotonic", "perf_counter", "time"):
            patch.setattr(time, each, still)
        yield


def test_no_module_has_a_clock_that_can_be_frozen() -> None:
    """There is one clock, `_clock.py`'s, which such tools do not know."""
    for _, name, _ in pkgutil.walk_packages(allswell.__path__, "allswell."):
        module = importlib.import_module(name)
        assert not any(value is time.monotonic for value in vars(module).values()), name


@pytest.mark.parametrize("version", VERSIONS)
async def test_timeouts_fire_though_time_stands_still(
    version: Version, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    with told(version) as origin:
        async with origin.pool() as pool:
            with frozen(monkeypatch, anyio_backend_name), pytest.raises(Timeout, match="sent nothing within"):
                await pool.request("GET", origin.url, timeouts=Timeouts(read=0.2))


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_connection_made_while_time_stood_still_lives_on(
    version: Version, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    """Neither it nor its deadlines are of another age."""
    with told(version) as origin:
        async with origin.pool() as pool:
            with frozen(monkeypatch, anyio_backend_name):
                async with anyio.create_task_group() as tasks:

                    async def say() -> None:
                        await anyio.to_thread.run_sync(origin.asked.acquire)
                        origin.head()
                        origin.end()

                    tasks.start_soon(say)
                    assert await (await pool.request("GET", origin.url)).read() == b""
            idle = pool.snapshot().routes[0].connections[0].idle
            assert idle is not None
            assert idle < 60
