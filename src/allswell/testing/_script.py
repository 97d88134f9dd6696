"""What an origin answers, and how it misbehaves. The scripted origin and the mock share these methods."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

import httpx2

from allswell.testing._judge import not_executed_once
from allswell.testing._record import Record


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request, as a handler gets it.

    :ivar method: the method.
    :ivar target: the path with its query.
    :ivar headers: pairs of name and value, the names in lower case. There are no pseudo-header fields.
    :ivar body: the whole body.
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
    """The response to a request.

    :ivar status: the status code, from 200 to 999.
    :ivar body: the whole body.
    :ivar headers: header fields: a mapping, or pairs of name and value. The origin adds those that ``framing`` needs.
    :ivar framing: how the body's end is marked in HTTP/1.1: ``"length"`` (by Content-Length), ``"chunked"``, or
        ``"close"`` (by the connection's end). HTTP/2 and HTTP/3 end the stream.
    :raises ValueError: if the status or the framing is not one of these.
    :raises TypeError: if the header fields are anything else, or not of ``str``.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = field(default_factory=dict)
    framing: Literal["length", "chunked", "close"] = "length"

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 999:
            raise ValueError(f"the status of a response must be from 200 to 999, not {self.status}")
        if self.framing not in ("length", "chunked", "close"):
            raise ValueError(f'framing must be "length", "chunked" or "close", not {self.framing!r}')
        if not isinstance(self.headers, Mapping | Sequence) or not all(map(_is_field, self.fields)):
            raise TypeError(f"headers must be a mapping, or pairs, of str: names and values; not {self.headers!r}")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The header fields as pairs, in order."""
        given = self.headers
        if not isinstance(given, Mapping):
            return list(given)
        # (Headers of httpx2 or httpx may have a name several times.)
        return list(given.multi_items() if hasattr(given, "multi_items") else given.items())

    def bodiless(self, method: str) -> bool:
        """Whether no body follows the head (RFC 9110, section 6.4.1)."""
        return method == "HEAD" or self.status in (204, 304)


def _is_field(given: object) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(each, str) for each in given)


Handler: TypeAlias = Callable[[Request], Response | Awaitable[Response]]
H = TypeVar("H", bound=Handler)
Routes: TypeAlias = Mapping[str, Response | Handler]


@dataclass(slots=True)
class Faults:
    """How an origin misbehaves now.

    :ivar silent: whether it sends nothing.
    :ivar stalled: whether it stops every response.
    :ivar refusing: how many more requests it refuses; ``None`` for all.
    :ivar truncating: how many more responses it truncates; ``None`` for all.
    :ivar rate: the bytes per second of each response's body; ``None`` for no limit.
    """

    silent: bool = False
    stalled: bool = False
    refusing: int | None = 0
    truncating: int | None = 0
    rate: float | None = None

    def refuses(self) -> bool:
        """Whether this request is to be refused. Each call counts one request."""
        self.refusing, chosen = _counted(self.refusing)
        return chosen

    def truncates(self) -> bool:
        """Whether this response is to be truncated. Each call counts one response."""
        self.truncating, chosen = _counted(self.truncating)
        return chosen


def _counted(left: int | None) -> tuple[int | None, bool]:
    return (None, True) if left is None else (max(0, left - 1), left > 0)


class Scripted:
    """An origin's routes, its record, and its ways to misbehave.

    :param routes: for each path, its :class:`Response`, or a function or coroutine function that makes it from the
        :class:`Request`. Other paths get 404. Without routes, every path gets 200 and ``b"ok"``.
    :ivar record: all events, in order.
    :ivar requests: the requests that were executed, in order.
    :ivar failures: the exceptions of handlers. An :class:`Origin` raises the first one when its block ends.
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
        """Set the answer for a path, from now on.

        :raises ValueError: if the path does not begin with a slash.
        :raises TypeError: if the answer is neither a :class:`Response` nor callable.
        """
        if not path.startswith("/"):
            raise ValueError(f"the path {path!r} does not begin with a slash")
        if not isinstance(answer, Response) and not callable(answer):
            raise TypeError(f"the answer for {path} must be a Response or a handler, not {answer!r}")
        self._routes[path] = answer

    async def answer(self, request: Request) -> Response:
        """The response to a request. If the handler fails, ``failures`` gets its exception, and the client gets 500."""
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
                raise TypeError(f"the handler of {request.path} returned {response!r} and not a Response")
        except Exception as error:  # noqa: BLE001  raised again when the origin's block ends
            self.failures.append(error)
            return Response(500)
        return response

    def raise_failures(self) -> None:
        """Raise the first exception of a handler, if there is one."""
        if self.failures:
            raise self.failures[0]

    # Misbehaving

    def silence(self) -> None:
        """Send nothing at any layer: no responses, no goodbyes, no acknowledgements of QUIC. Go on reading."""
        self._set(silent=True)

    def stall(self) -> None:
        """Stop each response in the middle of its body; if it has none, before its head. All else goes on."""
        self._set(stalled=True)

    def refuse(self, times: int | None = None) -> None:
        """Do not execute requests, and tell the client so: by REFUSED_STREAM (HTTP/2), H3_REQUEST_REJECTED (HTTP/3).

        HTTP/1.1 has no such message. There the connection ends without a response.

        :param times: how many requests; by default all, until :meth:`behave`.
        :raises ValueError: if that is less than 1.
        """
        self._set(refusing=_times(times))

    def truncate(self, times: int | None = None) -> None:
        """Send half of a response's body, then end the connection as if that were all: by FIN, without close_notify.

        QUIC has no such end. There it is CONNECTION_CLOSE with H3_INTERNAL_ERROR.

        :param times: how many responses; by default all, until :meth:`behave`.
        :raises ValueError: if that is less than 1.
        """
        self._set(truncating=_times(times))

    def slow(self, bytes_per_second: float) -> None:
        """Send the body of each response no faster than this.

        :raises ValueError: if that is not more than 0.
        """
        if bytes_per_second <= 0:
            raise ValueError(f"bytes_per_second must be more than 0, not {bytes_per_second!r} (stall() stops a body)")
        self._set(rate=bytes_per_second)

    def behave(self) -> None:
        """End all misbehaviour. What was held back is sent."""
        self._set(silent=False, stalled=False, refusing=0, truncating=0, rate=None)

    def _set(self, **changes: bool | int | float | None) -> None:
        for name, value in changes.items():
            setattr(self.faults, name, value)

    # Judging

    def assert_executed_once(self, request: str | Request | httpx2.Request) -> None:
        """Check that this request was executed exactly once.

        :param request: ``"/target"``, ``"METHOD /target"``, or a request. Its method and target are compared.
        :raises AssertionError: if it was not. It says how often it was executed, and shows the record.
        :raises TypeError: for anything else, such as a request of httpx.
        """
        method: str | None
        if isinstance(request, str):
            method, _, target = request.rpartition(" ")
        elif isinstance(request, httpx2.Request):
            method, target = request.method, request.url.raw_path.decode("ascii")
        elif isinstance(request, Request):
            method, target = request.method, request.target
        else:
            kinds = "text, an allswell.testing.Request or an httpx2.Request"
            raise TypeError(f"the request must be {kinds}, not {request!r}")
        require(not_executed_once(self.record, method or None, target))


def _times(times: int | None) -> int | None:
    if times is not None and times < 1:
        raise ValueError(f"times must be at least 1, not {times!r}")
    return times


def require(fault: str | None) -> None:
    """:raises AssertionError: if there is a fault."""
    __tracebackhide__ = True
    if fault is not None:
        raise AssertionError(fault)
