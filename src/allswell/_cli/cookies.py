"""Cookie files in Netscape's format, which curl uses: a line for each cookie, with seven columns."""

from __future__ import annotations

import time
from collections.abc import Iterable
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from pathlib import Path

from allswell._cli.exits import Exit, Failed

_HEAD = "# Netscape HTTP Cookie File\n\n"
_HTTP_ONLY = "#HttpOnly_"


def jar(asked: Iterable[str], *, junk_session: bool, wanted: bool) -> tuple[CookieJar, str]:
    """Read what ``-b`` gives.

    :param asked: file names, and texts like ``name=value; name=value``.
    :param junk_session: leave out the session cookies of files.
    :param wanted: accept the servers' cookies also if no file is given.
    :return: the jar, with the cookies of the files; and the cookies that were given as text.
    """
    given = [each for each in asked if "=" in each]
    files = [each for each in asked if "=" not in each]
    made = CookieJar() if files or wanted else CookieJar(DefaultCookiePolicy(allowed_domains=()))
    for path in files:
        for cookie in _read(path):
            if not (junk_session and cookie.discard):
                made.set_cookie(cookie)
    return made, "; ".join(each.strip().rstrip(";") for each in given)


def _read(path: str) -> Iterable[Cookie]:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace") if path else ""
    except OSError:
        return  # as in curl, a file that does not exist is an empty jar
    for line in text.splitlines():
        http_only = line.startswith(_HTTP_ONLY)
        columns = line.removeprefix(_HTTP_ONLY).split("\t")
        if len(columns) != 7 or (line.startswith("#") and not http_only):
            continue
        domain, tail, folder, secure, until, name, value = columns
        expires = int(until) if until.isdecimal() and int(until) else None
        if expires is None or expires > time.time():
            yield _cookie(domain, tail == "TRUE", folder, secure == "TRUE", expires, name, value, http_only)


def _cookie(
    domain: str, tail: bool, folder: str, secure: bool, expires: int | None, name: str, value: str, http_only: bool
) -> Cookie:
    if "." not in domain:
        domain += ".local"  # http.cookiejar does so, too
    return Cookie(
        version=0,
        name=name,
        value=value,
        port=None,
        port_specified=False,
        domain=domain,
        domain_specified=tail,
        domain_initial_dot=domain.startswith("."),
        path=folder,
        path_specified=True,
        secure=secure,
        expires=expires,
        discard=expires is None,
        comment=None,
        comment_url=None,
        rest={"HttpOnly": ""} if http_only else {},
    )


def written(cookies: Iterable[Cookie]) -> str:
    """The text of a file with these cookies."""
    lines = []
    for cookie in cookies:
        if cookie.is_expired():
            continue
        domain = cookie.domain.removesuffix(".local")
        columns = [
            domain,
            "TRUE" if cookie.domain.startswith(".") else "FALSE",
            cookie.path,
            "TRUE" if cookie.secure else "FALSE",
            str(cookie.expires or 0),
            cookie.name,
            cookie.value or "",
        ]
        before = _HTTP_ONLY if cookie.has_nonstandard_attr("HttpOnly") else ""
        lines.append(before + "\t".join(columns) + "\n")
    return _HEAD + "".join(lines)


def save(cookies: Iterable[Cookie], path: str) -> str | None:
    """Write cookies to a file. For ``-`` return the text instead.

    :raises Failed: if the file cannot be written.
    """
    text = written(cookies)
    if path == "-":
        return text
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failed(Exit.WRITE, f"cannot write {path}: {error.strerror}") from error
    return None
