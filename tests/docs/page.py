"""Runs the Python snippets of one page, as its reader would: ``python -m tests.docs.page PAGE LOOP``.

They run from the top down in one namespace, so that each knows what those above it made. What a reader has anyway (a
client, a URL, the modules) is there from the start. A snippet that starts an event loop itself is a program of its own.

The process is to be started in a folder with the files that the snippets name, and with an environment in which every
HTTPS origin is reached through a proxy, which leads to a server of the test's. ``ORIGIN`` is that server's own URL.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import anyio

import allswell

_FENCE = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_RUNS_A_LOOP = re.compile(r"\b(anyio|asyncio|trio)\.run\(")
_MODULES = ("anyio", "asyncio", "hashlib", "httpx2", "ssl", "allswell")


class Snippet(NamedTuple):
    """One of a page.

    :ivar line: where it begins.
    """

    line: int
    code: str


def snippets(page: Path) -> Iterator[Snippet]:
    """Those of this page, from the top down."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        indent = len(found[1])
        code = "".join(line[indent:] for line in found[2].splitlines(keepends=True))
        yield Snippet(text.count("\n", 0, found.start(2)) + 1, code)


def _compiled(page: Path, snippet: Snippet, flags: int = 0) -> Any:
    """With the page's own line numbers, for tracebacks."""
    code = "\n" * (snippet.line - 1) + snippet.code
    return compile(code, str(page), "exec", flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


async def _pieces() -> AsyncIterator[bytes]:
    yield b"a body"


async def _run(page: Path, those: list[Snippet]) -> None:
    names: dict[str, Any] = {name: import_module(name) for name in _MODULES}
    async with allswell.AsyncClient() as client:
        names |= {"client": client, "url": os.environ["ORIGIN"], "pieces": _pieces, "__name__": page.stem}
        for snippet in those:
            running = eval(_compiled(page, snippet), names)  # the project's own page
            if running is not None:
                await running
        others = [each for each in names.values() if isinstance(each, allswell.AsyncClient | allswell.ConnectionPool)]
        for each in others:  # what a reader's program would leave, or close later on
            await each.aclose()


def packages(those: list[Snippet]) -> set[str]:
    """What they import."""
    found: set[str] = set()
    for snippet in those:
        for node in ast.walk(ast.parse(snippet.code)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


def main(page: Path, loop: str) -> None:
    """Run them all."""
    those = list(snippets(page))
    for snippet in those:
        if _RUNS_A_LOOP.search(snippet.code):
            exec(_compiled(page, snippet), {"__name__": "__main__"})  # the project's own page
    anyio.run(_run, page, [each for each in those if not _RUNS_A_LOOP.search(each.code)], backend=loop)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
