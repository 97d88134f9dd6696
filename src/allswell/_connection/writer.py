"""How a connection writes: at once, as much as is taken; the rest by a task that belongs to no requester.

What is left over is of two kinds. Requests are held back by the tasks that make them (:data:`UNSENT_LIMIT`). Answers,
to PINGs and the like, are held back by not reading what asks for them. The two are counted apart: a peer that takes no
more of an upload until we take more of the response must be read on from.
"""

from __future__ import annotations

from collections.abc import Callable

from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import ByteStream, Carrier
from allswell._tasks import TaskHost

#: Bytes that a stack may hold unsent before uploads wait; and, of answers to what was read, before reading does.
UNSENT_LIMIT = 256 * 1024


class Writer:
    """Writes for one connection.

    :param top: what is written to.
    :param name: of the task.
    :param room: called when what was left over has been taken, or never will be.
    """

    def __init__(self, host: TaskHost, top: Carrier[object], *, name: str, room: Callable[[], None]) -> None:
        self._host = host
        self._top = top
        self._name = name
        self._room = room
        self._busy = False
        self._answers = 0  # bytes of them that were written since something is left over
        self._over = host.signal()
        #: Whether it is to be called with nothing, too: a multiplexer has its output queued already.
        self.pushes = not isinstance(top, ByteStream)

    def write(self, data: bytes, *, answers: bool = False) -> None:
        """Write it, as far as it is taken; see to the rest.

        :param answers: it answers what was read.
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
        """Bytes that are left over."""
        return self._top.unsent

    @property
    def full(self) -> bool:
        """Whether uploads must wait."""
        return self._top.unsent > UNSENT_LIMIT or self._top.dead

    @property
    def answers_backed_up(self) -> bool:
        """Whether the peer does not take our answers, so that nothing more should be read that asks for some."""
        return self._answers > UNSENT_LIMIT

    async def finished(self, deadline: Deadline) -> bool:
        """Whether nothing is left over, at the deadline at the latest."""
        if self._busy:
            with deadline.scope():
                while self._busy:
                    await self._over.wait()
        return not self._busy

    async def _finish(self) -> None:
        try:
            await self._top.flush()
        except TransportError:
            pass  # the reading side meets the same loss, after the peer's last words: it tells the exchanges
        except BaseException:
            if not self._host.ending:  # somebody cancels all tasks, and goes on: so does this
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
