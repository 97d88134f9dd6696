"""The interop matrix on one machine, without Docker: every case with every server that can play it.

For each the endpoint's own ``run_endpoint.sh`` is run with the environment that the runner gives it, through a relay
that plays the simulator's scenario and records what crosses (`relay.py`); the files must be the same byte for byte, and
the capture must show what the case is about (`cases.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from interop.capture import Capture
from interop.cases import CASES, QUICK, Difference, InteropCase, ended_well, goodput
from interop.certificates import make_chain
from interop.relay import Relay, sniffer
from interop.servers import PEERS, SERVERS, Server, Site, free_port

HERE = Path(__file__).parent
LOGS = HERE / "logs"
SIGNS = {"succeeded": "✓", "failed": "✕", "unsupported": "?"}


@dataclass(frozen=True)
class Result:
    """How one run ended.

    :ivar outcome: ``"succeeded"``, ``"failed"`` or ``"unsupported"``.
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


def run(case: InteropCase, server: Server, folder: Path) -> Result:
    """Run one case with one server.

    :param folder: for logs, qlogs, keys; emptied first.
    """
    unsupported = why_not(case, server)
    if unsupported:
        return Result(case.name, server.name, "unsupported", unsupported)
    shutil.rmtree(folder, ignore_errors=True)
    for each in ("www", "downloads", "certs", "client-qlog", "server"):
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


def why_not(case: InteropCase, server: Server) -> str:
    """Why the server cannot play the case; empty where it can."""
    if case.mode not in server.modes:
        return f"{server.name} does not do this"
    if server.program() is None:
        return f"{server.name} is not installed"
    if case.mode in server.newer and not PEERS.exists():
        return f"this {server.name} is too old: make peers"
    if case.mode == "preferred" and server.announces_itself:
        overhear = sniffer()
        if overhear is None:
            return "what does not pass the relay can only be seen by root"
        overhear.close()
    return ""


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
        "QLOGDIR": str(folder / "client-qlog"),
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
    qlogs = [str(path) for path in (folder / "client-qlog").iterdir()]
    qlog = {0: "none was written", 1: "".join(qlogs)}.get(len(qlogs), f"{len(qlogs)} in {folder / 'client-qlog'}")
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
    """The results as the runner shows them: a row for each case, a column for each server."""
    servers = list(dict.fromkeys(result.server for result in results))
    cases = list(dict.fromkeys(result.case for result in results))
    width = max(map(len, cases))
    lines = [" " * width + "".join(f"  {server:>8}" for server in servers)]
    for case in cases:
        cells = []
        for server in servers:
            of = [result for result in results if (result.case, result.server) == (case, server)]
            cell = of[0].cell if of else ""
            if len(of) > 1 and of[0].kbps is None and of[0].outcome != "unsupported":
                cell = f"{sum(result.outcome == 'succeeded' for result in of)}/{len(of)}"
            cells.append(f"  {cell:>8}")
        lines.append(f"{case:<{width}}" + "".join(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when a supported case failed."""
    parser = argparse.ArgumentParser(prog="interop.local", description="The QUIC interop matrix without Docker.")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], metavar="CASE")
    parser.add_argument("--servers", nargs="+", choices=[server.name for server in SERVERS], metavar="SERVER")
    parser.add_argument("--quick", action="store_true", help="a few cases that take seconds")
    parser.add_argument("--repeat", type=int, default=1, help="times that each is run (another seed each)")
    parser.add_argument("--seed", type=int, default=1, help="of the first of them (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--logs", type=Path, default=LOGS, help="folder for logs and qlogs (default: %(default)s)")
    options = parser.parse_args(arguments)
    wanted = options.cases or (QUICK if options.quick else [case.name for case in CASES])
    results: list[Result] = []
    for case in (case for case in CASES if case.name in wanted):
        for server in (server for server in SERVERS if server.name in (options.servers or server.name)):
            for number in range(options.repeat):
                seeded = replace(case, scenario=replace(case.scenario, seed=options.seed + number))
                folder = options.logs.resolve() / server.name / (f"{case.name}-{number + 1}" if number else case.name)
                result = run(seeded, server, folder)
                results.append(result)
                if result.outcome == "unsupported":
                    break
                print(f"{result.cell:>5}  {case.name} with {server.name}, {result.seconds:.1f} s", flush=True)
                if result.outcome == "failed":
                    print(f"       {result.reason}\n       see {folder / 'failed.txt'}", flush=True)
    print(f"\n{matrix(results)}\n\n✓ succeeded   ✕ failed   ? the server cannot, or is not here   numbers: kbit/s")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return int(any(result.outcome == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
