"""What is remembered of requests' fields changes nothing of what they mean."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allswell._errors import LocalProtocolError
from allswell._fields import (
    MalformedSection,
    ReceivedSections,
    RequestSection,
    RequestSections,
    as_pair,
    received_section,
    response_section,
    telling_fields,
)
from allswell._messages import Field, Headers, RequestHead

NAMES = st.sampled_from(
    [
        *(b"Host", b"host", b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"TE", b"Te"),
        *(b"Upgrade", b"Keep-Alive", b"Proxy-Connection", b"HTTP2-Settings", b"X", b"x", b"Accept", b"Cookie", b"a b"),
        *(b"", b":path", b"\xff"),
    ]
)
VALUES = st.sampled_from(
    [
        *(b"a", b"b", b"a:80", b"[fe80::1%25eth0]", b"[::1]", b"user@a", b"", b"5", b"05", b"5, 5", b"5,6", b"+5"),
        *(b"9" * 20, b"9" * 21, b"chunked", b"Chunked", b"gzip", b"close", b"keep-alive", b"Keep-Alive", b"x, host"),
        *(b"keep-alive, x", b"trailers", b"deflate, trailers", b"websocket", b" a\t", b"a\0", b"a\r\nb", b"y" * 2000),
    ]
)
#: Also what no head should have: the type checker would complain before us.
PAIRS: st.SearchStrategy[Any] = st.one_of(
    st.tuples(NAMES, VALUES),
    st.tuples(st.sampled_from([b"Host", b"Content-Length", b"X"]), st.sampled_from([b"a", b"5"])),
    st.sampled_from([("X", b"a"), (b"X", "a"), [b"X", b"a"], (b"X", bytearray(b"a")), (b"X",), (b"X", None), b"ab", 7]),
)
HEADS = st.builds(
    RequestHead,
    st.sampled_from([b"GET", b"POST", b"OPTIONS", b"CONNECT", b"G T"]),
    st.sampled_from([b"http", b"https"]),
    st.sampled_from([b"a", b"b", b"a b"]),
    st.sampled_from([b"/", b"/x?y", b"*", b"http://a/x", b"https://b:1", b"a:443", b"/ "]),
    st.lists(PAIRS, max_size=5) | st.lists(PAIRS, max_size=4).map(lambda pairs: [(b"Host", b"a"), *pairs]),
    st.sampled_from([None, None, None, b"websocket"]),
)


class _Forgetful(RequestSections[Field]):
    """Takes no section for ordinary."""

    def _ordinary(
        self, head: RequestHead, scheme: bytes, named: bytes | None, target: bytes
    ) -> RequestSection[Field] | None:
        return None


def made(sections: RequestSections[Field], head: RequestHead, end: bool) -> dict[str, object] | str:
    try:
        section = sections.section(head, end=end)
        return {name: getattr(section, name) for name in RequestSection.__slots__}
    except LocalProtocolError as error:
        return str(error)


@pytest.mark.parametrize("end_to_end", [False, True])
@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(HEADS, st.booleans()), min_size=1, max_size=4))
def test_a_head_means_the_same_whatever_came_before(end_to_end: bool, heads: list[tuple[RequestHead, bool]]) -> None:
    """Errors too."""
    remembering = RequestSections(as_pair, end_to_end=end_to_end)
    for head, end in heads * 2:
        plain = made(_Forgetful(as_pair, end_to_end=end_to_end), head, end)
        assert made(remembering, head, end) == plain


def head(*headers: Field) -> RequestHead:
    return RequestHead(b"GET", b"https", b"a", b"/", [(b"Host", b"a"), *headers])


def test_a_field_that_changes_costs_no_other_its_place() -> None:
    """What varies (a trace's id) is checked, and nothing else is made anew."""
    sections = RequestSections(lambda name, value: [name, value], end_to_end=True)
    constant: Headers = [(b"Accept", b"text/html"), (b"User-Agent", b"test")]
    first = sections.section(head(*constant, (b"Traceparent", b"0"))).fields
    second = sections.section(head(*constant, (b"Traceparent", b"1"))).fields
    assert [field[1] for field in second] == [b"text/html", b"test", b"1"]
    assert [one is other for one, other in zip(first, second, strict=True)] == [True, True, False]


def test_only_so_much_is_remembered() -> None:
    sections = RequestSections(as_pair, end_to_end=False)
    for number in range(1, 10_000):
        sections.section(head((b"X-%d" % number, b"x" * number), (b"Y" * number, b"1")))
    gc.collect()
    assert sum(sys.getsizeof(name) + sys.getsizeof(value) for name, value in sections._known) < 128 * 1200
    assert sum(map(sys.getsizeof, sections._names)) < 128 * 1200
    received = ReceivedSections()
    for number in range(1, 10_000):
        received.section([(b"x-%d" % number, b"x" * number), (b"y" * number, b"1")], 1 << 20)
    assert sum(sys.getsizeof(name) + sys.getsizeof(value) for name, value in received) < 128 * 1200
    assert sum(map(sys.getsizeof, received._names)) < 128 * 1200


RECEIVED = st.lists(
    st.tuples(
        st.sampled_from(
            [b":status", b"content-length", b"etag", b"x", b"X", b"te", b"connection", b":", b"", b"a b", b"long" * 300]
        ),
        st.sampled_from([b"", b"200", b" a ", b"a\n", b"\0", b"trailers", b"v" * 900]),
    ),
    max_size=5,
)


def without_memory(fields: Headers, limit: int) -> tuple[Headers, Headers]:
    received = received_section(fields, limit)
    return received, telling_fields(received)


@settings(max_examples=300, deadline=None)
@given(st.lists(RECEIVED, min_size=1, max_size=5))
def test_what_is_received_means_the_same_whatever_came_before(sections: list[Headers]) -> None:
    """Errors too."""
    remembering = ReceivedSections()
    for fields in sections * 2:
        outcomes: list[Any] = []
        for section in (remembering.section, without_memory):
            try:
                outcomes.append(section(fields, 3000))
            except MalformedSection as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]


@settings(max_examples=300, deadline=None)
@given(st.lists(RECEIVED, min_size=1, max_size=5), st.sampled_from([b"GET", b"HEAD", b"CONNECT"]))
def test_a_response_means_the_same_whatever_came_before(sections: list[Headers], method: bytes) -> None:
    """Its telling fields are remembered (HTTP/3), or looked for (HTTP/2). Errors too."""
    remembering = ReceivedSections()
    for fields in sections * 2:
        outcomes: list[Any] = []
        for section in (remembering.section, without_memory):
            try:
                received, telling = section([(b":status", b"200"), *fields], 3000)
                outcomes.append(response_section(received, method, telling))
                assert outcomes[-1] == response_section(received, method)
            except MalformedSection as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]
