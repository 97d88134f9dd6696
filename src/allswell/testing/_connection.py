"""One connection of a scripted origin, whatever carries it: its exchanges, and how it misbehaves."""

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

#: A piece of a body that is sent slowly takes so many seconds.
_PIECE_SECONDS = 0.02


class Script(Scripted):
    """A script whose changes are told, in the origin's event loop, to whoever waits for one."""

    def __init__(self, routes: Routes | None = None) -> None:
        super().__init__(routes)
        self._changed = anyio.Event()

    async def change(self) -> None:
        """Return when something has changed."""
        await self._changed.wait()

    def changed(self) -> None:
        """Tell that something has changed."""
        self._changed.set()
        self._changed = anyio.Event()


@dataclass(eq=False, slots=True)
class Exchange:
    """A request, and the task that answers it.

    :ivar stopped: whether it was given up, reset or cut.
    """

    head: Head
    body: bytearray = field(default_factory=bytearray)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    stopped: bool = False

    def stop(self) -> None:
        """Answer no further."""
        self.stopped = True
        self.scope.cancel()


def _nothing() -> None:
    pass


async def _unless_cancelled() -> None:
    """Go on, unless the answer was stopped while what it waited for came. (asyncio would not tell it yet.)"""
    await anyio.lowlevel.checkpoint_if_cancelled()


class Connection(ABC):
    """A connection: it hears what its engine heard, and answers by the script.

    :ivar exchanges: those under way, by stream.
    :ivar leaves_after: requests that are still taken; ``None`` while there is no end to them.
    :ivar left: whether our goodbye below HTTP is said, so that nothing more of HTTP can be.
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
        """Send what was said; not while the origin is silent. It waits for a client that does not read."""

    def flush_soon(self) -> None:
        """Send what was said, and wait for nothing here."""
        self.once_sent(_nothing)
        self._tasks.start_soon(self.flush)

    @abstractmethod
    def once_sent(self, action: Callable[[], None]) -> None:
        """Do this with the last byte of what was said so far, before anything more can be heard."""

    @abstractmethod
    async def leave(self) -> None:
        """Say goodbye below HTTP."""

    @abstractmethod
    async def truncate(self) -> None:
        """End as if all was said."""

    @abstractmethod
    def reset(self) -> None:
        """End at once: RST, or CONNECTION_CLOSE with an error."""

    @abstractmethod
    def forget(self) -> None:
        """Be gone, as when the process ends: no goodbye of TLS, HTTP or QUIC."""

    def note(self, kind: Callable[..., Event], *details: object) -> None:
        """Record an event of this connection's, now."""
        self.script.record.add(kind(self.number, self.script.record.now, *details))

    def speak(self, engine: Engine) -> None:
        """HTTP begins."""
        self.engine = engine
        self.note(Speaks, engine.version)

    def hear(self, heard: Iterable[Heard]) -> None:
        """Act on what the engine heard."""
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
        """The client has ended, and not by a reset: was it in the middle of something?"""
        if self.engine is not None and self.engine.unfinished and not self.left:
            self.note(Violation, f"the connection ended in the middle of {self.engine.unfinished}")

    def moved(self) -> None:
        """Wake what waits for room."""
        self._moved.set()
        self._moved = anyio.Event()

    def _on_head(self, head: Head) -> None:
        self.note(RequestReceived, head.stream, head.method, head.target)
        if self.leaves_after == 0:
            return  # as our goodbye said: it is not executed
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
        """Take so many more requests, and no others; say so where there is a word for it.

        What was said is not taken back: a second GOAWAY must not take more than the first.
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
        """Reset the streams of the exchanges under way; HTTP/1.1: the connection."""
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
        """The connection ends: so do its exchanges."""
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
        """Say all of it, but for the last word; whether that goes on to its end. :param cut: half of it."""
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
