"""Retries: what failed for now is tried again, because the caller asked for that (:class:`~allswell.Retry`).

The pool sends again by itself what was not processed (`replay.py`); there the protocol is the licence. Here it is the
caller. Both keep one ledger, and know the same facts of a request: whether its body can be sent once more, and whether
doing it twice does harm. Each try here is a whole one there.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import time
from typing import Literal

import anyio

from allswell._clock import monotonic
from allswell._config import Retry
from allswell._errors import AllswellError, ConnectFailed, ExchangeReset, RemoteProtocolError, Timeout, TransportError
from allswell._messages import Headers
from allswell._pool.replay import Replay
from allswell._request.request import Request
from allswell._request.response import Attempt, Response

#: A body of a response that is not wanted, up to which it is read, so that its connection can serve on.
_WORTH_READING = 64 * 1024
#: And for how long, in seconds. (Its server has trouble: it may never come.)
_WORTH_WAITING = 0.5

_MOST_ORIGINS = 1024


class Budgets:
    """By origin: how many retries its requests have earned. A server that fails at all is not asked much more often."""

    #: For an origin that was not asked before, and the most that are saved.
    START, MOST = 10.0, 100.0

    def __init__(self) -> None:
        self._saved: dict[str, float] = {}

    def earn(self, origin: str, share: float) -> None:
        """A request was made."""
        if origin not in self._saved and len(self._saved) >= _MOST_ORIGINS:
            self._saved.clear()
        self._saved[origin] = min(self.MOST, self._saved.get(origin, self.START) + share)

    def spend(self, origin: str) -> bool:
        """Whether there is one; it is gone then."""
        saved = self._saved.get(origin, self.START)
        if saved < 1:
            return False
        self._saved[origin] = saved - 1
        return True


class Pauses:
    """The pauses of all requests of a pool, which its close cuts short. What follows finds it closed.

    :ivar over: there are none any more.
    """

    def __init__(self) -> None:
        self.over = False
        self._now: set[anyio.Event] = set()

    async def wait(self, seconds: float) -> None:
        """Pause for so long."""
        if self.over:
            return
        over = anyio.Event()
        self._now.add(over)
        try:
            with anyio.move_on_after(seconds):
                await over.wait()
        finally:
            self._now.discard(over)

    def end(self) -> None:
        """All of them are over, and no other begins."""
        self.over = True
        for over in self._now:
            over.set()


Send = Callable[[Request, Replay], Awaitable[Response]]


async def retried(request: Request, retry: Retry, budgets: Budgets, pauses: Pauses, send: Send) -> Response:
    """Send a request, as often as it may be; the last response.

    :raises AllswellError: what the last attempt raised.
    """
    tries = _Tries(request, retry, budgets)
    while True:
        replay = Replay(request, tries.ledger)
        try:
            response = await send(request, replay)
        except AllswellError as error:
            pause = None if pauses.over else tries.after_error(error, replay)
            if pause is None:
                raise
        else:
            pause = None if pauses.over else tries.after_response(response)
            if pause is None:
                return response
            await _leave(response)
        await pauses.wait(pause)


class _Tries:
    def __init__(self, request: Request, retry: Retry, budgets: Budgets) -> None:
        self.ledger: list[Attempt] = []
        self._request = request
        self._retry = retry
        self._budgets = budgets
        self._count = 0
        self._origin = request.route.origin
        if retry.budget is not None:
            budgets.earn(self._origin, retry.budget)

    def after_error(self, error: AllswellError, replay: Replay) -> float | None:
        """How long to wait for the next attempt, if there is one."""
        if not _passes(error):
            return None
        before = isinstance(error, ConnectFailed) or (isinstance(error, Timeout) and error.phase == "connect")
        return self._next(str(error), replay.http_version, 0.0, processed="no" if before else "perhaps")

    def after_response(self, response: Response) -> float | None:
        """The same."""
        if response.status not in self._retry.statuses:
            return None
        asked = retry_after(response.headers) or 0.0
        why = f"the server answered {response.status}"
        return self._next(why, response.http_version.decode("ascii"), asked, processed="perhaps")

    def _next(self, why: str, version: str, least: float, *, processed: Literal["no", "perhaps"]) -> float | None:
        retry, request = self._retry, self._request
        self._count += 1
        if self._count >= retry.attempts:
            return None
        named = request.head.method.decode("ascii", "replace") in retry.methods
        if not request.may_repeat(proven=named or processed == "no"):
            return None
        longest = min(retry.longest, retry.backoff * 2 ** min(self._count - 1, 32))
        pause = max(least, random.uniform(0.0, longest))
        if least > retry.longest or monotonic() + pause >= request.total_at:
            return None
        if retry.budget is not None and not self._budgets.spend(self._origin):
            return None
        self.ledger.append(Attempt(why, processed, version))
        return pause


def _passes(error: AllswellError) -> bool:
    """Whether it may be otherwise the next time."""
    if isinstance(error, Timeout):
        return error.phase in ("connect", "read", "write")
    if isinstance(error, ConnectFailed):
        return error.by != "us" and error.phase in ("dns", "tcp", "quic")
    return isinstance(error, (TransportError, RemoteProtocolError, ExchangeReset)) and error.by != "us"


def retry_after(headers: Headers) -> float | None:
    """How many seconds the server asks to wait (RFC 9110 §10.2.3); ``None`` where it does not say."""
    for name, value in headers:
        if name.lower() == b"retry-after":
            said = value.decode("latin-1").strip()
            if said.isdecimal():
                return float(said)
            try:
                at = parsedate_to_datetime(said)
            except (ValueError, OverflowError):
                return None
            return max(0.0, _utc(at).timestamp() - time())
    return None


def _utc(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


async def _leave(response: Response) -> None:
    """Be done with a response that is not wanted."""
    length = next((value for name, value in response.headers if name.lower() == b"content-length"), b"")
    try:
        if length.isdigit() and int(length) <= _WORTH_READING:
            with anyio.move_on_after(_WORTH_WAITING):
                await response.read()
    except AllswellError:
        pass  # the next attempt is the news, not how this one ended
    finally:
        await response.aclose()
