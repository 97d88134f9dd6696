"""The fields of HTTP: grammar and meaning of header and trailer sections, by one set of rules for every version.

Theory of operation
===================

A request says the same in HTTP/1.1, HTTP/2 and HTTP/3, or it is refused in all. So its head is checked here, once.
Each backend gets its parts as a :class:`RequestSection`: method, scheme, authority, target and fields. It writes
them in its own form: a request line and Host, or pseudo-header fields. Received sections pass the same grammar.
(HTTP/1.1's are read by h11, whose grammar is this one; a test compares them.)

Where the RFCs differ, the rule is in the backend, and a comment names the section. Only HTTP/1.1 has transfer codings,
fields of one connection, and 101. Only the others have extended CONNECT.

Where the RFCs leave a choice, docs/explanation/fields.md says what was chosen and why. An error names a field, and not
its value, which may be a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

from allswell._errors import LocalProtocolError
from allswell._memory import remember
from allswell._messages import Field, Headers, RequestHead

# Grammar

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110 §5.6.2
_LOWER_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch  # RFC 9113 §8.2.1, RFC 9114 §4.2
_BEGINNING_OF_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]*").match

_BLANKS = b" \t"

#: RFC 3986 §3.2.2, without userinfo (RFC 9110 §4.2.4). An IPv6 zone is removed first (RFC 6874 §4).
_AUTHORITY = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|\[[vV][0-9A-Fa-f]+\.[A-Za-z0-9\-._~!$&'()*+,;=:]+\]"
    rb"|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)(?P<port>:[0-9]*)?"
).fullmatch
_ZONE = re.compile(rb"(\[[^\]%]*)%[^\]]*\]")

#: The usual methods. They need no check.
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT"))
_SCHEMES = frozenset((b"http", b"https"))

_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*").fullmatch
_TARGET = re.compile(rb"[!-~]+").fullmatch
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)(.*)").fullmatch
_LENGTH = re.compile(rb"[0-9]{1,20}").fullmatch
#: RFC 9110 §15: three digits. A status above 599 is invalid, but must be processed as 5xx. So it is passed on. There
#: is no 101 in HTTP/2 and HTTP/3 (RFC 9113 §8.6, RFC 9114 §4.5).
_STATUSES = {b"%d" % status: status for status in range(100, 1000) if status != 101}


def _bad_value(value: bytes) -> bool:
    """Whether a value has a forbidden octet: NUL, LF, VT, FF, CR.

    RFC 9110 §5.5: CR, LF and NUL are dangerous. VT and FF are blanks to many parsers (h11's too). The other control
    characters are invalid as well, but real cookies have them.
    """
    # (To look for each takes less time than a regular expression or a translation, in long values most of all.)
    return 0 in value or 10 in value or 11 in value or 12 in value or 13 in value


class Names(dict[bytes, bytes]):
    """Names of fields, in lower case: ``b""`` for what is no name. It remembers them, because most fields share few.

    (A name may be a secret by mistake, so each connection has a memory of its own.)
    """

    _MOST, _LONGEST = 128, 64

    def __missing__(self, name: bytes) -> bytes:
        if not _TOKEN(name):
            return b""
        lower = name.lower()
        if len(name) <= self._LONGEST:
            remember(self, name, lower, self._MOST)
        return lower


# Meaning

#: RFC 9110 §7.6.1: these fields are about one connection. HTTP/2 (RFC 9113 §8.2.2) and HTTP/3 (RFC 9114 §4.2) forbid
#: them. They allow TE only with the value "trailers".
_OF_ONE_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)
#: HTTP2-Settings belongs to an upgrade from HTTP/1.1, where Connection names it (RFC 7540 §3.2.1).
_HOP_BY_HOP = _OF_ONE_CONNECTION | {b"http2-settings"}

#: These say where a message goes and where it ends. They stay even if Connection names them.
_NEVER_NOMINATED = frozenset((b"host", b"content-length", b"te"))

#: These fields are about the whole section.
_OF_THE_SECTION = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade"))

#: RFC 9110 §6.5.1: fields for framing, routing, request modifiers, authentication, and the format of the content.
_NOT_IN_TRAILERS = _HOP_BY_HOP | {
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"host",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"max-forwards",
    b"pragma",
    b"proxy-authorization",
    b"range",
    b"trailer",
}

#: RFC 7541 §7.1.3, RFC 9204 §7.1.3: an attacker that shares the compression context could guess these. APIs use the
#: last ones in place of Authorization.
_SECRET = frozenset(
    (b"authorization", b"cookie", b"proxy-authorization", b"api-key", b"x-api-key", b"x-auth-token", b"x-goog-api-key")
)


class MalformedSection(ValueError):
    """A section that the peer sent is malformed (RFC 9113 §8.1.1, RFC 9114 §4.1.2)."""


class SectionTooLarge(MalformedSection):
    """A section that the peer sent is larger than we accept."""


#: How many fields of a section are accepted. Each costs work, however short it is, so a limit of bytes is not enough.
MAX_FIELDS = 1000
TOO_MANY = f"a header section of more than {MAX_FIELDS} fields"


def check_bounds(fields: Headers, size: int, limit: int) -> None:
    """:raises SectionTooLarge: if a section from the peer has more bytes than the limit, or too many fields."""
    if size > limit:
        raise SectionTooLarge(f"a header section of {size} bytes, {limit} allowed")
    if len(fields) > MAX_FIELDS:
        raise SectionTooLarge(TOO_MANY)


# Requests


class HeaderSection(NamedTuple):
    """A request's header section, checked.

    :ivar fields: in the caller's case, without the blanks around values. Host is the first, and the only one.
    :ivar authority: what Host says.
    :ivar content_length: what Content-Length says; ``None`` without it, or with a transfer coding.
    :ivar chunked: whether it says ``Transfer-Encoding: chunked``.
    """

    fields: Headers
    authority: bytes
    content_length: int | None
    chunked: bool

    def end_to_end(self) -> Headers:
        """The fields that are for more than this connection (RFC 9110 §7.6.1)."""
        nominated = options(self.fields, b"connection") - _NEVER_NOMINATED
        return [field for field in self.fields if field[0].lower() not in nominated]


_Form = TypeVar("_Form")


class RequestSection(Generic[_Form]):
    """A request's head, checked and taken apart.

    :ivar authority: where it goes: what Host says, and ``:authority``; for CONNECT, where the tunnel leads.
    :ivar target: path and query, or ``*``; empty for CONNECT (but not for an extended one).
    :ivar absolute: whether the caller gave the target as a whole URI (RFC 9112 §3.2.2), the form for proxies.
    :ivar fields: the header section in the backend's form.
    :ivar content_length: what Content-Length says.
    :ivar chunked: whether it says ``Transfer-Encoding: chunked``.
    :ivar close: whether it says ``Connection: close``.
    :ivar upgrade: whether it asks for another protocol (RFC 9110 §7.8).
    """

    __slots__ = (
        "absolute",
        "authority",
        "chunked",
        "close",
        "content_length",
        "fields",
        "method",
        "protocol",
        "scheme",
        "target",
        "upgrade",
    )

    def __init__(
        self,
        method: bytes,
        scheme: bytes,
        authority: bytes,
        target: bytes,
        protocol: bytes | None,
        absolute: bool,
        fields: list[_Form],
        content_length: int | None,
        chunked: bool,
        close: bool = False,
        upgrade: bool = False,
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.target = target
        self.protocol = protocol
        self.absolute = absolute
        self.fields = fields
        self.content_length = content_length
        self.chunked = chunked
        self.close = close
        self.upgrade = upgrade

    @property
    def absolute_form(self) -> bytes:
        """The whole URI (RFC 9112 §3.2.2)."""
        return _absolute_form(self.scheme, self.authority, self.target)

    @property
    def pseudo_fields(self) -> Headers:
        """RFC 9113 §8.3.1, §8.5, RFC 9114 §4.3.1, §4.4; RFC 8441 §4."""
        if not self.target:
            return [(b":method", self.method), (b":authority", self.authority)]
        fields = [
            (b":method", self.method),
            (b":scheme", self.scheme),
            (b":authority", self.authority),
            (b":path", self.target),
        ]
        if self.protocol is not None:
            fields.append((b":protocol", self.protocol))
        return fields


class _Framing(NamedTuple):
    """What a field says about its whole section: Host, or how the content is framed."""

    host: bytes | None = None
    content_length: int | None = None
    chunked: bool = False


class RequestSections(Generic[_Form]):
    """Checks the heads of requests. It remembers fields, because most requests of a client have most fields in common.

    Fields may be secrets, so each connection has a memory of its own, which ends with it.

    An *ordinary* section has one Host, at most one field that frames content, and leaves the connection as it is. Then
    it is enough to check each field alone. Any other section goes to :func:`header_section`.

    :param form: makes of a field's name and value what the backend sends.
    :param end_to_end: for HTTP/2 and HTTP/3: names in lower case, without Host and the fields of one connection.
    """

    #: How many fields are remembered, and how many bytes one may have.
    _MOST, _LONGEST = 128, 1024

    def __init__(self, form: Callable[[bytes, bytes], _Form], *, end_to_end: bool) -> None:
        self._form = form
        self._end_to_end = end_to_end
        self._known: dict[Field, tuple[_Form | None, _Framing | None]] = {}
        self._names: dict[bytes, bytes] = {}  # of fields that mean nothing here; and as they are sent

    def section(self, head: RequestHead, *, end: bool = False) -> RequestSection[_Form]:
        """A head, taken apart.

        :param end: whether the request has no content.
        :raises LocalProtocolError: when HTTP cannot say it.
        """
        scheme, named, target = _control_data(head)
        section = None
        if head.method != b"CONNECT":
            section = self._ordinary(head, scheme, named, target)
        if section is None:
            section = self._any(head, scheme, named, target)
        if end and section.content_length:
            raise LocalProtocolError(f"Content-Length announces {section.content_length} bytes, but there is no body")
        return section

    def _ordinary(
        self, head: RequestHead, scheme: bytes, named: bytes | None, target: bytes
    ) -> RequestSection[_Form] | None:
        """An ordinary section; ``None`` for any other, whatever is wrong with it."""
        fields: list[_Form] = []
        host: bytes | None = None
        length: int | None = None
        chunked = framed = False
        known = self._known
        try:
            for field in head.headers:
                found = known.get(field)
                if found is None and (found := self._learnt(field)) is None:
                    return None
                form, framing = found
                if framing is None:
                    if form is not None:
                        fields.append(form)
                elif framing.host is not None:
                    if host is not None:
                        return None
                    host = framing.host
                    if form is not None:
                        fields.insert(0, form)
                elif framed:
                    return None
                else:
                    framed, length, chunked = True, framing.content_length, framing.chunked
                    if form is not None:
                        fields.append(form)
        except (TypeError, ValueError, LocalProtocolError):
            return None
        if host is None or (named is not None and named != host):
            return None
        return RequestSection(head.method, scheme, host, target, None, named is not None, fields, length, chunked)

    def _learnt(self, field: Field) -> tuple[_Form | None, _Framing | None] | None:
        """A field's form and framing, which are remembered; ``None`` if the field makes its section no ordinary one."""
        name, value = field
        if type(name) is not bytes or type(value) is not bytes:
            return None
        sent = self._names.get(name)
        if sent is None and not _TOKEN(name):
            return None
        value = value.strip(_BLANKS)
        if _bad_value(value):
            return None
        framing: _Framing | None = None
        if sent is None:
            lower = name.lower()
            if lower == b"host":
                if checked_authority(value, "Host") != value:
                    return None
                framing = _Framing(host=value)
            elif lower == b"content-length":
                if not _LENGTH(value):
                    return None
                framing = _Framing(content_length=int(value))
            elif lower == b"transfer-encoding":
                if value != b"chunked":
                    return None
                framing = _Framing(chunked=True)
            elif lower in _OF_THE_SECTION:
                if lower != b"connection" or value.lower() != b"keep-alive":
                    return None
            elif lower not in _HOP_BY_HOP:
                sent = lower if self._end_to_end else name
        found = (self._formed(name, value) if sent is None else self._form(sent, value)), framing
        if len(name) + len(value) <= self._LONGEST:
            remember(self._known, field, found, self._MOST)
            if sent is not None and len(self._names) < self._MOST:
                self._names[name] = sent
        return found

    def _formed(self, name: bytes, value: bytes) -> _Form | None:
        if not self._end_to_end:
            return self._form(name, value)
        name = name.lower()
        if name == b"te":
            return self._form(name, b"trailers") if b"trailers" in _options(value) else None
        return None if name == b"host" or name in _HOP_BY_HOP else self._form(name, value)

    def _any(self, head: RequestHead, scheme: bytes, named: bytes | None, target: bytes) -> RequestSection[_Form]:
        header = header_section(head, named)
        fields = header.end_to_end() if self._end_to_end else header.fields
        formed = [self._formed(name, value) for name, value in fields]
        return RequestSection(
            head.method,
            scheme,
            header.authority,
            target,
            head.protocol,
            named is not None and bool(target),
            [form for form in formed if form is not None],
            header.content_length,
            header.chunked,
            b"close" in options(header.fields, b"connection"),
            bool(options(header.fields, b"upgrade") - {b""}),
        )


def as_pair(name: bytes, value: bytes) -> Field:
    """The form of a field for backends whose encoder takes pairs."""
    return name, value


def header_section(head: RequestHead, named: bytes | None = None) -> HeaderSection:
    """A request's header section.

    :param named: the authority that the target names, which Host must say (RFC 9112 §3.2).
    :raises LocalProtocolError: when HTTP cannot say it.
    """
    fields: Headers = []
    hosts: Headers = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for field in _checked(head.headers):
        lower = field[0].lower()
        if lower == b"host":
            hosts.append(field)
            continue
        if lower == b"content-length":
            lengths.append(field[1])
        elif lower == b"transfer-encoding":
            codings.append(field[1].lower())
            field = field[0], codings[-1]
        fields.append(field)
    if len(hosts) > 1:
        raise LocalProtocolError("the request has more than one Host")  # RFC 9112 §3.2
    if codings and codings != [b"chunked"]:
        raise LocalProtocolError("the request's Transfer-Encoding must be chunked, and nothing else")
    length = _one_length(lengths)
    if length == _CONTRADICTION:
        raise LocalProtocolError("the request's Content-Length is not one number (RFC 9110 §8.6)")
    if named is not None:
        authority = checked_authority(named, "the authority")
    elif hosts:
        authority = checked_authority(hosts[0][1], "Host")
    else:
        authority = checked_authority(head.authority, "the authority")
    fields.insert(0, (hosts[0][0] if hosts else b"Host", authority))  # RFC 9110 §7.2: first
    if head.method == b"CONNECT":
        # RFC 9110 §9.3.6: a CONNECT has no content. The tunnel behind it is not framed.
        fields = [field for field in fields if field[0].lower() not in (b"content-length", b"transfer-encoding")]
        return HeaderSection(fields, authority, None, False)
    if codings:
        # RFC 9112 §6.2: never both. (httpx2 adds the length if its caller chose chunks. Proxies forward what they got.)
        fields = [field for field in fields if field[0].lower() != b"content-length"]
        return HeaderSection(fields, authority, None, True)
    if len(lengths) > 1 or (lengths and b"," in lengths[0]):
        fields = _with_one_length(fields, length)
    return HeaderSection(fields, authority, length, False)


def _control_data(head: RequestHead) -> tuple[bytes, bytes | None, bytes]:
    """The scheme, the authority if the target names one, and the rest of the target."""
    method, target, protocol = head.method, head.target, head.protocol
    if not (isinstance(method, bytes) and (method in _METHODS or _TOKEN(method))):
        raise LocalProtocolError("the method is not a token (RFC 9110 §9.1)")
    if not isinstance(target, bytes):
        raise LocalProtocolError(f"the target must be bytes, not {type(target).__name__}")
    if protocol is not None:
        if method != b"CONNECT":
            raise LocalProtocolError("only a CONNECT request may have a :protocol (RFC 8441 §4)")
        if not (isinstance(protocol, bytes) and _TOKEN(protocol)):
            raise LocalProtocolError("the :protocol is not a token (RFC 8441 §4)")
    elif method == b"CONNECT":
        # RFC 9110 §7.1, §9.3.6: the target is host and port, always both.
        authority = checked_authority(target, "the target of CONNECT")
        if not authority.rpartition(b":")[2].isdigit():
            raise LocalProtocolError("the target of CONNECT has no port (RFC 9110 §9.3.6)")
        return head.scheme, authority, b""
    if not _TARGET(target):
        raise LocalProtocolError("the target has characters that are not allowed in a request target (RFC 9112 §3.2)")
    scheme, named = head.scheme, None
    if target[0] != 0x2F:  # it does not begin with a slash
        if target == b"*":
            if method != b"OPTIONS":
                raise LocalProtocolError('only an OPTIONS request may have the target "*" (RFC 9112 §3.2.4)')
        elif (absolute := _ABSOLUTE(target)) is not None:
            scheme, named, target = absolute.groups()
            named = checked_authority(named, "the authority of the target")
            if not target:
                target = b"*" if method == b"OPTIONS" else b"/"  # RFC 9112 §3.2.4, RFC 9113 §8.3.1
            elif target[0] != 0x2F:
                target = b"/" + target
        else:
            raise LocalProtocolError("the target is neither a path nor a whole URI (RFC 9112 §3.2)")
    if not (isinstance(scheme, bytes) and (scheme in _SCHEMES or _SCHEME(scheme))):
        raise LocalProtocolError("the scheme is not valid (RFC 3986 §3.1)")
    return scheme, named, target


def forwarded(head: RequestHead) -> RequestHead:
    """A head in the form for a proxy that forwards the request: the target is the whole URI (RFC 9112 §3.2.2).

    Host says what the target says, because the proxy must ignore any other Host.

    :raises LocalProtocolError: when HTTP cannot say it.
    """
    scheme, named, target = _control_data(head)
    authority = named or checked_authority(head.authority, "the authority")
    return replace(head, scheme=scheme, authority=authority, target=_absolute_form(scheme, authority, target))


def _absolute_form(scheme: bytes, authority: bytes, target: bytes) -> bytes:
    return b"%s://%s%s" % (scheme, authority, b"" if target == b"*" else target)  # RFC 9112 §3.2.4


def checked_authority(authority: bytes, what: str) -> bytes:
    """An authority in the form that peers get: without the zone of an IPv6 address (RFC 6874 §4).

    :param what: what errors call it.
    :raises LocalProtocolError: if it is not one (RFC 3986 §3.2), or has userinfo (RFC 9110 §4.2.4).
    """
    if not isinstance(authority, bytes):
        raise LocalProtocolError(f"{what} must be bytes, not {type(authority).__name__}")
    if b"%" in authority:
        authority = _ZONE.sub(rb"\1]", authority)
    if not _AUTHORITY(authority):
        raise LocalProtocolError(f"{what} must be a host, with or without a port (RFC 9110 §7.2)")
    return authority


def request_trailers(trailers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A request's trailer section, in the caller's case.

    :raises LocalProtocolError: when HTTP cannot say it, or not in a trailer section (RFC 9110 §6.5.1).
    """
    fields = _checked(trailers)
    for name, _ in fields:
        if name.lower() in _NOT_IN_TRAILERS:
            raise LocalProtocolError(f"{_shown(name)} cannot be in a trailer section (RFC 9110 §6.5.1)")
    return fields


def _checked(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Fields that may be sent, without the blanks around their values (RFC 9110 §5.5)."""
    fields: Headers = []
    try:
        pairs = [(name, value) for name, value in headers]
    except (TypeError, ValueError):
        raise LocalProtocolError("header fields must be a list of pairs of bytes") from None
    for name, value in pairs:
        if not (isinstance(name, bytes) and isinstance(value, bytes)):
            given = f"{type(name).__name__} and {type(value).__name__}"
            raise LocalProtocolError(f"a header's name and value must be bytes, not {given}")
        if not _TOKEN(name):
            raise LocalProtocolError(f"illegal header name, which begins with {_shown(name)!r}")
        value = value.strip(_BLANKS)
        if _bad_value(value):
            raise LocalProtocolError(f"illegal value of the header {_shown(name)}")
        fields.append((name, value))
    return fields


def _shown(name: bytes) -> str:
    """The valid beginning of a name, for errors. (If the name is a whole line, its value must not show.)"""
    match = _BEGINNING_OF_TOKEN(name)
    assert match is not None
    return match[0][:64].decode("ascii")


# What is received


def received_section(fields: Iterable[tuple[bytes, bytes]], limit: int) -> Headers:
    """Any section of HTTP/2 or HTTP/3, without the blanks around values. Pseudo-header fields are let through.

    Such blanks make the section malformed (RFC 9113 §8.2.1). But HTTP/1.1 strips them (RFC 9112 §5.1), and so do all
    other clients.

    :raises MalformedSection: if it has what no section may have.
    :raises SectionTooLarge: above ``limit`` bytes, or :data:`MAX_FIELDS`.
    """
    received: Headers = []
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + 32
        received.append(field_of_section(name, value))
    check_bounds(received, size, limit)
    return received


def field_of_section(name: bytes, value: bytes) -> Field:
    """One field of such a section, without the blanks around its value.

    :raises MalformedSection: if no section may have it.
    """
    if _LOWER_TOKEN(name):
        value = value.strip(_BLANKS)
    elif not (name[:1] == b":" and _LOWER_TOKEN(name[1:])):
        raise MalformedSection(f"an illegal header name {name[:64]!r}")
    if _bad_value(value):
        raise MalformedSection(f"an illegal value of the header {_shown(name.lstrip(b':'))}")
    if name in _OF_ONE_CONNECTION:
        raise MalformedSection(f"the connection-specific header {_shown(name)}")  # RFC 9113 §8.2.2, 9114 §4.2
    return name, value


#: A field of a section, checked: without blanks; how many bytes it counts; whether it is telling.
Received = tuple[Field, int, bool]


class ReceivedSections(dict[Field, Received]):
    """Checks the sections that come on one connection, as :func:`received_section` does. It remembers fields, because
    most responses of a server have most fields in common.

    To look up a field that no section may have raises :class:`MalformedSection`.
    """

    #: How many fields are remembered, and how many bytes one may have.
    _MOST, _LONGEST = 128, 1024

    def __init__(self) -> None:
        self._names: set[bytes] = set()  # of fields whose blanks do not count, and that are not telling

    def section(self, fields: Iterable[Field], limit: int) -> tuple[Headers, Headers]:
        """See :func:`received_section`. Return its telling fields, too: see :func:`telling_fields`."""
        received: Headers = []
        telling: Headers = []
        size = 0
        for field in fields:
            checked, counts, tells = self[field]
            received.append(checked)
            size += counts
            if tells:
                telling.append(checked)
        check_bounds(received, size, limit)
        return received, telling

    def check(self, field: Field) -> Received:
        """Check a field, and do not remember it.

        :raises MalformedSection: if no section may have it.
        """
        name, value = field
        if name in self._names and not _bad_value(value):
            return (name, value.strip(_BLANKS)), len(name) + len(value) + 32, False
        checked = field_of_section(name, value)
        tells = bool(telling_fields((checked,)))
        if not tells and len(name) <= self._LONGEST and len(self._names) < self._MOST:
            self._names.add(name)
        return checked, len(name) + len(value) + 32, tells

    def __missing__(self, field: Field) -> Received:
        found = self.check(field)
        return found if found[1] > self._LONGEST else remember(self, field, found, self._MOST)


def telling_fields(fields: Iterable[Field]) -> Headers:
    """Those fields of a response that say something of its whole section: pseudo-header fields, and Content-Length."""
    return [(name, value) for name, value in fields if name[0] == 0x3A or name == b"content-length"]


def response_section(fields: Headers, method: bytes, telling: Headers | None = None) -> tuple[int, Headers, int | None]:
    """The status and fields of a response of HTTP/2 or HTTP/3 (RFC 9113 §8.3.2, RFC 9114 §4.3.2).

    The third result says how many bytes of content must follow; ``None`` if that is not known.

    :param fields: as :func:`received_section` gives them; they are not changed.
    :param method: of the request.
    :param telling: its telling fields, if they are known.
    :raises MalformedSection: when it is malformed.
    """
    if not fields or fields[0][0] != b":status":
        raise MalformedSection("a response that does not begin with :status")
    code = _STATUSES.get(fields[0][1])
    if code is None:
        raise MalformedSection("a response with an illegal :status")
    headers = fields[1:]
    lengths = []
    for name, value in telling_fields(headers) if telling is None else telling[1:]:
        if name[0] == 0x3A:
            raise MalformedSection("a response with further pseudo-header fields")
        lengths.append(value)
    if method == b"CONNECT" and 200 <= code < 300:
        return code, headers, None  # RFC 9110 §9.3.6: its Content-Length means nothing
    length = _one_length(lengths)
    if length == _CONTRADICTION:
        raise MalformedSection("an illegal content-length")  # RFC 9110 §8.6
    if len(lengths) > 1 or (lengths and 0x2C in lengths[0]):  # (`b","` takes ten times as long)
        headers = _with_one_length(headers, length)
    if method == b"HEAD" or code < 200 or code in (204, 304):
        length = 0  # RFC 9110 §6.4.1: no content. Content-Length is that of another response
    return code, headers, length


def trailer_section(fields: Headers) -> Headers:
    """The trailer section of a response of HTTP/2 or HTTP/3.

    :param fields: as :func:`received_section` gives them.
    :raises MalformedSection: when it has pseudo-header fields (RFC 9113 §8.1, RFC 9114 §4.3).
    """
    if any(name[0] == 0x3A for name, _ in fields):
        raise MalformedSection("a trailer section with pseudo-header fields")
    return fields


def section_size(fields: Headers) -> int:
    """The size of a section, as limits on it count (RFC 9113 §6.5.2, RFC 9114 §4.2.2)."""
    size = 32 * len(fields)
    for name, value in fields:  # (`sum`, `map`, `join` and `chain` take longer)
        size += len(name) + len(value)
    return size


def received_field(line: bytes, names: Names) -> tuple[Field, bytes] | None:
    """The field in a line of HTTP/1.1, without the line's end (RFC 9112 §5), and its name in lower case.

    ``None`` if it is not one.
    """
    name, colon, value = line.partition(b":")
    lower = names[name]
    value = value.strip(_BLANKS)
    if not colon or not lower or _bad_value(value):
        return None
    return (name, value), lower


#: The fields of responses that httpx2's client itself acts on: cookies, and codings of the content.
OF_THE_CLIENT = frozenset((b"content-encoding", b"set-cookie", b"set-cookie2"))


# Requests and responses


_CONTRADICTION = -1


def _one_length(values: list[bytes]) -> int | None:
    """The number that Content-Length says. It may say it several times, also in a list (RFC 9110 §8.6)."""
    if not values:
        return None
    if len(values) == 1 and _LENGTH(values[0]):
        return int(values[0])
    numbers = {number.strip(_BLANKS) for value in values for number in value.split(b",")}
    number = numbers.pop()
    return _CONTRADICTION if numbers or not _LENGTH(number) else int(number)


def _with_one_length(fields: Headers, length: int | None) -> Headers:
    """The same fields with one Content-Length, which says its number once."""
    once: Headers = []
    said = False
    for name, value in fields:
        if name.lower() != b"content-length":
            once.append((name, value))
        elif not said:
            once.append((name, b"%d" % length if length is not None else value))
            said = True
    return once


def announced_length(fields: Headers) -> int | None:
    """What a response's Content-Length says; ``None``: nothing, or no number. It may not be what comes."""
    value = next((value for name, value in fields if name.lower() == b"content-length"), b"")
    return int(value) if _LENGTH(value) else None


def options(fields: Headers, wanted: bytes) -> set[bytes]:
    """The members of the lists in all fields of this name, in lower case (RFC 9110 §5.6.1)."""
    found: set[bytes] = set()
    for name, value in fields:
        if name.lower() == wanted:
            found |= _options(value)
    return found


def kept_idle(value: bytes) -> float:
    """How many seconds an idle connection is kept, by a Keep-Alive field; ``inf`` if the field does not say.

    (``timeout`` of RFC 2068 §19.7.1.1. Its ``max`` is of no use here: the last response says ``close``.)
    """
    for option in _options(value):
        name, _, seconds = option.partition(b"=")
        if name.strip(_BLANKS) == b"timeout" and (digits := seconds.strip(_BLANKS).strip(b'"')).isdigit():
            return float(digits[:9])
    return math.inf


def _options(value: bytes) -> set[bytes]:
    return {option.strip(_BLANKS) for option in value.lower().split(b",")}


#: The names of fields that enter no compression table: see :func:`never_indexed`. (``:path`` may, if it is ``/``.)
SOMETIMES_NEVER_INDEXED = _SECRET | {b":path"}


def never_indexed(name: bytes, value: bytes) -> bool:
    """Whether a field must enter no compression table, neither HPACK's nor QPACK's.

    That includes ``:path``, unless it is ``/``: it is seldom the same twice, and its query may have secrets.
    """
    return name in _SECRET or (name == b":path" and value != b"/")


# What callers give

#: A header or trailer section.
HeadersGiven = Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]


def given_fields(headers: HeadersGiven) -> Headers:
    """The fields that a caller gave, as bytes.

    :raises LocalProtocolError: when they are no mapping and no pairs, of text (in ASCII) or bytes.
    """
    fields: Headers = []
    pairs: Any = headers if type(headers) is list else _pairs(headers)
    try:
        for name, value in pairs:
            if type(name) is not bytes or type(value) is not bytes:
                name = as_bytes(name, "name of a header")
                value = as_bytes(value, f"value of the header {_shown(name)}")
            fields.append((name, value))
    except (TypeError, ValueError):
        raise LocalProtocolError("header fields must be a mapping, or pairs of a name and a value") from None
    return fields


def _pairs(headers: object) -> object:
    if isinstance(headers, Mapping):
        # (Headers of httpx2 or httpx may have a name several times. Their ``raw`` has all of them.)
        return headers.raw if hasattr(headers, "raw") else headers.items()
    return headers


def as_bytes(value: object, what: str) -> bytes:
    """What a caller gave as text or bytes, as bytes.

    :param what: what errors call it.
    :raises LocalProtocolError: for another type, and for text that is not ASCII.
    """
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise LocalProtocolError(f"the {what} must be bytes or text, not {type(value).__name__}")
    if not value.isascii():
        raise LocalProtocolError(f"the {what} has characters that are not ASCII")
    return value.encode("ascii")


def without_zone(host: str) -> str:
    """The host in the form that peers get: without a zone, which is of use on this machine only (RFC 6874 §4)."""
    return host.partition("%")[0] if ":" in host else host


def name_for_tls(host: str) -> str:
    """The host as SNI and certificates name it: without the dot at its end (RFC 6066 §3), and without a zone."""
    return without_zone(host).rstrip(".")


def host_and_port(host: str, port: int) -> bytes:
    """The authority of a tunnel's far end. It always has a port (RFC 9110 §9.3.6)."""
    host = without_zone(host)
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("ascii")


def connect_udp_path(host: str, port: int) -> bytes:
    """The path of a CONNECT-UDP request, by the default template of proxies (RFC 9298 §3)."""
    return f"/.well-known/masque/udp/{quote(without_zone(host), safe='')}/{port}/".encode("ascii")  # RFC 6570 §3.2.2


#: The parameters in queries whose values are signatures, or name the signer. A URL with a signature needs no other
#: secret to be used. OpenTelemetry's conventions name some of them, and the others are of AWS's Signature Version 4.
SIGNATURES = frozenset(
    {
        "AWSAccessKeyId",
        "Signature",
        "X-Amz-Credential",
        "X-Amz-Security-Token",
        "X-Amz-Signature",
        "X-Goog-Signature",
        "sig",
    }
)
_USER_INFO = re.compile(r"\A([^/?#]*//)[^/?#]*@")
_QUERY = re.compile("[?#]")
_ANYTHING_BEFORE_AT = re.compile(r"\A([A-Za-z][A-Za-z0-9+.\-]*://)?.*@", re.DOTALL)


def shown_url(url: object) -> str:
    """A URL as its user is shown it: without user name and password."""
    return _USER_INFO.sub(r"\1", str(url))


def named_url(url: object) -> str:
    """A URL as errors name it: without query and fragment too. These may have secrets, and errors go into logs."""
    return _QUERY.split(shown_url(url), maxsplit=1)[0]


def no_url(url: object, why: Exception) -> str:
    """The message that this is not a URL, and why.

    It is unknown where the authority, with a password perhaps, would end. So nothing before the last "@" is shown. If
    there is an "@", the reason is not shown either, because it may quote the URL.
    """
    shown = _ANYTHING_BEFORE_AT.sub(r"\1", str(url))
    return f"{shown!r} is not a URL" + ("" if "@" in str(url) else f": {why}")
