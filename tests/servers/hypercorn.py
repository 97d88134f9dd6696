"""hypercorn (h11, h2, aioquic as servers) with our application: h1, h2, h3, and ``/echo``."""

from __future__ import annotations

from contextlib import AbstractContextManager

from tests.support import hypercorn as support
from tests.support.servers import ServerInfo


def hypercorn(requests_per_connection: int = 100_000) -> AbstractContextManager[ServerInfo]:
    """Run it."""
    settings = f"keep_alive_timeout = 30\nkeep_alive_max_requests = {requests_per_connection}"
    return support.hypercorn("tests.servers.app:app", settings, http3=True, echoes=True)
