"""What has come of a body, put together where room was reserved for what a peer announced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from allswell._connection.body import ReceivedBody


@pytest.mark.parametrize("length", [0, 2, 6, 7, 100, 1 << 60])
def test_it_is_what_came_whatever_was_announced(length: int) -> None:
    body = ReceivedBody()
    body.collect(b"ab", length)
    assert body.come == 2
    body.add(b"cd", 2)
    body.add(memoryview(b"ef"), 2)
    assert body.come == 6
    assert body.collected() == b"abcdef"


def test_more_comes_than_room_is_reserved_for() -> None:
    piece, body = bytes(range(256)) * 4096, ReceivedBody()
    body.collect(b"", 1 << 60)
    for _ in range(20):
        body.add(piece, 0)
    assert body.collected() == piece * 20


def _resident() -> int:
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_false_length_costs_no_memory() -> None:
    bodies = [ReceivedBody() for _ in range(40)]
    before = _resident()
    for body in bodies:
        body.collect(b"ab", 1 << 60)
    grown = _resident() - before
    assert grown < len(bodies) << 20  # reserved were sixteen times as many
    assert [body.collected() for body in bodies] == [b"ab"] * len(bodies)
