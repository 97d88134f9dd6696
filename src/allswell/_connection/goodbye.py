"""How a connection ends: the goodbyes from its backend down, and the report of what was said and heard.

The backend says its goodbye (GOAWAY), once. Then each layer of the stack says its own and waits for the answer, all
within one deadline. If there is no time to wait, all goodbyes are said in one synchronous step
(:meth:`Goodbye.say_all`), and :meth:`Goodbye.complete` only hears the answers. An aborted connection says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from contextlib import suppress
from typing import Generic, TypeVar

from allswell._backends.interface import Backend
from allswell._clock import monotonic
from allswell._connection.connection import Connection
from allswell._connection.reader import TURN
from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import LAST_READS, Carrier
from allswell._filters.stack import Stack
from allswell._report import ConnectionEnd, LayerEnd, Outcome

Input = TypeVar("Input", bound=Sized)


class Goodbye(Generic[Input]):
    """The goodbye of one connection.

    :param grace: how many seconds it may take if no deadline is set.
    """

    def __init__(
        self, connection: Connection, backend: Backend[Input], stack: Stack[Carrier[Input]], grace: float
    ) -> None:
        self._connection = connection
        self._backend = backend
        self._stack = stack
        self._grace = grace
        self._deadline: Deadline | None = None
        self._epoch: float | None = None
        self._began = math.inf
        self._said: str | None = None  # what the backend has said: "" for nothing; None before that

    def limit(self, deadline: Deadline | None, epoch: float | None) -> None:
        """See :meth:`Connection.close`."""
        self._epoch = self._epoch if epoch is None else epoch
        if deadline is not None:
            if self._deadline is None:
                self._deadline = Deadline(deadline.at)
            else:
                self._deadline.tighten(deadline.at)

    @property
    def deadline(self) -> Deadline:
        """When it must be over. If no deadline was set, the grace begins now."""
        if self._deadline is None:
            self._deadline = Deadline.after(self._grace)
        return self._deadline

    @property
    def said(self) -> bool:
        """Whether the backend has said its goodbye."""
        return self._said is not None

    def say(self) -> None:
        """Say the backend's goodbye, once."""
        if self._said is None:
            self._began = monotonic()
            # A peer that has ended needs no goodbye.
            self._said = "" if self._connection.parting.ended else self._backend.says_goodbye
            self._backend.goodbye()
            self._stack.top.transmit_last(self._backend.take_output())

    def say_all(self) -> None:
        """Say the goodbyes of all layers in one step. First read and drop what has come: unread, it would cause RST."""
        if not self.said:
            top = self._stack.top
            with suppress(TransportError):  # the peer is gone, which the layers will find out
                until = monotonic() + TURN
                for _ in range(LAST_READS):
                    data = top.receive_nowait()
                    if data is None or not len(data) or monotonic() >= until:
                        break
            self.say()
        self._stack.say_goodbye()

    async def complete(self) -> list[LayerEnd]:
        """Say the goodbyes and wait for the answers, from the top down. Return how each layer ended.

        After a cancellation it can be called again.
        """
        deadline = self.deadline
        self.say()
        taken = await self._stack.top.delivered(deadline) if self._said else True
        seconds = monotonic() - self._began
        lower = await self._stack.hear_out(deadline)
        taken = taken and lower[-1].said != "RST"  # then the peer did not even take it
        return [self._backends(taken=taken, seconds=seconds), *lower]

    def abort(self, last_words: str) -> list[LayerEnd]:
        """End all layers at once. Return how each ended.

        :param last_words: what the backend has said. No other layer says anything.
        """
        self._began = min(self._began, monotonic())
        if self._said is None:
            end = LayerEnd(self._backend.name, last_words, self._connection.parting.goodbye, Outcome.ABORTED)
        else:
            end = self._backends(taken=self._stack.top.acknowledged)
        return [end, *self._stack.abort(reset=not last_words)]

    def so_far(self) -> ConnectionEnd:
        """See :meth:`Connection.so_far`."""
        return self.report([self._backends(taken=self._stack.top.acknowledged), *self._stack.so_far()])

    def _backends(self, *, taken: bool, seconds: float = 0.0) -> LayerEnd:
        """The end of the backend's layer.

        :param taken: whether the peer has got what was said, as far as we know.
        """
        heard = self._connection.parting.goodbye
        outcome = Outcome.PEER_FIRST if heard else Outcome.CLEAN
        if self._said and not taken:
            outcome = Outcome.TIMED_OUT
        return LayerEnd(self._backend.name, self._said or "", heard, outcome, seconds)

    def report(self, layers: Sequence[LayerEnd]) -> ConnectionEnd:
        """The end of the connection, with these ends of its layers."""
        connection = self._connection
        began = min(self._began, monotonic())
        return ConnectionEnd(
            route=connection.label,
            http_version=connection.http_version,
            reason=connection.reason,
            layers=tuple(layers),
            exchanges=connection.history.opened,
            cut=connection.history.cut_short,
            began=began - self._epoch if self._epoch is not None else 0.0,
            seconds=monotonic() - began,
        )
