"""The command many times: a process that has it loaded forks for each call. (To start anew takes much longer.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_PROGRAM = """
import json, os, sys
from allswell._cli import main

for line in sys.stdin.buffer:
    call = json.loads(line)
    child = os.fork()
    if not child:
        code = 99
        try:
            os.chdir(call["folder"])
            for number, name in enumerate(call["files"]):
                os.dup2(os.open(name, (os.O_WRONLY if number else os.O_RDONLY) | os.O_CREAT), number)
            sys.stdin = open(0)
            code = main(call["arguments"])
            sys.stdout.flush()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forked:
    """The process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def call(self, arguments: list[str], folder: Path, stdin: bytes, files: Path) -> subprocess.CompletedProcess[bytes]:
        """Run the command.

        :param files: a folder for its standard input, output and error.
        """
        names = [files / "in", files / "out", files / "err"]
        for name, content in zip(names, (stdin, b"", b""), strict=True):
            name.write_bytes(content)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        call = {"arguments": arguments, "folder": str(folder), "files": [str(name) for name in names]}
        self._process.stdin.write(json.dumps(call).encode() + b"\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, names[1].read_bytes(), names[2].read_bytes())


@contextmanager
def forked(environment: Mapping[str, str]) -> Iterator[Forked]:
    """Start it."""
    command = [sys.executable, "-c", _PROGRAM]
    env = {**os.environ, **environment}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        try:
            yield Forked(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
