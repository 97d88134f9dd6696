"""The short ways of :class:`AsyncClient`: what httpx2 does around each request, in fewer steps, for ordinary requests.

Theory of operation. httpx2's client has one way for all cases. It parses a URL twice, copies headers four times, runs
an authentication that does nothing as an async generator, and reads a body through four nested generators. For most
requests none of that can be seen from outside. So each method here takes the place of one of httpx2's, and does the
same in fewer steps.

- **One for one.** A short way replaces one method, and calls what that method calls, by the same names. So what a
  subclass overrides, and what is patched, keeps its effect. Only the constructors of ``URL``, ``Request``, ``Headers``,
  ``Response`` and its stream are not called if they would only copy.
- **All else goes the long way**, which is httpx2's own method: files, cookies to be sent, hooks of requests, ``auth``,
  redirects from the second on, encoded content, URLs that parsing would change, objects whose types are not httpx2's
  own. The long way is also taken if the method to be replaced is not the known one: another class in the hierarchy may
  override it, or a tool may have patched it.
- **What may change in flight** is read when httpx2 reads it: the hooks of responses and the cookies are read after the
  response has come.
- **What is known of httpx2** is listed in `_shapes.py`. With another httpx2 there are no short ways.

``tests/client/test_short.py`` checks that both ways give the same requests, responses and errors.

Private names of httpx2 are used throughout. `_shapes.py` lists the functions, and so does a canary test.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from http.cookiejar import CookieJar
from time import perf_counter
from typing import TYPE_CHECKING, Any

# By names of their own: in the module, which has a __getattr__, each look-up takes as long as that of ten names here.
from httpx2 import (
    URL,
    USE_CLIENT_DEFAULT,
    AsyncByteStream,
    AsyncClient,
    Auth,
    ByteStream,
    Cookies,
    Headers,
    QueryParams,
    RemoteProtocolError,
    Request,
    RequestError,
    Timeout,
)
from httpx2 import Response as HttpxResponse

from allswell import _gzip, _shapes
from allswell._fields import OF_THE_CLIENT
from allswell._given import require
from allswell._late import Late
from allswell._memory import remember
from allswell._messages import LoweredHeaders
from allswell._request.route import IN_QUERY, LONGEST_URL, SEGMENT, PlainUrls

if TYPE_CHECKING:
    from httpx2 import _types
    from httpx2._client import BoundAsyncStream, ClientState, UseClientDefault
    from httpx2._content import encode_request
    from httpx2._urlparse import ParseResult
else:  # if one of these is missing, there are no short ways, and the client still works
    _types = Late("httpx2._types", "httpx2")
    BoundAsyncStream = _shapes.find("httpx2._client", "BoundAsyncStream") or AsyncByteStream
    ClientState = _shapes.find("httpx2._client", "ClientState")
    UseClientDefault = type(USE_CLIENT_DEFAULT)
    encode_request = _shapes.find("httpx2._content", "encode_request")
    ParseResult = _shapes.find("httpx2._urlparse", "ParseResult")

_OPENED = None if ClientState is None else ClientState.OPENED  # by a name of its own: see `_halves.py`

#: Whether the short ways are used: httpx2 is the one that they were written for.
ON = _shapes.known()

_Field = tuple[bytes, bytes, bytes]  # as Headers has it: see `LoweredHeaders`

_MERGE_URL = _shapes.find("httpx2._client", "BaseClient._merge_url")
_MERGE_HEADERS = _shapes.find("httpx2._client", "BaseClient._merge_headers")
_BUILD_REQUEST = _shapes.find("httpx2._client", "BaseClient.build_request")
_BUILD_REQUEST_AUTH = _shapes.find("httpx2._client", "BaseClient._build_request_auth")
_SEND = _shapes.find("httpx2._client", "AsyncClient.send")
_SEND_HANDLING_AUTH = _shapes.find("httpx2._client", "AsyncClient._send_handling_auth")
_SEND_HANDLING_REDIRECTS = _shapes.find("httpx2._client", "AsyncClient._send_handling_redirects")
_SEND_SINGLE_REQUEST = _shapes.find("httpx2._client", "AsyncClient._send_single_request")
_CLOSE_CLIENT = _shapes.find("httpx2._client", "AsyncClient.aclose")
_LEAVE_CLIENT = _shapes.find("httpx2._client", "AsyncClient.__aexit__")
_AUTH_FLOW = _shapes.find("httpx2", "Auth.async_auth_flow")
_EXTRACT_COOKIES = _shapes.find("httpx2", "Cookies.extract_cookies")
_WALK = CookieJar.__iter__
_NEW_URL = URL.__init__
_NEW_HEADERS = Headers.__init__
_NEW_REQUEST = Request.__init__
_NEW_RESPONSE = HttpxResponse.__init__
_READ = _gzip.Response.aread
_ITER_BYTES = _gzip.Response.aiter_bytes
_ITER_RAW = _gzip.Response.aiter_raw
_CLOSE = _gzip.Response.aclose

#: What requests without content send.
_NOTHING = ByteStream(b"")

_logger = logging.getLogger("httpx2")  # as httpx2 has it
_new = object.__new__
_parsed = tuple.__new__  # makes a NamedTuple faster than its own constructor, which is written in Python

# --- URLs

_RELATIVE = re.compile(rf"(?:/(?!/)|(?!/|[^/?]*:))({SEGMENT}(?:/{SEGMENT})*+)(?:\?({IN_QUERY}*+))?")
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443"}


class Urls(PlainUrls[tuple[str, str, int | None]]):
    """Takes absolute URLs apart, as far as their normal form is the text itself."""

    def __init__(self) -> None:
        super().__init__(_origin)

    def parsed(self, text: str) -> ParseResult | None:
        """As httpx2 does it; ``None`` for any other."""
        split = self.split(text)
        if split is None:
            return None
        (scheme, host, port), rest = split
        path, query = rest.groups()
        return _parsed(ParseResult, (scheme, "", host, port, path, query, None))


def _origin(match: re.Match[str]) -> tuple[str, str, int | None]:
    scheme, host, port = match.groups()
    return scheme, host, None if port is None or port == _DEFAULT_PORTS[scheme] else int(port)


def plain_url(text: str) -> ParseResult | None:
    """The same for one URL, of which nothing is remembered."""
    return Urls().parsed(text)


def _with_query(url: URL, params: Any) -> URL | None:
    """The URL with these parameters as its query; ``None`` if parsing would change the rest of it."""
    parsed = url._uri_reference
    if plain_url(str(parsed)) != parsed:
        return None
    query = str(QueryParams(params)) if params else None
    return _url(parsed._replace(query=query)) if query is None or len(query) <= LONGEST_URL else None


def _url(parsed: ParseResult) -> URL:
    url: URL = _new(URL)
    url._uri_reference = parsed
    return url


# --- Requests


def _ordinary_request(
    method: str,
    url: URL,
    params: Any,
    headers: Headers,
    content: Any,
    data: Any,
    json: Any,
    extensions: dict[str, Any],
    hosts: _Hosts,
) -> Request | None:
    """Make the request that httpx2's constructor makes; ``None`` if ``params`` need the long way.

    It keeps ``url``, ``headers`` and ``extensions`` without copying them.
    """
    request: Request = _new(Request)
    request.method = method = method.upper()
    if params is not None:
        with_query = _with_query(url, params)
        if with_query is None:
            return None
        url = with_query
    request.url = url
    fields = headers._list
    names = [field[1] for field in fields]
    begin: list[_Field] = []
    end: list[_Field] = []
    if content is None and data is None and json is None:
        stream: Any = _NOTHING
    else:
        defaults, stream = encode_request(content=content, data=data, json=json)
        for name, value in defaults.items():
            raw = name.encode("ascii")
            lower = raw.lower()
            framed = (lower == b"content-length" and b"transfer-encoding" in names) or (
                lower == b"transfer-encoding" and b"content-length" in names
            )
            if lower not in names and not framed:
                names.append(lower)
                end.append((raw, lower, value.encode("ascii")))
    if b"host" not in names and (host := hosts.field(url)) is not None:
        begin.append(host)
    if (
        method in ("POST", "PUT", "PATCH", "QUERY")
        and b"content-length" not in names
        and b"transfer-encoding" not in names
    ):
        begin.append((b"Content-Length", b"content-length", b"0"))
    request.headers = _headers([*begin, *fields, *end])
    request.extensions = extensions
    request.stream = stream
    if type(stream) is ByteStream and type(stream._stream) is bytes:
        request._content = stream._stream
    elif isinstance(stream, ByteStream):
        request.read()
    return request


class _Hosts:
    """The Host fields of a client's requests. They are remembered, because most requests go to few origins."""

    _MOST = 128

    def __init__(self) -> None:
        self._known: dict[tuple[str, int | None], _Field] = {}

    def field(self, url: URL) -> _Field | None:
        """The field of a request to this URL; ``None`` if the URL names no host."""
        parsed = url._uri_reference
        to = parsed.host, parsed.port
        known = self._known.get(to)
        if known is None and to[0]:
            found = b"Host", b"host", parsed.netloc.encode("ascii")
            return remember(self._known, to, found, self._MOST)
        return known


class _Sections:
    """The header sections of a client's requests: the client's fields, and those that are given with the request.

    Most requests of a client have fields of the same names. So for the names given, it remembers which of the client's
    fields stay, and the names as bytes.
    """

    _MOST = 128

    def __init__(self) -> None:
        self._own: list[_Field] = []
        self._by_names: dict[tuple[str, ...], tuple[list[_Field], list[tuple[str, bytes, bytes]]]] = {}

    def merged(self, own: list[_Field], given: dict[str, str]) -> list[_Field] | None:
        """The section; ``None`` if a name or a value is not ASCII text. (To encode as UTF-8 takes less time.)"""
        if own != self._own:
            self._own = own.copy()
            self._by_names.clear()
        names = tuple(given)
        found = self._by_names.get(names)
        if found is None:
            if not all(type(name) is str and name.isascii() for name in names):
                return None
            written = [(name, name.encode("ascii"), name.lower().encode("ascii")) for name in names]
            others = {lower for _, _, lower in written}
            found = [field for field in own if field[1] not in others], written
            remember(self._by_names, names, found, self._MOST)
        kept, written = found
        section = kept.copy()
        for name, raw, lower in written:
            value = given[name]
            if type(value) is not str or not value.isascii():
                return None
            section.append((raw, lower, value.encode()))
        return section


def origin_and_target(url: URL) -> tuple[tuple[str, str | bytes, int | None], bytes]:
    """A key for the origin of a URL of the library's, and the request target."""
    if not ON or type(url) is not URL:
        return (url.scheme, url.raw_host, url.port), url.raw_path
    scheme, _, host, port, path, query, _ = url._uri_reference
    return (scheme, host, port), (path or "/" if query is None else f"{path or '/'}?{query}").encode("ascii")


def body_of(stream: object) -> bytes | None:
    """The content of a stream of the library's that has it as one bytes object; ``None`` for any other stream."""
    if ON and type(stream) is ByteStream:
        content: Any = stream._stream
        if isinstance(content, bytes):
            return content
    return None


def taken_apart(headers: Headers) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """The library's headers as pairs of name and value, and their names in lower case."""
    if not ON or type(headers) is not Headers:
        pairs = headers.raw
        return pairs, [name.lower() for name, _ in pairs]
    fields = headers._list
    return [(name, value) for name, _, value in fields], [lower for _, lower, _ in fields]


def _headers(fields: list[_Field]) -> Headers:
    headers: Headers = _new(Headers)
    headers._list = fields
    headers._encoding = None
    return headers


def _has_none(cookies: object) -> bool:
    """Whether there are no cookies. (An empty jar shows that without being walked through.)"""
    if type(cookies) is Cookies:
        jar: Any = cookies.jar
        if type(jar).__iter__ is _WALK and not jar._cookies:
            return True
    return not cookies


def _constructors_are_known() -> bool:
    return URL.__init__ is _NEW_URL and Headers.__init__ is _NEW_HEADERS and Request.__init__ is _NEW_REQUEST


# --- Responses

#: The status codes of redirects.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


#: How many attributes a new response has. One that was read has more, and so has one of which a method was replaced.
_ATTRIBUTES = 11


class _TimedStream(BoundAsyncStream):
    """httpx2's, but it makes the time that the response took when somebody asks for it. Few programs do."""

    _seconds: float | None = None

    @property
    def elapsed(self) -> timedelta | None:
        """See httpx2."""
        return None if self._seconds is None else timedelta(0, self._seconds)

    @elapsed.setter
    def elapsed(self, elapsed: timedelta | None) -> None:
        self._seconds = None if elapsed is None else elapsed.total_seconds()


class WholeStream(AsyncByteStream):
    """A body that can be read whole, with one call.

    :ivar plain: the fields that came with it, if all are ASCII and none is in :data:`OF_THE_CLIENT`; else ``None``.
    """

    plain: LoweredHeaders | None = None

    def take_whole(self) -> bytes | None:
        """Return the whole body if it has already come, else ``None``. If it is returned, the stream is closed."""
        return None

    async def read_whole(self, count: Callable[[int], None]) -> bytes:
        """Wait for the whole body, and return it. Unlike `take_whole`, it leaves the stream to be closed.

        :param count: called with the number of bytes that have come, also if the body does not become complete.
        """
        raise NotImplementedError


class Response(_gzip.Response):
    """A response of our transport. It is httpx2's, but its body is read whole if nothing wraps it or must decode it."""

    @classmethod
    def of(
        cls,
        status: int,
        headers: list[tuple[bytes, bytes]],
        stream: WholeStream,
        extensions: dict[str, Any],
        plain: LoweredHeaders | None = None,
    ) -> Response:
        """Make the response that the constructor makes. It keeps ``extensions`` without copying them.

        :param plain: see :class:`~allswell._messages.ResponseHead`.
        """
        if not ON or HttpxResponse.__init__ is not _NEW_RESPONSE or Headers.__init__ is not _NEW_HEADERS:
            return cls(status, headers=headers, stream=stream, extensions=extensions)
        if plain is not None:
            stream.plain, fields = plain, plain.copy()
        else:
            fields = [(name, name.lower(), value) for name, value in headers]
            for name, lower, value in fields:
                if lower in OF_THE_CLIENT or not (value.isascii() and name.isascii()):
                    break
            else:
                stream.plain = fields.copy()
        made: Response = _new(cls)
        made.status_code = status
        made.headers = _headers(fields)
        made._request = None
        made.next_request = None
        made.extensions = extensions
        made.history = []
        made.is_closed = False
        made.is_stream_consumed = False
        made.default_encoding = "utf-8"
        made.stream = stream
        made._num_bytes_downloaded = 0
        return made

    async def aread(self) -> bytes:
        """See httpx2."""
        stream = self.stream
        if (
            type(stream) is not _TimedStream
            or not issubclass(type(stream._stream), WholeStream)
            or not self._reads_ordinarily(stream._stream)
        ):
            return await super().aread()
        whole: Any = stream._stream
        self.is_stream_consumed = True
        self._num_bytes_downloaded = 0
        try:
            content: bytes | None = whole.take_whole()
            if content is not None:
                self._num_bytes_downloaded = len(content)
                self.is_closed = True
                stream._seconds = perf_counter() - stream._start
            else:
                try:
                    content = await whole.read_whole(self._count)
                finally:
                    await self.aclose()
                assert content is not None
        except RequestError as error:
            self._names_request(error)
            raise
        self._content = content
        return content

    def _reads_ordinarily(self, whole: Any) -> bool:
        theirs = _gzip.Response
        return (
            ON
            and type(self) is Response
            and not self.is_stream_consumed
            and not self.is_closed
            and theirs.aread is _READ
            and theirs.aiter_bytes is _ITER_BYTES
            and theirs.aiter_raw is _ITER_RAW
            and theirs.aclose is _CLOSE
            and len(self.__dict__) == _ATTRIBUTES
            and type(self.headers) is Headers
            and (
                self.headers._list == whole.plain
                or b"content-encoding" not in [field[1] for field in self.headers._list]
            )
        )

    async def aclose(self) -> None:
        """See httpx2."""
        if not ON or _gzip.Response.aclose is not _CLOSE or not isinstance(self.stream, AsyncByteStream):
            await super().aclose()
        elif not self.is_closed:
            self.is_closed = True
            try:
                await self.stream.aclose()
            except RequestError as error:
                self._names_request(error)
                raise

    def _names_request(self, error: RequestError) -> None:
        if self._request is not None:
            error.request = self._request

    def _count(self, count: int) -> None:
        self._num_bytes_downloaded += count


# --- The client


class ShortWays(AsyncClient):
    """httpx2's client, with the short ways."""

    _sections: _Sections | None = None
    _hosts: _Hosts | None = None
    _urls: Urls | None = None
    _plain_base: tuple[URL, ParseResult | None] | None = None
    _straight: type | None = None  # the class itself, if no class in its MRO is between ShortWays and httpx2's client

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        above = cls.__mro__[cls.__mro__.index(ShortWays) + 1]
        cls._straight = cls if above is AsyncClient else None

    def _closes_ordinarily(self) -> bool:
        """Whether httpx2's way to close is known: it closes each transport, and does nothing else."""
        return (
            ON
            and self._straight is type(self)
            and AsyncClient.aclose is _CLOSE_CLIENT
            and AsyncClient.__aexit__ is _LEAVE_CLIENT
        )

    def _merge_url(self, url: URL | str) -> URL:
        if ON and self._straight is type(self) and AsyncClient._merge_url is _MERGE_URL and URL.__init__ is _NEW_URL:
            if type(url) is str:
                if self._urls is None:
                    self._urls = Urls()
                parsed = self._urls.parsed(url) or self._below_base(url)
                if parsed is not None:
                    return _url(parsed)
            elif type(url) is URL and url.is_absolute_url:
                return _url(url._uri_reference)
        return super()._merge_url(url)

    def _below_base(self, text: str) -> ParseResult | None:
        """The parts of a relative URL at the base URL, if parsing would change neither. Otherwise ``None``."""
        base = self.base_url
        if self._plain_base is None or self._plain_base[0] is not base:
            parsed = plain_url(str(base)) if type(base) is URL else None
            fits = parsed is not None and parsed == base._uri_reference and parsed.query is None and parsed.path != ""
            self._plain_base = base, parsed if fits else None
        found = self._plain_base[1]
        if found is None:
            return None
        match = _RELATIVE.fullmatch(text)
        if match is None or len(text) + len(found.path) > LONGEST_URL:
            return None
        path, query = match.groups()
        return ParseResult(found.scheme, "", found.host, found.port, found.path + path, query, None)

    def _merge_headers(self, headers: _types.HeaderTypes | None = None) -> _types.HeaderTypes | None:
        ours = self.headers
        if (
            not ON
            or self._straight is not type(self)
            or AsyncClient._merge_headers is not _MERGE_HEADERS
            or type(ours) is not Headers
        ):
            return super()._merge_headers(headers)
        if headers is None:
            return _headers(list(ours._list))
        if type(headers) is dict:
            if self._sections is None:
                self._sections = _Sections()
            merged = self._sections.merged(ours._list, headers)
            if merged is not None:
                return _headers(merged)
        return super()._merge_headers(headers)

    def build_request(
        self,
        method: str,
        url: URL | str,
        *,
        content: _types.RequestContent | None = None,
        data: _types.RequestData | None = None,
        files: _types.RequestFiles | None = None,
        json: Any | None = None,
        params: _types.QueryParamTypes | None = None,
        headers: _types.HeaderTypes | None = None,
        cookies: _types.CookieTypes | None = None,
        timeout: _types.TimeoutTypes | UseClientDefault = USE_CLIENT_DEFAULT,
        extensions: _types.RequestExtensions | None = None,
    ) -> Request:
        """See httpx2."""
        if type(url) is not str or cookies is not None or timeout is not USE_CLIENT_DEFAULT:
            require("httpx2", url=url, cookies=cookies, timeout=timeout)
        if not ON or self._straight is not type(self) or AsyncClient.build_request is not _BUILD_REQUEST:
            return super().build_request(
                method,
                url,
                content=content,
                data=data,
                files=files,
                json=json,
                params=params,
                headers=headers,
                cookies=cookies,
                timeout=timeout,
                extensions=extensions,
            )
        url = self._merge_url(url)
        headers = self._merge_headers(headers)
        cookies = self._merge_cookies(cookies)
        params = self._merge_queryparams(params)
        if extensions is not None and "timeout" in extensions:
            extensions = dict(extensions)
        else:
            wait = self.timeout if isinstance(timeout, UseClientDefault) else Timeout(timeout)
            extensions = (
                {"timeout": wait.as_dict()} if extensions is None else dict(**extensions, timeout=wait.as_dict())
            )
        if (
            files is None
            and (data is None or type(data) is dict)
            and _has_none(cookies)
            and type(url) is URL
            and type(headers) is Headers
            and _constructors_are_known()
        ):
            if self._hosts is None:
                self._hosts = _Hosts()
            made = _ordinary_request(method, url, params, headers, content, data, json, extensions, self._hosts)
            if made is not None:
                return made
        return Request(
            method,
            url,
            content=content,
            data=data,
            files=files,
            json=json,
            params=params,
            headers=headers,
            cookies=cookies,
            extensions=extensions,
        )

    async def send(
        self,
        request: Request,
        *,
        stream: bool = False,
        auth: _types.AuthTypes | UseClientDefault | None = USE_CLIENT_DEFAULT,
        follow_redirects: bool | UseClientDefault = USE_CLIENT_DEFAULT,
    ) -> HttpxResponse:
        """See httpx2."""
        if (
            not ON
            or self._straight is not type(self)
            or AsyncClient.send is not _SEND
            or type(self)._build_request_auth is not _BUILD_REQUEST_AUTH
            or auth is not USE_CLIENT_DEFAULT
            or self._auth is not None
            or self._state is not _OPENED
            or type(request) is not Request
            or type(request.url) is not URL
            or request.url._uri_reference.userinfo
            or "_build_request_auth" in self.__dict__
        ):
            require("httpx2", request=request, auth=auth)
            return await super().send(request, stream=stream, auth=auth, follow_redirects=follow_redirects)
        if isinstance(follow_redirects, UseClientDefault):
            follow_redirects = self.follow_redirects
        self._set_timeout(request)
        if self._sends_straight():
            response = await self._send_single_request(request)
            if not self._is_final(response):
                response = await self._after(request, response, follow_redirects)
        else:
            response = await self._send_handling_auth(
                request, auth=Auth(), follow_redirects=follow_redirects, history=[]
            )
        if not stream:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response

    def _sends_straight(self) -> bool:
        """Whether the methods between ``send`` and ``_send_single_request`` are ours, and would do nothing."""
        ours, theirs, own = type(self), AsyncClient, self.__dict__
        return (
            ours._send_handling_auth is _OUR_HANDLING_AUTH
            and theirs._send_handling_auth is _SEND_HANDLING_AUTH
            and ours._send_handling_redirects is _OUR_HANDLING_REDIRECTS
            and theirs._send_handling_redirects is _SEND_HANDLING_REDIRECTS
            and Auth.async_auth_flow is _AUTH_FLOW
            and not self._event_hooks["request"]
            and self.max_redirects >= 0
            and "_send_handling_auth" not in own
            and "_send_handling_redirects" not in own
        )

    async def _send_handling_auth(
        self, request: Request, auth: Auth, follow_redirects: bool, history: list[HttpxResponse]
    ) -> HttpxResponse:
        if (
            not ON
            or self._straight is not type(self)
            or AsyncClient._send_handling_auth is not _SEND_HANDLING_AUTH
            or Auth.async_auth_flow is not _AUTH_FLOW
            or type(auth) is not Auth
        ):
            return await super()._send_handling_auth(request, auth, follow_redirects, history)
        return await self._send_handling_redirects(request, follow_redirects=follow_redirects, history=history)

    async def _send_handling_redirects(
        self, request: Request, follow_redirects: bool, history: list[HttpxResponse]
    ) -> HttpxResponse:
        if (
            not ON
            or self._straight is not type(self)
            or AsyncClient._send_handling_redirects is not _SEND_HANDLING_REDIRECTS
            or self._event_hooks["request"]
            or history
            or self.max_redirects < 0
        ):
            return await super()._send_handling_redirects(request, follow_redirects, history)
        response = await self._send_single_request(request)
        return response if self._is_final(response) else await self._after(request, response, follow_redirects)

    def _is_final(self, response: HttpxResponse) -> bool:
        """Whether no hook and no redirect follow a response. (Hooks may have been added while it was in flight.)"""
        return (
            type(response) is Response
            and response.status_code not in _REDIRECTS
            and not response.history
            and not self._event_hooks["response"]
        )

    async def _after(self, request: Request, response: HttpxResponse, follow_redirects: bool) -> HttpxResponse:
        """Call the hooks of the first response, and follow its redirect."""
        try:
            for hook in self._event_hooks["response"]:
                await hook(response)
            response.history = []
            if not response.has_redirect_location:
                return response
            if not follow_redirects:
                with suppress(RemoteProtocolError):
                    response.next_request = self._build_redirect_request(request, response)
                return response
            following = self._build_redirect_request(request, response)
            await response.aread()
        except BaseException:
            await response.aclose()
            raise
        return await super()._send_handling_redirects(following, follow_redirects, [response])

    async def _send_single_request(self, request: Request) -> HttpxResponse:
        if (
            not ON
            or self._straight is not type(self)
            or AsyncClient._send_single_request is not _SEND_SINGLE_REQUEST
            or type(request) is not Request
            or not isinstance(request.stream, AsyncByteStream)  # httpx2 raises for that
        ):
            return await super()._send_single_request(request)
        transport = self._transport_for_url(request.url)
        start = perf_counter()
        try:
            response = await transport.handle_async_request(request)
        except RequestError as error:
            error.request = request
            raise
        stream = response.stream
        assert isinstance(stream, AsyncByteStream)
        response.request = request
        response.stream = timed = _new(_TimedStream)
        timed._stream, timed._start = stream, start
        cookies = self.cookies
        if (
            type(cookies) is not Cookies
            or Cookies.extract_cookies is not _EXTRACT_COOKIES
            or not _sets_no_cookie(response.headers, stream.plain if isinstance(stream, WholeStream) else None)
        ):
            cookies.extract_cookies(response)
        response.default_encoding = self._default_encoding
        if _logger.isEnabledFor(logging.INFO):
            _logger.info(
                'HTTP Request: %s %s "%s %d %s"',
                request.method,
                request.url,
                response.http_version,
                response.status_code,
                response.reason_phrase,
            )
        return response


_OUR_HANDLING_AUTH = ShortWays._send_handling_auth
_OUR_HANDLING_REDIRECTS = ShortWays._send_handling_redirects


def _sets_no_cookie(headers: Headers, plain: LoweredHeaders | None) -> bool:
    """Whether a response has no cookies for the jar.

    httpx2's headers choose their encoding when a value is read. To ask them for cookies does that. So it is done here.
    """
    if type(headers) is not Headers:
        return False
    if headers._list != plain:
        for _, name, value in headers._list:
            if name in (b"set-cookie", b"set-cookie2") or not (name.isascii() and value.isascii()):
                return False
    if headers._encoding is None:
        headers._encoding = "ascii"
    return True
