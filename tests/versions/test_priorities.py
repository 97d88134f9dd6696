"""How urgent a request is (RFC 9218): the same field in every version, and what is said later where it can be said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio.to_thread
import httpx2
import pytest
from hyperframe.frame import ExtensionFrame
from hypothesis import given
from hypothesis import strategies as st

from allswell import AsyncClient, ConnectionPool, LocalProtocolError
from allswell._priority import priority_value
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, Request, Talk, h2_tls
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection

VERSIONS = ["h1", "h2", "h3"]
NO_RFC7540_PRIORITIES = 9
BODY = b"x" * 3000


class Origin:
    """A server that answers with the first third of a body, and with the rest when it is told to.

    :ivar fields: the Priority fields of each request.
    :ivar go_on: sends the rest.
    :ivar updates: the payloads of the PRIORITY_UPDATE frames that have come.
    """

    def __init__(self) -> None:
        self.url = ""
        self.fields: list[list[str]] = []
        self.go_on: Callable[[], object] = lambda: None
        self.updates: Callable[[], list[bytes]] = list


@contextmanager
def origin(version: str) -> Iterator[Origin]:
    """A server of this version."""
    ours = Origin()

    def talk_http1(connection: PeerConnection) -> None:
        ours.go_on = lambda: connection.send(BODY[1000:])
        while head := connection.read_head():
            lines = head.decode("latin-1").split("\r\n")
            ours.fields.append([line.partition(": ")[2] for line in lines if line.lower().startswith("priority:")])
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + BODY[:1000])

    def answer_http2(talk: Talk, request: Request) -> None:
        ours.fields.append([value for name, value in request.headers.items() if name == "priority"])
        ours.go_on = lambda: talk.body(request, BODY[1000:])
        talk.answer(request, BODY[:1000], end=False)

    def answer_http3(connection: ServedConnection, stream: int, head: dict[bytes, bytes]) -> None:
        ours.fields.append([value.decode() for name, value in head.items() if name == b"priority"])
        ours.go_on = lambda: quic.call(lambda connection: connection.data(stream, BODY[1000:], end=True))
        connection.head(stream, 200)
        connection.data(stream, BODY[:1000])

    if version == "h1":
        with scripted_peer(talk_http1, tls=True) as peer:
            ours.url = peer.url
            yield ours
    elif version == "h2":
        server = Http2Server(answer_http2, settings={NO_RFC7540_PRIORITIES: 1})
        ours.updates = lambda: [frame.body for frame in server.talks[0].frames if isinstance(frame, ExtensionFrame)]
        with scripted_peer(server, tls=h2_tls()) as peer:
            ours.url = peer.url
            yield ours
    else:
        with QuicServer() as quic:
            quic.routes[b"/"] = answer_http3
            ours.updates = lambda: [payload for (payload,) in quic.all("priority_update")]
            ours.url = f"https://localhost:{quic.port}"
            yield ours


def settings(version: str) -> dict[str, Any]:
    """Of a pool or client that speaks this version only."""
    speaks: dict[str, dict[str, Any]] = {"h1": {"http2": False}, "h2": {"http1": False}, "h3": {"http3": "only"}}
    return speaks[version]


def client_of(version: str, **more: Any) -> AsyncClient:
    """A client."""
    return AsyncClient(verify=certificates().client_context(), **settings(version), **more)


# The field


@pytest.mark.anyio
@pytest.mark.parametrize("version", VERSIONS)
async def test_the_field_is_the_same_in_every_version(version: str) -> None:
    with origin(version) as server:
        async with client_of(version, headers={"Priority": "u=6"}) as client:
            for extensions in ({}, {"priority": "u=1, i"}, {"priority": b"u=0"}, {"priority": None}, {"priority": ""}):
                async with client.stream("GET", server.url + "/", extensions=extensions) as response:
                    await anyio.to_thread.run_sync(server.go_on)
                    assert await response.aread() == BODY
    assert server.fields == [["u=6"], ["u=1, i"], ["u=0"], ["u=6"], []]


@pytest.mark.anyio
@pytest.mark.parametrize("version", VERSIONS)
async def test_the_field_by_the_pool(version: str) -> None:
    with origin(version) as server:
        async with ConnectionPool(ssl_context=certificates().client_context(), **settings(version)) as pool:
            for priority in (None, "u=2"):
                async with pool.stream(
                    "GET", server.url + "/", headers={"priority": "u=5"}, priority=priority
                ) as response:
                    await anyio.to_thread.run_sync(server.go_on)
                    assert await response.read() == BODY
    assert server.fields == [["u=5"], ["u=2"]]


@pytest.mark.anyio
async def test_what_is_no_priority_is_refused_where_it_is_given() -> None:
    async with AsyncClient() as client:
        with pytest.raises(httpx2.LocalProtocolError, match="must be a number from 0 to 7"):
            await client.get("https://localhost:1/", extensions={"priority": "u=8"})
        with pytest.raises(httpx2.LocalProtocolError, match="must be bytes or text, not int"):
            await client.get("https://localhost:1/", extensions={"priority": 1})
    async with ConnectionPool() as pool:
        with pytest.raises(LocalProtocolError, match="must be a list of members"):
            await pool.request("GET", "https://localhost:1/", priority="urgent!")


GOOD = [
    "",
    "u=0",
    "u=7",
    "i",
    "i=?0",
    "u=1, i",
    "u=1 ,\ti=?1",
    " u=2 ",
    "u=9, u=1",
    'u=3;a;b=2.5;c="x\\""',
    "a=b/c:d",
    "u=007",
]
GOOD += [
    "a=:aGk=:, u=1",
    'a=(1 "two" three;x);y, i',
    "a=()",
    "a=( 1  2 )",
    "a=@1659578233",
    'a=%"f%c3%bc"',
    "*a.b-c_d=1",
    "a=-1.5",
]
BAD = ["u=8", "u=-1", "u", "u=1.0", "u=?1", 'u="1"', "u=(1)", "u=high", "i=1", "i=yes", "i=()", "u=1, i=2"]
BAD += [
    "u=1,",
    ",u=1",
    "u=1,,i",
    "u=1 i",
    "u =1",
    "u= 1",
    "U=1",
    "1=u",
    "u=1;",
    "u=1;A",
    "u=1 ;a",
    "a=(1",
    "a=(1,2)",
    "a=(1(2))",
]
BAD += [
    "u=1234567890123456",
    "a=1.",
    "a=.5",
    "a=1.2345",
    'a="x',
    'a="\\x"',
    "a=:x",
    "a=?2",
    "a=@1.5",
    'a=%"%C3"',
    "\tu=1",
    "é",
    "u=1\r\nx: y",
]


@pytest.mark.parametrize("given", GOOD)
def test_a_priority(given: str) -> None:
    assert priority_value(given) == given.strip().encode() == priority_value(given.encode())


@pytest.mark.parametrize("given", BAD)
def test_no_priority(given: str) -> None:
    with pytest.raises(LocalProtocolError):
        priority_value(given)


_key = st.from_regex(r"[a-z*][a-z0-9_.*-]{0,3}", fullmatch=True).filter(lambda key: key not in ("u", "i"))
_bare = st.one_of(
    st.integers(-(10**15) + 1, 10**15 - 1).map(str),
    st.decimals(-999, 999, places=3, allow_nan=False).map(lambda number: f"{number:.3f}"),
    st.from_regex(r"[A-Za-z*][A-Za-z0-9:/!#]{0,4}", fullmatch=True),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=4).map(
        lambda text: '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    ),
    st.sampled_from(["?0", "?1", ":aGk=:", "@-5"]),
)
_parameters = st.lists(st.tuples(_key, st.just("") | _bare.map(lambda value: "=" + value)), max_size=2).map(
    lambda found: "".join(f";{key}{value}" for key, value in found)
)
_item = st.tuples(_bare, _parameters).map("".join)
_list = st.tuples(st.lists(_item, max_size=3).map(lambda items: f"({' '.join(items)})"), _parameters).map("".join)
_member = st.tuples(_key, (_item | _list).map(lambda value: "=" + value) | _parameters).map("".join)


@given(st.lists(_member, max_size=4), st.integers(0, 7), st.sampled_from(["i", "i=?0", "i=?1;x"]))
def test_other_members_are_let_through(others: list[str], urgency: int, incremental: str) -> None:
    value = ", ".join([*others, f"u={urgency}", incremental])
    assert priority_value(value) == value.encode()


# What is said later


@pytest.mark.anyio
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_response_is_given_another_priority(version: str) -> None:
    with origin(version) as server:
        async with client_of(version) as client:
            async with client.stream("GET", server.url + "/") as response:
                reprioritize = response.extensions["reprioritize"]
                reprioritize("u=7, i")
                with pytest.raises(httpx2.LocalProtocolError, match="must be a number from 0 to 7") as caught:
                    reprioritize("u=8")
                assert isinstance(caught.value.__cause__, LocalProtocolError)
                await anyio.to_thread.run_sync(server.go_on)
                assert await response.aread() == BODY
                reprioritize("u=0")  # it is complete
            reprioritize("u=0")
            async with client.stream("GET", server.url + "/") as response:
                await anyio.to_thread.run_sync(server.go_on)
                await response.aread()
    assert server.updates() == {"h1": [], "h2": [b"\0\0\0\1u=7, i"], "h3": [b"\0u=7, i"]}[version]


@pytest.mark.anyio
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_response_of_the_pool_is_given_another_priority(version: str) -> None:
    with origin(version) as server:
        async with ConnectionPool(ssl_context=certificates().client_context(), **settings(version)) as pool:
            for _ in range(2):
                async with pool.stream("GET", server.url + "/") as response:
                    response.reprioritize("u=5")
                    with pytest.raises(LocalProtocolError, match="must be a number from 0 to 7"):
                        response.reprioritize("u=8")
                    await anyio.to_thread.run_sync(server.go_on)
                    assert await response.read() == BODY
    assert server.updates() == {"h1": [], "h2": [b"\0\0\0\1u=5", b"\0\0\0\3u=5"], "h3": [b"\0u=5", b"\4u=5"]}[version]
