"""Checks of what callers pass, made where they pass it.

httpx2, httpx and allswell have classes of the same names. An object of the wrong library often works for a while, and
then fails in another place, with an error that does not name the cause. So the types are checked at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from inspect import iscoroutinefunction, signature
from ipaddress import ip_address
from numbers import Integral, Real
from typing import TypeVar

import httpx2

_T = TypeVar("_T")

_LIBRARIES = ("httpx", "httpx2")
_PLAIN = (str, bytes, int, float)
#: What is a number. To ask an abstract class takes ten times as long, so the usual classes come first.
_NUMBERS, _WHOLE = (int, float, Real), (int, Integral)

#: Our classes that are taken for httpx2's, and what they are.
_OURS = {"allswell.Timeouts": "belongs to pools", "allswell.Timeout": "is an error"}

_HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*").fullmatch


def require(wanted: str, **given: object) -> None:
    """Refuse objects of the other library.

    :param wanted: ``"httpx2"`` or ``"httpx"``.
    :param given: the values, by the names of their parameters. Of a list, a tuple or a dict, each value is checked.
    :raises TypeError: if a value belongs to the other library. The error names the class that is accepted.
    """
    for name, value in given.items():
        if value is None or isinstance(value, _PLAIN):
            continue
        if isinstance(value, (list, tuple)) or type(value) is dict:
            for each in value.values() if isinstance(value, dict) else value:
                require(wanted, **{name: each})
            continue
        given_class = value if isinstance(value, type) else type(value)
        library, kind, what = _origin(given_class)
        if library not in ("", wanted):
            raise TypeError(f"{name} must be {wanted}.{kind}, but {_name(given_class)} {what}")
        if library and given_class is value:
            raise TypeError(f"{name} must be an object of {_name(given_class)}, not the class")


def require_type(kind: type, *, none: bool = True, **given: object) -> None:
    """Accept only objects of this class.

    :param none: accept ``None``, too.
    :raises TypeError: for anything else. The error names the class.
    """
    for name, value in given.items():
        if not isinstance(value, kind) and not (none and value is None):
            raise TypeError(f"{name} must be {_name(kind)}, not {_what(value)}")


def require_context(**given: object) -> None:
    """Accept only TLS contexts, and ``None``.

    Those of other TLS libraries need not be of ``ssl.SSLContext``. Nor are Python's own, if a program puts a class of
    its own in that place later, as ``truststore`` does.

    :raises TypeError: for anything else.
    """
    for name, value in given.items():
        if value is not None and (isinstance(value, type) or not hasattr(value, "wrap_bio")):
            raise TypeError(f"{name} must be ssl.SSLContext, not {_what(value)}")


def require_number(
    *,
    least: float = 0,
    most: float = math.inf,
    above: bool = False,
    whole: bool = False,
    none: bool = False,
    **given: object,
) -> None:
    """Accept only numbers.

    :param least: the smallest that is accepted.
    :param most: the largest that is accepted.
    :param above: accept only what is more than ``least``.
    :param whole: accept only integers.
    :param none: accept ``None``, too.
    :raises TypeError: for anything else.
    :raises ValueError: for a number that is too small or too large, and for NaN.
    """
    for name, value in given.items():
        if not (none and value is None):
            number = _number(name, value, whole=whole, none=none)
            if number < least or (above and number == least):
                than = "more than" if above else "at least"
                raise ValueError(f"{name} must be {than} {least}{', or None' * none}, not {value}")
            if number > most:
                raise ValueError(f"{name} must be at most {most}, not {value}")


def require_timeout(**given: object) -> None:
    """Accept only seconds, and ``None``. (What is left of a caller's own time may be less than none.)

    :raises TypeError: for anything else.
    :raises ValueError: for NaN.
    """
    for name, value in given.items():
        if value is not None:
            _number(name, value, none=True)


def require_one_of(choices: Collection[object], **given: object) -> None:
    """Accept only one of these.

    :raises ValueError: for anything else.
    """
    for name, value in given.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def require_several(**given: object) -> None:
    """Accept only collections: not the text that should stand in one.

    :raises TypeError: for anything else.
    """
    for name, value in given.items():
        if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
            raise TypeError(f"{name} must be a collection, not {_what(value)}")


def require_callable(*, at_once: bool = False, **given: object) -> None:
    """Accept only callables, and ``None``.

    :param at_once: refuse async functions, too.
    :raises TypeError: for anything else.
    """
    for name, value in given.items():
        if value is None:
            continue
        if not callable(value):
            raise TypeError(f"{name} must be callable, and {_name(type(value))} is not")
        if at_once and (iscoroutinefunction(value) or iscoroutinefunction(type(value).__call__)):
            raise TypeError(f"{name} must be an ordinary function, not an async one")


def require_like(kind: type, **given: object) -> None:
    """Accept only objects that have the methods of this protocol, and ``None``.

    :raises TypeError: for anything else. The error names the protocol.
    """
    methods = [name for name in vars(kind) if not name.startswith("_")]
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
            raise TypeError(f"{name} must be an object with the methods of {_name(kind)}, not {_what(value)}")


def require_pairs(**given: object) -> None:
    """Accept only tuples of pairs of bytes.

    :raises TypeError: for anything else.
    """
    for name, value in given.items():
        if not isinstance(value, tuple) or not all(is_pair(pair) for pair in value):
            raise TypeError(f"{name} must be a tuple of pairs of bytes")


def is_pair(value: object) -> bool:
    """Whether it is a pair of bytes."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, bytes) for each in value)


def require_address(**given: str | None) -> None:
    """Accept only IP addresses, and ``None``.

    :raises ValueError: for a name.
    """
    for name, value in given.items():
        try:
            ip_address(value or "::")
        except ValueError:
            raise ValueError(f"{name} must be an IP address, not {value!r}") from None


def require_known(settings: Collection[str], known: Collection[str], of: str) -> None:
    """Refuse unknown settings.

    :param of: the class that has the settings. The error names it.
    :raises TypeError: if there is no setting of a name.
    """
    for name in settings:
        if name not in known:
            raise TypeError(f"{of} has no setting {name!r}")


def require_none_beside_pool(function: Callable[..., object], settings: Mapping[str, object]) -> None:
    """Refuse settings of connections beside ``pool=``. The pool has its own, so these would have no effect.

    :param function: the function that was called. A value that equals its default counts as not given. So does an
        empty value if the default is empty too (``None`` and ``()``, say).
    :raises TypeError: if a setting is given. The error names it.
    """
    defaults = {name: each.default for name, each in signature(function).parameters.items()}
    said = [
        name
        for name, value in settings.items()
        if name not in defaults or (value != defaults[name] and (value or defaults[name]))
    ]
    if said:
        them = "it" if len(said) == 1 else "them"
        raise TypeError(f"{', '.join(said)} beside pool= would have no effect: give {them} to the pool")


def as_host(name: str) -> str:
    """The form of a host in which hosts are compared: in lower case, without final dot, zone or brackets.

    An IP address is in the form of :mod:`ipaddress`. A name that is not ASCII is encoded (IDNA).

    :raises ValueError: if the name cannot be encoded.
    """
    host = name.partition("%")[0].strip("[]").removesuffix(".").lower()
    with suppress(ValueError):
        return str(ip_address(host))
    if host.isascii():
        return host
    try:
        return httpx2.URL(scheme="https", host=host).raw_host.decode("ascii")
    except httpx2.InvalidURL as error:
        raise ValueError(f"{name!r} is not a host name: {error}") from error


def as_host_given(name: object) -> str:
    """The host in a setting, in the form of :func:`as_host`. With any other part of a URL, no request would match it.

    :raises ValueError: if it is neither a host name nor an IP address: it has a port, a scheme, a user, a wildcard.
    """
    host = as_host(name) if isinstance(name, str) else ""
    if _HOST_NAME(host) is None:
        try:
            ip_address(host)
        except ValueError:
            raise ValueError(f"{name!r} is not a host name") from None
    return host


def as_origin_given(origin: object) -> str:
    """The https origin in a setting, in the form in which origins are compared: ``"https://example.org"``.

    :raises ValueError: if it is something else, or has more than that: a user, a path, a query.
    """
    url = None
    if isinstance(origin, str):
        with suppress(httpx2.InvalidURL):
            url = httpx2.URL(origin)
    if url is None or url.scheme != "https" or url.userinfo or url.raw_path != b"/" or url.fragment or not url.host:
        shown = str(origin).rpartition("@")[2]  # not its user
        raise ValueError(f"{shown!r} is not an https origin, such as 'https://example.org'")
    return f"https://{url.netloc.decode('ascii')}"


def by_host(given: Mapping[str, _T]) -> Iterator[tuple[str, str, _T]]:
    """The entries of a setting by host: the host in the form of :func:`as_host`, as it was given, what is set for it.

    :raises ValueError: if a host is not valid, or two are one host in two spellings.
    """
    spelt: dict[str, str] = {}
    for host, what in given.items():
        name = as_host_given(host)
        if name in spelt:
            raise ValueError(f"{spelt[name]!r} and {host!r} are the same host")
        spelt[name] = host
        yield name, host, what


def _origin(given: type) -> tuple[str, str, str]:
    """The library of a class, the name of the class there, and what the class is. For all others, three empty texts."""
    for kind in given.__mro__:
        ours = _OURS.get(_name(kind))
        if ours is not None:
            return "allswell", "Timeout", ours
        name = kind.__module__.partition(".")[0]
        if name in _LIBRARIES:
            return name, kind.__name__, f"belongs to {name}"
    return "", "", ""


def _number(name: str, value: object, *, whole: bool = False, none: bool = False) -> float:
    """The number that was given.

    :param none: whether ``None`` would do, too.
    :raises TypeError: if it is no number, or no integer where ``whole`` is set.
    :raises ValueError: if it is NaN.
    """
    if not isinstance(value, _WHOLE if whole else _NUMBERS):
        raise TypeError(f"{name} must be a {'whole ' * whole}number{' or None' * none}, not {_what(value)}")
    number = float(value)
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, not NaN")
    return number


def _what(value: object) -> str:
    return "None" if value is None else _name(type(value))


def _name(kind: type) -> str:
    """The public name of a class. A class in a private module is exported by the nearest public package above it."""
    module = kind.__module__.partition("._")[0]
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
