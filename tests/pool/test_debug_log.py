"""The debug log: its lines and fields, that it can be turned on at any time, and that no secret gets into it."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest

from allswell import AsyncClient, ConnectFailed, ConnectionPool, ProxyHop
from allswell._debug_log import log
from allswell._events import (
    ConnectionOpened,
    Event,
    PhaseEnded,
    Place,
    RequestBegan,
    RequestFailed,
)
from allswell._messages import RequestHead
from allswell._observers import Observers
from allswell.testing import Origin, Response
from tests.support.peer import scripted_peer
from tests.support.proxies import connect_proxy

pytestmark = pytest.mark.anyio

LOGGERS = ("allswell.pool", "allswell.dial", "allswell.connection")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All that is logged."""
    for name in LOGGERS:
        caplog.set_level(logging.DEBUG, name)
    return caplog


def general(text: str, *, port: int) -> str:
    """Without the numbers and times of this run."""
    text = text.replace(str(port), "PORT")
    text = re.sub(r"(request|connection) \d+", r"\1 N", text)
    return re.sub(r"\d+\.\d ms", "T ms", text)


async def test_a_request_from_its_begin_to_the_end_of_its_connection(lines: pytest.LogCaptureFixture) -> None:
    async with Origin(tls=False) as origin:
        async with ConnectionPool() as pool:
            await pool.request("GET", f"{origin.url}/path?key=secret")
        await origin.ended()
    assert [(each.name, general(each.getMessage(), port=origin.port)) for each in lines.records] == [
        ("allswell.pool", "request N: GET http://127.0.0.1:PORT, /path"),
        ("allswell.pool", "request N waits for a connection"),
        ("allswell.dial", "connection N: dialling http://127.0.0.1:PORT, for request N"),
        ("allswell.dial", "connection N: tcp 127.0.0.1:PORT done in T ms"),
        ("allswell.connection", "connection N: HTTP/1.1 to http://127.0.0.1:PORT is open (tcp, 127.0.0.1:PORT)"),
        ("allswell.pool", "request N goes out on connection N (HTTP/1.1)"),
        ("allswell.pool", "request N is answered: 200"),
        (
            "allswell.connection",
            "connection N has ended: the pool closes (h1 clean; tcp clean, said FIN, heard FIN; 1 exchange)",
        ),
    ]


async def test_the_fields_are_for_json(lines: pytest.LogCaptureFixture) -> None:
    async with Origin(versions=["h2"]) as origin, ConnectionPool(ssl_context=origin.client_context()) as pool:
        await pool.request("GET", f"{origin.url}/path")
        origin.refuse(1)
        await pool.request("GET", f"{origin.url}/path")
    known = {*vars(logging.makeLogRecord({})), "message", "asctime"}
    facts = [{name: value for name, value in vars(each).items() if name not in known} for each in lines.records]
    assert json.loads(json.dumps(facts)) == facts
    assert all(each["event"] and ("connection" in each or "request" in each) for each in facts)
    [opened] = [each for each in facts if each["event"] == "connection.opened"]
    [ended] = [each for each in facts if each["event"] == "connection.ended"]
    sent = [each for each in facts if each["event"] == "request.sent"]
    [back] = [each for each in facts if each["event"] == "request.sent_back"]
    assert opened["connection"] == ended["connection"] == sent[0]["connection"]
    assert (opened["http_version"], opened["layers"], opened["tls"]) == ("HTTP/2", "tls > tcp", "TLSv1.3")
    assert (back["request"], back["processed"]) == (sent[1]["request"], "no")
    assert (ended["clean"], [each["layer"] for each in ended["layers"]]) == (True, ["h2", "tls", "tcp"])


async def test_it_can_be_turned_on_at_any_time(caplog: pytest.LogCaptureFixture) -> None:
    """Also for what is open already."""
    async with Origin(tls=False) as origin, ConnectionPool() as pool:
        await pool.request("GET", origin.url)
        assert not caplog.records
        with caplog.at_level(logging.DEBUG, "allswell.pool"):
            await pool.request("GET", origin.url)
        told = [each.getMessage() for each in caplog.records]
        assert len(told) == 3
        await pool.request("GET", origin.url)
        assert len(caplog.records) == 3
        with caplog.at_level(logging.DEBUG, "allswell.connection"):
            await pool.aclose()
    number = re.search(r"on connection (\d+)", told[1])
    assert number is not None
    assert caplog.records[3].getMessage().startswith(f"connection {number[1]} has ended: the pool closes")
    assert len(caplog.records) == 4


async def test_each_logger_can_be_had_alone(caplog: pytest.LogCaptureFixture) -> None:
    for name in LOGGERS:
        caplog.clear()
        with caplog.at_level(logging.DEBUG, name):
            async with Origin(tls=False) as origin, ConnectionPool() as pool:
                await pool.request("GET", origin.url)
        assert {each.name for each in caplog.records} == {name}


async def test_a_dial_that_fails(lines: pytest.LogCaptureFixture, closed_port: int) -> None:
    async with ConnectionPool() as pool:
        with pytest.raises(ConnectFailed):
            await pool.request("GET", f"http://127.0.0.1:{closed_port}")
    refused = f"cannot connect to 127.0.0.1:{closed_port}: 127.0.0.1: Connection refused"
    assert [general(each.getMessage(), port=closed_port) for each in lines.records[3:]] == [
        "connection N: tcp 127.0.0.1:PORT failed in T ms: [Errno 111] Connection refused",
        general(f"connection 1 was not made: {refused}", port=closed_port),
        general(f"request 1 failed: {refused}", port=closed_port),
    ]


async def test_no_secret_gets_into_it(lines: pytest.LogCaptureFixture) -> None:
    """Not of a URL, of a header field, of a proxy's, of a body; nor of what the caller's own code raises."""

    async def body() -> Any:
        yield b"SECRET"
        raise ValueError("SECRET")

    def auth(request: Any) -> Response:
        return Response(headers={"Set-Cookie": "SECRET"}, body=b"SECRET")

    async with Origin({"/": auth}, versions=["h1"]) as origin:
        with scripted_peer(connect_proxy()) as proxy:
            hop = ProxyHop("http", proxy.host, proxy.port, auth=(b"SECRET", b"SECRET"), headers=((b"x", b"SECRET"),))
            url = origin.url.replace("://", "://SECRET:SECRET@")
            pool = ConnectionPool(ssl_context=origin.client_context(), proxies=(hop,))
            async with AsyncClient(pool=pool, cookies={"a": "SECRET"}, params={"key": "SECRET"}) as client:
                answer = await client.get(f"{url}/", headers={"Authorization": "SECRET"})
                assert answer.status_code == 200
                with pytest.raises(ValueError, match="SECRET"):
                    await client.post(f"{url}/", content=body())
    assert len(lines.records) > 10
    assert not [text for each in lines.records if "SECRET" in (text := f"{each.getMessage()} {vars(each)}")]


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"/a?b", "/a"),
        (b"/", "/"),
        (b"*", ""),
        (b"http://ann:secret@example.org/", ""),
        (b"/a\nb\x1b[2J", "/a b\N{REPLACEMENT CHARACTER}[2J"),
    ],
)
def test_a_line_is_one_line(target: bytes, shown: str, lines: pytest.LogCaptureFixture) -> None:
    head = RequestHead(b"GET", b"http", b"example.org", target, [(b"Authorization", b"secret")])
    log(RequestBegan(1, Place("http://example.org", "http", "example.org", 80), head))
    [record] = lines.records
    assert vars(record)["path"] == shown
    assert record.getMessage() == "request 1: GET http://example.org" + (f", {shown}" if shown else "")


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (RequestFailed(1, ValueError("secret")), "request 1 failed: ValueError"),
        (RequestFailed(1, OSError("secret\nrequest 2 failed: a lie")), "request 1 failed: OSError"),
        (
            RequestFailed(1, OSError(5, "Input\noutput")),
            "request 1 failed: [Errno 5] Input\N{REPLACEMENT CHARACTER}output",
        ),
        (
            RequestFailed(1, ConnectFailed("a\n\x1b[2J", phase="dns")),
            "request 1 failed: a \N{REPLACEMENT CHARACTER}[2J",
        ),
        (RequestFailed(1, KeyboardInterrupt()), "request 1 was given up: KeyboardInterrupt"),
        (
            PhaseEnded(2, "tcp", ("::1", 80), 0.0, 0.25, KeyboardInterrupt()),
            "connection 2: tcp [::1]:80 called off in 250.0 ms",
        ),
        (
            PhaseEnded(2, "dns", "example.org", 0.0, 0.25, None, ("192.0.2.1", "::1")),
            "connection 2: dns example.org done in 250.0 ms: 192.0.2.1, ::1",
        ),
        (
            ConnectionOpened(2, Place("http://a", "http", "a", 80), "HTTP/1.1", "tcp", None, ""),
            "connection 2: HTTP/1.1 to http://a is open (tcp)",
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_lines(event: Event, told: str, lines: pytest.LogCaptureFixture) -> None:
    log(event)
    assert [each.getMessage() for each in lines.records] == [told]


async def test_what_nobody_observes_makes_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Event] = []
    monkeypatch.setattr(Observers, "tell", lambda self, event: told.append(event))
    async with Origin(tls=False) as origin:
        async with ConnectionPool() as pool:
            for _ in range(2):
                await pool.request("GET", origin.url)
        await origin.ended()
        assert not told
        async with ConnectionPool() as pool:
            pool.observers.add(print)
            await pool.request("GET", origin.url)
    assert told
