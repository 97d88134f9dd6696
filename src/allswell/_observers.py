"""The observers of a pool: the debug log, and the functions that a program has added.

Theory of operation. An observer is called synchronously, where the event happens. It only listens. What it raises is
logged, and has no other effect. Whether there are observers is checked where something begins: a request, a dial, a
connection. If there are none, no events are made for what begins there, and nothing more is checked.
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
    """The observers of one pool.

    :ivar functions: all of them, without the debug log.
    """

    __slots__ = ("functions",)

    def __init__(self) -> None:
        self.functions: tuple[Observer, ...] = ()

    def add(self, function: Observer) -> None:
        """Call this function, too."""
        self.functions += (function,)

    def remove(self, function: Observer) -> None:
        """Do not call this function any more. Idempotent."""
        self.functions = tuple(each for each in self.functions if each != function)

    def wanted(self, log: logging.Logger) -> bool:
        """Whether there is an observer for events that are logged here: a function, or this log at the level DEBUG."""
        return bool(self.functions) or log.isEnabledFor(logging.DEBUG)

    def tell(self, event: Event) -> None:
        """Give an event to all of them."""
        notify("the debug log", _debug_log.log, event)
        for function in self.functions:
            if function in self.functions:  # a function that was called before may have removed it
                notify("an observer", function, event)


class Observed:
    """A request that is observed.

    :ivar number: see `_events.py`.
    :ivar tell: gives an event to the observers.
    """

    __slots__ = ("number", "tell")

    def __init__(self, number: int, tell: Callable[[Event], None]) -> None:
        self.number = number
        self.tell = tell


def notify(whom: str, function: Callable[[News], object], news: News) -> None:
    """Call a function that only listens. What it raises is logged, so the request that caused the news goes on."""
    try:
        function(news)
    except BaseException:  # noqa: BLE001 - it must not reach the task that runs now, which did not cause it
        logger.exception("allswell: %s failed", whom)
