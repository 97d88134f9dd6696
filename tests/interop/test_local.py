"""The quick part of the interop matrix, and that a red cell is red and says why."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from interop.capture import Capture
from interop.cases import CASES, QUICK, Difference, InteropCase
from interop.local import Result, matrix, run, why_not
from interop.options import chosen, for_the_runner, parser
from interop.servers import SERVERS, Server

from interop import local
from tests.support.lag import PATIENCE

_BY_NAME = {case.name: case for case in CASES}
_OURS = next(server for server in SERVERS if server.name == "aioquic")


def _unhurried(name: str) -> InteropCase:
    case = _BY_NAME[name]
    scenario = replace(case.scenario, bandwidth=None)  # seconds that tell nothing here
    return replace(case, scenario=scenario, timeout=2 * PATIENCE)


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
@pytest.mark.parametrize(
    ("name", "qlog"),
    [*((name, False) for name in QUICK), ("http3", True), ("keyupdate", True)],
    ids=lambda each: each if isinstance(each, str) else "qlog" if each else "",
)
def test_quick_part(name: str, qlog: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users' programs run, whatever the environment says, and as the runner has it: with a qlog."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("QLOGDIR", str(elsewhere))
    case = _unhurried(name)
    hindrance = why_not(case, server)
    if hindrance is not None:
        pytest.skip(hindrance.reason)
    result = run(case, server, tmp_path / "run", qlog=qlog)
    assert (result.outcome, result.reason) == ("succeeded", "")
    assert len(list((tmp_path / "run").glob("client-qlog/*"))) == qlog
    assert list(elsewhere.glob("*.qlog")) == []  # (Caddy puts its own there, as .sqlog)


@pytest.mark.parametrize("name", ["keyupdate", "connectionmigration"])
def test_on_trio(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND", "trio")
    result = run(_unhurried(name), _OURS, tmp_path)
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


def test_sigterm_ends_the_server_and_the_client_too(tmp_path: Path) -> None:
    """They went on by themselves."""
    command = [sys.executable, "-m", "interop.local", "--cases", "goodput", "--servers", "aioquic", "--repeat", "3"]
    program = subprocess.Popen([*command, "--logs", str(tmp_path)], cwd=local.HERE.parent, stdout=subprocess.DEVNULL)
    try:
        _until((tmp_path / "aioquic" / "goodput" / "keys.log").exists)  # both are under way
        program.terminate()
        assert program.wait(PATIENCE) == 128 + signal.SIGTERM
    finally:
        program.kill()
        program.wait()
    _until(lambda: not _are_about(tmp_path))


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _are_about(folder: Path) -> int:
    """How many processes have this folder in their command or environment."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours
            said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            count += bytes(folder) in said
    return count


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


@pytest.mark.parametrize("qlog", [False, True])
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
def test_red_cell_explains_itself(change: dict[str, object], reason: str, qlog: bool, tmp_path: Path) -> None:
    case = replace(_BY_NAME["handshake"], **change)  # type: ignore[arg-type]  # fields of InteropCase, above
    result = run(case, _OURS, tmp_path, qlog=qlog)
    assert result.outcome == "failed"
    assert result.reason.startswith(reason)
    explained = (tmp_path / "failed.txt").read_text()
    for word in ("handshake", "aioquic", reason, "server.log"):
        assert word in explained
    asked = "\nqlog:    none was asked for (--qlog)\n" not in explained
    assert asked == qlog


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
    qlogs = []

    def pretend(case: InteropCase, server: Server, folder: Path, *, qlog: bool) -> Result:
        qlogs.append(qlog)
        return Result(case.name, server.name, outcomes[case.name], "because")

    monkeypatch.setattr(local, "run", pretend)
    written = tmp_path / "results.json"
    some = ["--servers", "aioquic", "--logs", str(tmp_path), "--json", str(written)]
    assert local.main(["--cases", "handshake", *some]) == 0
    assert local.main(["--cases", "handshake", "retry", "--qlog", *some]) == 1
    assert qlogs == [False, True, True]
    results = [Result(**each) for each in json.loads(written.read_text())]
    assert [(each.case, each.outcome) for each in results] == [("handshake", "succeeded"), ("retry", "failed")]
    assert matrix(results).splitlines()[1:] == ["handshake         ✓", "retry             ✕"]


def test_what_was_repeated() -> None:
    """A measurement that failed is not hidden behind the first one."""
    one, two = Result("goodput", "here", "succeeded", kbps=9000.0), Result("goodput", "here", "succeeded", kbps=9100.0)
    red, green = Result("goodput", "there", "failed"), Result("retry", "there", "succeeded")
    assert [line.split()[1:] for line in matrix([one, two, replace(one, server="there"), red]).splitlines()[1:]] == [
        ["9050", "1/2"]
    ]
    assert matrix([green, green]).split() == ["there", "retry", "2/2"]


def _server(name: str, *modes: str, program: list[str] | None = None, **more: Any) -> Server:
    return Server(name, "h3", frozenset(modes), lambda: program, lambda site, program: [], **more)


def test_a_server_that_cannot_and_one_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have signs of their own; what is not here is named before anything runs, with how it is had."""
    old = _server("old", "", "v2", program=[sys.executable], newer={"v2": "--no-such-option"}, source="make newer")
    monkeypatch.setattr(
        local, "SERVERS", [_server("plain", "", program=["/bin/false"]), old, _server("absent", "", "v2")]
    )
    monkeypatch.setattr(local, "_play", lambda *_: None)
    assert local.main(["--cases", "handshake", "v2", "--logs", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"2 cases of {len(CASES)} (--all has them all) with plain, old: 2 runs, less than a minute"
    assert said[1:4] == ["absent is not here: make peers", "this old is too old for v2: make newer", ""]
    assert [line.split()[1:] for line in said if line.startswith(("handshake ", "v2 "))] == [
        ["✓", "✓", "?"],
        ["–", "?", "?"],
    ]
    assert said[-3:] == [local.LEGEND, *said[1:3]]  # again, where the matrix is
    assert local.main(["--cases", "v2", "--logs", str(tmp_path)]) == 1  # nothing was tried
    assert "with no server: 0 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "cases"),
    [
        ([], list(QUICK)),
        (["--quick"], list(QUICK)),
        (["--all"], list(_BY_NAME)),
        (["--cases", "v2", "retry"], ["retry", "v2"]),
    ],
)
def test_which_cases_are_run(words: list[str], cases: list[str]) -> None:
    assert [case.name for case in chosen(parser().parse_args(words))] == sorted(cases, key=list(_BY_NAME).index)


def test_the_quick_cases_take_less_than_three_minutes() -> None:
    """With every server, as far as can be known; a transfer of 10 MiB takes its 8 seconds."""
    players = [case.seconds for case in CASES if case.name in QUICK for server in SERVERS if case.mode in server.modes]
    assert sum(players) < 180
    assert 10 < _BY_NAME["goodput"].seconds < 12


def test_the_runner_is_told_the_same_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ",".join(case for case in _BY_NAME if case in QUICK)
    assert for_the_runner([]) == ["-s", "quic-go,ngtcp2,nginx,haproxy,aioquic", "-t", quick]
    everything = for_the_runner(["--all"])[3].split(",")
    assert {*everything} == {*_BY_NAME} - {"versionnegotiation"}  # which the runner has given up
    words = ["--cases", "retry", "v2", "--servers", "ngtcp2", "picoquic", "--json", "a.json", "--logs", "b"]
    assert for_the_runner([*words, "--", "--debug"]) == [
        *("-s", "ngtcp2,picoquic", "-t", "retry,v2"),
        *("--json", str(tmp_path / "a.json"), "--log-dir", str(tmp_path / "b"), "--debug"),
    ]


@pytest.mark.parametrize("words", [["--cases", "versionnegotiation"], ["--cases", "nothing"], ["--all", "--quick"]])
def test_the_runner_cannot_be_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        for_the_runner(words)
    assert "usage: make interop" in capsys.readouterr().err
