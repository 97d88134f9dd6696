"""What input means to a backend, all of it: in as many calls as it wants."""

from __future__ import annotations

from typing import Any

from allswell._backends.interface import Backend, Event


def taken(backend: Backend[Any], data: Any) -> list[Event]:
    """The events. A buffer is used again between the calls, as connections do."""
    if isinstance(data, bytes | memoryview):
        shared = bytearray(data)
        events = list(backend.receive(memoryview(shared)))
        shared[:] = bytes(len(shared))
    else:
        events = list(backend.receive(data))
    while backend.unfinished:
        events += backend.go_on()
    return events
