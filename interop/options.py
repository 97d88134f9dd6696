"""What `make interop` takes: the same words for the local matrix and for the QUIC interop runner.

``python -m interop.options WORDS`` prints the runner's own words for them, one a line. What stands behind ``--`` is
for the runner as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from interop.cases import CASES, QUICK, InteropCase
from interop.servers import SERVERS

#: Servers that the runner knows by another name, and a case that it has no more.
_IN_THE_RUNNER = {"caddy": "quic-go"}
_NOT_IN_THE_RUNNER = "versionnegotiation"
#: Seconds that the runner's containers need besides, for each case.
_CONTAINERS = 8.0


def parser(servers: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Both understand this.

    :param servers: those that there are; ``None`` for any.
    """
    parser = argparse.ArgumentParser(prog="make interop", description="The QUIC interop matrix.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="the cases that take seconds; so it is if you say nothing")
    which.add_argument("--all", action="store_true", help="all cases")
    names = [case.name for case in CASES]
    which.add_argument("--cases", nargs="+", choices=names, metavar="CASE", help=f"some of {', '.join(names)}")
    parser.add_argument("--servers", nargs="+", choices=servers, metavar="SERVER", help="some of the servers")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--logs", type=Path, help="folder for logs and qlogs")
    return parser


def chosen(options: argparse.Namespace) -> list[InteropCase]:
    """The cases that are wanted."""
    if options.all:
        return CASES
    return [case for case in CASES if case.name in (options.cases or QUICK)]


def minutes(seconds: float) -> str:
    """About so long, in words."""
    return "less than a minute" if seconds < 60 else f"about {seconds / 60:.0f} min"


def for_the_runner(words: Sequence[str]) -> list[str]:
    """The runner's words for these."""
    ours, theirs = list(words), list[str]()
    if "--" in ours:
        at = ours.index("--")
        ours, theirs = ours[:at], ours[at + 1 :]
    understands = parser()
    options = understands.parse_args(ours)
    cases = [case for case in chosen(options) if case.name != _NOT_IN_THE_RUNNER]
    if not cases:
        understands.error(f"the runner has no case {_NOT_IN_THE_RUNNER}: make interop-local")
    servers = [_IN_THE_RUNNER.get(name, name) for name in options.servers or [server.name for server in SERVERS]]
    said = ["-s", ",".join(servers), "-t", ",".join(case.name for case in cases)]
    if options.json is not None:
        said += ["--json", str(options.json.resolve())]
    if options.logs is not None:
        said += ["--log-dir", str(options.logs.resolve())]
    if not theirs:
        seconds = len(servers) * sum(case.seconds + _CONTAINERS for case in cases)
        print(f"{len(cases)} cases with {', '.join(servers)}: {minutes(seconds)}", file=sys.stderr)
    return said + theirs


if __name__ == "__main__":
    print("\n".join(for_the_runner(sys.argv[1:])))
