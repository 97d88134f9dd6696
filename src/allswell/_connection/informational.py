"""Informational (1xx) responses of one exchange: which are kept, which wait for the caller's hook, what is too much.

A server may say 102 or 104 for as long as it works on a request, so their number is no measure. What is bounded is what
lies unread. A hook reads them. Where there is none they are forgotten as time goes by, so that a flood is an error and
a heartbeat is not.
"""

from __future__ import annotations

from collections import deque

from allswell._clock import monotonic
from allswell._messages import ResponseHead

#: Bytes that may lie unread.
_UNREAD = 256 * 1024
#: Without a hook, so many bytes are forgotten in a second: 64 of the smallest.
_FORGOTTEN = 4 * 1024
#: The newest so many stay in the caller's list.
_KEPT = 64


class Informational:
    """Those of one exchange; made with the first.

    :param kept: the caller's list, which has the newest of them.
    """

    __slots__ = ("_has_hook", "_kept", "_unread", "_waiting", "_when")

    def __init__(self, kept: list[ResponseHead]) -> None:
        self._kept = kept
        self._waiting: deque[ResponseHead] = deque()
        self._has_hook = True  # until it is known that there is none
        self._unread = 0.0
        self._when = monotonic()

    def add(self, head: ResponseHead) -> bool:
        """One came; whether no more lies unread than may."""
        before, self._when = self._when, monotonic()
        if self._has_hook:
            self._waiting.append(head)
        else:
            self._unread = max(0.0, self._unread - (self._when - before) * _FORGOTTEN)
        self._unread += _size(head)
        self._kept.append(head)
        if len(self._kept) > _KEPT:
            del self._kept[0]
        return self._unread <= _UNREAD

    def take(self) -> ResponseHead | None:
        """The next for the hook; ``None`` when it has heard all."""
        if not self._waiting:
            return None
        head = self._waiting.popleft()
        self._unread -= _size(head)
        return head

    def no_hook(self) -> None:
        """There is none."""
        self._has_hook = False
        self._waiting.clear()


def _size(head: ResponseHead) -> int:
    return 64 + sum(len(name) + len(value) + 32 for name, value in head.headers)
