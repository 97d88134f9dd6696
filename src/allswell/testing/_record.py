"""The record of a scripted origin: all events in order, ways to wait for events, and the record as text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import anyio.to_thread

from allswell._clock import monotonic
from allswell.testing._events import Connected, Ended, Event, Secured, Speaks

E = TypeVar("E", bound=Event)

_BAR = 30


class Record:
    """The events of a scripted origin. As text it is a waterfall: for each connection, a line for each event.

    It may be read in any thread, at any time. What was returned does not change when more events come.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._began = monotonic()

    @property
    def now(self) -> float:
        """Seconds since the record began."""
        return monotonic() - self._began

    @property
    def events(self) -> tuple[Event, ...]:
        """All events, in order."""
        with self._changed:
            return tuple(self._events)

    @property
    def connections(self) -> tuple[int, ...]:
        """The numbers of the connections that came."""
        return tuple(event.connection for event in self.of(Connected))

    def of(self, kind: type[E], connection: int | None = None) -> list[E]:
        """The events of this class, in order: of one connection, or of all."""
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (connection is None or event.connection == connection)
        ]

    def add(self, event: Event) -> None:
        """Append an event. Only origins call this."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def open(self) -> list[int]:
        """The numbers of the connections that have not ended."""
        over = {event.connection for event in self.of(Ended)}
        return [number for number in self.connections if number not in over]

    def wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Block until the condition holds, at most ``timeout`` seconds. Return whether it does.

        The condition is asked again after every event.
        """
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Like :meth:`wait`, but the event loop goes on."""
        given_up = False
        try:
            return await anyio.to_thread.run_sync(
                self.wait, lambda: given_up or condition(), timeout, abandon_on_cancel=True
            )
        finally:
            given_up = True
            with self._changed:
                self._changed.notify_all()  # end the thread of a cancelled wait: the program's end would wait for it

    def __str__(self) -> str:
        return waterfall(self.events)


def waterfall(events: Sequence[Event]) -> str:
    """Events as text: one connection below the other, with time from left to right."""
    numbers = dict.fromkeys(event.connection for event in events)
    if not numbers:
        return "no connection came"
    first, last = events[0].at, max(event.at for event in events)
    span = (last - first) or 1e-9
    told = [(event, f"{event.direction} {event}") for event in events]
    width = max(len(text) for _, text in told) + 2
    lines = []
    for number in numbers:
        own = [(event, text) for event, text in told if event.connection == number]
        lines += ["", _title(number, [event for event, _ in own])]
        for event, text in own:
            mark = min(int((event.at - first) / span * _BAR), _BAR - 1)
            bar = f"{' ' * mark}█".ljust(_BAR)
            lines.append(f"  {text:<{width}}{event.at * 1000:>9.1f} ms  │{bar}│")
    return "\n".join(lines[1:])


def _title(number: int, events: Iterable[Event]) -> str:
    words = [f"connection {number}"]
    for event in events:
        if isinstance(event, Speaks | Secured):
            words.append(event.version)
        elif isinstance(event, Connected):
            words.append(event.over)
    return ", ".join(words)
