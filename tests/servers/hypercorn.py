"""hypercorn (h11, h2, aioquic as servers) with our application: h1, h2, h3, and ``/echo``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, run, setup

_ROOT = Path(__file__).parents[2]


@contextmanager
def hypercorn(requests_per_connection: int = 100_000) -> Iterator[ServerInfo]:
    """Run it."""
    files = certificates()
    with setup() as made:
        config = made.write(
            "hypercorn.toml",
            f"""
            bind = ["127.0.0.1:{made.port}"]
            insecure_bind = ["127.0.0.1:{made.http_port}"]
            quic_bind = ["127.0.0.1:{made.port}"]
            certfile = "{files.chain}"
            keyfile = "{files.key}"
            keep_alive_timeout = 30
            keep_alive_max_requests = {requests_per_connection}
            graceful_timeout = 1
            workers = 0
            errorlog = "-"
            """,
        )
        with run(
            "hypercorn",
            [sys.executable, "-m", "hypercorn", "--config", config, "tests.servers.app:app"],
            made,
            protocols=["http/1.1", "h2", "h3"],
            echoes=True,
            env={"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
        ) as server:
            yield server
