"""Deadlines: absolute instants, made once; everything below only asks what is left. The one maker of cancel scopes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import anyio


class Deadline:
    """An instant on the monotonic clock by which something must be over.

    It can be brought forward while scopes made from it are open (a close with a short grace hurries the goodbyes
    that are already under way), never moved back.
    """

    __slots__ = ("_at", "_scopes")

    def __init__(self, at: float = math.inf) -> None:
        self._at = at
        self._scopes: list[anyio.CancelScope] = []

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The instant in so many seconds; ``None`` for never."""
        return cls(math.inf if seconds is None else monotonic() + seconds)

    @property
    def at(self) -> float:
        """The instant, as :func:`time.monotonic` tells it; ``inf`` for never."""
        return self._at

    def left(self) -> float:
        """The seconds that are left; 0 when it has passed."""
        return max(0.0, self._at - monotonic())

    def passed(self) -> bool:
        """Whether the instant is over."""
        return monotonic() >= self._at

    def sooner(self, seconds: float) -> Deadline:
        """A deadline of its own in so many seconds, or at this one where that is sooner."""
        return Deadline(min(self._at, monotonic() + seconds))

    def tighten(self, at: float) -> None:
        """Bring the instant forward to ``at``, for the scopes that are open too."""
        if at < self._at:
            self._at = at
            for scope in self._scopes:
                scope.deadline = self._scope_deadline()

    @contextmanager
    def scope(self) -> Iterator[anyio.CancelScope]:
        """A cancel scope that ends at this instant; ``cancelled_caught`` tells whether it did."""
        with anyio.CancelScope(deadline=self._scope_deadline()) as scope:
            self._scopes.append(scope)
            try:
                yield scope
            finally:
                self._scopes.remove(scope)

    def _scope_deadline(self) -> float:
        # The event loop's clock need not be time.monotonic (trio's starts elsewhere): translate.
        return math.inf if self._at == math.inf else anyio.current_time() + (self._at - monotonic())
