"""Draws docs/pictures/command.svg: the command in a real terminal (tmux), against a server on this machine.

Run from the project's folder, with its packages and tmux: ``python -m docs.pictures.terminal``. What is drawn is what
the terminal showed; times and ports differ from run to run.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from tests.support.certificates import certificates
from tests.support.hypercorn import hypercorn

_PICTURE = Path(__file__).with_name("command.svg")
_COLUMNS, _LINES = 108, 46
_TMUX = ["tmux", "-L", f"allswell-{os.getpid()}", "-f", "/dev/null"]
_BODY = bytes(range(1, 251)) * 80_000  # 20 MB


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The server's: a line of text, and a file."""
    if scope["type"] != "http":
        return
    large = scope["path"] == "/big.iso"
    kind, body = (b"application/octet-stream", _BODY) if large else (b"text/plain", b"Hello.\n")
    fields = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Draw it."""
    with hypercorn("docs.pictures.terminal:app", http3=True) as server, tempfile.TemporaryDirectory() as folder:
        commands = [
            f"allswell -i --ends {server.url}/hello",
            f"allswell --http3-only --ends {server.url}/hello",
            f"allswell -O {server.url}/big.iso",
            f"allswell {server.url.replace('localhost', 'nowhere.invalid')}/; echo $?",
        ]
        shown = _in_terminal(commands, folder)
    screen = Console(record=True, width=_COLUMNS, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    for line in shown.rstrip().splitlines():
        screen.print(Text.from_ansi(line), no_wrap=True, crop=False)
    drawn = screen.export_svg(title="allswell", unique_id="allswell")
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # which a reader's browser would fetch from afar
    _PICTURE.write_text(re.sub(r"[ \t]+\n", "\n", drawn))
    print(f"drawn: {_PICTURE}")


def _in_terminal(commands: list[str], folder: str) -> str:
    """What a terminal shows after these commands, with its colours."""
    environment = {
        "HOME": folder,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "PS1": "$ ",
        "SSL_CERT_FILE": str(certificates().ca),
        "LANG": "C.UTF-8",
    }
    size = ["-x", str(_COLUMNS), "-y", str(_LINES)]
    try:
        _tmux("new-session", "-d", *size, "-c", folder, "env -i TERM=$TERM " + _words(environment) + " bash --norc")
        for number, command in enumerate(commands):
            _tmux("send-keys", f"{command}; tmux -L {_TMUX[2]} wait-for -S done{number}", "Enter")
            _tmux("wait-for", f"done{number}")
        shown = _tmux("capture-pane", "-e", "-p")
    finally:
        _tmux("kill-server")
    return re.sub(rf"; tmux -L {_TMUX[2]} wait-for -S done\d", "", shown)


def _words(environment: dict[str, str]) -> str:
    return " ".join(f"{name}='{value}'" for name, value in environment.items())


def _tmux(*arguments: str) -> str:
    return subprocess.run([*_TMUX, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
