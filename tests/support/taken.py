"""What input means to a backend, all of it: in as many calls as it wants."""

from __future__ import annotations

from typing import Any

from allswell._backends.interface import Backend, BodyReceived, Event


def taken(backend: Backend[Any], data: Any) -> list[Event]:
    """The events. A buffer is used again between the calls, as connections do."""
    if isinstance(data, bytes | memoryview):
        shared = bytearray(data)
        events = kept(backend.receive(memoryview(shared)))
        shared[:] = bytes(len(shared))
    else:
        events = kept(backend.receive(data))
    while backend.unfinished:
        events += kept(backend.go_on())
    return events


def kept(events: list[Event]) -> list[Event]:
    """The events with content of their own: what views show holds until the backend is called again only."""
    return [
        BodyReceived(event.exchange, bytes(event.data), event.credit) if isinstance(event, BodyReceived) else event
        for event in events
    ]


def content(event: BodyReceived) -> bytes:
    """Its content, which was kept."""
    assert isinstance(event.data, bytes)
    return event.data
