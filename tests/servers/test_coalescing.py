"""Connection coalescing with servers that nobody here wrote: two names, one address, one certificate for both.

Each says, to every request, whom it was for and which of its connections brought it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import pytest
import trustme

from allswell import ConnectionPool
from allswell._config import Timeouts
from tests.servers.caddy import run_caddy
from tests.support.certificates import Certificates, issue
from tests.support.names import names
from tests.support.servers import ServerInfo, needed, run, setup

pytestmark = pytest.mark.anyio

PATIENT = Timeouts()


@cache
def both() -> Certificates:
    return issue(trustme.CA(), "a.test", "b.test")


@pytest.fixture(autouse=True)
def resolver() -> Iterator[None]:
    with names(a_test="127.0.0.1", b_test="127.0.0.1"):
        yield


@contextmanager
def caddy(*, strict: bool = False) -> Iterator[ServerInfo]:
    """:param strict: 421 where the Host is not the name of the TLS handshake."""
    with setup() as made:
        sites = f"""
            https://a.test:{made.port}, https://b.test:{made.port} {{
                bind 127.0.0.1
                tls {both().chain} {both().key}
                respond "{{host}} {{remote_port}}"
            }}
            http://:{made.http_port} {{
                bind 127.0.0.1
            }}
            """
        options = f"servers {{\nstrict_sni_host {'on' if strict else 'insecure_off'}\n}}"
        with run_caddy(made, sites, options) as server:
            yield server


@contextmanager
def nginx(*, strict: bool = False) -> Iterator[ServerInfo]:
    """:param strict: b.test asks for client certificates, so that a.test's connections are not good enough for it."""
    program = needed("nginx")
    with setup() as made:
        temporary = "\n".join(
            f"{kind}_temp_path {made.folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        servers = "\n".join(
            f"""
            server {{
                listen 127.0.0.1:{made.port} ssl http2;
                listen 127.0.0.1:{made.http_port};
                server_name {name};
                ssl_certificate {both().chain};
                ssl_certificate_key {both().key};
                ssl_client_certificate {both().ca};
                ssl_verify_client {"optional" if strict and name == "b.test" else "off"};
                location / {{ return 200 "$host $connection"; }}
            }}
            """
            for name in ("a.test", "b.test")
        )
        config = made.write(
            "nginx.conf",
            f"""
            daemon off;
            user root;
            worker_processes 1;
            pid {made.folder}/pid;
            error_log stderr;
            events {{ worker_connections 1024; }}
            http {{
                access_log off;
                {temporary}
                {servers}
            }}
            """,
        )
        command = [program, "-c", str(config), "-p", str(made.folder)]
        with run("nginx", command, made, protocols=["http/1.1", "h2"], quit_signal=signal.SIGQUIT) as server:
            yield server


@contextmanager
def haproxy() -> Iterator[ServerInfo]:
    program = needed("haproxy")
    with setup() as made:
        config = made.write(
            "haproxy.cfg",
            f"""
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend in
    bind 127.0.0.1:{made.port} ssl crt {both().chain_and_key} alpn h2,http/1.1
    bind 127.0.0.1:{made.http_port}
    http-request return status 200 content-type text/plain lf-string "%[req.hdr(host),field(1,:)] %cp"
""",
        )
        command = [program, "-W", "-db", "-f", str(config)]
        with run("haproxy", command, made, protocols=["http/1.1", "h2"], quit_signal=signal.SIGUSR1) as server:
            yield server


async def ask(pool: ConnectionPool, server: ServerInfo, host: str) -> tuple[str, list[str], bytes]:
    """Which connection brought it, why it was sent again, and the version."""
    response = await pool.request("GET", f"https://{host}:{server.port}/", timeouts=PATIENT)
    assert response.status == 200
    named, connection = (await response.read()).decode().split()
    assert named == host
    return connection, [str(attempt) for attempt in response.attempts], response.http_version


def trusting(**settings: Any) -> ConnectionPool:
    return ConnectionPool(ssl_context=both().client_context(), **settings)


Serve = Callable[..., AbstractContextManager[ServerInfo]]
CADDY: list[tuple[Serve, Any]] = [(caddy, False), (caddy, "only")]


@pytest.mark.parametrize(("serve", "http3"), [*CADDY, (nginx, False), (haproxy, False)])
async def test_two_names_one_connection(serve: Serve, http3: Any) -> None:
    with serve() as server:
        async with trusting(http3=http3) as pool:
            found = [await ask(pool, server, host) for host in ("a.test", "b.test", "a.test", "b.test")]
            assert len({connection for connection, _, _ in found}) == 1
            assert {version for _, _, version in found} == {b"HTTP/3" if http3 else b"HTTP/2"}
        assert pool.close_report is not None
        assert pool.close_report.clean
        async with trusting(http3=http3, coalescing=False) as pool:
            assert len({(await ask(pool, server, host))[0] for host in ("a.test", "b.test")}) == 2


@pytest.mark.parametrize(("serve", "http3"), [*CADDY, (nginx, False)])
async def test_a_server_that_minds(serve: Serve, http3: Any) -> None:
    """421 (Misdirected Request): once, and then each has a connection of its own."""
    with serve(strict=True) as server:
        async with trusting(http3=http3) as pool:
            first, _, _ = await ask(pool, server, "a.test")
            second, attempts, _ = await ask(pool, server, "b.test")
            assert first != second
            assert len(attempts) == 1
            assert "421" in attempts[0]
            for host, connection in (("a.test", first), ("b.test", second), ("a.test", first)):
                assert await ask(pool, server, host) == (connection, [], b"HTTP/3" if http3 else b"HTTP/2")
