"""The clock of all timeouts: one that tools which freeze time for tests do not replace.

freezegun and its kind put a function of their own wherever a module has :func:`time.monotonic` itself as an attribute.
A connection that is measured by a clock that stands still never times out. So nothing here names that function: what is
called is a partial of it.
"""

from __future__ import annotations

import time
from functools import partial

#: Seconds on the clock of :func:`time.monotonic`.
monotonic = partial(time.monotonic)
