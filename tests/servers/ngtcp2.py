"""ngtcp2's own server, gtlsserver: h3 and nothing else."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
from interop.ports import free_port

from tests.support.certificates import certificates


@contextmanager
def gtlsserver(folder: Path, *options: str) -> Iterator[tuple[int, Path]]:
    """Run it on a free port: that, and its log, which tells what it saw. It serves ``/ten`` and ``/large`` (3 MB)."""
    program = shutil.which("gtlsserver") or shutil.which("gtlsserver", path="/usr/sbin")
    if program is None:
        pytest.skip("gtlsserver is not installed")
    files = certificates()
    (folder / "www").mkdir()
    (folder / "www" / "ten").write_bytes(b"0123456789")
    (folder / "www" / "large").write_bytes(b"x" * 3_000_000)
    port, log = free_port(), folder / "log"
    command = [program, "127.0.0.1", str(port), str(files.key), str(files.chain), "-d", str(folder / "www"), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for(port)
            yield port, log
        finally:
            process.terminate()
            process.wait(50)


def _wait_for(port: int) -> None:
    """Until somebody has the UDP port."""
    give_up = monotonic() + 50
    while monotonic() < give_up:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                return
        sleep(0.05)
    raise AssertionError("gtlsserver did not start")
