"""What callers give, judged where they give it.

httpx2 and httpx have classes of the same names, and ours are others. Given to the wrong one, most of them do for a
while, and then fail far from there, with words that help nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from inspect import iscoroutinefunction, signature
from ipaddress import ip_address

import httpx2

_LIBRARIES = ("httpx", "httpx2")
_PLAIN = (str, bytes, int, float)

_HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*").fullmatch


def require(wanted: str, **given: object) -> None:
    """Let nothing pass that is of another library.

    :param wanted: ``"httpx2"`` or ``"httpx"``.
    :param given: by the names of their parameters; also lists of them, and mappings to them.
    :raises TypeError: which says what is wanted.
    """
    for name, value in given.items():
        if value is None or isinstance(value, _PLAIN):
            continue
        if isinstance(value, (list, tuple)) or type(value) is dict:
            for each in value.values() if isinstance(value, dict) else value:
                require(wanted, **{name: each})
            continue
        library, kind = _origin(value)
        if library not in ("", wanted):
            raise TypeError(f"{name}: {_name(type(value))} is of {library}, and {wanted}.{kind} is wanted here")


def require_type(kind: type, **given: object) -> None:
    """Let nothing pass but what is of this class of ours, or ``None``.

    :raises TypeError: which says what is wanted.
    """
    for name, value in given.items():
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name}: {_name(type(value))} was given, and {_name(kind)} is wanted here")


def require_callable(*, at_once: bool = False, **given: object) -> None:
    """Let nothing pass but what can be called, or ``None``.

    :param at_once: and returns what is wanted, rather than an awaitable.
    :raises TypeError: which says what is wanted.
    """
    for name, value in given.items():
        if value is None:
            continue
        if not callable(value):
            raise TypeError(f"{name}: {_name(type(value))} was given, and a callable is wanted here")
        if at_once and (iscoroutinefunction(value) or iscoroutinefunction(type(value).__call__)):
            raise TypeError(f"{name}: an async function was given, and one that is not is wanted here")


def require_known(settings: Collection[str], known: Collection[str], of: str) -> None:
    """:raises TypeError: for a setting that there is not."""
    for name in settings:
        if name not in known:
            raise TypeError(f"{of} has no setting {name!r}")


def require_none_beside_pool(function: Callable[..., object], settings: Mapping[str, object]) -> None:
    """A pool has its own settings of connections: what is said beside it would do nothing.

    :param function: what was called; by its defaults it is known what was said. (No value says as much as another.)
    :raises TypeError: which names that.
    """
    defaults = {name: each.default for name, each in signature(function).parameters.items()}
    said = [
        name
        for name, value in settings.items()
        if name not in defaults or (value != defaults[name] and (value or defaults[name]))
    ]
    if said:
        them = "that is a setting" if len(said) == 1 else "those are settings"
        raise TypeError(f"{', '.join(said)} beside pool= would do nothing: {them} of connections, which the pool has")


def as_host(name: str) -> str:
    """A host as it is compared with others: in lower case, without a dot at its end, zone, or brackets.

    An address is in the one form that Python gives it.

    :raises ValueError: for a name with letters that no host's has.
    """
    host = name.partition("%")[0].strip("[]").removesuffix(".").lower()
    with suppress(ValueError):
        return str(ip_address(host))
    if host.isascii():
        return host
    try:
        return httpx2.URL(scheme="https", host=host).raw_host.decode("ascii")
    except httpx2.InvalidURL as error:
        raise ValueError(f"{name!r} is no host name: {error}") from error


def as_host_given(name: object) -> str:
    """A host of a setting, as :func:`as_host` has it: no part of a URL besides, which would never be met again.

    :raises ValueError: for what is no host name and no address: with a port, a scheme, a user, a wildcard.
    """
    host = as_host(name) if isinstance(name, str) else ""
    if _HOST_NAME(host) is None:
        try:
            ip_address(host)
        except ValueError:
            raise ValueError(f"{name!r} is no host name") from None
    return host


def _origin(value: object) -> tuple[str, str]:
    """Which library's it is, and what that calls it."""
    for kind in type(value).__mro__:
        if _name(kind) == "allswell.Timeouts":
            return "pools", "Timeout"
        name = kind.__module__.partition(".")[0]
        if name in _LIBRARIES:
            return name, kind.__name__
    return "", ""


def _name(kind: type) -> str:
    """Its public name: what is in a private module is exported by the first of those above that is not."""
    module = kind.__module__.partition("._")[0]
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
