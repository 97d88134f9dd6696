"""Modules that are imported when one of their names is first used, for example to evaluate an annotation.

Frameworks evaluate the annotations of functions and classes (``typing.get_type_hints``). So a name in a public
annotation must exist when the program runs, and not only for type checkers::

    if TYPE_CHECKING:
        from allswell._pool import snapshot as snapshots
    else:
        snapshots = Late("allswell._pool.snapshot")

    def snapshot(self) -> snapshots.PoolSnapshot: ...
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any, get_type_hints


class Late:
    """A module that is imported when one of its names is first used.

    :param module: its name.
    :param quoted_of: the module in which quoted names in this module's type aliases are looked up; by default this one.
    """

    def __init__(self, module: str, quoted_of: str | None = None) -> None:
        self._module = module
        self._quoted_of = quoted_of or module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(import_module(self._module), name)
        if isinstance(found, type):
            return found
        # An alias may quote names. typing would look them up in the module of the annotation, which has not got them.
        quoted = vars(import_module(self._quoted_of))
        return get_type_hints(SimpleNamespace(__annotations__={name: found}), quoted)[name]
