"""What a pool has learnt, for tests to look at."""

from __future__ import annotations

import pytest

from allswell import ConnectionPool
from allswell._clock import monotonic
from allswell._dial import origin_memory
from allswell._dial.origin_memory import OriginMemory


def memory(pool: ConnectionPool) -> OriginMemory:
    """The records of a pool that has been used."""
    assert pool._dispatcher is not None
    return pool._dispatcher.dialer.memory


def broken_ports(pool: ConnectionPool) -> list[int]:
    """Where QUIC failed, of any origin."""
    return [port for record in memory(pool)._records.values() for _, port in record.quic._marks]


def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where QUIC failed it is not tried again, however long the test takes; in life, for five seconds at first."""
    now = monotonic()
    monkeypatch.setattr(origin_memory, "monotonic", lambda: now)
