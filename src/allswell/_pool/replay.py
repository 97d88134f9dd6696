"""The rules of sending again: which attempt may be followed by another, where, and after which pause; and the ledger.

A request is sent again only after :class:`~allswell._errors.NotProcessed`, or after a response that says the same (408,
421, 425). If it is *proven* that the request was not processed, it may be sent again as long as there is progress: the
server has answered something since, or is about to, on the connection that it leaves. So a server that takes ten
requests on each connection serves hundreds. Without progress there are few tries, with growing pauses. There are none
after a time without progress that is longer than the request would wait for a response, or for room in the pool. Even
with progress for other requests, a request that was refused five times pauses. From then on its time and its tries are
limited.

Which connection it takes: a server that left one connection may be about to leave all others of that age, each when the
next request comes. So after two such refusals a request takes a connection that was made since, and that is expected to
take it. A request that was only *likely* not processed takes a newer connection, and then one of its own.
"""

from __future__ import annotations

import math
import random
from typing import Literal

import anyio

from allswell._clock import monotonic
from allswell._connection.connection import Connection
from allswell._connection.lifecycle import State
from allswell._connection.service import Service
from allswell._errors import NotProcessed
from allswell._events import RequestSentBack
from allswell._fields import options
from allswell._pool.freshness import ANY, UNUSED, Freshness
from allswell._request.request import Request
from allswell._request.response import Attempt, Response

#: How many attempts in a row may fail at a server that serves nothing else meanwhile, and how many connections to it,
#: if many requests try at a time. If others are served, so many attempts of one request are made without a pause.
_FRUITLESS = 5

#: How many attempts at one request there are in all.
_MOST = 50

#: The pause after the second attempt, in seconds. It doubles up to the second number.
_PAUSE, _LONGEST_PAUSE = 0.1, 0.8


#: A 408 that comes more than so many seconds after the request is its answer. An earlier one may have crossed with it.
_CROSSING = 1.0


class Replay:
    """The attempts at one request that did not give its response.

    :param attempts: the ledger of an earlier try, if there was one. Its attempts do not count here.
    :ivar attempts: the ledger.
    :ivar http_version: of the connection that carried the last attempt.
    :ivar fresh: how fresh the next connection must be.
    """

    def __init__(self, request: Request, attempts: list[Attempt] | None = None) -> None:
        self.attempts: list[Attempt] = [] if attempts is None else attempts
        self.http_version = ""
        self.fresh = ANY
        self._request = request
        self._earlier = len(self.attempts)
        self._left = 0  # connections that had carried other requests, and left without this one
        self._fruitless = 0
        self._service: Service | None = None  # of the last attempt, and how much it had answered by then
        self._answered = self._barren = 0
        bounds = [each for each in (request.timeouts.read, request.timeouts.pool) if each is not None]
        self._bound = min(bounds, default=math.inf)  # seconds of trying without progress
        self._until = monotonic() + self._bound

    def unserved(self, response: Response, connection: Connection, opened_at: float) -> bool:
        """Whether a response only says that the request should be sent again.

        A 421 asks for another connection (RFC 9110 §15.5.20), a 425 for a later moment (RFC 8470 §5.2). Each leads to
        one more attempt. A 408 may mean that the server gave up an idle HTTP/1.1 connection just when it was used
        again. It says that it "did not receive a complete request message" (RFC 9110 §15.5.9), and that it closes.

        :param opened_at: when the request was sent.
        """
        status = response.status
        if not self._request.may_repeat(proven=True):
            return False
        processed: Literal["no", "declined"] = "declined"
        if status == 408:
            crossed = connection.http_version == "HTTP/1.1" and response.stream_id > 1
            if not crossed or b"close" not in options(response.headers, b"connection"):
                return False
            if monotonic() - opened_at > _CROSSING and not self._request.may_repeat(proven=False):
                return False  # it has not crossed with the request: it is the answer
            processed = "no"
        elif any(attempt.processed == "declined" for attempt in self.attempts):
            return False
        self.note(Attempt(f"the server answered {status}", processed, connection.http_version), status)
        if status != 425:
            self.fresh = UNUSED  # a connection that is only for this
        return True

    async def again(self, error: NotProcessed, connection: Connection) -> None:
        """Return when it is time for another attempt.

        :raises AllswellError: if there is none: the error of the last one.
        """
        processed: Literal["no", "perhaps"] = "no" if error.proven else "perhaps"
        self.note(Attempt(str(error.cause), processed, connection.http_version), error.cause)
        now = monotonic()
        if not self._request.may_repeat(proven=error.proven) or now >= self._request.total_at:
            raise error.cause from error
        if error.proven:
            self._look_for_progress(connection, now)
            self._left += connection.state is not State.OPEN and connection.history.opened > 1
            if self._left > 1 and self.fresh is not UNUSED:
                self.fresh = Freshness(now)
            until = min(self._until, self._request.total_at)
            if self._hopeless() or now >= until:
                raise error.cause from error
            await anyio.sleep(min(self._pause(connection), until - now))
            if self._hopeless():
                raise error.cause from error
        elif self.fresh is UNUSED:
            raise error.cause from error
        else:
            # Other old connections may end in the same way, so it goes on a newer one. Requests that were lost together
            # may share that. One that is lost again gets a connection of its own.
            self.fresh = Freshness(now) if connection.shared and self.fresh is ANY else UNUSED

    def note(self, attempt: Attempt, cause: Exception | int) -> None:
        """Enter an attempt in the ledger.

        :param cause: see :class:`RequestSentBack`.
        """
        self.attempts.append(attempt)
        observed = self._request.observed
        if observed is not None:
            why, processed, version = attempt.why, attempt.processed, attempt.http_version
            observed.tell(RequestSentBack(observed.number, why, cause, processed, version))

    @property
    def _tries(self) -> int:
        return len(self.attempts) - self._earlier

    def _look_for_progress(self, connection: Connection, now: float) -> None:
        service = connection.history.service
        # A connection that left without an answer is no progress, whatever others have served meanwhile.
        useful = connection.state is State.OPEN or connection.history.answered > 0
        answered = useful and service is self._service and service.answered > self._answered
        serves = connection.state is not State.OPEN and connection.open_exchanges > 0  # what it took before it left
        if answered or serves:
            self._fruitless = 0
            # (One that goes on may refuse this request only. So may a server that leaves, when it does so each time.)
            if connection.state is not State.OPEN and self._tries <= _FRUITLESS:
                self._until = now + self._bound
        if not self._fruitless:
            self._barren = service.barren - 1  # with this one, or another that is about to be
        self._fruitless += 1
        self._service, self._answered = service, service.answered

    def _hopeless(self) -> bool:
        assert self._service is not None
        if self._tries >= _MOST:
            return True
        if self._service.answered > self._answered:
            return False  # while we paused
        return self._fruitless >= _FRUITLESS or (
            self._fruitless > 1 and self._service.barren - self._barren >= _FRUITLESS
        )

    def _pause(self, connection: Connection) -> float:
        """Pause, so that not all requests try at once, and longer if the connection goes on and only refuses."""
        tries = self._tries
        if connection.state is not State.OPEN:
            tries = max(self._fruitless, tries + 2 - _FRUITLESS)
        if tries < 2:
            return 0.0
        return min(_LONGEST_PAUSE, _PAUSE * (1 << min(tries - 2, 8))) * random.uniform(0.5, 1.0)
