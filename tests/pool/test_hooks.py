"""The hook that is told how each connection ended."""

from __future__ import annotations

import logging

import pytest

from allswell import ConnectionEnd, ConnectionPool
from tests.support.peer import scripted_peer
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio


async def test_each_end_is_told_those_in_the_background_too() -> None:
    ends: list[ConnectionEnd] = []
    with scripted_peer(answers(1, announce=True)) as peer:
        async with ConnectionPool(http2=False, on_connection_end=ends.append) as pool:
            await pool.request("GET", peer.url)
            await peer.ended()
            await pool.request("GET", peer.url)
        assert [end.route for end in ends] == [peer.url, peer.url]
        assert all(end.exchanges == 1 for end in ends)


async def test_a_hook_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(end: ConnectionEnd) -> None:
        raise ValueError("a bug in the caller's hook")

    with scripted_peer(answers(1, announce=True)) as peer, caplog.at_level(logging.ERROR, "allswell"):
        async with ConnectionPool(http2=False, on_connection_end=broken) as pool:
            for _ in range(3):
                assert (await pool.request("GET", peer.url)).status == 200
        assert pool.close_report is not None
    assert "on_connection_end failed" in caplog.text


async def test_a_hook_that_wants_the_program_to_end_ends_no_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    def leaving(end: ConnectionEnd) -> None:
        raise SystemExit

    with scripted_peer(answers(1, announce=True)) as peer, caplog.at_level(logging.ERROR, "allswell"):
        async with ConnectionPool(http2=False, on_connection_end=leaving) as pool:
            for _ in range(3):
                assert (await pool.request("GET", peer.url)).status == 200
    assert "on_connection_end failed" in caplog.text
