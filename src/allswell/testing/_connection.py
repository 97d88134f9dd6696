"""One connection of a scripted origin, over TCP or QUIC: its exchanges, and how it misbehaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from allswell.testing._engine import Body, Broken, Complete, Engine, GivenUp, Head, Heard, Leaving
from allswell.testing._events import (
    Event,
    ExchangeCut,
    GoAway,
    RequestExecuted,
    RequestReceived,
    RequestRefused,
    ResponseSent,
    Said,
    Speaks,
    StreamReset,
    Violation,
)
from allswell.testing._script import Request, Routes, Scripted

#: How long one piece of a body takes that is sent slowly, in seconds.
_PIECE_SECONDS = 0.02


class Script(Scripted):
    """A script whose changes tasks can wait for, in the origin's event loop."""

    def __init__(self, routes: Routes | None = None) -> None:
        super().__init__(routes)
        self._changed = anyio.Event()

    async def change(self) -> None:
        """Return when something has changed."""
        await self._changed.wait()

    def changed(self) -> None:
        """Wake the tasks that wait for a change."""
        self._changed.set()
        self._changed = anyio.Event()


@dataclass(eq=False, slots=True)
class Exchange:
    """A request, and the task that answers it.

    :ivar stopped: whether the client or the origin has reset it, or the connection was cut.
    """

    head: Head
    body: bytearray = field(default_factory=bytearray)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    stopped: bool = False

    def stop(self) -> None:
        """Stop the answer."""
        self.stopped = True
        self.scope.cancel()


def _nothing() -> None:
    pass


async def _unless_cancelled() -> None:
    """End here if the answer was stopped. (If what it waited for came in the same moment, asyncio lets it go on.)"""
    await anyio.lowlevel.checkpoint_if_cancelled()


class Connection(ABC):
    """A connection: it acts on its engine's events, and answers by the script.

    :ivar exchanges: the exchanges under way, by stream.
    :ivar leaves_after: how many more requests are accepted; ``None`` for any number.
    :ivar left: whether the goodbye below HTTP was sent, so no more of HTTP can be sent.
    """

    def __init__(self, number: int, script: Script, tasks: TaskGroup) -> None:
        self.number = number
        self.script = script
        self.engine: Engine | None = None
        self.exchanges: dict[int, Exchange] = {}
        self.leaves_after: int | None = None
        self.left = False
        self._said_goaway = False
        self.ended = False
        self._tasks = tasks
        self._highest = 0 if self.over == "TCP" else -4
        self._moved = anyio.Event()

    @property
    @abstractmethod
    def over(self) -> str:
        """``"TCP"`` or ``"QUIC"``."""

    @abstractmethod
    async def flush(self) -> None:
        """Send the output, but nothing while the origin is silent. It waits while the client does not read."""

    def flush_soon(self) -> None:
        """Send the output, without waiting here."""
        self.once_sent(_nothing)
        self._tasks.start_soon(self.flush)

    @abstractmethod
    def once_sent(self, action: Callable[[], None]) -> None:
        """Call this when the last byte of the output so far was sent, before more input is processed."""

    @abstractmethod
    async def leave(self) -> None:
        """Say goodbye below HTTP."""

    @abstractmethod
    async def truncate(self) -> None:
        """End in the middle of a response as if it were complete."""

    @abstractmethod
    def reset(self) -> None:
        """End at once, by RST, or by CONNECTION_CLOSE with an error."""

    @abstractmethod
    def forget(self) -> None:
        """End as when the process is killed: without a goodbye of TLS, HTTP or QUIC."""

    def note(self, kind: Callable[..., Event], *details: object) -> None:
        """Record an event of this connection, now."""
        self.script.record.add(kind(self.number, self.script.record.now, *details))

    def speak(self, engine: Engine) -> None:
        """The client begins to speak HTTP."""
        self.engine = engine
        self.note(Speaks, engine.version)

    def hear(self, heard: Iterable[Heard]) -> None:
        """Act on the engine's events."""
        for each in heard:
            if isinstance(each, Head):
                self._on_head(each)
            elif isinstance(each, Body):
                if (exchange := self.exchanges.get(each.stream)) is not None:
                    exchange.body += each.data
            elif isinstance(each, Complete):
                if (exchange := self.exchanges.get(each.stream)) is not None:
                    self._tasks.start_soon(self._serve, exchange)
            elif isinstance(each, GivenUp):
                self.note(StreamReset, each.stream, each.word, each.code)
                if (exchange := self.exchanges.pop(each.stream, None)) is not None:
                    exchange.stop()
            elif isinstance(each, Leaving):
                self.note(GoAway, each.last, each.code)
            else:
                self._on_broken(each)
        self.moved()

    def heard_all(self) -> None:
        """The client has ended, and not by a reset. Record if it has sent something only in part."""
        if self.engine is not None and self.engine.unfinished and not self.left:
            self.note(Violation, f"the connection ended in the middle of {self.engine.unfinished}")

    def moved(self) -> None:
        """Wake the tasks that wait for room."""
        self._moved.set()
        self._moved = anyio.Event()

    def _on_head(self, head: Head) -> None:
        self.note(RequestReceived, head.stream, head.method, head.target)
        if self.leaves_after == 0:
            return  # our goodbye said that it is not executed
        self._highest = head.stream
        self.exchanges[head.stream] = Exchange(head)
        if self.leaves_after is not None:
            self.leaves_after -= 1
            self._goaway_when_due()

    def _on_broken(self, broken: Broken) -> None:
        self.note(Violation, broken.why)
        self.reset()

    # Leaving

    def goaway(self, after: int) -> None:
        """Accept so many more requests, and no others. Tell the client by GOAWAY, if its version has that.

        A second call can only lower the number: a GOAWAY must not accept more than the one before (RFC 9113 §6.8).
        """
        self.leaves_after = after if self.leaves_after is None else min(after, self.leaves_after)
        self._goaway_when_due()
        if self.engine is not None and self.engine.streams is None and after == 0 and not self.exchanges:
            self._tasks.start_soon(self.leave)
        self.flush_soon()

    def _goaway_when_due(self) -> None:
        due = self.leaves_after == 0 and not self._said_goaway and not self.left
        streams = self.engine.streams if self.engine is not None else None
        if due and streams is not None:
            self._said_goaway = True
            streams.goaway(self._highest)
            self.note(Said, "GOAWAY")

    def cancel(self) -> None:
        """Reset the streams of all exchanges under way. In HTTP/1.1, reset the connection if one is under way."""
        if self.engine is None or not self.exchanges:
            return
        streams = self.engine.streams
        if streams is None:
            self.reset()
            return
        for stream, exchange in list(self.exchanges.items()):
            exchange.stop()
            streams.reset(stream)
            self.note(Said, "RST_STREAM" if self.over == "TCP" else "RESET_STREAM")
        self.exchanges.clear()
        self.flush_soon()

    def cut(self, *, by_client: bool) -> None:
        """The connection has ended: stop its exchanges.

        :param by_client: whether the client ended it. Then each exchange under way is recorded as cut.
        """
        for exchange in self.exchanges.values():
            exchange.stop()
            if by_client:
                self.note(ExchangeCut, exchange.head.stream, exchange.head.method, exchange.head.target)
        self.exchanges.clear()

    # Answering

    async def _serve(self, exchange: Exchange) -> None:
        stream, engine = exchange.head.stream, self.engine
        assert engine is not None
        with exchange.scope:
            await _unless_cancelled()
            await self._answer(exchange, engine)
        if exchange.stopped:
            return
        if engine.streams is None and (self.leaves_after == 0 or engine.last):
            await self.leave()
        else:
            self.hear(engine.done(stream))
            await self.flush()

    async def _answer(self, exchange: Exchange, engine: Engine) -> None:
        head, stream = exchange.head, exchange.head.stream
        if self.script.faults.refuses():
            self.note(RequestRefused, stream, head.method, head.target)
            del self.exchanges[stream]
            if engine.streams is not None:
                engine.streams.refuse(stream)
                await self.flush()
            else:
                self.leaves_after = 0
            return
        self.note(RequestExecuted, stream, head.method, head.target)
        request = Request(head.method, head.target, head.headers, bytes(exchange.body), engine.version, self.number)
        response = await self.script.answer(request)
        body = b"" if response.bodiless(head.method) else response.body
        cut = self.script.faults.truncates()
        while self.script.faults.stalled and not body:
            await self.script.change()
        await _unless_cancelled()
        engine.head(stream, head.method, response, last=self.leaves_after == 0)
        whole = await self._send_body(stream, engine, body, cut=cut)
        if not whole:
            await self.truncate()
            return
        engine.finish(stream)

        def sent() -> None:
            if self.exchanges.pop(stream, None) is not None:
                self.note(ResponseSent, stream, response.status)

        self.once_sent(sent)
        await self.flush()

    async def _send_body(self, stream: int, engine: Engine, body: bytes, *, cut: bool) -> bool:
        """Write a body, without marking its end. Return whether all of it was written.

        :param cut: write only half of it.
        """
        sent, half = 0, len(body) // 2
        while sent < len(body):
            await _unless_cancelled()
            faults = self.script.faults
            if cut and sent >= half:
                return False
            if faults.stalled and sent >= half:
                await self.flush()
                await self.script.change()
                continue
            limit = half if cut or faults.stalled else len(body)
            size = min(engine.room(stream), limit - sent)
            if faults.rate is not None:
                size = min(size, max(1, int(faults.rate * _PIECE_SECONDS)))
            if size <= 0:
                await self.flush()
                await self._moved.wait()
                continue
            if faults.rate is not None:
                await anyio.sleep(size / faults.rate)
                await _unless_cancelled()
            sent += size
            engine.body(stream, body[sent - size : sent])
            if sent < len(body):
                await self.flush()
        return not cut
