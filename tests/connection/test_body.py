"""What has come of a body, put together where room was reserved for what a peer announced."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from allswell._connection.body import ReceivedBody, _reserved, _uncleared


@pytest.fixture(params=["ctypes", "no ctypes"], autouse=True)
def _room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Room that is not cleared; and as it is in a Python that has no such room."""
    if request.param == "no ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    _uncleared.cache_clear()
    yield
    _uncleared.cache_clear()


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 5 << 20])
def test_the_room_is_the_body_in_the_end(size: int) -> None:
    """Or the body would take twice the memory."""
    room = _reserved(size)
    assert len(room.getbuffer()) == (size if _uncleared() is not None else min(size, 1 << 20))
    body = ReceivedBody()
    body.collect(b"", len(room.getbuffer()))
    assert body.whole is not None
    first = body.whole.getbuffer()
    place = ctypes.addressof(ctypes.c_char.from_buffer(first)) if size else 0
    del first  # while it is there, the room cannot be taken
    body.add(bytes(len(room.getbuffer())), 0)
    assert size < 2 or id(body.collected()) + bytes.__basicsize__ - 1 == place


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


def _lied_to() -> list[ReceivedBody]:
    bodies = [ReceivedBody() for _ in range(40)]
    for body in bodies:
        body.collect(b"ab", 1 << 60)
    return bodies


@pytest.mark.parametrize("again", [False, True])
def test_a_false_length_costs_no_memory(*, again: bool) -> None:
    earlier = []
    if (
        again
    ):  # malloc maps no new (and clear) pages, once a buffer of this size was freed: it uses what earlier ones had
        freed = bytearray(20 << 20)
        del freed
        earlier = _lied_to()[-1:]
    before = _resident()
    bodies = _lied_to()
    grown = _resident() - before
    assert grown < len(bodies) << 20  # reserved were sixteen times as many
    assert [body.collected() for body in bodies + earlier] == [b"ab"] * len(bodies + earlier)


_ROUNDS = """
import resource
from allswell._connection.body import ReceivedBody

def faults_of_a_round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bodies = [ReceivedBody() for _ in range(4)]
    for body in bodies:
        body.collect(b"", 10_000_000)
    for _ in range(100):
        for body in bodies:
            body.add(bytes(100_000), 0)
    assert [len(body.collected()) for body in bodies] == [10_000_000] * 4
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults_of_a_round()
print(first, min(faults_of_a_round() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have other rules")
@pytest.mark.parametrize("_room", ["ctypes"], indirect=True)
def test_bodies_reuse_the_memory_of_those_before_them() -> None:
    """glibc gave it back each time. To take it anew took a fifth of the CPU time of four downloads at once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _ROUNDS]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    first, later = map(int, printed.split())
    assert later < first // 10
