"""HAProxy, ending TLS before hypercorn with our application: h1, h2, and ``/echo``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from tests.servers.hypercorn import hypercorn
from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, needed, run, setup, signal_reload


@contextmanager
def haproxy(origin: int | None = None) -> Iterator[ServerInfo]:
    """Run it, in master-worker mode, and the server behind it.

    :param origin: the port of a plain HTTP/1.1 server to take in hypercorn's place.
    """
    program = needed("haproxy")
    files = certificates()
    with setup() as made, nullcontext() if origin is not None else hypercorn() as behind:
        port = origin if behind is None else behind.http_port
        config = made.write(
            "haproxy.cfg",
            f"""
global
    hard-stop-after 30s
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout http-keep-alive 30s
frontend in
    bind 127.0.0.1:{made.port} ssl crt {files.chain_and_key} alpn h2,http/1.1
    bind 127.0.0.1:{made.http_port}
    http-request return status 202 if {{ path /accepted }}
    http-request deny deny_status 403 if {{ path /denied }}
    default_backend app
backend app
    server hypercorn 127.0.0.1:{port}
""",
        )
        with run(
            "haproxy",
            [program, "-W", "-db", "-f", config],
            made,
            protocols=["http/1.1", "h2"],
            echoes=origin is None,
            reload=signal_reload(signal.SIGUSR2),
            quit_signal=signal.SIGUSR1,
        ) as server:
            yield server
