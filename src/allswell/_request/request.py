"""A request for the pool: head, route, body, time limits, and whether it may be sent again."""

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

#: The largest body that is sent together with the head, in bytes. A larger one is uploaded in pieces.
INLINE_BODY = 64 * 1024

#: How many bytes each piece of a larger body has. (malloc can reuse the buffers of such pieces. From 128 KiB on it maps
#: new pages for each buffer, and that costs more than the encryption of its content.)
_PIECE = 96 * 1024


#: A source with one of these methods goes on from where it is in each iteration: ``anyio.AsyncFile``,
#: ``aiohttp.StreamReader``, a response of ours.
_READS = ("read", "aread", "receive")


def starts_anew(source: object) -> bool:
    """Whether each iteration gives all. Bytes do, and so do iterables that are no iterators and cannot be read from."""
    if isinstance(source, bytes):
        return True
    return not isinstance(source, AsyncIterator) and not any(hasattr(source, name) for name in _READS)


class Body:
    """A request's body. It knows whether it can be sent again.

    :param anew: whether each iteration gives all of it; ``None``: :func:`starts_anew` decides.
    :param begun: called before the first piece is taken, if the body cannot start anew.
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
        self._iterator: AsyncIterator[bytes] | None = None  # the last iterator over the source

    @property
    def inline(self) -> bytes | None:
        """The whole body, if it is small enough to go with the head; else ``None``."""
        source = self._source
        return source if isinstance(source, bytes) and len(source) <= INLINE_BODY else None

    @property
    def replayable(self) -> bool:
        """Whether all of it can be sent (again): nothing was taken from it yet, or it starts anew each time."""
        if self._iterator is None or isinstance(self._source, bytes):
            return True
        return self._anew and aiter(self._source) is not self._iterator

    async def pieces(self, tracer: Tracer | None = None) -> AsyncGenerator[bytes | memoryview]:
        """The body in pieces, from its start.

        :param tracer: gets each piece that the source makes.
        :raises TypeError: if the source gives something that is not like bytes.
        """
        source = self._source
        if isinstance(source, bytes):
            view = memoryview(source)  # a slice of a view is no copy
            for start in range(0, len(source), _PIECE):
                yield view[start : start + _PIECE]
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

    :ivar trailers: the request's trailer section, or a function that makes it once the body was sent.
    :ivar on_informational: awaited with each 1xx response.
    :ivar retry: decides whether a request that has failed for now is sent again.
    :ivar total_at: the instant at which its total timeout passes. It is set when the request is first sent.
    :ivar observed: gives its events to observers; ``None`` if there are none. It is set when it is first sent.
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
        """The body, if it goes with the head. (With ``Expect`` it does not: RFC 9110 §10.1.1.)"""
        if self.body is None or self.trailers is not None:
            return None
        inline = self.body.inline
        if inline is not None:
            for name, _ in self.head.headers:
                if len(name) == 6 and name.lower() == b"expect":  # (the length is known, and says most)
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
        # (An extended CONNECT for one of these means the same as the GET that asks for it in HTTP/1.1.)
        return proven or self.head.method in IDEMPOTENT_METHODS or self.head.protocol in PROTOCOLS
