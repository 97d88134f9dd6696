"""Deadlines: a time limit becomes an instant once, and the layers below ask how much time is left."""

from __future__ import annotations

import math
from types import TracebackType

import anyio

from allswell._clock import monotonic


class Deadline:
    """An instant on the monotonic clock by which something must be over.

    It can be brought forward, also while scopes made from it are open: a close with a shorter grace then hurries the
    goodbyes that are under way. It cannot be moved back. Deadlines made from it follow it.
    """

    __slots__ = ("_at", "_offset", "_origin", "_scopes")

    def __init__(self, at: float = math.inf, *, origin: Deadline | None = None, offset: float = 0.0) -> None:
        self._at = at
        self._origin = origin
        self._offset = offset
        self._scopes: list[tuple[anyio.CancelScope, Deadline]] = []  # each with its deadline: this, or one made from it

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """A deadline in so many seconds; ``None`` for never."""
        return cls(math.inf if seconds is None else monotonic() + seconds)

    @property
    def at(self) -> float:
        """The instant in seconds of :func:`time.monotonic`; ``inf`` for never."""
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
        """A new deadline in so many seconds, or at this one if that is sooner."""
        return Deadline(monotonic() + seconds, origin=self)

    def shifted(self, seconds: float) -> Deadline:
        """A new deadline so many seconds after this one, or before it if the number is negative."""
        return Deadline(origin=self, offset=seconds)

    def tighten(self, at: float) -> None:
        """Bring the instant forward to ``at``, also for open scopes. A later ``at`` changes nothing."""
        if at < self._at:
            self._at = at
            for scope, owner in self._scopes:
                scope.deadline = owner._scope_deadline()

    def scope(self, *, shield: bool = False) -> Scope:
        """A cancel scope that is cancelled at this instant; its ``cancelled_caught`` tells whether it was.

        :param shield: cancellation from outside does not reach it, as far as the event loop can shield it.
        """
        return Scope(self, shield)

    def _scope_deadline(self) -> float:
        # The event loop's clock may differ from time.monotonic (trio's has another origin), so translate.
        at = self.at
        return math.inf if at == math.inf else anyio.current_time() + (at - monotonic())


class Scope:
    """See :meth:`Deadline.scope`. (A context manager made of a generator takes twice as long.)"""

    __slots__ = ("_deadline", "_entry", "_shield")

    def __init__(self, deadline: Deadline, shield: bool) -> None:
        self._deadline, self._shield = deadline, shield

    def __enter__(self) -> anyio.CancelScope:
        deadline: Deadline | None = self._deadline
        scope = anyio.CancelScope(deadline=self._deadline._scope_deadline(), shield=self._shield)
        self._entry = (scope, self._deadline)
        scope.__enter__()
        while deadline is not None:
            deadline._scopes.append(self._entry)
            deadline = deadline._origin
        return scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        deadline: Deadline | None = self._deadline
        while deadline is not None:
            deadline._scopes.remove(self._entry)
            deadline = deadline._origin
        return self._entry[0].__exit__(kind, error, traceback)
