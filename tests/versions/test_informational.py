"""Informational responses, as many as a server likes to send; but not more than are read."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from allswell._config import Timeouts
from allswell._errors import RemoteProtocolError
from allswell._messages import ResponseHead
from allswell._pool.pool import _request
from allswell._request.route import parsed
from tests.versions.peers import VERSIONS, Side, serving

pytestmark = pytest.mark.anyio

SOON = Timeouts(total=30)


@pytest.mark.parametrize("listens", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
async def test_hundreds_are_fine(version: str, listens: bool) -> None:
    """102 (Processing) is a heartbeat, and 104 tells of progress."""

    def handler(side: Side) -> None:
        for number in range(300):
            side.informational(102)
            side.informational(104, ("upload-offset", str(number)))
        side.answer(200, b"done")

    heard: list[int] = []

    async def hear(head: ResponseHead) -> None:
        heard.append(head.status)
        await anyio.lowlevel.checkpoint()

    with serving(version, handler) as server:
        async with server.pool() as pool:
            request = _request("GET", *parsed(f"{server.url}/"), None, None, SOON, None, ())
            request.on_informational = hear if listens else None
            response = await pool.send(request)
            assert (response.status, await response.read()) == (200, b"done")
            await response.aclose()
            assert [head.status for head in response.informational] == [102, 104] * 32  # the newest
            assert response.informational[-1].headers == [(b"upload-offset", b"299")]
        assert heard == [102, 104] * (300 * listens)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_flood_is_an_error(version: str) -> None:
    def handler(side: Side) -> None:
        for _ in range(1500):
            side.informational(103, ("link", "x" * 300))

    with serving(version, handler) as server:
        async with server.pool() as pool:
            with pytest.raises(RemoteProtocolError, match="too many informational responses"):
                await pool.request("GET", f"{server.url}/", timeouts=SOON)


@pytest.mark.parametrize("version", VERSIONS)
async def test_no_more_wait_for_a_slow_hook_than_may(version: str) -> None:
    def flood(side: Side) -> None:
        for _ in range(1500):
            side.informational(103, ("link", "x" * 300))

    def handler(side: Side) -> None:
        side.informational(102)
        side.when_sent(lambda: flood(side))

    stuck = anyio.Event()
    abandoned = anyio.Event()

    async def hear(head: ResponseHead) -> None:
        stuck.set()
        await abandoned.wait()

    with serving(version, handler) as server:
        async with server.pool() as pool, anyio.create_task_group() as tasks:

            async def ask() -> None:
                request = _request("POST", *parsed(f"{server.url}/"), None, b"x", SOON, None, ())
                request.on_informational = hear
                with pytest.raises(RemoteProtocolError, match="too many informational responses"):
                    await pool.send(request)

            tasks.start_soon(ask)
            await stuck.wait()
            while pool.snapshot().exchanges:  # noqa: ASYNC110  the flood ends it while the hook is busy
                await anyio.sleep(0.005)
            abandoned.set()
