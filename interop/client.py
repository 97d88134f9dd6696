"""The endpoint's client: what the QUIC interop runner asks for by environment variables, done by allswell's own pool.

Its contract (quic.md of the runner): ``TESTCASE`` names the case, ``REQUESTS`` are URLs, each body goes to
``/downloads/<last segment>``. Exit 127: the case is not supported. Exit 0: every file arrived whole and every
connection was closed without error. Exit 1: otherwise.

It is the pool that users get, with differences that are made here and nowhere else: its builder puts HTTP/0.9
(``hq-interop``) on QUIC where the case says so; and since handshakes are counted, it tries one address only, and no
other connection where the network has swallowed three probes in a row.

For use without Docker, ``DOWNLOADS`` and ``CERTS`` name other folders, and ``ALPN=h3`` has files fetched over HTTP/3
from a server that does not speak HTTP/0.9; ``BACKEND=trio`` names the event loop.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import traceback
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio

from allswell._backends.http3 import Http3
from allswell._config import PoolConfig, QuicConfig, Timeouts
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._dial.builder import Made
from allswell._dial.context import Context
from allswell._dial.dialer import Dialer
from allswell._dial.kit import Kit
from allswell._dial.proxy import ProxyBuilder
from allswell._dial.quic import QuicBuilder
from allswell._errors import AllswellError, ConnectFailed
from allswell._filters.quic import QuicFilter
from allswell._filters.stack import Stack
from allswell._filters.udp import UdpFilter
from allswell._pool.dispatcher import Dispatcher
from allswell._pool.pool import ConnectionPool
from allswell._pool.replay import Replay
from allswell._quic.interface import QuicEvent
from allswell._quic.settings import VERSION_1, VERSION_2, QuicSettings
from allswell._quic_store import QuicMemory, QuicTicket
from allswell._report import ConnectionEnd, Outcome
from allswell._request.request import Request
from allswell._request.route import Endpoint as ServiceEndpoint
from allswell._request.route import Route
from allswell._tasks import TaskHost
from interop.http09 import Http09

UNSUPPORTED = 127
HQ = "hq-interop"
CHACHA20 = 0x1303
#: RFC 9000 §15: a version that is reserved for asking for Version Negotiation.
RESERVED_VERSION = 0x1A2A3A4A

#: The runner bounds every case; here only what is dead must end sooner.
PATIENT = Timeouts(connect=None, read=None, write=None, pool=None)
IDLE_TIMEOUT = 45.0
GRACE = 20.0
TICKET_PATIENCE = 5.0


@dataclass(frozen=True)
class Case:
    """What is special about a test case, as the client sees it.

    :ivar plan: how the URLs are spread over connections: all on ``one``, the ``first`` on a connection of its own and
        the rest on another that resumes it, or each on ``its-own``.
    """

    plan: str = "one"
    alpn: str = HQ
    versions: tuple[int, ...] = (VERSION_1,)
    original_version: int | None = None
    cipher_suites: tuple[int, ...] | None = None
    early_data: bool = False
    update_keys: bool = False


#: By ``TESTCASE``. The runner's other cases arrive under these names (most as ``transfer``).
CASES: Mapping[str, Case] = {
    "versionnegotiation": Case(versions=(RESERVED_VERSION, VERSION_1)),
    "handshake": Case(),
    "transfer": Case(),
    "chacha20": Case(cipher_suites=(CHACHA20,)),
    "retry": Case(),
    "resumption": Case(plan="first"),
    "zerortt": Case(plan="first", early_data=True),
    "http3": Case(alpn="h3"),
    "keyupdate": Case(update_keys=True),
    "multiconnect": Case(plan="its-own"),
    "ecn": Case(),
    "v2": Case(versions=(VERSION_2, VERSION_1), original_version=VERSION_1),
}


class _Store(QuicMemory):
    """Tells when a ticket has come."""

    def __init__(self) -> None:
        super().__init__()
        self.came = anyio.Event()

    def put_ticket(self, server: str, ticket: QuicTicket) -> None:
        super().put_ticket(server, ticket)
        self.came.set()


class _Builder:
    """Builds to one address, once, with the case's settings and its HTTP.

    :param made: takes what was.
    """

    def __init__(self, case: Case, made: list[QuicFilter], kit: Kit, proxies: ProxyBuilder) -> None:
        self._case = case
        self._made = made
        self._users = QuicBuilder(kit, proxies)

    async def build(self, context: Context, to: ServiceEndpoint) -> Made[list[QuicEvent]]:
        """See :meth:`Builder.build`."""
        try:
            (family, _, _, _, address), *_ = await anyio.getaddrinfo(to.host, to.port, type=socket.SOCK_DGRAM)
        except OSError as error:
            raise ConnectFailed(f"cannot resolve {to.host}: {error}", phase="dns") from error
        udp = UdpFilter(family, address)
        quic = QuicFilter(udp, self._settings(context.route))
        stack = Stack(quic, udp)
        await context.connect(stack)
        self._made.append(quic)
        return Made(stack, Http09(quic.connection) if self._case.alpn == HQ else Http3(quic.connection))

    def _settings(self, route: Route) -> QuicSettings:
        case, settings = self._case, self._users.settings(route)
        no_error = 0 if case.alpn == HQ else settings.no_error
        return replace(
            settings,
            alpn=(case.alpn,),
            original_version=case.original_version,
            cipher_suites=case.cipher_suites,
            no_error=no_error,
        )


class Pool(ConnectionPool):
    """The pool, with the case's builder in its dialer."""

    def __init__(self, config: PoolConfig, case: Case) -> None:
        super().__init__(config)
        self._case = case
        self._made: list[QuicFilter] = []

    def _make_dialer(self, host: TaskHost) -> Dialer:
        return Dialer(host, self.config, partial(_Builder, self._case, self._made))

    async def _past_silence(
        self, request: Request, silent: Exchange[Connection], dispatcher: Dispatcher, replay: Replay
    ) -> Exchange[Connection]:
        return silent

    def update_keys(self) -> None:
        """Begin a key update on every connection."""
        for quic in self._made:
            quic.update_keys()


@dataclass
class Endpoint:
    """One run: where things are, and what is known from one connection to the next."""

    case: Case
    downloads: Path
    certs: Path
    store: _Store = field(default_factory=_Store)
    clean: bool = True

    async def run(self, urls: Sequence[str]) -> bool:
        """Fetch all URLs as the case says; whether every connection ended without error.

        :raises AllswellError: when a file could not be had.
        """
        if self.case.plan == "its-own":
            for url in urls:
                await self.fetch([url])
        elif self.case.plan == "first":
            await self.fetch(urls[:1], wait_for_ticket=True)
            await self.fetch(urls[1:])
        else:
            await self.fetch(urls)
        return self.clean

    async def fetch(self, urls: Sequence[str], *, wait_for_ticket: bool = False) -> None:
        """Fetch some URLs, all at once, on one connection; then close it."""
        pool = Pool(self._config(), self.case)
        async with pool:
            async with anyio.create_task_group() as tasks:
                for number, url in enumerate(urls):
                    tasks.start_soon(self._download, pool, url, self.case.update_keys and number == 0)
            if wait_for_ticket:
                with anyio.move_on_after(TICKET_PATIENCE):
                    await self.store.came.wait()
        assert pool.close_report is not None
        print(pool.close_report, flush=True)
        self.clean = self.clean and all(map(_without_error, pool.close_report.connections))

    async def _download(self, pool: Pool, url: str, update_keys: bool) -> None:
        path = self.downloads / urlsplit(url).path.rsplit("/", 1)[1]
        async with pool.stream("GET", url, timeouts=PATIENT) as response:
            if response.status != 200:
                raise RuntimeError(f"{url}: status {response.status}")
            with path.open("wb") as file:
                while piece := await response.receive():
                    file.write(piece)
                    if update_keys:
                        pool.update_keys()
                        update_keys = False

    def _config(self) -> PoolConfig:
        context = ssl.create_default_context()
        authority = self.certs / "ca.pem"
        if authority.exists():
            context = ssl.create_default_context(cafile=authority)
        else:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        quic = QuicConfig(
            versions=self.case.versions,
            idle_timeout=IDLE_TIMEOUT,
            early_data=self.case.early_data,
            store=self.store,
        )
        return PoolConfig(
            ssl_context=context,
            http3="only",
            quic=quic,
            max_connections=1,  # what waits, waits for room on it: handshakes are counted
            keepalive_expiry=None,
            grace=GRACE,
            retries=1,  # a Version Negotiation packet is protected by nothing: one that was corrupted ends the attempt
            # Small enough that the larger files need the windows to move, large enough for their bandwidth.
            stream_window=512 * 1024,
            connection_window=1024 * 1024,
        )


def _without_error(end: ConnectionEnd) -> bool:
    """Whether we closed a connection without error, and so did the peer if it closed.

    A peer that says nothing (or whose words are lost) is none: all that had to be said was said.
    """
    heard = {layer.heard for layer in end.layers if layer.heard.startswith("CONNECTION_CLOSE")}
    aborted = any(layer.outcome is Outcome.ABORTED for layer in end.layers)
    return not end.cut and not aborted and heard <= {"CONNECTION_CLOSE(0x0)", "CONNECTION_CLOSE(0x100)"}


async def _unless_terminated(run: Awaitable[bool]) -> bool:
    """What it returns; ``False`` when SIGTERM comes first. (The time is over: what there is of qlogs is written.)"""
    clean = False
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    print("terminated before it was done")
                    tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        clean = await run
        tasks.cancel_scope.cancel()
    return clean


def _each(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _each(error)
        else:
            yield error


def main(environment: Mapping[str, str]) -> int:
    """Run the case that the environment names; the exit code."""
    name = environment.get("TESTCASE", "")
    case = CASES.get(name)
    if case is None:
        print(f"test case {name!r} is not supported")
        return UNSUPPORTED
    if environment.get("ALPN"):
        case = replace(case, alpn=environment["ALPN"])
    endpoint = Endpoint(
        case, Path(environment.get("DOWNLOADS", "/downloads")), Path(environment.get("CERTS", "/certs"))
    )
    try:
        urls = environment.get("REQUESTS", "").split()
        backend = environment.get("BACKEND", "asyncio")
        clean = anyio.run(lambda: _unless_terminated(endpoint.run(urls)), backend=backend)
    except* (AllswellError, OSError, RuntimeError) as errors:
        traceback.print_exception(errors)
        first, *others = _each(errors)
        # The last line: what somebody who looks at the end of the log sees.
        print(f"{type(first).__name__}: {first}" + (f" (and {len(others)} more)" if others else ""))
        clean = False
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main(os.environ))
