"""Key logs: the file that ``SSLKEYLOGFILE`` names, to read along with. It holds secrets, so only its owner may read it.

OpenSSL and Python create it with the modes of any file, so it is made here before they see its name. Logs of what QUIC
connections did (qlog) are made in the same way.
"""

from __future__ import annotations

import os
import ssl
from typing import Any, TextIO

import httpx2


def new_context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    """A context as httpx2 makes it. (Python's own default context begins to log keys as soon as it is made.)"""
    if trust_env:
        _environments()
    return httpx2.create_ssl_context(verify, cert, trust_env)


def logging_keys(context: ssl.SSLContext, trust_env: bool) -> ssl.SSLContext:
    """The context, made to write TLS secrets where the environment says, unless it was told otherwise."""
    if trust_env and getattr(context, "keylog_filename", "") is None and (path := _environments()) is not None:
        context.keylog_filename = path
    return context


def open_log(path: str | os.PathLike[str]) -> TextIO:
    """A log to append to; nobody else may read it, if it is made here.

    :raises OSError: when it cannot be written.
    """
    return open(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600))


def _environments() -> str | None:
    path = os.environ.get("SSLKEYLOGFILE")
    if not path:
        return None
    open_log(path).close()
    return path
