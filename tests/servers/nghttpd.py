"""nghttpd (nghttp2's own server): h2 and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, needed, run, setup


@contextmanager
def nghttpd(*options: str) -> Iterator[ServerInfo]:
    """Run it."""
    program = needed("nghttpd")
    files = certificates()
    with setup() as made:
        command: list[str | Path] = [program, *options, "-a", "127.0.0.1", "-d", made.www]
        command += [str(made.port), files.key, files.chain]
        with run("nghttpd", command, made, protocols=["h2"], plain=False) as server:
            yield server
