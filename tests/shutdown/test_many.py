"""Many connections that end at once."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from allswell import ConnectionPool
from allswell._filters.tcp import TcpFilter
from allswell._tasks import Line
from tests.support.peer import scripted_peer
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio

_MANY = 4 * Line.MOST


@pytest.mark.parametrize("how", ["closed", "drained"])
async def test_others_have_their_turn_meanwhile(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand goodbyes in one turn of the event loop held it for seconds, and the answers were heard too late."""
    said, at_once, over = 0, 0, anyio.Event()
    real = TcpFilter._say_fin

    def say_fin(tcp: TcpFilter, sock: object) -> None:
        nonlocal said
        said += 1
        real(tcp, sock)  # type: ignore[arg-type]  # it is only passed on

    async def watch() -> None:
        nonlocal at_once
        while not over.is_set():
            before = said
            await anyio.lowlevel.checkpoint()
            at_once = max(at_once, said - before)

    monkeypatch.setattr(TcpFilter, "_say_fin", say_fin)
    with scripted_peer(answers(together=_MANY)) as peer:
        async with ConnectionPool(max_connections=None, max_keepalive_connections=None) as pool:
            async with anyio.create_task_group() as tasks:
                for number in range(_MANY):
                    tasks.start_soon(pool.request, "GET", f"{peer.url}/{number}")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch)
                await anyio.lowlevel.checkpoint()
                report = await (pool.aclose() if how == "closed" else pool.drain())
                over.set()
    assert report.clean
    assert len(report.connections) == said == _MANY
    assert at_once <= 2 * Line.MOST
