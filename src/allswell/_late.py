"""Modules that are imported when something of them is asked for: to run, or to evaluate an annotation.

Frameworks evaluate the annotations of what they are given (``typing.get_type_hints``). So a name in a public annotation
must be there when the program runs, and not for type checkers only::

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
    """A module.

    :param module: its name.
    :param quoted_of: the module that has the names which types of this one quote; by default it has them itself.
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
        # An alias may quote names, and these would be looked for where the annotation is.
        quoted = vars(import_module(self._quoted_of))
        return get_type_hints(SimpleNamespace(__annotations__={name: found}), quoted)[name]
