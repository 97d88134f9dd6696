"""Retries: failures are tried again because the caller asked for it (:class:`~allswell.Retry`).

The pool sends again by itself what was not processed (`replay.py`): the protocol allows that. Here the caller allows
more. Both use one ledger, and check the same of a request: whether its body can start anew, and whether sending it
twice does harm. Each try here may take several attempts there.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import time

import anyio

from allswell._clock import monotonic
from allswell._config import Retry
from allswell._errors import AllswellError, ConnectFailed, ExchangeReset, RemoteProtocolError, Timeout, TransportError
from allswell._fields import announced_length
from allswell._messages import Headers
from allswell._pool.replay import Replay
from allswell._request.request import Request
from allswell._request.response import Attempt, Response

#: The body of an unwanted response is read up to this size, so that its connection can be used again.
_WORTH_READING = 64 * 1024
#: And for so many seconds. (Its server has trouble: the body may never come.)
_WORTH_WAITING = 0.5

_MOST_ORIGINS = 1024


class Budgets:
    """How many retries the requests to each origin may take, so that a failing server is asked little more often."""

    #: The retries of a new origin, and the most that an origin can save.
    START, MOST = 10.0, 100.0

    def __init__(self) -> None:
        self._saved: dict[str, float] = {}

    def earn(self, origin: str, share: float) -> None:
        """A request was made."""
        if origin not in self._saved and len(self._saved) >= _MOST_ORIGINS:
            self._saved.clear()
        self._saved[origin] = min(self.MOST, self._saved.get(origin, self.START) + share)

    def spend(self, origin: str) -> bool:
        """Take one, and return whether there was one."""
        saved = self._saved.get(origin, self.START)
        if saved < 1:
            return False
        self._saved[origin] = saved - 1
        return True


class Pauses:
    """The pauses of all requests of a pool. Its close cuts them short.

    :ivar over: the pool closes, and there are no more pauses.
    """

    def __init__(self) -> None:
        self.over = False
        self._now: set[anyio.Event] = set()

    async def wait(self, seconds: float) -> None:
        """Pause for some seconds."""
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
        """End all pauses, and allow no more."""
        self.over = True
        for over in self._now:
            over.set()


Send = Callable[[Request, Replay], Awaitable[Response]]


async def retried(request: Request, retry: Retry, budgets: Budgets, pauses: Pauses, send: Send) -> Response:
    """Send a request as often as allowed. Return the last response.

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
            pause = None if pauses.over else tries.after_response(response, replay)
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
        attempt = Attempt(str(error), "no" if before else "perhaps", replay.http_version)
        return self._next(replay, attempt, error, 0.0)

    def after_response(self, response: Response, replay: Replay) -> float | None:
        """The same."""
        if response.status not in self._retry.statuses:
            return None
        asked = retry_after(response.headers) or 0.0
        attempt = Attempt(f"the server answered {response.status}", "perhaps", response.http_version.decode("ascii"))
        return self._next(replay, attempt, response.status, asked)

    def _next(self, replay: Replay, attempt: Attempt, cause: Exception | int, least: float) -> float | None:
        retry, request = self._retry, self._request
        self._count += 1
        if self._count >= retry.attempts:
            return None
        named = request.head.method.decode("ascii", "replace") in retry.methods
        if not request.may_repeat(proven=named or attempt.processed == "no"):
            return None
        longest = min(retry.longest, retry.backoff * 2 ** min(self._count - 1, 32))
        pause = max(least, random.uniform(0.0, longest))
        if least > retry.longest or monotonic() + pause >= request.total_at:
            return None
        if retry.budget is not None and not self._budgets.spend(self._origin):
            return None
        replay.note(attempt, cause)
        return pause


def _passes(error: AllswellError) -> bool:
    """Whether the next attempt may have another result."""
    if isinstance(error, Timeout):
        return error.phase in ("connect", "read", "write")
    if isinstance(error, ConnectFailed):
        return error.by != "us" and error.phase in ("dns", "tcp", "quic")
    return isinstance(error, (TransportError, RemoteProtocolError, ExchangeReset)) and error.by != "us"


def retry_after(headers: Headers) -> float | None:
    """How many seconds the server asks to wait (RFC 9110 §10.2.3); ``None`` if it does not ask."""
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
    """Dispose of a response that is not wanted."""
    length = announced_length(response.headers)
    try:
        if length is not None and length <= _WORTH_READING:
            with anyio.move_on_after(_WORTH_WAITING):
                await response.read()
    except AllswellError:
        pass  # the next attempt matters, not how this one ended
    finally:
        await response.aclose()
