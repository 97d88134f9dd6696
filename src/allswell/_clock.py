"""The clock of all timeouts. Tools that freeze time for tests (freezegun) do not stop it.

Such a tool replaces :func:`time.monotonic` in every module that has it as an attribute. With a stopped clock no timeout
of a connection would ever pass. So modules have a partial of that function instead, which the tools do not replace.
"""

from __future__ import annotations

import time
from functools import partial

#: Seconds on the clock of :func:`time.monotonic`.
monotonic = partial(time.monotonic)
