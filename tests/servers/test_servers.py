"""The real servers run, and serve what the tests of the client take for granted. Clients here: ssl and a socket."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.servers.apache import apache
from tests.servers.caddy import caddy
from tests.servers.haproxy import haproxy
from tests.servers.hypercorn import hypercorn
from tests.servers.lighttpd import lighttpd
from tests.servers.nginx import nginx
from tests.support import servers as support
from tests.support.certificates import certificates
from tests.support.servers import HELLO, TEN_MB, ServerInfo, run, setup


def get(server: ServerInfo, target: str, *, tls: bool = True, times: int = 1) -> list[bytes]:
    """The raw responses to that many requests on one connection, one after the other, as far as they came."""
    port = server.port if tls else server.http_port
    answers = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        context = certificates().client_context(alpn=["http/1.1"])
        with context.wrap_socket(raw, server_hostname="localhost") if tls else raw as client:
            for _ in range(times):
                client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                answer = b""
                while b"\r\n\r\n" not in answer and (data := client.recv(65536)):
                    answer += data
                if not answer:
                    break
                head, _, body = answer.partition(b"\r\n\r\n")
                [length] = [
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                ]
                parts = [body]
                left = length - len(body)
                while left and (data := client.recv(65536)):
                    parts.append(data)
                    left -= len(data)
                answers.append(head + b"\r\n\r\n" + b"".join(parts))
                if b"connection: close" in head.lower():
                    break
    return answers


def test_speaks_what_it_says(server: ServerInfo) -> None:
    for protocol in server.protocols - {"h3"}:
        context = certificates().client_context(alpn=[protocol])
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as client,
        ):
            assert client.selected_alpn_protocol() == protocol
            assert client.version() == "TLSv1.3"


@pytest.mark.parametrize("tls", [True, False])
def test_serves_and_keeps_alive(h1_server: ServerInfo, tls: bool) -> None:
    answers = get(h1_server, "/", tls=tls, times=3)
    assert len(answers) == 3
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n" + HELLO)
    [large] = get(h1_server, "/10mb", tls=tls)
    assert len(large.partition(b"\r\n\r\n")[2]) == TEN_MB


@pytest.mark.parametrize("make", [nginx, apache, lighttpd, hypercorn])
def test_requests_per_connection(make: Callable[..., AbstractContextManager[ServerInfo]]) -> None:
    with make(requests_per_connection=3) as server:
        assert 3 <= len(get(server, "/", times=8)) <= 4  # Apache and lighttpd count from nought


@pytest.mark.parametrize("make", [caddy, nginx, haproxy, apache, lighttpd])
def test_serves_through_a_reload(make: Callable[..., AbstractContextManager[ServerInfo]]) -> None:
    """One that no other test has: it reloads when it comes to it, and then ends the connections that there are."""
    with make() as server:
        server.reload()
        for _ in range(20):
            [answer] = get(server, "/")
            assert answer.endswith(HELLO)


def test_a_server_that_dies_says_why() -> None:
    command = ["/bin/sh", "-c", "echo no such luck; exit 3"]
    with setup() as made:
        with (
            pytest.raises(RuntimeError, match=r"exit 3\):\nno such luck"),
            run("doomed", command, made, protocols=["h2"]),
        ):
            pass
        assert "doomed" not in [server.name for server in support.running]


def test_missing_program_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(support.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-server is not installed"):
        support.needed("no-such-server")
    monkeypatch.setenv(support.REQUIRED, "required")
    with pytest.raises(pytest.fail.Exception, match="no-such-server is not installed"):
        support.needed("no-such-server")


def test_nothing_outlives_the_block() -> None:
    with nginx() as server:
        port, process = server.port, server.process
    assert process.poll() is not None
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass


def test_other_authorities_are_not_trusted(server: ServerInfo) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")


def test_hypercorn_has_no_reload(servers: Callable[[str], ServerInfo]) -> None:
    with pytest.raises(NotImplementedError, match="hypercorn"):
        servers("hypercorn").reload()
