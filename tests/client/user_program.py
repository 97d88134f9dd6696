"""A program as a user writes it, with every public name: ``test_types.py`` has mypy read it, strictly.

A comment that begins with ``type: ignore`` stands where a user is wrong, and mypy must say so.
"""

from __future__ import annotations

import signal
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Literal

import httpx
import httpx2

import allswell
import allswell.httpx
import allswell.otel
import allswell.testing

_VERSION: str = allswell.__version__


class Store:
    """A store of alternative services."""

    def put(self, origin: str, alternatives: Sequence[allswell.Alternative]) -> None:
        """Keep them."""
        print(origin, [each.host for each in alternatives])

    def get(self, origin: str) -> Sequence[allswell.Alternative]:
        """Those of an origin."""
        return ()

    def origins(self) -> Sequence[str]:
        """All."""
        return ()

    def flush(self) -> None:
        """Nothing."""


class Tickets:
    """A store of QUIC's session tickets."""

    def put_ticket(self, server: str, ticket: allswell.QuicTicket) -> None:
        """Keep one."""
        print(server, ticket.is_valid)

    def take_ticket(self, server: str) -> allswell.QuicTicket | None:
        """Take one."""
        return None

    def put_token(self, server: str, token: bytes) -> None:
        """Keep one."""

    def take_token(self, server: str) -> bytes | None:
        """Take one."""
        return None


STORES: list[allswell.AltSvcStore] = [Store(), allswell.AltSvcMemory(), allswell.AltSvcFile("known")]
QUIC_STORES: list[allswell.QuicStore] = [Tickets(), allswell.QuicMemory(servers=10)]


def ended(end: allswell.ConnectionEnd) -> None:
    """Told of each connection's end."""
    layers: tuple[allswell.LayerEnd, ...] = end.layers
    for layer in layers:
        if layer.outcome is allswell.Outcome.TIMED_OUT:
            print(end.route, layer.layer, layer.said, layer.heard, layer.seconds)


def settings() -> allswell.PoolConfig:
    """All kinds of settings."""
    hop = allswell.ProxyHop("https", "proxy.example", 443, auth=(b"ada", b"l"), http3="only")
    quic = allswell.QuicConfig(idle_timeout=10.0, store=QUIC_STORES[0])
    return allswell.PoolConfig(http3=True, alt_svc=STORES[0], quic=quic, proxies=(hop,), on_connection_end=ended)


def public(contact: allswell.Contact) -> bool:
    """Whether an address may be connected to."""
    print(contact.host, contact.port, contact.transport)
    return contact.address.is_global or allswell.PublicAddresses(besides=["10.0.0.0/8"])(contact)


async def resolve(host: str) -> list[str]:
    """The addresses of a host."""
    return ["192.0.2.1"] if host == "a.example" else []


def trust() -> allswell.ConnectionPool:
    """Whom to trust, and who we are."""
    ours = allswell.ClientCertificate(b"-----BEGIN CERTIFICATE-----", key=b"...", password="secret")
    ours = allswell.ClientCertificate.from_pkcs12(b"...", "secret") or ours
    dns = allswell.DnsOverHttps("https://dns.example/dns-query", ["192.0.2.1"], timeout=2.0)
    hosts = allswell.Hosts({"a.example": "192.0.2.1", "b.example": ["192.0.2.2"]}, otherwise=dns)
    pins = {"a.example": "sha256//...", "b.example": ["sha256//...", "sha256//..."]}
    allswell.AsyncClient(cert=ours, pins=pins, resolver=resolve, allow_address=public)
    return allswell.ConnectionPool(cert=ours, resolver=hosts, allow_address=allswell.PublicAddresses(), pins=pins)


async def body() -> AsyncIterator[bytes]:
    """A body in pieces."""
    yield b"piece"


async def pooled() -> None:
    """A pool, used as it is."""
    async with allswell.ConnectionPool(settings(), retries=2, max_connections=10, ping_interval=None) as pool:
        waits = allswell.Timeouts(connect=1.0, total=10.0)
        response: allswell.Response = await pool.request("GET", "https://a.example", timeouts=waits)
        attempts: list[allswell.Attempt] = list(response.attempts)
        heads: list[allswell.ResponseHead] = response.informational
        print(response.status, attempts, [head.status for head in heads], await response.read())
        for headers in ({"A": "b"}, {"C": "d"}):
            await pool.request("POST", httpx2.URL("https://a.example"), headers=headers, content=body())
        await pool.request("GET", "https://a.example", headers=[("A", "b")])
        await pool.request("GET", "https://a.example", headers={b"A": b"b"})
        await pool.request("GET", "https://a.example", headers=[(b"A", b"b")])
        await pool.request("GET", "https://a.example", headers=httpx2.Headers({"A": "b"}))
        async with pool.stream("GET", "https://a.example") as streamed:
            async for piece in streamed:
                print(len(piece))
        snapshot: allswell.PoolSnapshot = pool.snapshot()
        routes: tuple[allswell.RouteSnapshot, ...] = snapshot.routes
        connections: list[allswell.ConnectionSnapshot] = [each for route in routes for each in route.connections]
        print([connection.idle for connection in connections])
    report: allswell.CloseReport | None = pool.close_report
    print(report)


async def client(context: ssl.SSLContext, pool: allswell.ConnectionPool) -> None:
    """The client, with all of its settings."""
    only: Literal["only"] = "only"
    async with allswell.AsyncClient(
        http1=False,
        http2=True,
        http3=only,
        http3_origins=["https://a.example"],
        alt_svc=STORES[1],
        https_records=False,
        nameservers=["127.0.0.1"],
        quic=allswell.QuicConfig(),
        pipelining=1,
        max_connections_per_route=4,
        retries=1,
        uds=None,
        local_address="127.0.0.1",
        socket_options=[(1, 2, 3)],
        on_connection_end=ended,
        grace=1.0,
        total_timeout=30.0,
        retry=allswell.Retry(),
        verify=context,
        limits=httpx2.Limits(max_connections=10),
        timeout=httpx2.Timeout(5.0),
        proxy=["http://a.example", allswell.ProxyHop("socks5", "b.example", 1080)],
        headers={"A": "b"},
    ) as made:
        response: httpx2.Response = await made.get("https://a.example", timeout=1.0)
        print(response.status_code)
        shared: allswell.ConnectionPool | None = made.pool
        print(shared)
    report: allswell.CloseReport = await made.aclose(0)
    print(report.clean)
    async with allswell.AsyncClient(pool=pool, base_url="https://a.example"):
        pass


async def service(client: allswell.AsyncClient) -> None:
    """A service that signals end."""
    async with allswell.connect_udp(client, "https://a.example/{target_host}/{target_port}/", "b.example", 53) as udp:
        tunnel: allswell.UdpTunnel = udp
        await tunnel.send(b"x")
        came: bytes | None = await tunnel.receive()
    datagrams: allswell.HttpDatagrams = tunnel.response.extensions["datagrams"]
    print(came, datagrams)
    with client.har("file.har", redact=["cookie"], max_body=0) as har:
        recording: allswell.HarRecording = har
        log: dict[str, object] = recording.as_dict()
    print(log)
    async with allswell.drain_on_signal(client, signals=[signal.SIGTERM], grace=10.0, cancel=False) as stopping:
        while not stopping.is_set():
            await client.get("https://a.example")
    application = allswell.lifespan(name="client", grace=1.0, on_close=print)
    async with application(object()) as state:
        await state["client"].get("https://a.example")


async def transports(context: ssl.SSLContext) -> None:
    """Under httpx2's client, and under httpx's."""
    ours = allswell.AsyncTransport(verify=context, http3=True, limits=httpx2.Limits(), proxy=httpx2.Proxy("http://a"))
    async with httpx2.AsyncClient(transport=ours) as one:
        await one.get("https://a.example")
    theirs = allswell.httpx.AsyncTransport(
        verify=context, limits=httpx.Limits(), proxy=httpx.Proxy("http://a"), grace=1
    )
    async with httpx.AsyncClient(transport=theirs) as two:
        await two.get("https://a.example")
    report: allswell.CloseReport = await theirs.aclose()
    print(report)


async def errors(pool: allswell.ConnectionPool) -> str:
    """What can go wrong."""
    try:
        await pool.request("GET", "https://a.example")
    except allswell.AddressNotAllowed as error:
        return f"{error.host} {error.address} {error.port}"
    except allswell.PinMismatch as error:
        return f"{error.host} {error.seen}"
    except allswell.ProxyRefused as error:
        return f"{error.status} {error.headers} {error.body!r}"
    except allswell.ConnectFailed as error:
        return error.phase
    except allswell.Timeout as error:
        return error.phase
    except allswell.ExchangeReset as error:
        return f"{error.code}"
    except allswell.TransportError as error:
        return error.operation
    except (allswell.UnsupportedProtocol, allswell.LocalProtocolError, allswell.RemoteProtocolError):
        return "protocol"
    except allswell.ProtocolError as error:
        return error.by
    except allswell.PoolClosed:
        return "closed"
    except allswell.AllswellError as error:
        return error.reach
    return ""


def observed(client: allswell.AsyncClient, pool: allswell.ConnectionPool) -> None:
    """OpenTelemetry."""
    stops = [allswell.otel.instrument(client), allswell.otel.instrument(pool, connection_spans=False, user_agent=True)]
    for stop in stops:
        stop()


async def tested() -> None:
    """A client's endings."""

    async def later(request: allswell.testing.Request) -> allswell.testing.Response:
        return allswell.testing.Response(body=request.body, headers=[("A", request.path)])

    def now(request: allswell.testing.Request) -> allswell.testing.Response:
        return allswell.testing.Response(404, headers={"A": request.http_version}, framing="chunked")

    fixed = allswell.testing.Response(headers=(("A", "1"), ("A", "2")))
    async with allswell.testing.Origin({"/": fixed, "/now": now}, versions=["h1", "h3"]) as origin:
        origin.route("/later", later)
        origin.goaway(after=1)
        origin.slow(bytes_per_second=1000)
        origin.behave()
        async with allswell.AsyncClient(verify=origin.client_context()) as client:
            answer = await client.get(f"{origin.url}/later")
        await origin.ended()
        await origin.seen(allswell.testing.RequestReceived, count=1, timeout=1)
        origin.assert_ended_gracefully()
        origin.assert_no_reset()
        origin.assert_executed_once(answer.request)
        events: list[allswell.testing.GoAway] = origin.record.of(allswell.testing.GoAway)
        print(events, what_happened(origin.record))
    with allswell.testing.Origin(tls=False) as synchronous:
        synchronous.restart(down=0.1)
        synchronous.wait_ended(timeout=1)
    mock = allswell.testing.MockOrigin({"/": fixed})
    mock.refuse(times=1)
    async with httpx2.AsyncClient(transport=mock) as plain:
        await plain.get("https://a.example")
    mock.assert_executed_once("GET /")


def what_happened(record: allswell.testing.Record) -> list[str]:
    """Each event in words."""
    return [_words(event) for event in record.events]


def _words(event: allswell.testing.Event) -> str:
    match event:
        case allswell.testing.Connected(over=over):
            return over
        case allswell.testing.Secured(version=version, alpn=alpn):
            return version + alpn
        case allswell.testing.Speaks(version=version):
            return version
        case allswell.testing.RequestReceived() | allswell.testing.RequestExecuted():
            return f"{event.stream} {event.method} {event.target}"
        case allswell.testing.RequestRefused() | allswell.testing.ExchangeCut():
            return f"{event.stream} {event.method} {event.target}"
        case allswell.testing.ResponseSent(stream=stream, status=status):
            return f"{stream} {status}"
        case allswell.testing.StreamReset(stream=stream, word=word, code=code):
            return f"{stream} {word} {code}"
        case allswell.testing.GoAway(last=last, code=code):
            return f"{last} {code}"
        case allswell.testing.ConnectionClose(code=code, application=application, reason=reason):
            return f"{code} {application} {reason}"
        case allswell.testing.Alert(reason=reason) | allswell.testing.Violation(why=reason):
            return reason
        case allswell.testing.Said(word=word, cut=cut):
            return f"{word} {cut}"
        case allswell.testing.CloseNotify() | allswell.testing.Fin() | allswell.testing.Rst():
            return event.direction
        case allswell.testing.Ended() | allswell.testing.Vanished():
            return f"{event.connection} {event.at}"
        case _:
            return str(event)


async def wrong(pool: allswell.ConnectionPool) -> None:
    """What mypy must find."""
    allswell.testing.Origin(versions=["h4"])  # type: ignore[list-item]
    allswell.testing.Response(headers={"A": 1})  # type: ignore[dict-item]
    allswell.testing.Response(framing="none")  # type: ignore[arg-type]
    allswell.otel.instrument(httpx2.AsyncClient())  # type: ignore[arg-type]
    allswell.ConnectionPool(max_conections=1)  # type: ignore[call-arg]
    allswell.ConnectionPool(retries="2")  # type: ignore[arg-type]
    allswell.ConnectionPool(http3="never")  # type: ignore[arg-type]
    allswell.ConnectionPool(resolver={"a": "b"})  # type: ignore[arg-type]
    allswell.ConnectionPool(cert="client.pem")  # type: ignore[arg-type]
    allswell.AsyncClient(pins=["sha256//..."])  # type: ignore[arg-type]
    allswell.AsyncClient(allow_address=resolve)  # type: ignore[arg-type]
    allswell.AsyncTransport(htp3=True)  # type: ignore[call-arg]
    allswell.AsyncTransport(ping_interval="1")  # type: ignore[arg-type]
    allswell.AsyncTransport(limits=httpx.Limits())  # type: ignore[arg-type]
    allswell.httpx.AsyncTransport(htp3=True)  # type: ignore[call-arg]
    allswell.httpx.AsyncTransport(limits=httpx2.Limits())  # type: ignore[arg-type]
    allswell.AsyncClient(htp3=True)  # type: ignore[call-arg]
    allswell.AsyncClient(timeout=allswell.Timeouts())  # type: ignore[arg-type]
    allswell.AsyncClient(pool=allswell.AsyncTransport())  # type: ignore[arg-type]
    httpx.AsyncClient(transport=allswell.AsyncTransport())  # type: ignore[arg-type]
    httpx2.AsyncClient(transport=allswell.httpx.AsyncTransport())  # type: ignore[arg-type]
    await pool.request("GET", "https://a.example", timeouts=httpx2.Timeout(1))  # type: ignore[arg-type]
    await pool.request("GET", "https://a.example", headers={"A": 1})  # type: ignore[arg-type]
