"""Drives a connection: it reads and writes, keeps time, and lets the goodbyes be said.

Theory of operation. One place reads (`reader.py`): the event loop calls it or, if the loop makes no such calls, a task
does. Input goes to the backend, and the backend's events go to the connection (`connection.py`), which decides.
Requesters call the connection, synchronously, and never wait for the driver.

The task that wants to write tries it at once. The stack keeps what the socket does not take, and a task of the
connection finishes it (`writer.py`). The requester's task never does. So its cancellation cannot leave half a frame.

When nothing more is read, the connection is CLOSING, and a task says the goodbyes (`goodbye.py`). Or it is CLOSED
already, because it was lost or aborted. Either way the owner learns how each layer ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import Any, Generic, TypeVar

import anyio.lowlevel

from allswell._backends.interface import Backend
from allswell._clock import monotonic
from allswell._config import PoolConfig
from allswell._connection.connection import Connection, Owner
from allswell._connection.goodbye import Goodbye
from allswell._connection.keepalive import Keepalive
from allswell._connection.lifecycle import LAST_MOMENT, LOOP_ENDED, State
from allswell._connection.reader import Reader
from allswell._connection.service import Service
from allswell._connection.writer import Writer
from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import Carrier
from allswell._filters.stack import Stack
from allswell._report import ConnectionEnd, LayerEnd
from allswell._tasks import Alarm, TaskHost

Input = TypeVar("Input", bound=Sized)


class Driver(Generic[Input]):
    """Makes one connection and drives it.

    :ivar connection: the connection.
    """

    def __init__(
        self,
        host: TaskHost,
        stack: Stack[Carrier[Input]],
        backend: Backend[Input],
        *,
        label: str,
        owner: Owner,
        config: PoolConfig,
        service: Service | None = None,
        number: int = 0,
    ) -> None:
        self.host = host
        self.alarm = Alarm(host, self._on_alarm)
        self._stack = stack
        self._top = stack.top
        self._backend = backend
        self._reader = Reader(host, self._top, self)
        self.resume, self.glance = self._reader.resume, self._reader.glance
        self.writer = Writer(host, self._top, name=f"allswell writes to {label}", room=self._written)
        self.connection = Connection(
            self, backend, label=label, owner=owner, config=config, service=service, number=number
        )
        self._goodbye = Goodbye(self.connection, backend, stack, config.grace)
        self._keepalive = Keepalive(config.ping_interval, config.ping_timeout, self.connection.history.made_at)
        self._task = False  # whether there is one already
        self._keeper: Owner | None = None  # the owner, while it has yet to hear of a goodbye that it did not wait for
        self._ended = False

    def __str__(self) -> str:
        return str(self._stack)

    def start(self) -> None:
        """See :meth:`Connection.start`."""
        if self._keepalive.interval is not None:
            self.connection.watch(monotonic() + self._keepalive.interval)
        self.writer.write(self._backend.take_output())
        if not self._reader.start():
            self._task = True
            self._spawn()

    def _spawn(self) -> None:
        connection = self.connection
        self.host.spawn(self._run, name=f"allswell {connection.http_version} to {connection.label}")

    async def _run(self) -> None:
        """The task, if there is one: it reads and then says goodbye. Or (see `reader.py`) it only says goodbye.

        It raises nothing but cancellation (with all tasks of the event loop), and bugs.
        """
        try:
            await self._drive()
        except Exception as error:
            self.failed(error)
            raise
        except GeneratorExit:  # dropped with its event loop: nothing can be waited for any more
            self.take_leave(LOOP_ENDED)
            self.connection.abort(LOOP_ENDED)
            raise
        except BaseException:  # cancelled, with all tasks
            if self.host.ending:
                try:
                    await self._hear_last_answers()
                finally:
                    self.connection.abort(LOOP_ENDED)
            else:
                # The program goes on, and may wait until all tasks are over. Another task takes its place.
                self._spawn()
            raise

    async def _drive(self) -> None:
        if self.connection.reads:
            await self._reader.run()
            await anyio.lowlevel.checkpoint()  # the connection that ran through it (it was a tunnel) ends first
        if self.connection.state is State.CLOSING and not self._goodbye.said:
            await self.host.line.wait(self.host)
        if self.connection.state is State.CLOSING:
            await self._say_goodbye()

    async def _hear_last_answers(self) -> None:
        """The event loop ends: say everything, and hear the answers that come at once.

        A program that ends its event loop waits for the tasks, so this may wait. It must, because the answers would
        meet a closed socket. It does not wait for long.
        """
        connection = self.connection
        if not connection.open_exchanges:
            self.take_leave(LOOP_ENDED)
        with Deadline.after(LAST_MOMENT).scope(shield=True):
            if connection.open_exchanges:
                await anyio.lowlevel.checkpoint()  # connections that go through this one leave first
            if connection.lingers:
                connection.close(LOOP_ENDED)
                await self._drive()

    def extra(self, name: str) -> Any:
        """See :meth:`Filter.extra`."""
        return self._stack.extra(name)

    # Reading: the reader calls these

    def take(self) -> bool:
        """Take one batch of input and act on it. Return whether there may be more."""
        backend, connection = self._backend, self.connection
        if backend.unfinished:
            events = backend.go_on()
        else:
            try:
                data = self._top.receive_nowait()
            except TransportError as error:
                connection.lost(error)
                return False
            if data is None:
                return False
            if not len(data):
                connection.end_of_stream(truncated=self._top.truncated)
                return connection.reads
            events = backend.receive(data)
        connection.received(events)
        if self._keepalive.interval is not None and not connection.silent:
            self._keepalive.heard_at = monotonic()
        return connection.reads and (backend.unfinished or not self._top.drained)

    def full(self) -> bool:
        """Whether there is no room for more."""
        connection = self.connection
        return connection.parting.ended or self.writer.answers_backed_up or connection.unread_much()

    def done(self) -> None:
        """See :meth:`Takes.done`."""
        self.connection.settle()

    def lost(self, error: TransportError) -> None:
        """The layer below is gone."""
        self.connection.lost(error)

    def failed(self, error: Exception) -> None:
        """There is a bug. Log it, because nobody else would hear of it."""
        self.connection.abort(f"a bug: {error!r}")

    def catch_up(self) -> bool:
        """See :meth:`Connection.catch_up`."""
        unsent = self._top.unsent
        self._top.catch_up()
        if self._top.unsent < unsent:
            self._written()
        return not self.connection.reads or self._reader.catch_up()

    def _written(self) -> None:
        self._reader.resume()
        self.connection.written()

    # Time

    def _on_alarm(self) -> None:
        connection = self.connection
        seen_all = self.catch_up()
        if self._ended:
            return
        now = monotonic()
        following = connection.expire(now, seen_all=seen_all)
        following = min(following, self._keepalive.look(now, connection.ping))
        if following == -math.inf:
            waited = f"no sign of life within {self._keepalive.timeout:g} s of a PING"
            connection.abort(waited, TransportError(f"{connection.label}: {waited}", operation="read"))
        elif connection.state is not State.CLOSED:
            connection.watch(following)

    # Ending

    def limit(self, deadline: Deadline | None, epoch: float | None) -> None:
        """See :meth:`Connection.close`."""
        self._goodbye.limit(deadline, epoch)

    def leave(self) -> None:
        """No exchange is left. Read no more, and say the goodbyes."""
        self._top.goodbye_follows()
        self._reader.stop()
        if not self._task:
            self._task = True
            self._spawn()

    async def _say_goodbye(self) -> None:
        if not await self.writer.finished(self._goodbye.deadline):
            self.connection.abort("the server took no more of what we sent")
            return
        layers = await self._goodbye.complete()
        if self.connection.ended():
            self._end(layers)

    def take_leave(self, reason: str) -> None:
        """See :meth:`Connection.take_leave`."""
        connection = self.connection
        if self._ended:
            return
        connection.drop_closed_tunnels()
        if connection.open_exchanges:
            connection.abort(reason)
            return
        self._keeper = connection.owner
        connection.close(reason)
        if connection.state is State.CLOSING:
            self._goodbye.say_all()

    def abort(self, last_words: str) -> None:
        """Abort all layers, after these last words of the backend."""
        layers = self._goodbye.abort(last_words)
        self._reader.stop()
        self._end(layers)

    def so_far(self) -> ConnectionEnd:
        """See :meth:`Connection.so_far`."""
        return self._goodbye.so_far()

    def _end(self, layers: Sequence[LayerEnd]) -> None:
        if self._ended:
            return
        self._ended = True
        self.alarm.stop()
        end = self._goodbye.report(layers)
        self._keeper = None
        owner = self.connection.owner
        if owner is not None:
            owner.connection_ended(self.connection, end)
