"""How mkdocstrings reads our docstrings, for the pages of the reference (`make docs`)."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|attr):`~?([^`]+)`")


class Reference(griffe.Extension):
    """Roles become links, fields of dataclasses have their defaults, and defaults are values and not names."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        public = {str(name).strip("'\"") for name in pkg.exports or ()}
        self._walk(pkg, pkg, public)

    def _walk(self, each: griffe.Object, pkg: griffe.Module, public: set[str]) -> None:
        if each.docstring is not None:
            text = _ROLE.sub(lambda role: _link(role[1], public), each.docstring.value)
            if "dataclass" in each.labels:
                text = text.replace(":ivar ", ":param ")
            each.docstring.value = text
        if isinstance(each, griffe.Function):
            for parameter in each.parameters:
                parameter.default = _value(parameter.default, pkg)
        elif isinstance(each, griffe.Attribute):
            each.value = _value(each.value, pkg)
        for member in each.members.values():
            if isinstance(member, griffe.Object):
                self._walk(member, pkg, public)


def _link(name: str, public: set[str]) -> str:
    first, _, rest = name.removeprefix("allswell.").partition(".")
    shown = f"`{name}`"
    return f"[{shown}][allswell.{first}]" if first in public and not rest else shown


def _value(default: Any, pkg: griffe.Module) -> Any:
    """The value of a constant of ours, in place of its name."""
    while isinstance(default, griffe.ExprName):
        try:
            constant = pkg.modules_collection[default.canonical_path]
        except KeyError:  # of another package, or of a class
            return default
        if not isinstance(constant, griffe.Attribute) or constant.value is None:
            return default
        default = constant.value
    return default
