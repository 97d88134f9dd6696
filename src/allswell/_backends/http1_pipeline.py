"""The HTTP/1.1 backend with pipelining (RFC 9112 §9.3.2): requests that do not wait for the responses before theirs.

Theory of operation. A pipeline is a row of :class:`Http1` engines, one for each exchange, in the order of the requests.
Only the first is being answered. When its response is complete, it leaves the row, and the bytes behind the response go
to the next one. The last engine stays when it is done, and takes the next request. So without pipelining a connection
does just what :class:`Http1` does.

Only their order tells responses apart. So whatever ends one exchange early ends those behind it: the server's
``Connection: close``, the end of the stream, a protocol error, or a requester that leaves. Those behind fail with
:class:`~allswell._errors.NotProcessed` and are sent again elsewhere. Those *before* an abandoned one are still
answered, and then the connection is aborted. Three rules keep that harmless:

- Only idempotent methods follow others, and are followed.
- Nothing follows a request that is not sent in full, or that may end or change the connection (``Connection: close``,
  Upgrade, CONNECT).
- Nothing follows a connection's first request until its response is complete and the connection is still open. So a
  server that takes one request on each connection never sees a second one.
"""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from itertools import count

from allswell._backends.http1 import Http1, Memory, Version, no_response
from allswell._backends.interface import Event, ExchangeFailed
from allswell._errors import AllswellError, NotProcessed, RemoteProtocolError
from allswell._messages import IDEMPOTENT_METHODS, Headers, RequestHead


class Http1Pipeline(Version):
    """One HTTP/1.1 connection with up to ``1 + depth`` exchanges under way.

    :param depth: how many requests may be sent behind one that is not answered yet.

    The other parameters are those of :class:`Http1`.
    """

    def __init__(self, *, depth: int, max_header_size: int, memory: Memory | None = None) -> None:
        self._depth = depth
        self._engine = partial(Http1, max_header_size=max_header_size, numbers=count(1), memory=memory or Memory())
        self._line = deque([self._engine()])  # never empty
        self._output: list[bytes | memoryview] = []
        self.kept_idle = math.inf
        self._persists = False  # the first response is complete, and the connection still open
        self._idempotent = True  # the last request's method

    @property
    def must_abort(self) -> bool:
        return self._line[0].must_abort  # if another one was abandoned, those before it are answered first

    @property
    def exhausted(self) -> bool:
        return any(engine.exhausted for engine in self._line)

    # Requests

    def capacity(self) -> int:
        """See the interface. While an exchange is open, this is for idempotent requests only."""
        if self.exhausted:
            return 0
        last = self._line[-1]
        if not last.exchange:
            return 1 + self._depth * self._persists
        if self._persists and self._idempotent and last.may_be_followed:
            return 1 + self._depth - len(self._line)
        return 0

    def open(self, head: RequestHead, *, end: bool) -> int:
        idempotent = head.method in IDEMPOTENT_METHODS
        last = self._line[-1]
        if not last.exchange:
            number = last.open(head, end=end)
        elif idempotent and self.capacity():
            engine = self._engine()
            number = engine.open(head, end=end)
            last.followed = True
            self._line.append(engine)
        else:
            raise NotProcessed(RemoteProtocolError("the request cannot follow those in the pipeline"), proven=True)
        self._idempotent = idempotent
        self._output.append(self._line[-1].take_output())
        return number

    def send_body(self, exchange: int, data: bytes | memoryview, *, end: bool, trailers: Headers | None = None) -> None:
        # Only the last request can be incomplete.
        last = self._line[-1]
        last.send_body(exchange, data, end=end, trailers=trailers)
        self._output.append(last.take_output())

    def send_window(self, exchange: int) -> int:
        return self._line[-1].send_window(exchange)

    def unsent(self, exchange: int) -> int:
        return 0

    def consumed(self, exchange: int, credit: int) -> bool:
        """Do nothing: reading on lets the peer send on."""
        return False

    def cancel(self, exchange: int) -> None:
        for engine in self._line:
            engine.cancel(exchange)

    def stop(self, exchange: int) -> None:
        self.cancel(exchange)

    def reprioritize(self, exchange: int, priority: bytes) -> None:
        """Do nothing: HTTP/1.1 cannot say it."""

    def goodbye(self) -> None:
        self._line[0].goodbye()

    def ping(self) -> bool:
        return False

    def take_output(self) -> bytes:
        data = b"".join(self._output)
        self._output.clear()
        return data

    # Responses

    @property
    def unfinished(self) -> bool:
        return self._line[0].unfinished

    def receive(self, data: memoryview) -> list[Event]:
        return self._pass_on(self._line[0].receive(data))

    def go_on(self) -> list[Event]:
        return self._pass_on(self._line[0].go_on())

    def _pass_on(self, events: list[Event]) -> list[Event]:
        """Give the bytes behind a response to the next engine."""
        line = self._line
        first = line[0]
        while not first.exchange and not first.exhausted:
            self._persists = True
            self.kept_idle = first.kept_idle
            if len(line) == 1:
                return events
            line.popleft()
            surplus, first = first.surplus, line[0]
            if surplus and not first.must_abort:
                events += first.receive(memoryview(surplus))
        if first.must_abort:
            cause = RemoteProtocolError("the connection ended before the response", missing="response")
            events += self._unanswered(cause, proven=False)
        elif first.exhausted:
            # RFC 9112 §9.6: a server that sends Connection: close must process no further request. If it sends more
            # all the same, nothing is proven.
            words = "the server ended the connection after the response to an earlier request"
            cause = RemoteProtocolError(words, missing="response")
            events += self._unanswered(cause, proven=first.last_said and not first.surplus)
        return events

    def receive_eof(self, why: AllswellError | None) -> list[Event]:
        cause = why or no_response()
        return self._line[0].receive_eof(why) + self._unanswered(cause, proven=False)

    def _unanswered(self, cause: AllswellError, *, proven: bool) -> list[Event]:
        """Fail the exchanges behind the first: they will not be answered on this connection."""
        failed: list[Event] = []
        while len(self._line) > 1:
            failed.append(ExchangeFailed(self._line.pop().exchange, NotProcessed(cause, proven=proven)))
        failed.reverse()  # in the order of the requests: they are sent again in this order
        return failed
