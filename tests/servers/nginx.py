"""nginx: h1, h2."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, needed, run, setup, signal_reload


@contextmanager
def nginx(requests_per_connection: int = 100_000, http2: bool = True, keepalive: str = "30") -> Iterator[ServerInfo]:
    """Run it.

    :param keepalive: seconds that an idle connection is kept; and behind a blank, what responses say of that.
    """
    program = needed("nginx")
    files = certificates()
    with setup() as made:
        temporary = "\n".join(
            f"{kind}_temp_path {made.folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
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
                keepalive_timeout {keepalive};
                client_max_body_size 0;
                keepalive_requests {requests_per_connection};
                server {{
                    listen 127.0.0.1:{made.port} ssl{" http2" * http2};
                    listen 127.0.0.1:{made.http_port};
                    server_name localhost;
                    ssl_protocols TLSv1.2 TLSv1.3;
                    ssl_certificate {files.chain};
                    ssl_certificate_key {files.key};
                    root {made.www};
                    location = / {{ try_files /index.html =404; }}
                    location = /accepted {{ return 202; }}
                    location = /denied {{ return 403; }}
                }}
            }}
            """,
        )
        with run(
            "nginx",
            [program, "-e", "stderr", "-p", made.folder, "-c", config],
            made,
            protocols=["http/1.1"] + ["h2"] * http2,
            reload=signal_reload(signal.SIGHUP),
            quit_signal=signal.SIGQUIT,
        ) as server:
            yield server
