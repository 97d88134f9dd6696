"""nghttpd (nghttp2's own server): h2 and nothing else."""

from __future__ import annotations

import re
import subprocess
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
            server.deaf = _version(program) > (1, 52)  # that of Debian 12 is not, 1.64 of Debian 13 is
            yield server


def _version(program: str) -> tuple[int, ...]:
    told = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"nghttp2/(\d+)\.(\d+)", told)
    assert found is not None, told
    return tuple(map(int, found.groups()))
