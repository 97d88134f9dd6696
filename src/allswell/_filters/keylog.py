"""Key logs: the file that ``SSLKEYLOGFILE`` names, for Wireshark. It holds secrets, so only its owner may read it.

OpenSSL and Python would create it readable for others. So it is created here, before they see its name. The qlogs of
QUIC connections are created in the same way.
"""

from __future__ import annotations

import io
import os
import ssl
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from typing import Any, TextIO

import httpx2

from allswell._errors import ConnectFailed
from allswell._tasks import logger


def new_context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    """Make a context as httpx2 does. (Python's default context begins to log keys as soon as it is made.)

    :raises OSError: when a file that is named here or in the environment cannot be used.
    """
    if trust_env:
        named_log()
    if not cert and "httpcore2" not in sys.modules:
        if isinstance(verify, ssl.SSLContext):
            return verify
        if verify is True and (default := _default_context()) is not None:
            return default(_trust_env=trust_env)
    context = httpx2.create_ssl_context(verify, cert, trust_env)
    if not trust_env and context is not verify and getattr(context, "keylog_filename", None):
        # Python's default context has read the environment by itself. (None turns it off, which typeshed doesn't know.)
        context.keylog_filename = None  # type: ignore[assignment]
    return context


def _default_context() -> Callable[..., ssl.SSLContext] | None:
    """The function of httpcore2 that httpx2 calls for that, without importing the rest of httpcore2, and trio with it.

    (The file and the function are private names that we rely on. If they have changed, httpx2 is asked.)
    """
    package = find_spec("httpcore2")
    for folder in (package and package.submodule_search_locations) or ():
        spec = spec_from_file_location("allswell._httpcore2_ssl", os.path.join(folder, "_ssl.py"))
        if spec is not None and spec.loader is not None and os.path.exists(str(spec.origin)):
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            return getattr(module, "default_ssl_context", None)
    return None


def trusted(context: ssl.SSLContext | None, trust_env: bool) -> ssl.SSLContext:
    """The context to dial with; a new one if none is given. It logs TLS secrets as the environment says, if it may.

    :raises ConnectFailed: when a file that the environment names cannot be used.
    """
    try:
        context = context or new_context(trust_env=trust_env)
        if trust_env and getattr(context, "keylog_filename", "") is None and (path := named_log()) is not None:
            context.keylog_filename = path
    except OSError as error:
        raise ConnectFailed(f"cannot make the TLS context: {error}", phase="tls", by="us") from error
    return context


def open_log(path: str | os.PathLike[str]) -> TextIO:
    """Open a log to append to. If it is new, only its owner may read it.

    :raises OSError: when it cannot be written.
    """
    return open(path, "a", opener=_private)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


class KeyLog(io.TextIOBase):
    """A key log of ours. When it can no longer be written, a warning is logged, and connections go on.

    :raises OSError: when it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = io.FileIO(path, "a", opener=_private)

    def write(self, text: str) -> int:
        """Write a line."""
        try:
            self._file.write(text.encode("ascii"))
        except OSError as error:
            logger.warning("allswell: the key log %s was not written: %s", self._path, error)
        return len(text)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def named_log() -> str | None:
    """The file that ``SSLKEYLOGFILE`` names. It is created if it does not exist.

    :raises OSError: when it cannot be written.
    """
    path = os.environ.get("SSLKEYLOGFILE")
    if not path:
        return None
    try:
        open_log(path).close()
    except OSError as error:
        told = f"the key log that SSLKEYLOGFILE names cannot be written: {error.strerror}"
        raise OSError(error.errno, told, path) from error
    return path
