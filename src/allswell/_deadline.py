"""Deadlines: absolute instants, made once; everything below only asks what is left. The one maker of cancel scopes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from allswell._clock import monotonic


class Deadline:
    """An instant on the monotonic clock by which something must be over.

    It can be brought forward while scopes made from it are open (a close with a short grace hurries the goodbyes
    that are already under way), never moved back. Deadlines made from it follow it.
    """

    __slots__ = ("_at", "_offset", "_origin", "_scopes")

    def __init__(self, at: float = math.inf, *, origin: Deadline | None = None, offset: float = 0.0) -> None:
        self._at = at
        self._origin = origin
        self._offset = offset
        self._scopes: list[tuple[anyio.CancelScope, Deadline]] = []  # with whose scope it is: ours, or one made from us

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The instant in so many seconds; ``None`` for never."""
        return cls(math.inf if seconds is None else monotonic() + seconds)

    @property
    def at(self) -> float:
        """The instant, as :func:`time.monotonic` tells it; ``inf`` for never."""
        if self._origin is None:
            return self._at
        return min(self._at, self._origin.at + self._offset)

    def left(self) -> float:
        """The seconds that are left; 0 when it has passed."""
        return max(0.0, self.at - monotonic())

    def passed(self) -> bool:
        """Whether the instant is over."""
        return monotonic() >= self.at

    def sooner(self, seconds: float) -> Deadline:
        """A deadline of its own in so many seconds, or at this one where that is sooner."""
        return Deadline(monotonic() + seconds, origin=self)

    def shifted(self, seconds: float) -> Deadline:
        """The instant so many seconds after this one (or before it, where negative)."""
        return Deadline(origin=self, offset=seconds)

    def tighten(self, at: float) -> None:
        """Bring the instant forward to ``at``, for the scopes that are open too."""
        if at < self._at:
            self._at = at
            for scope, owner in self._scopes:
                scope.deadline = owner._scope_deadline()

    @contextmanager
    def scope(self, *, shield: bool = False) -> Iterator[anyio.CancelScope]:
        """A cancel scope that ends at this instant; ``cancelled_caught`` tells whether it did.

        :param shield: nothing else ends it, as far as the event loop can have it so.
        """
        with anyio.CancelScope(deadline=self._scope_deadline(), shield=shield) as scope:
            entry = (scope, self)
            deadline: Deadline | None = self
            while deadline is not None:
                deadline._scopes.append(entry)
                deadline = deadline._origin
            try:
                yield scope
            finally:
                deadline = self
                while deadline is not None:
                    deadline._scopes.remove(entry)
                    deadline = deadline._origin

    def _scope_deadline(self) -> float:
        # The event loop's clock need not be time.monotonic (trio's starts elsewhere): translate.
        at = self.at
        return math.inf if at == math.inf else anyio.current_time() + (at - monotonic())
