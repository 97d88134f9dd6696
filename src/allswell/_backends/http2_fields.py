"""Header sections in HTTP/2's terms (RFC 9113 §8): requests into field lists, received field lists into responses.

h2 can check fields too, octet by octet in Python. Here one pass with two regular expressions does it, outbound lists
are kept for the next request with the same headers, and what is wrong with a received one is a stream error (a
malformed message, §8.1.1), where h2 would end the connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from hpack import HeaderTuple, NeverIndexedHeaderTuple

from allswell._backends.http2_errors import StreamError
from allswell._errors import LocalProtocolError
from allswell._messages import Headers, RequestHead

# RFC 9110 §5.1 for what we send; RFC 9113 §8.2.1 for what we take (a pseudo-header field's colon is cut off before).
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_RECEIVED_NAME = re.compile(rb"[!-9;-@\[-~]+").fullmatch
_BAD_VALUE = re.compile(rb"[\0\r\n]|\A[ \t]|[ \t]\Z").search
_BAD_PSEUDO = re.compile(rb"[\0-\x20\x7f]").search
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)(.*)", re.DOTALL).fullmatch
_DIGITS = re.compile(rb"[0-9]{1,19}").fullmatch

# RFC 9113 §8.2.2. Generic code adds them for HTTP/1.1; what they say does not exist here.
_CONNECTION_FIELDS = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings")
)
_FORBIDDEN_IN_RESPONSES = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)

# RFC 7541 §7.1.3: worth guessing by an attacker who shares the compression context.
_SECRET_FIELDS = frozenset((b"authorization", b"proxy-authorization"))
# Rarely the same twice: indexed they would only push the others out of the table (nghttp2 does the same).
_UNINDEXED_FIELDS = _SECRET_FIELDS | {b"content-length", b"if-none-match", b"if-modified-since", b"range", b"referer"}

_CACHE_SIZE = 128


class RequestFields(NamedTuple):
    """A request's field list, and what its content-length announced (``None``: nothing)."""

    fields: list[tuple[bytes, bytes]]
    content_length: int | None


class _Prepared(NamedTuple):
    fields: list[tuple[bytes, bytes]]
    host: bytes | None
    content_length: int | None


class RequestEncoder:
    """Turns request heads into field lists for HPACK; remembers the regular part per header section."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[tuple[bytes, bytes], ...], _Prepared] = {}

    def encode(self, head: RequestHead) -> RequestFields:
        """:raises LocalProtocolError: when HTTP/2 cannot say this head."""
        key = tuple(head.headers)
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = _prepare(key)
            if len(self._prepared) >= _CACHE_SIZE:
                self._prepared.clear()
            self._prepared[key] = prepared
        # RFC 9113 §8.3.1: control data goes into pseudo-header fields, before all others.
        method, target, scheme = head.method, head.target, head.scheme
        authority = head.authority if prepared.host is None else prepared.host
        if method == b"CONNECT" and head.protocol is None:
            # §8.5: :scheme and :path MUST be omitted, :authority is where the tunnel leads.
            _check_pseudo(method, target, b"https", b"/")
            return RequestFields([(b":method", method), (b":authority", target), *prepared.fields], None)
        absolute = _ABSOLUTE(target)
        if absolute is not None:
            scheme, authority, target = absolute.groups()
            if not target.startswith(b"/"):
                target = b"/" + target
        _check_pseudo(method, authority, scheme, target)
        path = (b":path", b"/") if target == b"/" else NeverIndexedHeaderTuple(b":path", target)
        fields = [(b":method", method), (b":scheme", scheme), (b":authority", authority), path]
        if head.protocol is None:
            return RequestFields(fields + prepared.fields, prepared.content_length)
        if method != b"CONNECT":
            raise LocalProtocolError("only CONNECT has a :protocol (RFC 8441 §4)")
        return RequestFields([*fields, (b":protocol", head.protocol), *prepared.fields], None)


def _check_pseudo(method: bytes, authority: bytes, scheme: bytes, path: bytes) -> None:
    if not method or not _TOKEN(method.lower()):
        raise LocalProtocolError(f"illegal method {method!r}")
    if not authority or _BAD_PSEUDO(authority) or b"@" in authority:
        # RFC 9113 §8.3.1: userinfo MUST NOT be included.
        raise LocalProtocolError(f"illegal authority {authority!r}")
    if not (path.startswith(b"/") or path == b"*") or _BAD_PSEUDO(path):
        raise LocalProtocolError(f"illegal request target {path!r}")
    if not scheme or _BAD_PSEUDO(scheme):
        raise LocalProtocolError(f"illegal scheme {scheme!r}")


def _prepare(headers: Iterable[tuple[bytes, bytes]]) -> _Prepared:
    fields = _outbound(headers)
    hosts = {value for name, value in fields if name == b"host"}
    if len(hosts) > 1:
        raise LocalProtocolError("more than one Host")
    lengths = {value for name, value in fields if name == b"content-length"}
    if len(lengths) > 1 or not all(map(_DIGITS, lengths)):
        raise LocalProtocolError(f"illegal Content-Length {sorted(lengths)!r}")
    return _Prepared(
        [field for field in fields if field[0] != b"host"],
        hosts.pop() if hosts else None,
        int(lengths.pop()) if lengths else None,
    )


def encode_trailers(trailers: Headers) -> list[tuple[bytes, bytes]]:
    """:raises LocalProtocolError: for names and values that cannot be sent."""
    return _outbound(trailers)


def _outbound(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    fields: list[tuple[bytes, bytes]] = []
    nominated: set[bytes] = set()
    for raw_name, raw_value in headers:
        name, value = raw_name.lower(), raw_value.strip(b" \t")
        if not _TOKEN(name):
            raise LocalProtocolError(f"illegal header name {raw_name!r}")
        if _BAD_VALUE(value):
            raise LocalProtocolError(f"illegal value of header {raw_name!r}")
        if name in _CONNECTION_FIELDS:
            if name == b"connection":
                # RFC 9110 §7.6.1: the fields that it names are as hop-by-hop as itself.
                nominated.update(option.strip().lower() for option in value.split(b","))
            continue
        if name == b"te":
            # RFC 9113 §8.2.2: nothing but "trailers".
            if b"trailers" not in [coding.strip().lower() for coding in value.split(b",")]:
                continue
            value = b"trailers"
        if name in _UNINDEXED_FIELDS or (name == b"cookie" and len(value) < 20):
            fields.append(NeverIndexedHeaderTuple(name, value))
        else:
            fields.append(HeaderTuple(name, value))
    if nominated:
        fields = [field for field in fields if field[0] not in nominated or field[0] in (b"te", b"host")]
    return fields


def decode_response(fields: Headers) -> tuple[int, Headers]:
    """The status and the fields of a response.

    :raises StreamError: when it is malformed (RFC 9113 §8.1.1).
    """
    # RFC 9113 §8.3.2: exactly one pseudo-header field, and it comes first.
    if not fields or fields[0][0] != b":status":
        raise StreamError("a response without :status")
    status, headers = fields[0][1], fields[1:]
    if len(status) != 3 or not status.isdigit() or status < b"100" or status == b"101":
        # §8.6: 101 does not exist in HTTP/2.
        raise StreamError(f"a response with the status {status!r}")
    if any(name[0] == 0x3A for name, _ in headers):
        raise StreamError("a response with further pseudo-header fields")
    return int(status), headers


def check_trailers(fields: Headers) -> None:
    """:raises StreamError: when the trailer section is malformed."""
    if any(name[0] == 0x3A for name, _ in fields):
        raise StreamError("a trailer section with pseudo-header fields")  # RFC 9113 §8.1


def check_received(fields: Iterable[tuple[bytes, bytes]], max_size: int) -> Headers:
    """The fields of any received header section, as plain tuples.

    :raises StreamError: for what no section may hold (RFC 9113 §8.2), or more than ``max_size`` bytes (§10.5.1).
    """
    headers: Headers = []
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + 32
        if not (_RECEIVED_NAME(name) or (name[:1] == b":" and _RECEIVED_NAME(name[1:]))):
            raise StreamError(f"an illegal header name {name[:64]!r}")
        if _BAD_VALUE(value):
            raise StreamError(f"an illegal value of header {name[:64]!r}")
        if name in _FORBIDDEN_IN_RESPONSES:
            raise StreamError(f"the connection-specific header {name!r}")  # RFC 9113 §8.2.2
        headers.append((name, value))
    if size > max_size:
        raise StreamError(f"a header list of {size} bytes, {max_size} allowed")
    return headers


def content_length(headers: Headers) -> int | None:
    """What a response announces.

    :raises StreamError: when it contradicts itself (RFC 9110 §8.6).
    """
    length: int | None = None
    for name, value in headers:
        if name == b"content-length":
            if not _DIGITS(value) or (length is not None and int(value) != length):
                raise StreamError(f"an illegal content-length {value[:64]!r}")
            length = int(value)
    return length
