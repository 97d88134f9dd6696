"""HTTPS records (RFC 9460): what they say, and where connections go because of them; with a DNS server on loopback."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, NoReturn

import anyio
import pytest

from allswell import AsyncClient, ConnectionPool
from allswell._config import Timeouts
from allswell._dial import https_records, lookups
from allswell._dial.https_records import HttpsRecords, Service
from allswell._dial.lookups import Lookups
from allswell._errors import ConnectFailed
from allswell._request.route import Endpoint
from allswell._tasks import current_host
from allswell.testing import Origin
from tests.servers.caddy import caddy
from tests.support.certificates import ANY_HTTP, certificates
from tests.support.dns_server import DnsServer, Reply, with_rcode, with_rdata
from tests.support.lag import LAG, resolution_delay, stagger
from tests.support.leaks import sockets_closed
from tests.support.learnt import broken_ports
from tests.support.peer import ScriptedPeer, scripted_peer
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio

SOON = Timeouts(connect=30, read=30, write=30, pool=30, total=30)


class Names:
    """The system's resolver: what it knows, after how long, and what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses = {"name.example": "127.0.0.1", "other.example": "127.0.0.1"}
        self.seconds = 0.0
        self.asked: list[str] = []
        monkeypatch.setattr(anyio, "getaddrinfo", self._getaddrinfo)

    async def _getaddrinfo(self, host: str, port: int, *, family: int, type: int) -> list[Any]:
        self.asked.append(host)
        await anyio.sleep(self.seconds)
        if family == socket.AF_INET6 or host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, type, 6, "", (self.addresses[host], port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """One for each test. What it says is known for as long as that takes; in life for a second, an error for less."""
    monkeypatch.setattr(lookups, "monotonic", lambda: 1000.0)
    return Names(monkeypatch)


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    """One for each test, with nothing in its zone."""
    with DnsServer() as server:
        yield server


async def at_once() -> None:
    """What :meth:`HttpsRecords.find` calls when it may wait no longer; here it may."""
    await anyio.sleep(10)


def records_of(dns: DnsServer) -> HttpsRecords:
    return HttpsRecords(current_host(), [dns.address], Lookups(current_host()))


async def found(dns: DnsServer, port: int = 443, name: str = "name.example") -> list[Service]:
    records = records_of(dns)
    return list(await records.find(name, port, at_once))


def service(host: str, port: int = 443, *alpn: str, hints: tuple[str, ...] = ()) -> Service:
    return Service(Endpoint(host, port, hints), frozenset(each.encode() for each in alpn))


HERE = service("name.example", 443, "h3", "h2", "http/1.1")
ALIAS = service("alias.example", 443, "h2", "http/1.1")

RECORDS = {
    "plain": ("name.example. 60 HTTPS 1 . alpn=h3,h2", [HERE]),
    "no alpn": ("name.example. 60 HTTPS 1 .", [service("name.example", 443, "http/1.1")]),
    "no default": ("name.example. 60 HTTPS 1 . alpn=h3 no-default-alpn", [service("name.example", 443, "h3")]),
    "port": (
        "name.example. 60 HTTPS 1 . alpn=h3,h2 port=8443",
        [HERE._replace(endpoint=Endpoint("name.example", 8443))],
    ),
    "target": ("name.example. 60 HTTPS 1 Other.Example. alpn=h2", [service("other.example", 443, "h2", "http/1.1")]),
    "hints": (
        "name.example. 60 HTTPS 1 . ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1",
        [service("name.example", 443, "http/1.1", hints=("2001:db8::1", "192.0.2.1", "192.0.2.2"))],
    ),
    "priorities": (
        """name.example. 60 HTTPS 30 three.example.
        name.example. 60 HTTPS 1 one.example.
        name.example. 60 HTTPS 2 two.example.""",
        [service(f"{each}.example", 443, "http/1.1") for each in ("one", "two", "three")],
    ),
    "mandatory that we know": ("name.example. 60 HTTPS 1 . alpn=h3,h2 mandatory=alpn", [HERE]),
    "mandatory that we do not": (
        """name.example. 60 HTTPS 1 . alpn=h3 key65333=x mandatory=key65333
        name.example. 60 HTTPS 2 . alpn=h3,h2 key65333=x""",
        [HERE],
    ),
    "mandatory ECH": ("name.example. 60 HTTPS 1 . alpn=h3 ech=AAT+DQAA mandatory=ech", []),
    "behind a CNAME": (
        """name.example. 60 CNAME real.example.
        real.example. 60 HTTPS 1 . alpn=h3,h2""",
        [HERE._replace(endpoint=Endpoint("real.example", 443))],
    ),
    "alias": (
        """name.example. 60 HTTPS 0 alias.example.
        alias.example. 60 HTTPS 1 . alpn=h3,h2""",
        [HERE._replace(endpoint=Endpoint("alias.example", 443)), ALIAS],
    ),
    "alias to nothing": ("name.example. 60 HTTPS 0 alias.example.", [ALIAS]),
    "alias beside a service": (
        """name.example. 60 HTTPS 0 alias.example.
        name.example. 60 HTTPS 1 . alpn=h3""",
        [ALIAS],
    ),
    "alias to nowhere": ("name.example. 60 HTTPS 0 .", []),
    "aliases in a ring": (
        """name.example. 60 HTTPS 0 alias.example.
        alias.example. 60 HTTPS 0 name.example.""",
        [service("name.example", 443, "h2", "http/1.1")],
    ),
    "none": ("name.example. 60 A 192.0.2.1", []),
    "no such name": ("", []),
}


@pytest.mark.parametrize(("zone", "expected"), RECORDS.values(), ids=RECORDS)
async def test_records(dns: DnsServer, zone: str, expected: list[Service]) -> None:
    dns.zone = zone
    assert await found(dns) == expected
    assert len(dns.queries) <= 8


async def test_other_ports_have_names_of_their_own(dns: DnsServer) -> None:
    """RFC 9460 §9.1, §2.3: and there "." is that name."""
    dns.zone = """_8443._https.name.example. 60 HTTPS 1 . alpn=h3
        _8444._https.name.example. 60 HTTPS 1 name.example. alpn=h3 port=9
        _8445._https.name.example. 60 HTTPS 0 alias.example."""
    assert await found(dns, 8443) == [service("_8443._https.name.example", 8443, "h3", "http/1.1")]
    assert await found(dns, 8444) == [service("name.example", 9, "h3", "http/1.1")]
    assert await found(dns, 8445) == [service("alias.example", 8445, "h2", "http/1.1")]
    assert dns.queries[-1] == "alias.example"


async def test_equals_take_turns(dns: DnsServer) -> None:
    dns.zone = "\n".join(f"name.example. 60 HTTPS 1 {each}.example." for each in "abcdefgh")
    first = {(await found(dns))[0].endpoint.host for _ in range(20)}
    assert len(first) > 1
    assert len(await found(dns)) == 4


BROKEN: dict[str, Reply] = {
    "SERVFAIL": with_rcode("SERVFAIL"),
    "REFUSED": with_rcode("REFUSED"),
    "FORMERR": with_rcode("FORMERR"),
    "no DNS": lambda query: query.to_wire()[:2] + b"\xff" * 60,
    "cut": lambda query: query.to_wire()[:11],
    "rdata too short": with_rdata(b"\x00"),
    "no target": with_rdata(b"\x00\x01"),
    "keys out of order": with_rdata(b"\x00\x01\x00" + b"\x00\x03\x00\x02\x01\xbb" + b"\x00\x01\x00\x03\x02h3"),
    "key twice": with_rdata(b"\x00\x01\x00" + b"\x00\x01\x00\x03\x02h3" * 2),
    "empty alpn": with_rdata(b"\x00\x01\x00" + b"\x00\x01\x00\x00"),
    "alpn beyond its end": with_rdata(b"\x00\x01\x00" + b"\x00\x01\x00\x03\x09h3"),
    "half a hint": with_rdata(b"\x00\x01\x00" + b"\x00\x04\x00\x03\x7f\x00\x00"),
    "mandatory that is missing": with_rdata(b"\x00\x01\x00" + b"\x00\x00\x00\x02\x00\x01"),
    "compression into itself": with_rdata(b"\x00\x01\xc0\x0c"[:3] + b"\xff"),
    "one bad among good": with_rdata(b"\x00\x01\x00" + b"\x00\x01\x00\x03\x02h3", b"\x00"),
}


async def test_an_event_loop_that_dnspython_cannot_use(dns: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wants a newer trio than anyio does, say: an error at once, not records that are never found."""

    def get_backend(name: str) -> NoReturn:
        raise ImportError(f"{name} not found or too old")

    monkeypatch.setattr("dns.asyncbackend.get_backend", get_backend)
    pool = trusting(dns)
    with pytest.raises(ImportError, match="too old"):
        await pool.request("GET", "https://name.example/")
    await pool.aclose()


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
async def test_what_makes_no_sense_is_none(dns: DnsServer, reply: Reply, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9460 §2.2: a malformed record spoils its set. And the name server is not asked again at once."""
    monkeypatch.setattr("allswell._dial.https_records._LIFETIME", 0.5)
    dns.reply = reply
    records = records_of(dns)
    assert await records.find("name.example", 443, at_once) == ()
    asked = len(dns.queries)
    assert await records.find("name.example", 443, at_once) == ()
    assert len(dns.queries) == asked


async def test_a_record_is_understood_as_bytes(dns: DnsServer) -> None:
    """As RFC 9460 §2.2 has it, without a word from dnspython."""
    dns.reply = with_rdata(
        b"\x00\x01\x05other\x07example\x00"
        b"\x00\x01\x00\x06\x02h3\x02h2"
        + b"\x00\x02\x00\x00"
        + b"\x00\x03\x00\x02\x20\xfb"
        + b"\x00\x04\x00\x04\xc0\x00\x02\x01"
    )
    assert await found(dns) == [service("other.example", 8443, "h3", "h2", hints=("192.0.2.1",))]


async def test_long_answers_come_over_tcp(dns: DnsServer) -> None:
    dns.zone = "name.example. 60 HTTPS 1 . alpn=h3,h2"
    dns.truncate = True
    with sockets_closed():
        assert await found(dns) == [HERE]
        await anyio.sleep(0.01)  # asyncio closes a stream a turn later
    assert dns.queries == ["name.example", "name.example over TCP"]


async def test_how_long_an_answer_serves(dns: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its TTL; for the shortest on the way; where there is none, for what the zone says of that (RFC 2308 §5)."""
    now = [1000.0]
    monkeypatch.setattr(lookups, "monotonic", lambda: now[0])
    dns.negative = 40
    dns.zone = """name.example. 100 HTTPS 1 . alpn=h3
        a.example. 100 HTTPS 0 b.example.
        b.example. 20 CNAME c.example.
        c.example. 100 HTTPS 1 .
        years.example. 99999999 HTTPS 1 .
        empty.example. 100 A 192.0.2.1"""
    served = {"name": 100, "a": 20, "empty": 40, "nobody": 40, "years": 86400}
    records = records_of(dns)
    for label, seconds in served.items():
        await records.find(f"{label}.example", 443, at_once)
        asked = len(dns.queries)
        now[0] += seconds - 1
        await records.find(f"{label}.example", 443, at_once)
        assert len(dns.queries) == asked, label
        now[0] += 2
        await records.find(f"{label}.example", 443, at_once)
        assert len(dns.queries) > asked, label


async def test_answers_are_bounded(dns: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allswell._dial.https_records._ORIGINS", 10)
    records = records_of(dns)
    for number in range(30):
        await records.find(f"{number}.example", 443, at_once)
    assert len(records.finds) == 10


SPECIAL = ["127.0.0.1", "::1", "localhost", "a.localhost", "printer.local", "x.onion", "intranet", "name.invalid"]


@pytest.mark.parametrize("name", [*SPECIAL, "x.onion.", "localhost.", "intranet."])
async def test_names_that_nobody_is_asked_for(dns: DnsServer, name: str) -> None:
    """A dot at the end makes no other name of it."""
    assert await found(dns, name=name) == []
    assert dns.queries == []


@pytest.mark.parametrize("address", ["name.example", "192.0.2.53:0", "192.0.2.53:x", "[::1]:70000", "", ":53"])
async def test_nameservers_that_are_none(address: str) -> None:
    pool = ConnectionPool(https_records=True, nameservers=[address])
    with pytest.raises(ValueError, match="is not the address of a name server"):
        await pool.request("GET", "https://name.example/")


async def test_without_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    with pytest.raises(ImportError, match=r"allswell\[dns\]"):
        AsyncClient(https_records=True)
    async with AsyncClient(http3=True):
        pass  # who does not ask for records does without


# Where connections go


def trusting(dns: DnsServer, **settings: Any) -> ConnectionPool:
    settings = {"http3": True, "https_records": True, "nameservers": [dns.address], **settings}
    return ConnectionPool(ssl_context=certificates().client_context(), **settings)


def on_tcp() -> Any:
    return scripted_peer(answers(), tls=certificates().server_context())


async def version_of(pool: ConnectionPool, port: int = 443, path: str = "/hello") -> bytes:
    response = await pool.request("GET", f"https://name.example:{port}{path}", timeouts=SOON)
    assert response.status == 200
    return response.http_version


@pytest.mark.parametrize("delay", [0.0, 0.3])
async def test_the_first_request_is_http3(dns: DnsServer, names: Names, delay: float) -> None:
    """Nothing listens where the origin is, so a late answer is waited for; the certificate is the origin's."""
    dns.delay = delay
    with QuicServer() as server, sockets_closed():
        dns.zone = f"name.example. 60 HTTPS 1 other.example. alpn=h3 port={server.port}"
        async with trusting(dns) as pool:
            assert await version_of(pool) == b"HTTP/3"
        assert dns.queries == ["name.example"]
        assert set(names.asked) == {"name.example", "other.example"}


async def test_where_a_late_answer_does_not_help_both_failures_are_told(
    dns: DnsServer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolution_delay(monkeypatch)
    dns.held = True
    with on_tcp() as tcp, sockets_closed():
        dns.zone = f"_{tcp.port}._https.name.example. 60 HTTPS 1 other.example. alpn=h2 port=1"
        pins = {"name.example": "sha256//" + "A" * 43 + "="}

        async def answer() -> None:
            await tcp.ended()
            dns.held = False

        async with trusting(dns, pins=pins, retries=0) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            with pytest.raises(ConnectFailed, match="before that") as caught:
                await version_of(pool, tcp.port)
        assert "other.example:1: 127.0.0.1: Connection refused" in str(caught.value)
        assert "none of its pins" in str(caught.value)


async def test_caddy(dns: DnsServer, names: Names) -> None:
    with caddy() as server:
        dns.zone = f"_{server.port}._https.name.example. 60 HTTPS 1 name.example. alpn=h3,h2"
        async with trusting(dns) as pool:
            assert await version_of(pool, server.port, "/") == b"HTTP/3"


async def test_hints_do_where_the_resolver_says_nothing(dns: DnsServer, names: Names) -> None:
    names.addresses.clear()
    with QuicServer() as server:
        dns.zone = f"name.example. 60 HTTPS 1 . alpn=h3 port={server.port} ipv4hint=127.0.0.1"
        async with trusting(dns) as pool:
            assert await version_of(pool) == b"HTTP/3"


async def test_records_without_http3_are_for_tcp_alone(dns: DnsServer, names: Names) -> None:
    with QuicServer() as server, on_tcp() as tcp:
        dns.zone = f"""_{server.port}._https.name.example. 60 HTTPS 1 . alpn=h2
            name.example. 60 HTTPS 1 other.example. port={tcp.port}"""
        async with trusting(dns) as pool:
            with pytest.raises(ConnectFailed):
                await version_of(pool, server.port)
            assert await version_of(pool) == b"HTTP/1.1"
        assert server.seen == []
        assert b"Host: name.example\r\n" in tcp.connections[0].requests[0]


async def test_tcp_falls_back_by_priority_and_then_to_the_origin(
    dns: DnsServer, names: Names, closed_port: int
) -> None:
    with on_tcp() as tcp:
        dns.zone = f"""_{tcp.port}._https.name.example. 60 HTTPS 1 other.example. alpn=h2 port={closed_port}
            _{closed_port}._https.name.example. 60 HTTPS 1 other.example. port={closed_port}
            _{closed_port}._https.name.example. 60 HTTPS 2 other.example. port={tcp.port}"""
        async with trusting(dns, http3=False) as pool:
            assert await version_of(pool, tcp.port) == b"HTTP/1.1"
            assert await version_of(pool, closed_port) == b"HTTP/1.1"


async def test_tcp_is_not_for_services_without_its_protocols(dns: DnsServer, names: Names) -> None:
    """RFC 9460 §7.1.2: nor is one tried that speaks HTTP/2 alone to a client that does not."""
    with on_tcp() as tcp, on_tcp() as wrong:
        name, there = f"_{tcp.port}._https.name.example.", f"no-default-alpn port={wrong.port}"
        dns.zone = f"""{name} 60 HTTPS 1 other.example. alpn=h3 {there}
            {name} 60 HTTPS 2 other.example. alpn=h2 {there}"""
        async with trusting(dns, http2=False) as pool:
            assert await version_of(pool, tcp.port) == b"HTTP/1.1"
        assert wrong.connections == []


async def test_only_http3_goes_where_the_record_says(dns: DnsServer, names: Names) -> None:
    with QuicServer() as server:
        dns.zone = f"name.example. 60 HTTPS 1 . alpn=h3 port={server.port}"
        async with trusting(dns, http3="only") as pool:
            assert await version_of(pool) == b"HTTP/3"
        async with trusting(dns, http3="only") as pool:
            assert await version_of(pool, server.port) == b"HTTP/3"  # there is no record: the origin itself


async def test_a_service_that_does_not_answer_is_broken_and_the_next_is_not(dns: DnsServer, names: Names) -> None:
    with QuicServer() as gone, QuicServer() as server, on_tcp() as tcp:
        gone.stop_listening()
        dns.zone = f"""_{tcp.port}._https.name.example. 60 HTTPS 1 name.example. alpn=h3 port={gone.port}
            _{tcp.port}._https.name.example. 60 HTTPS 2 name.example. alpn=h3 port={server.port}"""
        async with trusting(dns) as pool:
            assert await version_of(pool, tcp.port) == b"HTTP/3"
            assert broken_ports(pool) == [gone.port]


@pytest.mark.parametrize("settings", [{"https_records": False}, {"proxy": True}, {"uds": True}])
async def test_where_nobody_is_asked(dns: DnsServer, names: Names, settings: dict[str, Any], tmp_path: Any) -> None:
    path = tmp_path / "socket"
    unix = {"unix_path": path} if "uds" in settings else {}
    with scripted_peer(answers(), tls=certificates().server_context(), **unix) as tcp:
        if "uds" in settings:
            settings = {"uds": str(path)}
        if "proxy" in settings:
            async with AsyncClient(
                https_records=True, nameservers=[dns.address], proxy="http://127.0.0.1:1", trust_env=False
            ) as client:
                with pytest.raises(Exception, match="proxy"):
                    await client.get("https://name.example/")
        else:
            async with trusting(dns, **settings) as pool:
                assert await version_of(pool, 443 if unix else tcp.port) == b"HTTP/1.1"
    assert dns.queries == []


async def test_http_is_not_asked_for(dns: DnsServer, names: Names) -> None:
    """RFC 9460 §9.5 would have http:// become https:// where there is a record. What was asked for is done."""
    dns.zone = "name.example. 60 HTTPS 1 . alpn=h3"
    async with Origin(tls=False) as origin, trusting(dns) as pool:
        assert (await pool.request("GET", f"http://name.example:{origin.port}/", timeouts=SOON)).status == 200
    assert dns.queries == []


# What it costs


async def seconds_for(pool: ConnectionPool, tcp: ScriptedPeer) -> float:
    began = monotonic()
    await version_of(pool, tcp.port)
    return monotonic() - began


async def test_a_slow_query_costs_50_ms_and_serves_the_next_dial(
    dns: DnsServer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolution_delay(monkeypatch)
    names.seconds, dns.held = 0.1, True
    with QuicServer() as server, on_tcp() as tcp:
        dns.zone = f"_{tcp.port}._https.name.example. 60 HTTPS 1 name.example. alpn=h3 port={server.port}"
        async with trusting(dns, keepalive_expiry=0.05) as pool:
            assert await seconds_for(pool, tcp) > 0.14
            assert len(tcp.connections) == 1
            await tcp.ended()
            dns.held = False
            while not all(asked.over for asked in pool._dispatcher.dialer.discovery._records.finds._asked.values()):  # type: ignore[union-attr]  # noqa: ASYNC110  the answer comes
                await anyio.sleep(0.01)
            assert await version_of(pool, tcp.port) == b"HTTP/3"
            assert len(tcp.connections) == 1
        assert len(server.connections) == 1
        assert len(dns.queries) == 1


async def test_a_query_that_is_faster_than_the_addresses_costs_nothing(
    dns: DnsServer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    names.seconds, dns.delay = 0.2, 0.15
    with on_tcp() as tcp:
        async with trusting(dns) as pool:
            assert 0.19 < await seconds_for(pool, tcp) < LAG
        assert names.asked == ["name.example"] * 2  # A and AAAA, once


async def test_silence_costs_50_ms_once(dns: DnsServer, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    resolution_delay(monkeypatch)
    dns.reply = lambda query: b""
    with on_tcp() as tcp, sockets_closed():
        async with trusting(dns, keepalive_expiry=0.01) as pool:
            assert await seconds_for(pool, tcp) > 0.04
            await tcp.ended()
            await seconds_for(pool, tcp)
            assert len(dns.queries) == 1


async def test_a_hundred_dials_ask_once(dns: DnsServer, names: Names) -> None:
    with on_tcp() as tcp:
        async with trusting(dns, http2=False) as pool, anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(version_of, pool, tcp.port)
        assert len(dns.queries) == 1
        assert names.asked == ["name.example"] * 2  # A and AAAA


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.04, 0.08])
async def test_a_pool_that_closes_leaves_no_query(
    dns: DnsServer, names: Names, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    dns.reply = lambda query: b""
    with sockets_closed():
        pool = trusting(dns)
        monkeypatch.setattr(https_records, "_LIFETIME", 3 * LAG)
        with anyio.move_on_after(seconds), suppress(ConnectFailed):  # nobody is there
            await pool.request("GET", "https://name.example:1/")
        await pool.aclose()
        assert pool.close_report is not None
        assert pool.close_report.seconds < LAG


async def test_another_network_has_other_answers(dns: DnsServer, names: Names) -> None:
    with on_tcp() as tcp, QuicServer() as server:
        async with trusting(dns, keepalive_expiry=0.01) as pool:
            assert await version_of(pool, tcp.port) == b"HTTP/1.1"
            await tcp.ended()
            dns.zone = f"_{tcp.port}._https.name.example. 60 HTTPS 1 name.example. alpn=h3 port={server.port}"
            pool.network_changed()
            assert await version_of(pool, tcp.port) == b"HTTP/3"


async def test_many_versions(dns: DnsServer, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """QUIC is blocked, and all else is as if there were no record: HTTP/2, a stagger later."""
    stagger(monkeypatch)
    with (
        scripted_peer(answers(), tls=certificates().server_context(alpn=ANY_HTTP[1:])) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole,
    ):
        hole.bind(("127.0.0.1", 0))
        dns.zone = f"""_{tcp.port}._https.name.example. 60 HTTPS 1 name.example. alpn=h3 port={hole.getsockname()[1]}
            _{tcp.port}._https.name.example. 60 HTTPS 2 name.example. alpn=h2"""
        async with trusting(dns) as pool:
            assert await seconds_for(pool, tcp) > 0.24
