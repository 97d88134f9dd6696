"""HTTP/3 against servers that nobody here wrote: Caddy (quic-go) and ngtcp2's gtlsserver."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import anyio
import pytest

from allswell._report import Outcome
from tests.servers.caddy import caddy
from tests.support.certificates import certificates
from tests.support.quic_client import quic_client, read
from tests.support.servers import free_port

pytestmark = pytest.mark.anyio


async def test_caddy() -> None:
    with caddy() as server:
        async with quic_client(server.port) as client:
            head, _ = await client.get("/")
            assert head.status in (200, 404)
            assert head.http_version == b"HTTP/3"
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(client.get, "/")
            end = await client.aclose()
            assert end.clean
            assert [layer.said for layer in end.layers] == ["GOAWAY", "CONNECTION_CLOSE(0x100)", ""]


@pytest.fixture
def ngtcp2(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """gtlsserver on a free port; its log tells what it saw."""
    program = shutil.which("gtlsserver") or shutil.which("gtlsserver", path="/usr/sbin")
    if program is None:
        pytest.skip("gtlsserver is not installed")
    files = certificates()
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "ten").write_bytes(b"0123456789")
    (tmp_path / "www" / "large").write_bytes(b"x" * 3_000_000)
    port, log = free_port(), tmp_path / "log"
    command = [program, "127.0.0.1", str(port), str(files.key), str(files.chain), "-d", str(tmp_path / "www")]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for(port)
            yield port, log
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(port: int) -> None:
    """Until somebody has the UDP port."""
    give_up = monotonic() + 10
    while monotonic() < give_up:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                return
        sleep(0.05)
    raise AssertionError("gtlsserver did not start")


async def test_ngtcp2_sees_goaway_and_then_the_close(ngtcp2: tuple[int, Path]) -> None:
    port, log = ngtcp2
    async with quic_client(port) as client:
        assert (await client.get("/ten"))[1] == b"0123456789"
        assert len((await client.get("/large"))[1]) == 3_000_000
        half = client.open("/large")
        await half.receive()
        half.abandon()
        assert await read(client.open("/ten")) == b"0123456789"
        end = await client.aclose()
        assert end.layers[1].outcome is Outcome.CLEAN
    with anyio.fail_after(5):
        while "CONNECTION_CLOSE" not in (text := log.read_text(errors="replace")):  # noqa: ASYNC110  # another process
            await anyio.sleep(0.05)
    assert re.search(r"rx.*CONNECTION_CLOSE\(0x1d\).*error_code=.*\(0x100\)", text)
