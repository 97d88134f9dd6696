"""How a connection writes: at once, as much as is taken. A task that belongs to no requester writes the rest.

What is left over is limited in two ways (:data:`UNSENT_LIMIT`). Uploads wait while there is much of it. Answers (to
PINGs and the like) cannot wait, so nothing more is read that could ask for them. Answers are counted apart. For a peer
may take no more of an upload until we have taken more of its response, and then we must go on reading.
"""

from __future__ import annotations

from collections.abc import Callable

from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import ByteStream, Carrier
from allswell._tasks import TaskHost

#: How many bytes a stack may hold unsent before uploads wait; and how many of answers before reading waits.
UNSENT_LIMIT = 256 * 1024


class Writer:
    """Writes for one connection.

    :param top: the top of the stack.
    :param name: the task's.
    :param room: called when what was left over has been taken, or never will be.
    """

    def __init__(self, host: TaskHost, top: Carrier[object], *, name: str, room: Callable[[], None]) -> None:
        self._host = host
        self._top = top
        self._name = name
        self._room = room
        self._busy = False
        self._answers = 0  # bytes of answers that were written since anything is left over
        self._over = host.signal()
        #: Whether it must be called even without data, because a multiplexer has queued its output itself.
        self.pushes = not isinstance(top, ByteStream)

    def write(self, data: bytes | memoryview, *, answers: bool = False) -> None:
        """Write this, as far as it is taken. The task writes the rest.

        :param answers: whether it answers what was read.
        """
        top = self._top
        before = top.unsent if self._busy else 0
        top.transmit(data)
        if self._busy:
            if answers:
                self._answers += top.unsent - before
        elif top.unsent:
            self._busy = True
            self._host.spawn(self._finish, name=self._name)

    @property
    def unsent(self) -> int:
        """How many bytes are left over."""
        return self._top.unsent

    @property
    def failed(self) -> bool:
        """Whether a write has failed, so nothing more can be sent."""
        return self._top.dead

    @property
    def full(self) -> bool:
        """Whether uploads must wait."""
        return self._top.unsent > UNSENT_LIMIT or self._top.dead

    @property
    def answers_backed_up(self) -> bool:
        """Whether so many answers are left over that nothing more should be read."""
        return self._answers > UNSENT_LIMIT

    async def finished(self, deadline: Deadline) -> bool:
        """Wait until nothing is left over, but not beyond the deadline. Return whether nothing is."""
        if self._busy:
            with deadline.scope():
                while self._busy:
                    await self._over.wait()
        return not self._busy

    async def _finish(self) -> None:
        try:
            await self._top.flush()
        except TransportError:
            pass  # the reader meets the same loss, after the peer's last words, and tells the exchanges
        except BaseException:
            if not self._host.ending:  # a program cancels all tasks, and goes on: another task takes its place
                self._host.spawn(self._finish, name=self._name)
                raise
            self._finished()
            raise
        self._finished()

    def _finished(self) -> None:
        self._busy = False
        self._answers = 0
        self._over.set()
        self._room()
