"""What an origin answers, and how it misbehaves: the words that the scripted origin and its mock have in common."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

import httpx2

from allswell.testing._judge import not_executed_once
from allswell.testing._record import Record


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request, as a handler gets it.

    :ivar method: the method.
    :ivar target: the path, with its query.
    :ivar headers: names in lower case; without pseudo-header fields.
    :ivar body: all of it.
    :ivar http_version: ``"HTTP/1.1"``, ``"HTTP/2"`` or ``"HTTP/3"``.
    :ivar connection: the number of the connection that it came on; 0 for a mock.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    http_version: str = ""
    connection: int = 0

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Response:
    """What to answer.

    :ivar status: from 200 on.
    :ivar body: all of it.
    :ivar headers: further fields. The framing is the origin's business.
    :ivar framing: what tells where the body ends in HTTP/1.1: ``"length"`` (Content-Length), ``"chunked"`` or
        ``"close"`` (only the connection's end does). HTTP/2 and HTTP/3 end their streams.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: Literal["length", "chunked", "close"] = "length"

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 999:
            raise ValueError(f"the status of a final response is from 200 to 999, and not {self.status}")
        if self.framing not in ("length", "chunked", "close"):
            raise ValueError(f'framing is "length", "chunked" or "close", and not {self.framing!r}')

    def bodiless(self, method: str) -> bool:
        """Whether no body follows the head (RFC 9110, section 6.4.1)."""
        return method == "HEAD" or self.status in (204, 304)


Handler: TypeAlias = Callable[[Request], Response | Awaitable[Response]]
H = TypeVar("H", bound=Handler)
Routes: TypeAlias = Mapping[str, Response | Handler]


@dataclass(slots=True)
class Faults:
    """How an origin misbehaves now.

    :ivar refusing: requests that are still to be refused; ``None`` for all.
    :ivar truncating: responses that are still to be truncated; ``None`` for all.
    :ivar rate: bytes of bodies per second and response; ``None`` for no limit.
    """

    silent: bool = False
    stalled: bool = False
    refusing: int | None = 0
    truncating: int | None = 0
    rate: float | None = None

    def refuses(self) -> bool:
        """Whether this request is to be refused; it counts."""
        self.refusing, chosen = _counted(self.refusing)
        return chosen

    def truncates(self) -> bool:
        """Whether this response is to be truncated; it counts."""
        self.truncating, chosen = _counted(self.truncating)
        return chosen


def _counted(left: int | None) -> tuple[int | None, bool]:
    return (None, True) if left is None else (max(0, left - 1), left > 0)


class Scripted:
    """An origin's routes, its record, and its words for misbehaving.

    :param routes: a path -> its :class:`Response`, or what makes it from the :class:`Request`: a function, or a
        coroutine function. Other paths get 404. Without any routes, every path gets 200 and ``b"ok"``.
    :ivar record: all that was seen and said.
    :ivar requests: those that were executed, in order.
    :ivar failures: what handlers raised; the first is raised again where an :class:`Origin` is left.
    :ivar faults: how it misbehaves now.
    """

    def __init__(self, routes: Routes | None = None) -> None:
        self.record = Record()
        self.requests: list[Request] = []
        self.failures: list[Exception] = []
        self.faults = Faults()
        self._routes: dict[str, Response | Handler] = {}
        for path, answer in (routes or {}).items():
            self.route(path, answer)

    def route(self, path: str, answer: Response | Handler) -> None:
        """Answer this path so, from now on.

        :raises ValueError: the path does not begin with a slash.
        :raises TypeError: the answer is neither a :class:`Response` nor callable.
        """
        if not path.startswith("/"):
            raise ValueError(f"a path begins with a slash: {path!r}")
        if not isinstance(answer, Response) and not callable(answer):
            raise TypeError(f"an answer is a Response or a handler, and not {answer!r}")
        self._routes[path] = answer

    async def answer(self, request: Request) -> Response:
        """The response to a request. A handler that fails is remembered in ``failures``; the client gets 500."""
        self.requests.append(request)
        if not self._routes:
            return Response(200, b"ok")
        found = self._routes.get(request.path, Response(404))
        if isinstance(found, Response):
            return found
        try:
            made = found(request)
            response = await made if inspect.isawaitable(made) else made
            if not isinstance(response, Response):
                raise TypeError(f"the handler of {request.path} returned {response!r}, and no Response")
        except Exception as error:  # noqa: BLE001  raised again when the origin is left
            self.failures.append(error)
            return Response(500)
        return response

    def raise_failures(self) -> None:
        """Raise what the first handler raised that failed."""
        if self.failures:
            raise self.failures[0]

    # Misbehaving

    def silence(self) -> None:
        """Say nothing any more, at any layer: no answer, no goodbye, no acknowledgement of QUIC's; but read on."""
        self._set(silent=True)

    def stall(self) -> None:
        """Stop each response: with a body, halfway through it; without one, before its head. All else goes on."""
        self._set(stalled=True)

    def refuse(self, times: int | None = None) -> None:
        """Do not execute requests, and say so: REFUSED_STREAM (HTTP/2), H3_REQUEST_REJECTED (HTTP/3).

        HTTP/1.1 has no such word: the connection ends in place of the answer.

        :param times: how many; all by default, until :meth:`behave`.
        """
        self._set(refusing=_times(times))

    def truncate(self, times: int | None = None) -> None:
        """Send half of a response's body, then end the connection as if that was all: FIN, without close_notify.

        QUIC has no such end: it is CONNECTION_CLOSE with H3_INTERNAL_ERROR.

        :param times: how many responses; all by default, until :meth:`behave`.
        """
        self._set(truncating=_times(times))

    def slow(self, bytes_per_second: float) -> None:
        """Send the body of each response no faster than this."""
        if bytes_per_second <= 0:
            raise ValueError(f"bytes_per_second must be more than 0: {bytes_per_second!r} (stall() stops a body)")
        self._set(rate=bytes_per_second)

    def behave(self) -> None:
        """Do none of this any more. What was held back goes on."""
        self._set(silent=False, stalled=False, refusing=0, truncating=0, rate=None)

    def _set(self, **changes: bool | int | float | None) -> None:
        for name, value in changes.items():
            setattr(self.faults, name, value)

    # Judging

    def assert_executed_once(self, request: str | Request | httpx2.Request) -> None:
        """See that this request was executed, and just once.

        :param request: ``"/target"``, ``"METHOD /target"``, or a request, of which the method and the target count.
        :raises AssertionError: saying how often it was, and what was seen.
        """
        method: str | None
        if isinstance(request, str):
            method, _, target = request.rpartition(" ")
        elif isinstance(request, httpx2.Request):
            method, target = request.method, request.url.raw_path.decode("ascii")
        else:
            method, target = request.method, request.target
        require(not_executed_once(self.record, method or None, target))


def _times(times: int | None) -> int | None:
    if times is not None and times < 1:
        raise ValueError(f"times must be at least 1: {times!r}")
    return times


def require(fault: str | None) -> None:
    """:raises AssertionError: there is a fault."""
    __tracebackhide__ = True
    if fault is not None:
        raise AssertionError(fault)
