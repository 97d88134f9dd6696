"""The interop matrix on one machine, without Docker: every case with every server that can play it.

For each the endpoint's own ``run_endpoint.sh`` is run with the environment that the runner gives it, through a relay
that plays the simulator's scenario and records what crosses (`relay.py`); the files must be the same byte for byte, and
the capture must show what the case is about (`cases.py`).

The runner sets QLOGDIR, too. But a client that writes qlogs has no short ways for QUIC's packets, and users' programs
have them. So here it writes qlogs only with ``--qlog``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from tests.support.loopback import capture_available

from interop.capture import Capture
from interop.cases import CASES, Difference, InteropCase, ended_well, goodput
from interop.certificates import make_chain
from interop.options import chosen, minutes, parser
from interop.ports import free_port
from interop.relay import Relay
from interop.servers import SERVERS, Server, Site, says

HERE = Path(__file__).parent
LOGS = HERE / "logs"
SIGNS = {"succeeded": "✓", "failed": "✕", "unsupported": "–", "missing": "?"}
LEGEND = "✓ succeeded   ✕ failed   – the server cannot do this   ? the server is not here   numbers: kbit/s"


@dataclass(frozen=True)
class Result:
    """How one run ended.

    :ivar outcome: ``"succeeded"``, ``"failed"``, ``"unsupported"``: the server cannot do this, whoever asks; or
        ``"missing"``: what it takes is not on this machine.
    :ivar reason: the first thing that differed, or why it was not tried.
    :ivar kbps: what a measurement measured.
    :ivar logs: where its logs, qlogs and keys are.
    """

    case: str
    server: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    kbps: float | None = None
    logs: str = ""

    @property
    def cell(self) -> str:
        """As the matrix shows it."""
        return SIGNS[self.outcome] if self.kbps is None else f"{self.kbps:.0f}"


def run(case: InteropCase, server: Server, folder: Path, *, qlog: bool = False) -> Result:
    """Run one case with one server.

    :param folder: for logs, qlogs, keys; emptied first.
    :param qlog: the client writes qlogs.
    """
    if (hindrance := why_not(case, server)) is not None:
        return Result(case.name, server.name, *hindrance)
    shutil.rmtree(folder, ignore_errors=True)
    for each in ("www", "downloads", "certs", "server", *(["client-qlog"] if qlog else [])):
        (folder / each).mkdir(parents=True)
    began = time.monotonic()
    kbps = None
    try:
        kbps = _play(case, server, folder)
    except (Difference, RuntimeError, OSError) as error:
        reason, outcome = str(error).strip(), "failed"
        _explain(case, server, folder, reason)
    else:
        reason, outcome = "", "succeeded"
        for each in ("www", "downloads"):
            shutil.rmtree(folder / each)
    return Result(case.name, server.name, outcome, reason, time.monotonic() - began, kbps, str(folder))


class Hindrance(NamedTuple):
    """Why a case is not tried, as its :class:`Result` says it."""

    outcome: str
    reason: str


def why_not(case: InteropCase, server: Server) -> Hindrance | None:
    """What keeps the server from playing the case."""
    if case.mode not in server.modes:
        return Hindrance("unsupported", f"{server.name} cannot do this")
    program = server.program()
    if program is None:
        return Hindrance("missing", f"{server.name} is not here: {server.source}")
    if case.mode in server.newer and not says(program, "--help", server.newer[case.mode]):
        return Hindrance("missing", f"this {server.name} is too old for {case.name}: {server.source}")
    if case.mode == "preferred" and server.announces_itself and not capture_available():
        return Hindrance("missing", f"{case.name} with {server.name} is seen by root only")
    return None


def _play(case: InteropCase, server: Server, folder: Path) -> float | None:
    names = _write_files(case, folder / "www")
    make_chain(folder / "certs", case.chain)
    alpn = case.alpn or server.alpn
    port, second = free_port(case.host), free_port(case.host)
    site = Site(case.mode, alpn, case.host, port, second, folder / "www", folder / "certs", folder / "server")
    aside = case.mode == "preferred" and server.announces_itself
    targets = [(case.host, port)] if aside else [(case.host, port), (case.host, second)]
    with Relay(targets, case.scenario, beside=second if aside else None) as relay:
        site = replace(site, preferred=(case.host, second) if aside else relay.fronts[1][:2])
        with server.run(site):
            code = _client(case, alpn, relay.fronts[0][1], names, folder)
    if code is None:
        got = sum(path.stat().st_size for path in (folder / "downloads").iterdir())
        through = [datagram.from_client for datagram in relay.capture if datagram.arrived is not None]
        raise Difference(
            f"the client was not done within {case.timeout:g} s: it had {got} of {sum(case.sizes)} bytes; "
            f"{through.count(True)} datagrams had reached the server, {through.count(False)} the client"
        )
    capture = Capture(relay.capture, folder / "keys.log")
    _expect_code(code, folder)
    _compare(names, folder)
    case.check(capture)
    ended_well(capture)
    return goodput(capture, sum(case.sizes)) if case.measures else None


def _client(case: InteropCase, alpn: str, port: int, names: Sequence[str], folder: Path) -> int | None:
    """Its exit code; ``None`` when it was not done in time."""
    host = f"[{case.host}]" if ":" in case.host else case.host
    environment = os.environ | {
        "ROLE": "client",
        "TESTCASE": case.told,
        "REQUESTS": " ".join(f"https://{host}:{port}/{name}" for name in names),
        "SSLKEYLOGFILE": str(folder / "keys.log"),
        "QLOGDIR": str(folder / "client-qlog") if (folder / "client-qlog").exists() else "",
        "DOWNLOADS": str(folder / "downloads"),
        "CERTS": str(folder / "certs"),
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE.parent)]),
    }
    if alpn == "h3":
        environment["ALPN"] = alpn
    with (folder / "client.log").open("wb") as log:
        process = subprocess.Popen(
            [HERE / "run_endpoint.sh"], cwd=HERE.parent, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            return process.wait(case.timeout)
        except subprocess.TimeoutExpired:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)  # for its qlogs
            return None
        finally:
            process.kill()
            process.wait()


def _write_files(case: InteropCase, www: Path) -> list[str]:
    names = []
    for number, size in enumerate(case.sizes):
        name = f"file-{number}-{size}"
        if case.name_length:
            name = "".join(random.choices(string.ascii_lowercase, k=case.name_length))
        (www / name).write_bytes(random.randbytes(size))
        names.append(name)
    return names


def _expect_code(code: int, folder: Path) -> None:
    if code != 0:
        last = (folder / "client.log").read_text(errors="replace").strip().splitlines()
        raise Difference(f"the client's exit code is {code}; it said: {last[-1] if last else 'nothing'}")


def _compare(names: Sequence[str], folder: Path) -> None:
    found = {path.name for path in (folder / "downloads").iterdir()}
    for name in names:
        if name not in found:
            raise Difference(f"file {name} is missing")
        sent, got = (folder / "www" / name).read_bytes(), (folder / "downloads" / name).read_bytes()
        if sent != got:
            differs = (at for at, (one, other) in enumerate(zip(sent, got, strict=False)) if one != other)
            place = next(differs, min(len(sent), len(got)))
            raise Difference(f"file {name} ({len(sent)} bytes, got {len(got)}) differs from byte {place} on")
    if len(found) > len(names):
        raise Difference(f"files that nobody asked for: {sorted(found - set(names))}")


def _explain(case: InteropCase, server: Server, folder: Path, reason: str) -> None:
    qlogs = [str(path) for path in (folder / "client-qlog").glob("*")]
    none = "none was written" if (folder / "client-qlog").exists() else "none was asked for (--qlog)"
    qlog = {0: none, 1: "".join(qlogs)}.get(len(qlogs), f"{len(qlogs)} in {folder / 'client-qlog'}")
    text = (
        f"case:    {case.name} (TESTCASE={case.told})\n"
        f"server:  {server.name} (log: {folder / 'server' / 'server.log'})\n"
        f"differs: {reason}\n"
        f"client:  {folder / 'client.log'}\n"
        f"qlog:    {qlog}\n"
        f"keys:    {folder / 'keys.log'}\n"
    )
    (folder / "failed.txt").write_text(text)


def matrix(results: Sequence[Result]) -> str:
    """The results as the runner shows them: a row for each case, a column for each server; of measurements the mean."""
    servers = list(dict.fromkeys(result.server for result in results))
    cases = list(dict.fromkeys(result.case for result in results))
    width = max(map(len, cases))
    lines = [" " * width + "".join(f"  {server:>8}" for server in servers)]
    for case in cases:
        cells = []
        for server in servers:
            of = [result for result in results if (result.case, result.server) == (case, server)]
            cell = of[0].cell if of else ""
            measured = [result.kbps for result in of if result.kbps is not None]
            if measured and len(measured) == len(of):
                cell = f"{fmean(measured):.0f}"
            elif len(of) > 1 and of[0].outcome in ("succeeded", "failed"):
                cell = f"{sum(result.outcome == 'succeeded' for result in of)}/{len(of)}"
            cells.append(f"  {cell:>8}")
        lines.append(f"{case:<{width}}" + "".join(cells))
    return "\n".join(lines)


def _plan(cases: Sequence[InteropCase], servers: Sequence[Server], repeat: int) -> str:
    """How much there is to do, and what keeps the rest from being tried."""
    hindrances = [(case, server, why_not(case, server)) for case in cases for server in servers]
    tried = [(case, server) for case, server, hindrance in hindrances if hindrance is None]
    missing = {hindrance.reason: None for *_, hindrance in hindrances if hindrance and hindrance.outcome == "missing"}
    names = ", ".join(dict.fromkeys(server.name for _, server in tried)) or "no server"
    seconds = repeat * sum(case.seconds for case, _ in tried)
    rest = "" if len(cases) > 1 and len(cases) == len(CASES) else f" of {len(CASES)} (--all has them all)"
    first = f"{len(cases)} cases{rest} with {names}: {repeat * len(tried)} runs, {minutes(seconds)}"
    return "\n".join([first, *missing])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when a case failed, or none could be tried."""
    understands = parser([server.name for server in SERVERS])
    understands.add_argument("--repeat", type=int, default=1, help="times that each is run (another seed each)")
    understands.add_argument("--seed", type=int, default=1, help="of the first of them (default: %(default)s)")
    understands.add_argument(
        "--qlog", action="store_true", help="have the client write qlogs, without QUIC's short ways"
    )
    options = understands.parse_args(arguments)
    cases = chosen(options)
    servers = [server for server in SERVERS if server.name in (options.servers or server.name)]
    logs = (options.logs or LOGS).resolve()
    print(_plan(cases, servers, options.repeat), end="\n\n", flush=True)
    results: list[Result] = []
    for case in cases:
        for server in servers:
            for number in range(options.repeat):
                seeded = replace(case, scenario=replace(case.scenario, seed=options.seed + number))
                folder = logs / server.name / (f"{case.name}-{number + 1}" if number else case.name)
                result = run(seeded, server, folder, qlog=options.qlog)
                results.append(result)
                if result.outcome not in ("succeeded", "failed"):
                    break
                print(f"{result.cell:>5}  {case.name} with {server.name}, {result.seconds:.1f} s", flush=True)
                if result.outcome == "failed":
                    print(f"       {result.reason}\n       see {folder / 'failed.txt'}", flush=True)
    missing = {result.reason: None for result in results if result.outcome == "missing"}
    print("\n".join(["", matrix(results), "", LEGEND, *missing]))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    outcomes = {result.outcome for result in results}
    return int("failed" in outcomes or "succeeded" not in outcomes)


def _end_on_sigterm() -> None:
    """Have SIGTERM end this program as Ctrl-C does: with its server and its client."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not disturb the end
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


if __name__ == "__main__":
    _end_on_sigterm()
    sys.exit(main())
