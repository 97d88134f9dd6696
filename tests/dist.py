"""Builds the distributions into dist/ and tries the wheel as a stranger would: ``make dist``.

``ARGS=--release`` also demands what only a release has: addresses, and a dated section of the changelog.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

from allswell import __version__

_ROOT = Path(__file__).parents[1]
_DIST = _ROOT / "dist"
#: What may lie at the wheel's top.
_TOP = {"allswell", "pytest_allswell.py", f"allswell-{__version__}.dist-info"}
_IN_WHEEL = {"allswell/py.typed", "allswell/__main__.py", f"allswell-{__version__}.dist-info/licenses/LICENSE"}
_IN_SDIST = {
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "Makefile",
    ".ci/run",
    "docs/index.md",
    "tests/dist.py",
}
#: Run in the empty environment, with every warning an error.
_PROGRAM = f"""
import asyncio, importlib.metadata, sys
import allswell
assert allswell.__version__ == importlib.metadata.version("allswell") == {__version__!r}
async def main():
    async with allswell.AsyncClient() as client:
        pass
    assert client.close_report.clean
    async with allswell.ConnectionPool(http3=True):
        pass
asyncio.run(main())
import allswell._backends.http3, allswell._filters.quic, allswell._quic.connection
extras = [name for name in ("dns", "rich", "trio", "httpx", "socksio", "opentelemetry") if name in sys.modules]
assert not extras, extras
"""


def main(*, release: bool) -> None:
    """Build and check, and say so.

    :raises SystemExit: with what is wrong.
    """
    shutil.rmtree(_DIST, ignore_errors=True)
    _python("-m", "build", "--no-isolation", "--outdir", str(_DIST), str(_ROOT))
    wheel, sdist = _only("*.whl"), _only("*.tar.gz")
    _python("-m", "twine", "check", "--strict", str(wheel), str(sdist))
    _look_into(wheel, sdist)
    _try(wheel)
    for lacking in _not_ready():
        if release:
            sys.exit(f"not ready for a release: {lacking}")
        print(f"for a release it lacks: {lacking}")
    print(f"{wheel.name} and {sdist.name} in dist/ are well")


def _look_into(wheel: Path, sdist: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    top = {name.partition("/")[0] for name in names}
    _demand(top == _TOP, f"the wheel has {sorted(top)} at its top")
    _demand(names >= _IN_WHEEL, f"the wheel lacks {_IN_WHEEL - names}")
    ours = {str(path.relative_to(_ROOT / "src")) for path in (_ROOT / "src/allswell").rglob("*.py")}
    _demand(names >= ours, f"the wheel lacks {ours - names}")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    _demand(names >= _IN_SDIST, f"the sdist lacks {_IN_SDIST - names}")


def _try(wheel: Path) -> None:
    """In an environment that has nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        _python("-m", "venv", folder)
        there = Path(folder, "Scripts" if sys.platform == "win32" else "bin")
        python = str(there / "python")
        _run(python, "-m", "pip", "install", "--quiet", str(wheel))
        _run(python, "-m", "pip", "check", "--quiet")
        _run(python, "-W", "error", "-X", "dev", "-c", _PROGRAM, cwd=folder)
        for command in ([str(there / "allswell")], [python, "-W", "error", "-m", "allswell"]):
            said = _run(*command, "--version", cwd=folder)
            _demand(said == f"allswell {__version__}\n", f"--version says {said!r}")


def _not_ready() -> list[str]:
    with (_ROOT / "pyproject.toml").open("rb") as file:
        urls = tomllib.load(file)["project"].get("urls")
    lacking = [] if urls else ["[project.urls] in pyproject.toml"]
    relative = re.findall(r"\]\((?!https?://|#)([^)]+)\)", (_ROOT / "README.md").read_text())
    if relative:
        lacking.append(f"absolute links in README.md, for PyPI's page, in place of {', '.join(relative)}")
    if not re.search(
        rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", (_ROOT / "CHANGELOG.md").read_text(), re.M
    ):
        lacking.append(f"a section of CHANGELOG.md for {__version__}, with its date")
    return lacking


def _only(pattern: str) -> Path:
    found = [*_DIST.glob(pattern)]
    _demand(len(found) == 1, f"{len(found)} files {pattern} in dist/")
    return found[0]


def _python(*arguments: str) -> None:
    _run(sys.executable, *arguments)


def _run(*command: str, cwd: str | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    _demand(done.returncode == 0, f"{' '.join(command[:4])} …\n{done.stdout}{done.stderr}")
    return done.stdout


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(otherwise)


if __name__ == "__main__":
    main(release="--release" in sys.argv[1:])
