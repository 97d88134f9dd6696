"""The reference has all that is public, and each part of it is described."""

from __future__ import annotations

import dataclasses
import inspect
import re
from enum import Enum
from pathlib import Path

import pytest

import allswell
import allswell.otel
import allswell.testing

_PAGES = Path(__file__).parents[2] / "docs" / "reference"
_CLASSES = sorted(
    (
        each
        for module in (allswell, allswell.testing)
        for each in map(vars(module).get, module.__all__)
        if isinstance(each, type)
    ),
    key=lambda it: it.__name__,
)
#: These do what a protocol describes.
_STORES = {allswell.QuicMemory, allswell.AltSvcMemory, allswell.AltSvcFile}


def _described(kind: type) -> set[str]:
    return {name for each in kind.__mro__ for name in re.findall(r":(?:ivar|param) (\w+):", each.__doc__ or "")}


def _parts(kind: type) -> set[str]:
    """The fields of a dataclass or a tuple; the parameters of a class that callers make."""
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind)}
    if issubclass(kind, tuple):
        return {*getattr(kind, "_fields", ())}
    if kind in {allswell.AsyncClient, allswell.testing.Origin, allswell.testing.MockOrigin, *_STORES}:
        return {*inspect.signature(kind).parameters}
    return set()


def test_each_public_name_stands_in_the_reference() -> None:
    pages = "".join(page.read_text() for page in _PAGES.glob("*.md"))
    told = re.findall(r"^::: allswell\.((?:(?:otel|testing)\.)?\w+)$", pages, re.MULTILINE)
    public = {*allswell.__all__, *(f"otel.{name}" for name in allswell.otel.__all__)}
    public |= {f"testing.{name}" for name in allswell.testing.__all__}
    assert sorted(told) == sorted(public - {"__version__"})


@pytest.mark.parametrize("kind", _CLASSES)
def test_each_part_of_it_is_described(kind: type) -> None:
    assert inspect.getdoc(kind)
    assert _parts(kind) <= _described(kind)


@pytest.mark.parametrize("kind", _CLASSES)
def test_nothing_private_is_named(kind: type) -> None:
    """Nor by a role that docs/reference_pages.py does not turn into a link."""
    members = [each for name, each in vars(kind).items() if not name.startswith("_")]
    for told in filter(None, (inspect.getdoc(each) for each in (kind, *members))):
        assert not re.search(r"allswell\._|:(?!class|meth|func|attr)\w+:`", told), told


@pytest.mark.parametrize("kind", [each for each in _CLASSES if each not in _STORES])
def test_each_public_method_says_what_it_does(kind: type) -> None:
    own = {} if issubclass(kind, Enum) else vars(kind)
    for name, member in own.items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            assert inspect.getdoc(getattr(kind, name)), name
