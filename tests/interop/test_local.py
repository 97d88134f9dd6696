"""The quick part of the interop matrix, and that a red cell is red and says why."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from interop.capture import Capture
from interop.cases import CASES, QUICK, Difference, InteropCase
from interop.local import Result, matrix, run, why_not
from interop.servers import SERVERS, Server

from interop import local

_BY_NAME = {case.name: case for case in CASES}
_OURS = next(server for server in SERVERS if server.name == "aioquic")


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
@pytest.mark.parametrize("name", QUICK)
def test_quick_part(name: str, server: Server, tmp_path: Path) -> None:
    case = _BY_NAME[name]
    case = replace(case, scenario=replace(case.scenario, bandwidth=None))  # seconds that tell nothing here
    reason = why_not(case, server)
    if reason:
        pytest.skip(reason)
    result = run(case, server, tmp_path)
    assert (result.outcome, result.reason) == ("succeeded", "")


@pytest.mark.parametrize("name", ["keyupdate", "connectionmigration"])
def test_on_trio(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND", "trio")
    case = _BY_NAME[name]
    case = replace(case, scenario=replace(case.scenario, bandwidth=None))
    result = run(case, _OURS, tmp_path)
    assert (result.outcome, result.reason) == ("succeeded", "")


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_two_servers_play_every_case(name: str) -> None:
    """Given all of them."""
    players = [server.name for server in SERVERS if _BY_NAME[name].mode in server.modes]
    assert len(players) >= 2


def _endpoint(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [local.HERE / "run_endpoint.sh"],
        cwd=local.HERE.parent,
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("case", ["", "dfjiowejf", "connectionmigration"])
def test_unknown_case_is_not_supported(case: str) -> None:
    ended = _endpoint(TESTCASE=case, REQUESTS="")
    assert ended.returncode == 127
    assert "not supported" in ended.stdout


def test_is_no_server() -> None:
    assert _endpoint(ROLE="server", TESTCASE="handshake").returncode == 127


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_whose_time_is_over_leaves_its_qlog(backend: str, tmp_path: Path) -> None:
    for each in ("www", "downloads", "certs", "client-qlog", "server"):
        (tmp_path / each).mkdir()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute, pytest.MonkeyPatch.context() as patch:
        mute.bind(("127.0.0.1", 0))
        patch.setenv("BACKEND", backend)
        case = replace(_BY_NAME["handshake"], timeout=55)

        class Popen(subprocess.Popen[bytes]):
            def wait(self, timeout: float | None = None) -> int:
                if timeout != case.timeout:
                    return super().wait(timeout)
                mute.settimeout(timeout)
                mute.recv(2000)  # it has begun, however long that took: its time is over now
                raise subprocess.TimeoutExpired(self.args, timeout)

        patch.setattr(subprocess, "Popen", Popen)
        assert local._client(case, "h3", mute.getsockname()[1], ["file"], tmp_path) is None
    [qlog] = (tmp_path / "client-qlog").iterdir()
    assert "packet_sent" in qlog.read_text()
    assert "terminated" in (tmp_path / "client.log").read_text()


def test_no_server_is_a_failure(tmp_path: Path) -> None:
    url = "https://127.0.0.1:1/file"
    ended = _endpoint(TESTCASE="handshake", REQUESTS=url, DOWNLOADS=str(tmp_path), CERTS=str(tmp_path))
    assert ended.returncode == 1
    last = ended.stdout.splitlines()[-1]  # what a red cell shows of the log
    assert last.startswith("ConnectFailed: ")
    assert "unreachable" in last
    assert list(tmp_path.iterdir()) == []


def _never(capture: Capture) -> None:
    raise Difference("the moon was full")


def _wants_two(capture: Capture) -> None:
    if capture.handshakes() != 2:
        raise Difference(f"handshakes: {capture.handshakes()}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"check": _never}, "the moon was full"),
        ({"check": _wants_two}, "handshakes: 1"),
        ({"timeout": 0.05}, "the client was not done within 0.05 s: it had 0 of 1024 bytes"),
        ({"told": "unheard-of"}, "the client's exit code is 127"),
    ],
    ids=["condition", "handshakes", "time", "exit code"],
)
def test_red_cell_explains_itself(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    case = replace(_BY_NAME["handshake"], **change)  # type: ignore[arg-type]  # fields of InteropCase, above
    result = run(case, _OURS, tmp_path)
    assert result.outcome == "failed"
    assert result.reason.startswith(reason)
    explained = (tmp_path / "failed.txt").read_text()
    for word in ("handshake", "aioquic", reason, "qlog:", "server.log"):
        assert word in explained


def test_a_file_that_differs_is_found(tmp_path: Path) -> None:
    for folder, content in (("www", b"all's well"), ("downloads", b"all's wall")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_bytes(content)
    with pytest.raises(Difference, match="differs from byte 7 on"):
        local._compare(["file"], tmp_path)
    (tmp_path / "downloads" / "file").write_bytes(b"all's")
    with pytest.raises(Difference, match="differs from byte 5 on"):
        local._compare(["file"], tmp_path)
    (tmp_path / "downloads" / "file").write_bytes(b"all's well")
    (tmp_path / "downloads" / "other").touch()
    with pytest.raises(Difference, match="nobody asked for"):
        local._compare(["file"], tmp_path)


def test_exit_code_matrix_and_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outcomes = {"handshake": "succeeded", "retry": "failed"}

    def pretend(case: InteropCase, server: Server, folder: Path) -> Result:
        return Result(case.name, server.name, outcomes[case.name], "because")

    monkeypatch.setattr(local, "run", pretend)
    written = tmp_path / "results.json"
    some = ["--servers", "aioquic", "--logs", str(tmp_path), "--json", str(written)]
    assert local.main(["--cases", "handshake", *some]) == 0
    assert local.main(["--cases", "handshake", "retry", *some]) == 1
    results = [Result(**each) for each in json.loads(written.read_text())]
    assert [(each.case, each.outcome) for each in results] == [("handshake", "succeeded"), ("retry", "failed")]
    assert matrix(results).splitlines()[1:] == ["handshake         ✓", "retry             ✕"]
