"""A head means the same in every version of HTTP, or is refused in every one: requests, responses, trailers."""

from __future__ import annotations

import gc
import sys
import traceback
from typing import Any

import pytest
from hpack import Decoder as HpackDecoder
from hypothesis import given, settings
from hypothesis import strategies as st

from allswell._errors import LocalProtocolError
from allswell._fields import MAX_FIELDS, header_section
from allswell._messages import Headers, RequestHead
from tests.backends import h2_peer
from tests.versions.heads import ANSWERS, SEES, VERSIONS, Answer, H3Link, Seen, h2_sections


def request(
    *headers: tuple[bytes, bytes],
    method: bytes = b"GET",
    target: bytes = b"/",
    scheme: bytes = b"https",
    authority: bytes = b"example.org",
    protocol: bytes | None = None,
) -> RequestHead:
    return RequestHead(method, scheme, authority, target, list(headers), protocol)


def seen(
    *fields: tuple[bytes, bytes],
    method: bytes = b"GET",
    path: bytes = b"/",
    scheme: bytes = b"https",
    authority: bytes = b"example.org",
) -> Seen:
    return Seen(method, scheme, authority, path, b"", list(fields), [])


HOST = (b"Host", b"example.org")

#: Heads, and what each is for a server; ``None``: refused.
HEADS: dict[str, tuple[RequestHead, Seen | None]] = {
    # Host and authority
    "no Host": (request(), seen()),
    "Host": (request(HOST), seen()),
    "another Host": (request((b"Host", b"other.example")), seen(authority=b"other.example")),
    "another Host with a port": (request((b"host", b"other.example:8443")), seen(authority=b"other.example:8443")),
    "Host with blanks around": (request((b"Host", b" other.example\t")), seen(authority=b"other.example")),
    "Host that is not first": (
        request((b"A", b"b"), (b"HOST", b"x.example")),
        seen((b"a", b"b"), authority=b"x.example"),
    ),
    "Host with a dot at its end": (request((b"Host", b"example.org.")), seen(authority=b"example.org.")),
    "Host of IPv6": (request((b"Host", b"[::1]:80")), seen(authority=b"[::1]:80")),
    "Host of IPv6 with a zone": (request((b"Host", b"[fe80::1%25eth0]:80")), seen(authority=b"[fe80::1]:80")),
    "Host of IPv6 with a zone and a blank": (request((b"Host", b"[fe80::1%eth 0]")), seen(authority=b"[fe80::1]")),
    "authority with a zone": (request(authority=b"[fe80::1%25eth0]:81"), seen(authority=b"[fe80::1]:81")),
    "Host with an underscore": (request((b"Host", b"a_b.example")), seen(authority=b"a_b.example")),
    "Host that is percent-encoded": (request((b"Host", b"ex%41mple")), seen(authority=b"ex%41mple")),
    "two Hosts": (request((b"Host", b"a.example"), (b"Host", b"b.example")), None),
    "two Hosts that agree": (request(HOST, HOST), None),
    "an empty Host": (request((b"Host", b"")), None),
    "Host with userinfo": (request((b"Host", b"user:secret@example.org")), None),
    "Host with a path": (request((b"Host", b"example.org/x")), None),
    "Host with a blank": (request((b"Host", b"example org")), None),
    "Host with another line": (request((b"Host", b"a\r\nX: y")), None),
    "Host that is not ASCII": (request((b"Host", "ü.example".encode())), None),
    "two Hosts in one": (request((b"Host", b"a.example, b.example:1")), None),
    "authority with userinfo": (request(authority=b"user:secret@example.org"), None),
    "no authority": (request(authority=b""), None),
    "Host that Connection names": (request(HOST, (b"Connection", b"Host")), seen()),
    # Methods
    "a method of one's own": (request(method=b"PROPFIND"), seen(method=b"PROPFIND")),
    "a method in lower case": (request(method=b"get"), seen(method=b"get")),
    "a method with punctuation": (request(method=b"M-SEARCH!"), seen(method=b"M-SEARCH!")),
    "a method with a bracket": (request(method=b"G(T"), None),
    "a method with a blank": (request(method=b"G ET"), None),
    "a method with another line": (request(method=b"GET / HTTP/1.1\r\nX: y\r\n\r\nGET"), None),
    "no method": (request(method=b""), None),
    # Targets
    "path and query": (request(target=b"/a/b?c=d&e"), seen(path=b"/a/b?c=d&e")),
    "a path with odd characters": (request(target=b'/"<>\\^`{|}'), seen(path=b'/"<>\\^`{|}')),
    "two slashes": (request(target=b"//x"), seen(path=b"//x")),
    "a long path": (request(target=b"/" + b"x" * 5000), seen(path=b"/" + b"x" * 5000)),
    "a target without a slash": (request(target=b"foo"), None),
    "a query alone": (request(target=b"?a"), None),
    "an empty target": (request(target=b""), None),
    "a target with a blank": (request(target=b"/a b"), None),
    "a target with another line": (request(target=b"/ HTTP/1.1\r\nX: y"), None),
    "a target that is not ASCII": (request(target="/é".encode()), None),
    "a target with NUL": (request(target=b"/\0"), None),
    "OPTIONS *": (request(method=b"OPTIONS", target=b"*"), seen(method=b"OPTIONS", path=b"*")),
    "GET *": (request(target=b"*"), None),
    "a whole URI": (
        request((b"Host", b"other"), target=b"http://a.example:81/b?c"),
        seen(scheme=b"http", authority=b"a.example:81", path=b"/b?c"),
    ),
    "a whole URI without a path": (request(target=b"http://a.example"), seen(scheme=b"http", authority=b"a.example")),
    "a whole URI with a query only": (
        request(target=b"http://a.example?b"),
        seen(scheme=b"http", authority=b"a.example", path=b"/?b"),
    ),
    "OPTIONS of a whole URI without a path": (
        request(method=b"OPTIONS", target=b"http://a.example"),
        seen(method=b"OPTIONS", scheme=b"http", authority=b"a.example", path=b"*"),
    ),
    "a whole URI with a zone": (
        request(target=b"http://[fe80::1%25eth0]/"),
        seen(scheme=b"http", authority=b"[fe80::1]"),
    ),
    "a whole URI with userinfo": (request(target=b"http://user:secret@a.example/"), None),
    "a whole URI without a host": (request(target=b"http:///x"), None),
    "another scheme": (request(target=b"ftp://a.example/x"), seen(scheme=b"ftp", authority=b"a.example", path=b"/x")),
    "a scheme that is none": (request(target=b"1:2"), None),
    # CONNECT
    "CONNECT": (
        request((b"Host", b"proxy"), method=b"CONNECT", target=b"origin:443"),
        Seen(b"CONNECT", b"", b"origin:443", b"", b"", [], []),
    ),
    "CONNECT to IPv6": (
        request(method=b"CONNECT", target=b"[::1]:443"),
        Seen(b"CONNECT", b"", b"[::1]:443", b"", b"", [], []),
    ),
    "CONNECT with a zone": (
        request(method=b"CONNECT", target=b"[fe80::1%eth 0]:443"),
        Seen(b"CONNECT", b"", b"[fe80::1]:443", b"", b"", [], []),
    ),
    "CONNECT with framing": (
        request((b"Content-Length", b"0"), (b"X", b"y"), method=b"CONNECT", target=b"o:1"),
        Seen(b"CONNECT", b"", b"o:1", b"", b"", [(b"x", b"y")], []),
    ),
    "CONNECT without a port": (request(method=b"CONNECT", target=b"origin"), None),
    "CONNECT with an empty port": (request(method=b"CONNECT", target=b"origin:"), None),
    "CONNECT to a path": (request(method=b"CONNECT", target=b"/"), None),
    "CONNECT with userinfo": (request(method=b"CONNECT", target=b"u@origin:443"), None),
    "CONNECT with a blank": (request(method=b"CONNECT", target=b"ori gin:443"), None),
    "CONNECT with another line": (request(method=b"CONNECT", target=b"origin:443\r\nX: y"), None),
    ":protocol of GET": (request(protocol=b"websocket"), None),
    ":protocol with another line": (request(method=b"CONNECT", target=b"/", protocol=b"web\r\nX: y"), None),
    ":protocol that is empty": (request(method=b"CONNECT", target=b"/", protocol=b""), None),
    ":protocol with a blank": (request(method=b"CONNECT", target=b"/", protocol=b"web socket"), None),
    # One connection's
    "te: trailers": (request((b"TE", b"trailers"), (b"Connection", b"TE")), seen((b"te", b"trailers"))),
    "te: more than that": (request((b"TE", b"gzip, Trailers")), seen((b"te", b"trailers"))),
    "te: anything else": (request((b"TE", b"gzip;q=0.5")), seen()),
    "connection options": (
        request((b"Connection", b"close, X-Hop"), (b"X-Hop", b"1"), (b"X-Kept", b"2")),
        seen((b"x-kept", b"2")),
    ),
    "two of Connection": (
        request((b"X-A", b"1"), (b"Connection", b"x-a"), (b"connection", b"X-B"), (b"X-B", b"2")),
        seen(),
    ),
    "what belongs to a connection": (
        request(
            (b"Keep-Alive", b"5"),
            (b"Proxy-Connection", b"x"),
            (b"Upgrade", b"h2c"),
            (b"HTTP2-Settings", b"AAA"),
            (b"Connection", b"upgrade, http2-settings"),
        ),
        seen(),
    ),
    "Content-Length that Connection names": (
        request((b"Connection", b"content-length"), (b"Content-Length", b"0"), method=b"POST"),
        seen((b"content-length", b"0"), method=b"POST"),
    ),
    # Framing
    "Content-Length": (
        request((b"Content-Length", b"0"), method=b"POST"),
        seen((b"content-length", b"0"), method=b"POST"),
    ),
    "the same Content-Length twice": (
        request((b"Content-Length", b"0"), (b"content-length", b"0"), method=b"POST"),
        seen((b"content-length", b"0"), method=b"POST"),
    ),
    "the same Content-Length in a list": (
        request((b"Content-Length", b"0, 0"), method=b"POST"),
        seen((b"content-length", b"0"), method=b"POST"),
    ),
    "two Content-Lengths": (request((b"Content-Length", b"0"), (b"Content-Length", b"1"), method=b"POST"), None),
    "two Content-Lengths in a list": (request((b"Content-Length", b"0, 1"), method=b"POST"), None),
    "a Content-Length without content": (request((b"Content-Length", b"5"), method=b"POST"), None),
    "a signed Content-Length": (request((b"Content-Length", b"+0")), None),
    "a negative Content-Length": (request((b"Content-Length", b"-1")), None),
    "a Content-Length of letters": (request((b"Content-Length", b"many")), None),
    "an endless Content-Length": (request((b"Content-Length", b"0" * 21)), None),
    "both framings": (
        request((b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5"), method=b"POST"),
        seen(method=b"POST"),
    ),
    "another transfer coding": (request((b"Transfer-Encoding", b"gzip, chunked"), method=b"POST"), None),
    "two of Transfer-Encoding": (
        request((b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked"), method=b"POST"),
        None,
    ),
    # Names and values
    "names in any case": (
        request((b"X-Case", b"Kept"), (b"x-lower", b"a")),
        seen((b"x-case", b"Kept"), (b"x-lower", b"a")),
    ),
    "a name of punctuation": (request((b"!#$%&'*+-.^_`|~", b"x")), seen((b"!#$%&'*+-.^_`|~", b"x"))),
    "a name twice": (request((b"A", b"2"), (b"a", b"1")), seen((b"a", b"2"), (b"a", b"1"))),
    "an empty value": (request((b"A", b"")), seen((b"a", b""))),
    "a value of blanks": (request((b"A", b" \t ")), seen((b"a", b""))),
    "a value with blanks around": (request((b"A", b" b\t ")), seen((b"a", b"b"))),
    "a value with blanks within": (request((b"A", b"b \t c")), seen((b"a", b"b \t c"))),
    "a value that is not ASCII": (request((b"A", b"\xff\x80")), seen((b"a", b"\xff\x80"))),
    "a value with control characters": (request((b"A", b"b\x01\x1f\x7fc")), seen((b"a", b"b\x01\x1f\x7fc"))),
    "a long value": (request((b"A", b"b" * 20_000)), seen((b"a", b"b" * 20_000))),
    "an empty name": (request((b"", b"x")), None),
    "a name with a blank": (request((b"A b", b"x")), None),
    "a name with a colon": (request((b"a:b", b"x")), None),
    "a pseudo-header field": (request((b":path", b"/evil")), None),
    "a name with a bracket": (request((b"a(b", b"x")), None),
    "a name that is not ASCII": (request((b"\xe9", b"x")), None),
    "a name with another line": (request((b"a\r\nb", b"x")), None),
    "a value with another line": (request((b"A", b"b\r\nC: d")), None),
    "a value with LF": (request((b"A", b"b\nc")), None),
    "a value with CR": (request((b"A", b"b\rc")), None),
    "a value with NUL": (request((b"A", b"b\0")), None),
    "a value with VT": (request((b"A", b"b\vc")), None),
    "a value with FF": (request((b"A", b"b\fc")), None),
    # Secrets
    "secrets": (
        request((b"Authorization", b"Bearer x"), (b"Cookie", b"a=b"), (b"X-Api-Key", b"k"), target=b"/?key=1"),
        seen((b"authorization", b"Bearer x"), (b"cookie", b"a=b"), (b"x-api-key", b"k"), path=b"/?key=1"),
    ),
    "two cookies": (request((b"Cookie", b"b"), (b"Cookie", b"a")), seen((b"cookie", b"b"), (b"cookie", b"a"))),
    # Types
    "a method of text": (request(method="GET"), None),  # type: ignore[arg-type]  # that is the point
    "a target of text": (request(target="/"), None),  # type: ignore[arg-type]  # likewise
    "a target of 5": (request(target=5), None),  # type: ignore[arg-type]  # likewise
    "an authority of text": (request(authority="a"), None),  # type: ignore[arg-type]  # likewise
    "a protocol of text": (request(method=b"CONNECT", protocol="websocket"), None),  # type: ignore[arg-type]  # likewise
    "a header of text": (request(("A", "b")), None),  # type: ignore[arg-type]  # likewise
    "a header of a bytearray": (request((bytearray(b"A"), b"b")), None),  # type: ignore[arg-type]  # likewise
    "a header of three": (request((b"A", b"b", b"c")), None),  # type: ignore[arg-type]  # likewise
    "a header of none": (request(None), None),  # type: ignore[arg-type]  # likewise
}


@pytest.mark.parametrize("case", HEADS)
def test_a_head_means_the_same_in_every_version(case: str) -> None:
    head, meaning = HEADS[case]
    for version in VERSIONS:
        found = SEES[version](head)
        if meaning is None:
            assert isinstance(found, str), f"{version} sent it: {found}"
        else:
            assert found == meaning, version


@pytest.mark.parametrize("case", [case for case, (_, meaning) in HEADS.items() if meaning is None])
def test_why_it_is_refused_is_told_in_the_same_words_and_without_values(case: str) -> None:
    head, _ = HEADS[case]
    if head.protocol is not None:  # HTTP/1.1 has no such thing
        assert SEES["h2"](head) == SEES["h3"](head)
    else:
        assert SEES["h1"](head) == SEES["h2"](head) == SEES["h3"](head)
    said = str(SEES["h2"](head))
    assert "secret" not in said
    assert "evil" not in said


@pytest.mark.parametrize("protocol", [b"websocket", b"connect-udp", b"a.b"])
def test_extended_connect_means_the_same_where_there_is_one(protocol: bytes) -> None:
    """RFC 8441, RFC 9220. (A WebSocket in HTTP/1.1 is an Upgrade.)"""
    head = request(
        (b"Host", b"other"), (b"Content-Length", b"3"), method=b"CONNECT", target=b"/chat", protocol=protocol
    )
    meaning = Seen(b"CONNECT", b"https", b"other", b"/chat", protocol, [], [])
    assert SEES["h2"](head) == SEES["h3"](head) == meaning
    assert "an extended CONNECT cannot be sent over HTTP/1.1" in str(SEES["h1"](head))


TRAILERS: dict[str, tuple[Headers, Headers | None]] = {
    "one": ([(b"Checksum", b" 1 ")], [(b"checksum", b"1")]),
    "several": ([(b"B", b"1"), (b"a", b"2"), (b"b", b"3")], [(b"a", b"2"), (b"b", b"1"), (b"b", b"3")]),
    "a bad name": ([(b"a b", b"1")], None),
    "a bad value": ([(b"a", b"1\r\nb: 2")], None),
    "a pseudo-header field": ([(b":path", b"/")], None),
    "text": ([("a", "b")], None),  # type: ignore[list-item]  # that is the point
    **{
        name.decode(): ([(name, b"1")], None)
        for name in (
            b"Content-Length",
            b"Transfer-Encoding",
            b"Host",
            b"Trailer",
            b"TE",
            b"Connection",
            b"Keep-Alive",
            b"Upgrade",
            b"Authorization",
            b"Cookie",
            b"Content-Type",
            b"Content-Encoding",
            b"Expect",
        )
    },
}


@pytest.mark.parametrize("case", TRAILERS)
def test_a_trailer_section_means_the_same_in_every_version(case: str) -> None:
    """RFC 9110 §6.5.1."""
    trailers, meaning = TRAILERS[case]
    head = request((b"Transfer-Encoding", b"chunked"), method=b"POST")
    for version in VERSIONS:
        found = SEES[version](head, trailers)
        if meaning is None:
            assert isinstance(found, str), f"{version} sent it: {found}"
        else:
            assert isinstance(found, Seen), found
            assert found.trailers == meaning, version


# Secrets


def test_what_is_secret_enters_no_table() -> None:
    """RFC 7541 §7.1.3, RFC 9204 §7.1.3: not HPACK's, not QPACK's, however often it is said."""
    secrets = {
        b"authorization": b"Bearer token",
        b"cookie": b"session=0123456789abcdef0123456789",
        b"proxy-authorization": b"Basic x",
        b"x-api-key": b"key",
    }
    head = request(*secrets.items(), (b"X-Plain", b"indexed"), target=b"/path?key=1")
    h2_link, decoder, h3_link = h2_peer.Link(), HpackDecoder(), H3Link()
    for _ in range(5):
        h2_link.client.open(head, end=True)
        [section] = h2_sections(h2_link, decoder)
        assert set(secrets.items()) <= set(section)
        stream = h3_link.client.open(head, end=True)
        [section] = h3_link.sections(stream)
        assert section[3] == (b":path", b"/path?key=1") or section[0] == (b":path", b"/path?key=1")
        assert set(secrets.items()) <= set(section)
    for table in (list(decoder.header_table.dynamic_entries), h3_link.inserted):
        assert b"indexed" in [value for _, value in table]
        assert not {*secrets.values(), b"/path?key=1"} & {value for _, value in table}
    [block] = h3_link.raw
    # Whoever sends it on must not index it either (RFC 9204 §4.5.4, §4.5.6: the bit N).
    assert b"\x71\x0b/path?key=1" in block  # :path
    assert b"\x7f\x45\x0cBearer token" in block  # authorization
    assert b"\x75\x22session=" in block  # cookie
    assert b"\x37\x02x-api-key\x03key" in block


@pytest.mark.parametrize(
    "header",
    [
        (b"Authorization", b"Bearer secret\r\n"),
        (b"Authorization: Bearer secret", b""),
        (b"Cookie", b"secret\0"),
        (b"Content-Length", b"secret"),
        (b"Host", b"user:secret@example.org"),
        (b"Transfer-Encoding", b"secret"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_errors_name_a_header_and_never_its_value(version: str, header: tuple[bytes, bytes]) -> None:
    """Nor does what a traceback prints of their causes."""
    with pytest.raises(LocalProtocolError) as caught:
        header_section(request(header))
    assert "secret" not in "".join(traceback.format_exception(caught.value, chain=True))
    assert caught.value.__context__ is None
    said = SEES[version](request(header))
    assert isinstance(said, str)
    assert "secret" not in said


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_connection_remembers_ends_with_it(version: str) -> None:
    value = b"Bearer %d" % id(object())
    before = sys.getrefcount(value)
    assert isinstance(SEES[version](request((b"Authorization", value))), Seen)
    gc.collect()
    assert sys.getrefcount(value) == before


# Responses


def answer(
    status: int = 200, *fields: tuple[bytes, bytes], body: bytes = b"", trailers: Headers | None = None
) -> Answer:
    return Answer("complete", [], status, list(fields), body, trailers or [])


MALFORMED = Answer("malformed", [], 0, [], b"", [])

LENGTH = (b"content-length", b"5")
EVERYTHING: dict[str, Any] = {
    "status": b"200",
    "fields": [],
    "body": b"",
    "trailers": [],
    "method": b"GET",
    "informational": None,
}

#: What a server says, where it is not the above; and what that is.
RESPONSES: dict[str, tuple[dict[str, Any], Answer]] = {
    "nothing but a status": ({}, answer()),
    "fields": (
        {"fields": [(b"server", b"x"), (b"a", b"1"), (b"a", b"2")]},
        answer(200, (b"server", b"x"), (b"a", b"1"), (b"a", b"2")),
    ),
    "blanks around a value": ({"fields": [(b"a", b" \tb\t ")]}, answer(200, (b"a", b"b"))),
    "blanks within a value": ({"fields": [(b"a", b"b \t c")]}, answer(200, (b"a", b"b \t c"))),
    "an empty value": ({"fields": [(b"a", b"")]}, answer(200, (b"a", b""))),
    "control characters": ({"fields": [(b"a", b"\x01b\x7f")]}, answer(200, (b"a", b"\x01b\x7f"))),
    "bytes that are not ASCII": ({"fields": [(b"a", b"\xff")]}, answer(200, (b"a", b"\xff"))),
    "a name of punctuation": ({"fields": [(b"!#$%&'*+-.^_`|~", b"x")]}, answer(200, (b"!#$%&'*+-.^_`|~", b"x"))),
    "a name with a bracket": ({"fields": [(b"a(b", b"x")]}, MALFORMED),
    "a name with a blank": ({"fields": [(b"a b", b"x")]}, MALFORMED),
    "an empty name": ({"fields": [(b"", b"x")]}, MALFORMED),
    "a name that is not ASCII": ({"fields": [(b"\xe9", b"x")]}, MALFORMED),
    "NUL in a value": ({"fields": [(b"a", b"b\0")]}, MALFORMED),
    "VT in a value": ({"fields": [(b"a", b"b\vc")]}, MALFORMED),
    "FF in a value": ({"fields": [(b"a", b"b\fc")]}, MALFORMED),
    "CR in a value": ({"fields": [(b"a", b"b\rc")]}, MALFORMED),
    "status 999": ({"status": b"999"}, answer(999)),
    "status 600": ({"status": b"600"}, answer(600)),
    "status 099": ({"status": b"099"}, MALFORMED),
    "status 000": ({"status": b"000"}, MALFORMED),
    "status of two digits": ({"status": b"20"}, MALFORMED),
    "status of four digits": ({"status": b"2000"}, MALFORMED),
    "status of letters": ({"status": b"2OO"}, MALFORMED),
    "a status with blanks around": ({"status": b" 200 "}, MALFORMED),
    "a signed status": ({"status": b"+20"}, MALFORMED),
    "101, unasked": ({"status": b"101"}, MALFORMED),
    "a body": ({"body": b"hello"}, answer(body=b"hello")),
    "Content-Length": (
        {"fields": [LENGTH], "body": b"hello"},
        answer(200, LENGTH, body=b"hello"),
    ),
    "Content-Length twice": (
        {"fields": [LENGTH, LENGTH], "body": b"hello"},
        answer(200, LENGTH, body=b"hello"),
    ),
    "Content-Length in a list": (
        {"fields": [(b"content-length", b"5, 5")], "body": b"hello"},
        answer(200, LENGTH, body=b"hello"),
    ),
    "two Content-Lengths": (
        {"fields": [LENGTH, (b"content-length", b"6")], "body": b"hello"},
        MALFORMED,
    ),
    "two Content-Lengths in a list": ({"fields": [(b"content-length", b"5, 6")], "body": b"hello"}, MALFORMED),
    "a signed Content-Length": ({"fields": [(b"content-length", b"+5")], "body": b"hello"}, MALFORMED),
    "an empty Content-Length": ({"fields": [(b"content-length", b"")]}, MALFORMED),
    "a Content-Length of 21 digits": ({"fields": [(b"content-length", b"0" * 21)]}, MALFORMED),
    "204 with Content-Length": (
        {"status": b"204", "fields": [LENGTH]},
        answer(204, LENGTH),
    ),
    "304 with Content-Length": (
        {"status": b"304", "fields": [LENGTH]},
        answer(304, LENGTH),
    ),
    "HEAD": ({"method": b"HEAD", "fields": [LENGTH]}, answer(200, LENGTH)),
    "a large section": ({"fields": [(b"a", b"b" * 20_000)]}, MALFORMED),
    "1xx first": (
        {"informational": [(b"link", b" <a> ")]},
        answer()._replace(informational=[(103, [(b"link", b"<a>")])]),
    ),
    "1xx that is malformed": ({"informational": [(b"link", b"a\0")]}, MALFORMED),
    "trailers": ({"body": b"x", "trailers": [(b"a", b" 1\t")]}, answer(body=b"x", trailers=[(b"a", b"1")])),
    "trailers with a bad name": ({"trailers": [(b"a(b", b"1")]}, MALFORMED),
    "trailers with a bad value": ({"trailers": [(b"a", b"1\0")]}, MALFORMED),
    "trailers that are large": ({"trailers": [(b"a", b"1" * 20_000)]}, MALFORMED),
}


def answered(version: str, said: dict[str, Any]) -> Answer:
    return ANSWERS[version](**EVERYTHING | said)._replace(error="")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("where", ["fields", "informational", "trailers"])
def test_what_is_malformed_is_named_without_its_value(version: str, where: str) -> None:
    """A server's Set-Cookie is the caller's secret."""
    error = ANSWERS[version](**EVERYTHING | {where: [(b"set-cookie", b"session=hunter2\0")]}).error
    assert "set-cookie" in error
    assert "hunter2" not in error


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", RESPONSES)
def test_a_response_means_the_same_in_every_version(case: str, version: str) -> None:
    said, meaning = RESPONSES[case]
    assert answered(version, said) == meaning


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("where", ["fields", "informational", "trailers"])
def test_a_section_has_a_thousand_fields_at_most(version: str, where: str) -> None:
    """Each is work, however short: thousands of them would hold the event loop."""
    most = [(b"a", b"")] * (MAX_FIELDS - 3)
    allowed = ANSWERS[version](**EVERYTHING | {where: most, "limit": 100 * 1024})
    assert not allowed.error
    refused = ANSWERS[version](**EVERYTHING | {where: most + most[:4], "limit": 100 * 1024})
    assert f"more than {MAX_FIELDS} fields" in refused.error


@given(st.binary(max_size=6), st.sampled_from([b"a", b"b"]))
@settings(max_examples=200, deadline=None)
def test_any_value_means_the_same_in_every_version(value: bytes, around: bytes) -> None:
    """h11 has a grammar of its own."""
    value = around + value + around
    first, *others = (SEES[version](request((b"x", value))) for version in VERSIONS)
    assert others == [first, first]
    if not set(value) & set(b"\r\n"):  # (what ends a line in HTTP/1.1 is another line)
        answers = [answered(version, {"fields": [(b"x", value)]}) for version in VERSIONS]
        assert answers == [answers[0]] * 3


@given(st.binary(max_size=4).filter(lambda name: not set(name) & set(b"\r\n:")))
@settings(max_examples=200, deadline=None)
def test_any_name_means_the_same_in_every_version(name: bytes) -> None:
    first, *others = (SEES[version](request((name, b"x"))) for version in VERSIONS)
    assert others == [first, first]
    if name == name.lower() and name.strip(b" \t") == name and name != b"te":  # (which HTTP/1.1 alone may say)
        answers = [answered(version, {"fields": [(name, b"x")]}) for version in VERSIONS]
        assert answers == [answers[0]] * 3
