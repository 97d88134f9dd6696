"""The stack of a connection's filters: it connects from the bottom up, and ends from the top down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from allswell._deadline import Deadline
from allswell._errors import ProxyRefused
from allswell._filters.interface import Filter
from allswell._report import LayerEnd

AroundConnect = Callable[[Filter, Callable[[], Awaitable[None]]], Awaitable[None]]

Top_co = TypeVar("Top_co", bound=Filter, covariant=True)
Layer = TypeVar("Layer", bound=Filter)


class Stack(Generic[Top_co]):
    """A connection's filters.

    :param top: the topmost filter.
    :param lower: those below it, from the top down. Each filter was made with the next one as its lower layer.
    :ivar top: as given. A backend sits on it if it is a :class:`Carrier`.
    """

    __slots__ = ("_filters", "top")

    def __init__(self, top: Top_co, *lower: Filter) -> None:
        self.top = top
        self._filters: Sequence[Filter] = (top, *lower)

    def __str__(self) -> str:
        return " > ".join(layer.name for layer in self._filters)

    async def connect(self, around: AroundConnect | None = None) -> None:
        """Connect every filter, from the bottom up. When one fails, or is cancelled, all are aborted.

        :param around: is called with each filter and its ``connect``, and must await that (to trace it).
        :raises ConnectFailed: the error of the filter that failed.
        """
        await self._connect(reversed(self._filters), around)

    async def push(self, layer: Layer, around: AroundConnect | None = None) -> Stack[Layer]:
        """Connect one more filter on top. Return the stack that replaces this one.

        :param layer: the new filter, made with ``top`` below it.
        :raises ConnectFailed: the error of the filter. All filters are aborted then. After :class:`ProxyRefused` they
            are not: the proxy has answered, so those below ``layer`` can say goodbye.
        """
        higher = Stack(layer, *self._filters)
        await higher._connect([layer], around)
        return higher

    async def _connect(self, layers: Iterable[Filter], around: AroundConnect | None) -> None:
        try:
            for layer in layers:
                if around is None:
                    await layer.connect()
                else:
                    await around(layer, layer.connect)
        except ProxyRefused:
            raise
        except BaseException:
            self.abort()
            raise

    def say_goodbye(self) -> None:
        """Let every filter say its goodbye now, from the top down, and wait for nothing. (They still hear.)"""
        for layer in self._filters:
            layer.say_goodbye()

    async def shutdown(self, deadline: Deadline) -> list[LayerEnd]:
        """End every filter, from the top down, each with its goodbye, all within the deadline.

        If it is cancelled, it says at once all that is left to say.
        """
        try:
            return await self.hear_out(deadline)
        except BaseException:
            self.say_goodbye()
            raise
        finally:
            self.abort()

    async def hear_out(self, deadline: Deadline) -> list[LayerEnd]:
        """The same, but after a cancellation it can be called again, until :meth:`abort` ends it.

        A layer whose peer is silent may use half of the time that is left, so that those below it have their turn.
        (Their peers may be others.) The last layer may use all of it.
        """
        ends: list[LayerEnd] = []
        for layer in self._filters:
            last = layer is self._filters[-1]
            ends.append(await layer.shutdown(deadline if last else deadline.sooner(deadline.left() / 2)))
        return ends

    def abort(self, *, reset: bool = True) -> list[LayerEnd]:
        """Abort every filter. One that has ended already keeps its end. See :meth:`Filter.abort`."""
        return [layer.abort(reset=reset) for layer in self._filters]

    def so_far(self) -> list[LayerEnd]:
        """The end of each filter so far."""
        return [layer.so_far() for layer in self._filters]

    def extra(self, name: str) -> Any:
        """See :meth:`Filter.extra`. The topmost filter that knows it answers."""
        return next((fact for layer in self._filters if (fact := layer.extra(name)) is not None), None)
