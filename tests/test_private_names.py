"""Every private name of a library that is used stands in a list, and a canary says what it must be.

Private is what begins with one underscore. A name that none of our files defines is a library's. In files that go into
a library's inner works, a name may be defined here (an override) and be the library's all the same: there each name
that the library has too must stand in the list.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import allswell
from tests.backends import test_h11_canary as h11_canary
from tests.backends import test_hpack_canary as hpack_canary
from tests.client import test_httpx2_canary as httpx2_canary
from tests.client import test_otel as otel_canary
from tests.quic import test_canary as aioquic_canary
from tests.support.private_names import defined, of_imports, of_library, used

_SOURCE = Path(allswell.__file__).parent
_FILES = {str(path.relative_to(_SOURCE)): path.read_text() for path in sorted(_SOURCE.rglob("*.py"))}
_OWN = frozenset().union(*map(defined, _FILES.values()))

#: By library: the files that go into its inner works (by the beginnings of their names), and the list of its canary.
_LIBRARIES: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "aioquic": (("_quic/",), aioquic_canary.NAMES),
    "h11": (("_backends/http1",), h11_canary.NAMES),
    "h2": (("_backends/http2",), set()),
    "hpack": (("_backends/http2",), hpack_canary.NAMES),
    "httpx2": (
        ("_cli/client.py", "_client.py", "_gzip.py", "_patched.py", "_shapes.py", "_short.py", "_transport.py"),
        httpx2_canary.NAMES,
    ),
    "opentelemetry.context": (("otel.py",), otel_canary.NAMES),
}

#: Names of our own classes, which inherit nothing there. That the library has such a name too means nothing.
_OURS = {
    "_backends/http1.py": {"_length", "_reader"},
    "_backends/http2.py": {"_receive_frame"},
    "_client.py": {"_close", "_pool"},
    "_transport.py": {"_body", "_request", "_response"},
}

#: Names of Python's own that are documented, or in ``__all__``.
_PYTHON = {
    "_Decompress",  # for annotations
    "_get_running_loop",
    "_replace",
    "_typeshed",  # for annotations
}


def _listed(file: str) -> set[str]:
    lists = (names for files, names in _LIBRARIES.values() if file.startswith(files))
    return _PYTHON.union(*lists)


@pytest.mark.parametrize("file", _FILES)
def test_names_that_nothing_here_defines_are_listed(file: str) -> None:
    found = {name: line for name, line in used(_FILES[file]).items() if name not in _OWN | _listed(file)}
    assert found == {}


@pytest.mark.parametrize("file", _FILES)
def test_names_of_imported_modules_and_classes_are_listed(file: str) -> None:
    """Of any package, and of Python's own modules; though a name of ours may be the same."""
    assert {name: line for name, line in of_imports(_FILES[file]).items() if name not in _listed(file)} == {}


def test_a_name_of_an_imported_module_is_found() -> None:
    source = "import anyio\nfrom ssl import SSLContext as Context\nanyio.abc._x\nContext._y(self._z)\n"
    assert of_imports(source) == {"_x": 3, "_y": 4}


@pytest.mark.parametrize("library", _LIBRARIES)
def test_names_that_a_library_has_too_are_listed(library: str) -> None:
    files, names = _LIBRARIES[library]
    found = {
        (file, name, line)
        for file, source in _FILES.items()
        if file.startswith(files)
        for name, line in used(source).items()
        if name in of_library(library) - names - _OURS.get(file, set())
    }
    assert found == set()


@pytest.mark.parametrize("library", _LIBRARIES)
def test_the_lists_have_nothing_that_is_not_used(library: str) -> None:
    files, names = _LIBRARIES[library]
    everything = set().union(*(used(source) for file, source in _FILES.items() if file.startswith(files)))
    assert names - everything == set()


def test_they_are_found() -> None:
    source = """
import library._a
from library._b import c, _d
from allswell._ours import _function

class Inner(library.Base):
    _plain = 1
    def _e(self): ...
    def f(self):
        self._g, other._h = library._i(self._j), getattr(self, "_k")
"""
    assert set(used(source)) == {"_a", "_b", "_d", "_e", "_g", "_h", "_i", "_j", "_k"}
    assert defined(source) == {"_e", "_g", "_plain"}
