"""Those who are told what happens in a pool: the debug log, and the functions that somebody has added.

Theory of operation. An observer is called synchronously, where the event happens. It only listens: what it raises is
logged, and nothing else comes of it. Whether anybody listens is asked where something begins: a request, a dial, a
connection. If nobody does, no event is made of all that follows, and nothing more is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from allswell import _debug_log
from allswell._events import Event
from allswell._tasks import logger

Observer = Callable[[Event], object]

News = TypeVar("News")


class Observers:
    """Those of one pool.

    :ivar functions: the observers, without the debug log.
    """

    __slots__ = ("functions",)

    def __init__(self) -> None:
        self.functions: tuple[Observer, ...] = ()

    def add(self, function: Observer) -> None:
        """Tell this one too."""
        self.functions += (function,)

    def remove(self, function: Observer) -> None:
        """Tell this one no more. Idempotent."""
        self.functions = tuple(each for each in self.functions if each != function)

    def wanted(self, log: logging.Logger) -> bool:
        """Whether anybody wants to know what is logged there."""
        return bool(self.functions) or log.isEnabledFor(logging.DEBUG)

    def tell(self, event: Event) -> None:
        """Tell all of them."""
        notify("the debug log", _debug_log.log, event)
        for function in self.functions:
            if function in self.functions:  # one before it may have removed it
                notify("an observer", function, event)


class Observed:
    """One request, of which they are told.

    :ivar number: see `_events.py`.
    :ivar tell: tells them.
    """

    __slots__ = ("number", "tell")

    def __init__(self, number: int, tell: Callable[[Event], None]) -> None:
        self.number = number
        self.tell = tell


def notify(whom: str, function: Callable[[News], object], news: News) -> None:
    """Call a function that only listens. What it raises is logged: the request that caused the news must not pay."""
    try:
        function(news)
    except BaseException:  # noqa: BLE001 - whatever it is, it is not for the task that happens to run now
        logger.exception("allswell: %s failed", whom)
