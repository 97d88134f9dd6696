"""What Windows lacks is not needed, or is a clear error: client and command without it, against real servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from allswell.testing import Origin, RequestExecuted
from tests.support.certificates import certificates
from tests.support.hypercorn import hypercorn
from tests.support.peer import scripted_peer
from tests.support.peer_connection import PeerConnection
from tests.support.servers import ServerInfo
from tests.testing.clients import Gate

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(_ROOT), *(each for each in sys.path if each)]),
    "PYTHONWARNINGS": "error",
    "SSL_CERT_FILE": str(certificates().ca),
}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.windows", *arguments]


def _run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments), env=_ENVIRONMENT, cwd=folder, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def origin3() -> Iterator[ServerInfo]:
    """It speaks all versions."""
    with hypercorn("tests.support.app:app", http3=True) as server:
        yield server


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_requests_and_their_end(loop: str, version: str, origin3: ServerInfo) -> None:
    done = _run("tests.support.fetch", loop, version, f"{origin3.url}/anything")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "version": "HTTP/1.1" if version == "1" else f"HTTP/{version}",
        "status": 200,
        "clean": True,
    }
    assert done.stderr == ""


def test_unix_sockets_are_refused_in_words(origin3: ServerInfo) -> None:
    done = _run("allswell", "--unix-socket", "/tmp/socket", f"{origin3.url}/anything")
    assert done.returncode == 7
    assert "cannot connect to the Unix socket /tmp/socket: Python has no Unix sockets on this system" in done.stderr


def test_the_command_writes_to_a_pipe(origin3: ServerInfo) -> None:
    done = _run("allswell", "-sS", "--ends", "-d", "a=1", f"{origin3.url}/anything")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "POST"
    assert "→ GOAWAY" in done.stderr


def test_a_file_is_named_in_its_folder(origin3: ServerInfo, tmp_path: Path) -> None:
    """A backslash parts folders there, and a colon a drive or a stream."""
    folder = tmp_path / "here"
    folder.mkdir()
    done = _run("allswell", "-sSO", f"{origin3.url}/anything/..\\c:x%3F", folder=folder)
    assert done.returncode == 0, done.stderr
    assert [each.name for each in folder.iterdir()] == [".._c_x%3F"]


def test_a_signal_ends_the_command_gracefully() -> None:
    def stuck(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
        connection.read_until_end()

    with scripted_peer(stuck) as busy:
        command = _command("allswell", "--ends", busy.url)
        with subprocess.Popen(
            command, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout is not None
            assert run.stdout.read(4) == "some"
            run.send_signal(signal.SIGTERM)
            _, err = run.communicate(timeout=100)
        busy.wait_ended()
    assert run.returncode == 128 + signal.SIGTERM, err
    assert "closed 1 connection in " in err
    assert "→ RST" in err


def test_a_signal_drains_a_client() -> None:
    gate = Gate()
    with Origin({"/0": gate}, versions=["h2"]) as origin:
        command = _command("tests.shutdown.program", "asyncio", origin.url, str(origin.ca_file), "1", "60")
        with subprocess.Popen(command, env=_ENVIRONMENT, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            origin.wait_seen(RequestExecuted, timeout=60)
            run.send_signal(signal.SIGTERM)
            assert run.stdout.readline() == "stopping\n"
            gate.open = True
            told, _ = run.communicate(timeout=60)
        assert run.returncode == 0
        assert sorted(told.splitlines()) == ["clean", "got /0"]
        origin.wait_ended(timeout=60)
        origin.assert_ended_gracefully()
