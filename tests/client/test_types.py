"""What a user's type checker sees."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx2
import pytest

import allswell
import allswell.httpx
import allswell.otel
import allswell.testing

_PROGRAM = Path(__file__).with_name("user_program.py")
_SOURCE = Path(allswell.__file__).parents[1]


@pytest.mark.parametrize("module", [allswell, allswell.testing, allswell.otel], ids=lambda each: each.__name__)
def test_the_program_uses_every_public_name(module: ModuleType) -> None:
    attributes = [node for node in ast.walk(ast.parse(_PROGRAM.read_text())) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if ast.unparse(node.value) == module.__name__}
    assert set(module.__all__) - used == set()


def test_mypy_reads_the_program_as_it_is_meant() -> None:
    """No error where there is none, and one wherever the program says that it is wrong."""
    pytest.importorskip("mypy")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary"),
            *("--config-file", "", "--follow-imports", "silent"),
            *("--cache-dir", str(Path(".mypy_cache", "user_program")), str(_PROGRAM)),
        ],
        env={**os.environ, "MYPYPATH": str(_SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.stderr, run.returncode) == ("", "", 0)


def test_pyright_reads_it_likewise(tmp_path: Path) -> None:
    """In a copy, so that what is asked for is this program and these rules."""
    pytest.importorskip("basedpyright")
    program = tmp_path / "user_program.py"
    program.write_text(f"{_PROGRAM.read_text()}\n\nright: int = 1  # type: ignore\n")
    rules = {
        "include": [program.name],
        "extraPaths": [str(_SOURCE)],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(rules))
    run = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    told = json.loads(run.stdout)["generalDiagnostics"]
    lines = len(program.read_text().splitlines())
    assert [(each["range"]["start"]["line"] + 1, each["rule"]) for each in told] == [
        (lines, "reportUnnecessaryTypeIgnoreComment")
    ], told


def _public() -> Iterator[tuple[str, object]]:
    """What a framework may look at, by its name: functions, classes, and the methods and properties that are ours."""
    for module in (allswell, allswell.httpx, allswell.otel, allswell.testing):
        for name in getattr(module, "__all__", ["AsyncTransport"]):
            found = getattr(module, name)
            if not callable(found):
                continue
            yield f"{module.__name__}.{name}", found
            for member in dir(found) if isinstance(found, type) else ():
                each = inspect.getattr_static(found, member, None)
                each = each.fget if isinstance(each, property) else getattr(each, "__func__", each)
                if inspect.isfunction(each) and each.__module__.startswith("allswell"):
                    yield f"{module.__name__}.{name}.{member}", each


def test_annotations_can_be_evaluated() -> None:
    """As pydantic, FastAPI and others do. A name that is there for type checkers only is a NameError."""
    failed = {}
    for name, found in _public():
        try:
            typing.get_type_hints(found)
        except NameError as error:
            failed[name] = str(error)
    assert failed == {}


def test_annotations_are_what_they_say() -> None:
    assert typing.get_type_hints(allswell.QuicConfig)["store"] == allswell.QuicStore | None
    assert typing.get_type_hints(allswell.ConnectionPool.snapshot)["return"] is allswell.PoolSnapshot
    assert (
        typing.get_type_hints(allswell.AsyncClient.send)["auth"]
        == (typing.get_type_hints(httpx2.AsyncClient.send)["auth"])
    )
