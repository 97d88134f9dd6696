"""What a process holds, in MB, as its system counts it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """What is held now, and what was held at most since the start or :func:`restart_peak`."""

    now: float
    peak: float


def held() -> Memory:
    """By this process. (``ru_maxrss`` would know what its parent held before ``exec``, too.)"""
    status = Path("/proc/self/status")
    if status.exists():
        said = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return Memory(*(int(said[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return Memory(peak, peak)


def restart_peak() -> float:
    """What is held now; the peak begins here, where the system can do that (Linux)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return held().now
