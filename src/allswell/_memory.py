"""Memories with a bound: what was worked out for one key, so that it need not be worked out again."""

from __future__ import annotations

from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def remember(known: dict[_Key, _Value], key: _Key, value: _Value, most: int) -> _Value:
    """Enter a value, and return it. A memory that has so many entries is emptied first.

    (To forget the oldest alone takes more time, each time that something is entered.)
    """
    if len(known) >= most:
        known.clear()
    known[key] = value
    return value
