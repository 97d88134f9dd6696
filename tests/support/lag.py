"""How slow a machine may be: a test asserts order and cause, and where it must tell waiting from not waiting, amply."""

from __future__ import annotations

import pytest

from allswell._filters import happy_eyeballs
from allswell._pool import dialer

#: Seconds that a busy machine may add to anything. What a test shows not to be waited for must take far longer.
LAG = 10.0


def stagger(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have connection attempts follow one another at this distance, and not at 250 ms (RFC 8305 §5)."""
    for module in (happy_eyeballs, dialer):
        monkeypatch.setattr(module, "CONNECTION_ATTEMPT_DELAY", seconds)
