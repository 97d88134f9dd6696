"""When a connection reads: as soon as something has arrived and there is room for it, but never for long at a time.

Reading goes by *turns*. A turn takes what has arrived, batch by batch. It ends when nothing is left, when there is no
room for more, or when its time is over. Then others have their turns. The next turn must be asked for, because the
event loop knows of what is in the socket, but not of what a filter holds. While there is no room, reading is
*suspended*, until :meth:`Reader.resume`.

If the event loop can call us when a socket is readable (asyncio), turns are such calls. So a response needs no switch
to a task, and an idle connection has no task. On trio a task waits for the socket.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import anyio.lowlevel

from allswell._clock import monotonic
from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import Carrier
from allswell._tasks import TaskHost, logger

#: How many seconds a turn may take before others have theirs.
TURN = 0.005


class _Next(Enum):
    """What the next turn waits for."""

    ARRIVAL = "something arrives"
    OTHERS = "others have had their turn"
    ROOM = "there is room again"
    NOTHING = "there will be none"


#: By names of their own: see `_halves.py`.
_ARRIVAL, _OTHERS, _ROOM, _NOTHING = _Next


class Takes(Protocol):
    """What a reader reads for."""

    def take(self) -> bool:
        """Take one batch of input and act on it. Return whether there may be more."""

    def full(self) -> bool:
        """Whether there is no room for more."""

    def done(self) -> None:
        """The turn is over: all that has come was taken, or as much as there was time and room for.

        (The owner is told of a free connection only now: the peer's end may have come right behind a response.)
        """

    def lost(self, error: TransportError) -> None:
        """The layer below was lost while we waited."""

    def failed(self, error: Exception) -> None:
        """There is a bug, of which nobody else would hear."""


class Reader:
    """Reads for one connection.

    :param top: the top of the stack, where input comes from.
    :param taker: what takes the input.
    """

    def __init__(self, host: TaskHost, top: Carrier[object], taker: Takes) -> None:
        self._host = host
        self._top = top
        self._taker = taker
        self._next = _ARRIVAL
        self._due = False  # the event loop has been asked for the next turn
        self._listening = False
        self._task = True  # whether there is one, which waits
        self._scope: anyio.CancelScope | None = None
        self._go_on = host.signal()

    def start(self) -> bool:
        """Read from now on. Return whether that needs no task. If it does, :meth:`run` is for the task."""
        self._task = not self._listen()
        if not self._task:
            self._ask_for_turn()  # for what a filter may hold
        return not self._task

    async def run(self) -> None:
        """Read until :meth:`stop`."""
        try:
            with Deadline().scope() as self._scope:
                await self._read()
        finally:
            self._scope = None

    async def _read(self) -> None:
        while self._next is not _NOTHING:
            if self._next is not _ROOM:
                self._turn()
            if self._next is _ROOM:
                await self._go_on.wait()
            elif self._next is _OTHERS:
                await anyio.lowlevel.checkpoint()
            elif self._next is _ARRIVAL:
                try:
                    await self._top.wait_readable()
                except TransportError as error:
                    self._taker.lost(error)

    def look(self) -> None:
        """Take a turn now."""
        if self._next is _NOTHING:
            return
        try:
            self._turn()
        except Exception as error:  # noqa: BLE001 - a bug: the connection must not go on as if nothing had been
            logger.exception("allswell: reading failed")
            self._taker.failed(error)
            return
        if self._next is _OTHERS:
            self._ask_for_turn()
        elif self._next is _ARRIVAL and not (self._task or self._listening):
            self._listen()
        elif self._next is _ROOM:
            self._stop_listening()

    def glance(self) -> None:
        """Take a turn now, if something has arrived.

        If the last turn has taken all, the socket is asked first, which costs little.
        """
        if self._next is _ARRIVAL:
            try:
                if self._top.quiet():
                    return
            except TransportError as error:
                self._taker.lost(error)
                return
        self.look()

    def catch_up(self) -> bool:
        """Take what has arrived, as far as there is room. Return whether that was all."""
        if self._next is not _ROOM:
            self.look()
        return self._next is not _OTHERS

    def resume(self) -> None:
        """There may be room again."""
        if self._next is _ROOM and not self._taker.full():
            self._next = _OTHERS
            self._go_on.set()
            self._ask_for_turn()

    def stop(self) -> None:
        """Read no more. A task that reads learns of it when it runs next."""
        self._next = _NOTHING
        self._stop_listening()
        if self._scope is not None:
            self._scope.cancel()

    def _turn(self) -> None:
        until = monotonic() + TURN
        # If the last turn ended before it saw that nothing is left, more may have come since: ask once more.
        old = self._next is not _ARRIVAL
        self._next = _ARRIVAL
        taker = self._taker
        more = taker.take() or (old and self._next is _ARRIVAL and taker.take())
        while self._next is _ARRIVAL:  # (a batch may have been the last one: see `stop`)
            if taker.full():
                self._next = _ROOM
            elif not more:
                break
            elif monotonic() >= until:
                self._next = _OTHERS
            else:
                more = taker.take()
        taker.done()

    def _ask_for_turn(self) -> None:
        if not self._due:
            self._due = True
            self._host.call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._due = False
        if self._next is not _ROOM:
            self.look()

    def _on_readable(self) -> None:
        if not self._due:
            self.look()

    def _listen(self) -> bool:
        if not self._listening:
            self._listening = self._top.listen(self._on_readable)
        return self._listening

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._top.listen(None)
