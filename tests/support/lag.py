"""How slow a machine may be: a test asserts order and cause, and where it must tell waiting from not waiting, amply."""

from __future__ import annotations

#: Seconds that a busy machine may add to anything. What a test shows not to be waited for must take far longer.
LAG = 10.0
