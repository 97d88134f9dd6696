"""Informational (1xx) responses of one exchange: which are kept, which wait for the caller's hook, which are too many.

A server may send 102 or 104 for as long as it works on a request, so their number is not limited. Their unread bytes
are. A hook reads them. Without a hook they are forgotten as time goes by. So a flood is an error, and a heartbeat is
not.
"""

from __future__ import annotations

from collections import deque

from allswell._clock import monotonic
from allswell._messages import ResponseHead

#: How many bytes may lie unread.
_UNREAD = 256 * 1024
#: How many bytes are forgotten in a second, without a hook: 64 of the smallest responses.
_FORGOTTEN = 4 * 1024
#: How many stay in the caller's list: the newest.
_KEPT = 64


class Informational:
    """The 1xx responses of one exchange. It is made with the first.

    :param kept: the caller's list, with the newest of them.
    """

    __slots__ = ("_has_hook", "_kept", "_unread", "_waiting", "_when")

    def __init__(self, kept: list[ResponseHead]) -> None:
        self._kept = kept
        self._waiting: deque[ResponseHead] = deque()
        self._has_hook = True  # until it is known that there is none
        self._unread = 0.0
        self._when = monotonic()

    def add(self, head: ResponseHead) -> bool:
        """One has come. Return whether the unread bytes are within the limit."""
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
        """The next one for the hook; ``None`` if it has heard all."""
        if not self._waiting:
            return None
        head = self._waiting.popleft()
        self._unread -= _size(head)
        return head

    def no_hook(self) -> None:
        """There is no hook."""
        self._has_hook = False
        self._waiting.clear()


def _size(head: ResponseHead) -> int:
    return 64 + sum(len(name) + len(value) + 32 for name, value in head.headers)
