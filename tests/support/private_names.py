"""Which private names a source file uses, and which a library has: read from their syntax trees."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

#: Functions whose second argument names an attribute.
_BY_NAME = ("delattr", "getattr", "hasattr", "setattr")


def private(name: str) -> bool:
    """Whether it begins with one underscore."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def used(source: str) -> dict[str, int]:
    """The private names that a file uses, or that its classes define, and the line of the first use."""
    names: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        found: list[str] = []
        if isinstance(node, ast.Attribute):
            found = [node.attr]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            whole = [f"{getattr(node, 'module', '') or ''}.{each.name}".strip(".") for each in node.names]
            found = [part for name in whole if not name.startswith("allswell") for part in name.split(".")]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BY_NAME:
            found = [str(each.value) for each in node.args[1:2] if isinstance(each, ast.Constant)]
        elif isinstance(node, ast.ClassDef):
            found = [each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
        for name in filter(private, found):
            names.setdefault(name, getattr(node, "lineno", 0))
    return names


def defined(source: str) -> set[str]:
    """The private names that a file defines: functions, classes, variables, and attributes of ``self``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id == "self" else set()
    return set(filter(private, names))


def of_imports(source: str) -> dict[str, int]:
    """The private names of imported modules and classes that a file uses (``ssl._x``, ``anyio.Event._x``)."""
    tree = ast.parse(source)
    theirs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            theirs |= {(each.asname or each.name).partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("allswell"):
            theirs |= {each.asname or each.name for each in node.names}
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in theirs:
                names[node.attr] = node.lineno
    return names


@cache
def of_library(name: str) -> frozenset[str]:
    """The private names that a package defines anywhere."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    sources = Path(spec.origin).parent.rglob("*.py")
    return frozenset().union(*(defined(each.read_text()) for each in sources))
