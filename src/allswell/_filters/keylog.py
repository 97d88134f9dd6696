"""Key logs: the file that ``SSLKEYLOGFILE`` names, to read along with. It holds secrets, so only its owner may read it.

OpenSSL and Python create it with the modes of any file, so it is made here before they see its name. Logs of what QUIC
connections did (qlog) are made in the same way.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from typing import Any, TextIO

import httpx2


def new_context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    """A context as httpx2 makes it. (Python's own default context begins to log keys as soon as it is made.)"""
    if trust_env:
        _environments()
    if not cert and "httpcore2" not in sys.modules:
        if isinstance(verify, ssl.SSLContext):
            return verify
        if verify is True and (default := _default_context()) is not None:
            return default(_trust_env=trust_env)
    context = httpx2.create_ssl_context(verify, cert, trust_env)
    if not trust_env and context is not verify and getattr(context, "keylog_filename", None):
        # Python's default context has read the environment all the same. (None turns it off; typeshed doesn't know.)
        context.keylog_filename = None  # type: ignore[assignment]
    return context


def _default_context() -> Callable[..., ssl.SSLContext] | None:
    """The function of httpcore2 that httpx2 calls for that, without the rest of httpcore2: it brings trio with it.

    (The file and the function are private names that we rely on; where they are not as we know them, httpx2 is asked.)
    """
    package = find_spec("httpcore2")
    for folder in (package and package.submodule_search_locations) or ():
        spec = spec_from_file_location("allswell._httpcore2_ssl", os.path.join(folder, "_ssl.py"))
        if spec is not None and spec.loader is not None and os.path.exists(str(spec.origin)):
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            return getattr(module, "default_ssl_context", None)
    return None


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
