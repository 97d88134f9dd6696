"""When a connection reads: whenever something has arrived, as long as there is room for it, and not to others' cost.

Where the event loop can call us when a socket is readable (asyncio), it does, and a response costs no switch to the
connection's task: that only waits for its time to end. Elsewhere (trio) the task waits for the socket and reads. The
task also reads on where a filter holds more than the socket would tell of. Reading is *suspended* while there is no
room for what would come, until :meth:`Reader.resume`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio.lowlevel

from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import Carrier
from allswell._tasks import TaskHost

#: Reads in a row without waiting, before other tasks get their turn.
_READS_IN_A_ROW = 8


class Reader:
    """Reads for one connection.

    :param top: what is read, and waited for.
    :param take: takes one batch and acts on it; whether there may be more to take.
    :param alive: whether the connection still reads at all.
    :param full: whether there is no room for more.
    :param done: told when all that has come was taken, or enough of it. (The peer's end may be right behind a
        response, and whoever is next on that connection had better know.)
    :param lost: told of a loss that was met while waiting.
    """

    def __init__(
        self,
        host: TaskHost,
        top: Carrier[Any],
        *,
        take: Callable[[], bool],
        alive: Callable[[], bool],
        full: Callable[[], bool],
        done: Callable[[], None],
        lost: Callable[[TransportError], None],
    ) -> None:
        self._top = top
        self._take = take
        self._alive = alive
        self._full = full
        self._done = done
        self._lost = lost
        self._scope: anyio.CancelScope | None = None
        self._suspended = False
        self._listening = False
        self._behind = False  # there may be more than the last turn took
        self._failure: Exception | None = None  # met while the event loop called us: the task's to raise
        self._go_on = host.signal()

    async def run(self) -> None:
        """Read while the connection is alive, and until :meth:`stop`."""
        with Deadline().scope() as self._scope:
            await self._read()
        self._scope = None

    async def _read(self) -> None:
        top = self._top
        while self._alive():
            self._suspended = False
            if self._read_some():
                await anyio.lowlevel.checkpoint()
            elif self._suspended:
                await self._go_on.wait()
            elif top.listen(self.look):
                self._listening = True
                await self._go_on.wait()
                if self._failure is not None:
                    raise self._failure
            else:
                try:
                    await top.wait_readable()
                except TransportError as error:
                    self._lost(error)

    def look(self) -> None:
        """Take what has arrived; the event loop calls this, and whoever cannot wait for it."""
        try:
            more = self._read_some()
        except Exception as error:  # noqa: BLE001 - a bug: the connection must not go on as if nothing had been
            self._failure, more = error, True
        if more:
            # The event loop tells what is in the socket, not what a filter holds: the task reads on, after others.
            self._stop_listening()
            self._go_on.set()

    def catch_up(self) -> bool:
        """Take what has arrived, where there is room for it; whether that was all."""
        if not self._suspended:
            self.look()
        return not self._behind

    def _read_some(self) -> bool:
        """Take what has arrived, as far as there is room for it, and not so much that others do not have their turn.

        :return: whether there may be more.
        """
        self._behind = self._take_some()
        self._done()
        return self._behind

    def _take_some(self) -> bool:
        for _ in range(_READS_IN_A_ROW):
            if not self._take():
                return False
            if self._full():
                self._suspended = True
                self._stop_listening()
                return False
        return True

    def resume(self) -> None:
        """There may be room again."""
        if self._suspended:
            self._go_on.set()

    def stop(self) -> None:
        """Read no more. (Synchronous: the task learns when it has its turn.)"""
        self._stop_listening()
        if self._scope is not None:
            self._scope.cancel()

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._top.listen(None)
