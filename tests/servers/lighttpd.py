"""lighttpd: h1, h2."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, needed, run, setup, signal_reload


@contextmanager
def lighttpd(requests_per_connection: int = 100_000) -> Iterator[ServerInfo]:
    """Run it. :param requests_per_connection: at most 65535 are counted."""
    program = needed("lighttpd")
    files = certificates()
    with setup() as made:
        config = made.write(
            "lighttpd.conf",
            f"""
            server.modules = ("mod_openssl")
            server.bind = "127.0.0.1"
            server.port = {made.http_port}
            server.document-root = "{made.www}"
            server.upload-dirs = ("{made.folder}")
            index-file.names = ("index.html")
            mimetype.assign = ("" => "application/octet-stream")
            server.max-keep-alive-requests = {min(requests_per_connection, 65535)}
            server.max-keep-alive-idle = 30
            $SERVER["socket"] == "127.0.0.1:{made.port}" {{
                ssl.engine = "enable"
                ssl.pemfile = "{files.chain}"
                ssl.privkey = "{files.key}"
            }}
            """,
        )
        with run(
            "lighttpd",
            [program, "-D", "-f", config],
            made,
            protocols=["http/1.1", "h2"],
            reload=signal_reload(signal.SIGUSR1),
            quit_signal=signal.SIGINT,
        ) as server:
            yield server
