"""What a pool has learnt, for tests to look at."""

from __future__ import annotations

from allswell import ConnectionPool
from allswell._dial.origin_memory import OriginMemory


def memory(pool: ConnectionPool) -> OriginMemory:
    """The records of a pool that has been used."""
    assert pool._dispatcher is not None
    return pool._dispatcher.dialer.memory


def broken_ports(pool: ConnectionPool) -> list[int]:
    """Where QUIC failed, of any origin."""
    return [port for record in memory(pool)._records.values() for _, port in record.quic._marks]
