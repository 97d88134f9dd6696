"""Runs hypercorn (h11, h2, aioquic as servers) with an ASGI application of ours, in a process of its own."""

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
def hypercorn(
    application: str,
    settings: str = "",
    *,
    certificate: tuple[Path, Path] | None = None,
    http3: bool = False,
    echoes: bool = False,
    grace: int = 1,
) -> Iterator[ServerInfo]:
    """It speaks HTTP/1.1 and HTTP/2 over TLS (``.url``), and HTTP without (``.http_url``).

    :param application: ``module:name``.
    :param settings: lines of its configuration, besides.
    :param certificate: the chain and its key, in place of the throw-away certificate.
    :param echoes: see :class:`ServerInfo`.
    :param grace: seconds that it gives requests when it is told to stop.
    """
    files = certificates()
    chain, key = certificate or (files.chain, files.key)
    with setup() as made:
        config = made.write(
            "hypercorn.toml",
            f"""
            bind = ["127.0.0.1:{made.port}"]
            insecure_bind = ["127.0.0.1:{made.http_port}"]
            {f'quic_bind = ["127.0.0.1:{made.port}"]' if http3 else ""}
            certfile = "{chain}"
            keyfile = "{key}"
            graceful_timeout = {grace}
            workers = 0
            errorlog = "-"
            {settings}
            """,
        )
        with run(
            "hypercorn",
            [sys.executable, "-m", "hypercorn", "--config", config, application],
            made,
            protocols=["http/1.1", "h2", *["h3"] * http3],
            echoes=echoes,
            env={"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
        ) as server:
            yield server
