"""A request as the pool takes it: head, route, body, and how long and how often it may be tried."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field

from allswell._config import Retry, Timeouts
from allswell._connection.exchange import InformationalHook
from allswell._connection.upload import TrailerSource
from allswell._messages import IDEMPOTENT_METHODS, RequestHead
from allswell._observers import Observed
from allswell._request.extended_connect import PROTOCOLS
from allswell._request.route import Route
from allswell._trace import Tracer

#: The largest body that is sent in one go with the head; a larger one is uploaded in pieces.
INLINE_BODY = 64 * 1024

#: Bytes of a piece of a larger one. (Every buffer that it passes through is then one that malloc has at hand: from 128
#: KiB on it maps fresh pages for each, which costs more than to encrypt what is in them.)
_PIECE = 96 * 1024


#: What can be read from has these. It goes on where it is, however often it is iterated over: ``anyio.AsyncFile``,
#: ``aiohttp.StreamReader``, a response of ours.
_READS = ("read", "aread", "receive")


def starts_anew(source: object) -> bool:
    """Whether each iteration gives all: so with bytes, and with what makes an iterator and cannot be read from."""
    if isinstance(source, bytes):
        return True
    return not isinstance(source, AsyncIterator) and not any(hasattr(source, name) for name in _READS)


class Body:
    """A request's body, of which it is known whether it can be sent once more.

    :param anew: whether each iteration gives all of it, where :func:`starts_anew` cannot know.
    :param begun: called before the first piece is taken, where the rest cannot start anew.
    """

    __slots__ = ("_anew", "_begun", "_iterator", "_source")

    def __init__(
        self,
        source: bytes | AsyncIterable[bytes],
        *,
        anew: bool | None = None,
        begun: Callable[[], object] | None = None,
    ) -> None:
        self._source = source
        self._anew = starts_anew(source) if anew is None else anew
        self._begun = begun
        self._iterator: AsyncIterator[bytes] | None = None  # the last one

    @property
    def inline(self) -> bytes | None:
        """All of it, where it is small enough to go at once."""
        source = self._source
        return source if isinstance(source, bytes) and len(source) <= INLINE_BODY else None

    @property
    def replayable(self) -> bool:
        """Whether it can be sent (once more), whole: nothing was taken from it yet, or it starts anew each time."""
        if self._iterator is None or isinstance(self._source, bytes):
            return True
        return self._anew and aiter(self._source) is not self._iterator

    async def pieces(self, tracer: Tracer | None = None) -> AsyncGenerator[bytes]:
        """Piece by piece, from the start.

        :param tracer: is told of each piece that the source makes.
        :raises TypeError: when the source gives what is not like bytes.
        """
        source = self._source
        if isinstance(source, bytes):
            for start in range(0, len(source), _PIECE):
                yield source[start : start + _PIECE]
            return
        if self._begun is not None and not self._anew:
            self._begun()
        self._iterator = pieces = aiter(source)
        try:
            async for piece in pieces:
                # Copy buffers: the caller may reuse one while it is still being sent.
                whole = piece if type(piece) is bytes else bytes(memoryview(piece))
                if tracer is not None:
                    tracer.sent(whole)
                yield whole
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()


@dataclass(slots=True, eq=False)
class Request:
    """One request to the pool.

    :ivar trailers: the request's trailer section, or what makes it once the body was sent.
    :ivar on_informational: awaited with each 1xx response.
    :ivar retry: whether what failed for now is tried again.
    :ivar total_at: the instant at which its total timeout passes; set when it is first sent.
    :ivar observed: by whom, if anybody is told of it; set when it is first sent.
    """

    head: RequestHead
    route: Route
    body: Body | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    trailers: TrailerSource = None
    on_informational: InformationalHook | None = None
    tracer: Tracer | None = None
    retry: Retry | None = None
    total_at: float = math.inf
    observed: Observed | None = None

    @property
    def inline(self) -> bytes | None:
        """The body where it goes with the head. (Not when the server was asked first: RFC 9110 §10.1.1.)"""
        if self.body is None or self.trailers is not None:
            return None
        inline = self.body.inline
        if inline is not None and any(name.lower() == b"expect" for name, _ in self.head.headers):
            return None
        return inline

    @property
    def may_follow(self) -> bool:
        """Whether it may be pipelined behind others (RFC 9112 §9.3.2): idempotent, and sent in one go."""
        if self.head.method not in IDEMPOTENT_METHODS or self.route.upgrades:
            return False
        return self.body is None or self.inline is not None

    def may_repeat(self, *, proven: bool) -> bool:
        """Whether it may be sent again: the peer provably did not process it, or processing it twice does no harm."""
        if self.body is not None and not self.body.replayable:
            return False
        # (An extended CONNECT of these means what the GET means that asks HTTP/1.1 for the same.)
        return proven or self.head.method in IDEMPOTENT_METHODS or self.head.protocol in PROTOCOLS
