"""``make demo`` works and says what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_demo() -> None:
    command = [sys.executable, "-W", "error", "-m", "demo"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for version in ("HTTP/1.1", "HTTP/2", "HTTP/3"):
        assert f"200 over {version}: " in done.stdout
    assert done.stdout.count("200, whole, though the client was closing already") == 3
    assert done.stdout.count("of 10 s grace: clean") == 3
    for word in ("→ GOAWAY", "→ close_notify", "← close_notify", "→ FIN", "← FIN", "→ CONNECTION_CLOSE"):
        assert word in done.stdout
    assert done.stdout.count("0.5 s grace: not clean") == 1
