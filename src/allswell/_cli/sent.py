"""The request that the options make: its method, URL, header fields and body."""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from getpass import getpass
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import anyio
import httpx2

from allswell._cli.arguments import Asked, with_scheme
from allswell._cli.exits import Exit, Failed
from allswell._cli.output import say
from allswell._fields import shown_url

Count = Callable[[int], None]

_PIECE = 64 * 1024
_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"

#: The media types that curl knows, by the suffixes of file names.
_TYPES = {
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".htm": "text/html",
    ".html": "text/html",
    ".pdf": "application/pdf",
    ".xml": "application/xml",
}


class Sent(NamedTuple):
    """All parts of a request.

    :ivar fields: its header fields.
    :ivar removed: the names of fields that must not be sent, in lower case.
    :ivar body: arguments of ``build_request`` for the body.
    :ivar size: the bytes of the body if it is a file; ``None`` if not, or if its size is not known.
    :ivar user: name and password, if they were given.
    :ivar form_type: the media type of a form, if it was given without a boundary.
    """

    method: str
    url: str
    fields: list[tuple[str, str]]
    removed: frozenset[str]
    body: dict[str, Any]
    size: int | None
    user: tuple[str, str] | None
    form_type: str | None


class FileBody:
    """A file as a body. It is read from its beginning each time. ``count`` gets the number of bytes that were sent."""

    def __init__(self, path: str, count: Count) -> None:
        self._path = path
        self._count = count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with open(self._path, "rb") as file:  # noqa: ASYNC230  # nothing else is to be done meanwhile
            while piece := file.read(_PIECE):
                yield piece
                self._count(len(piece))


async def _standard_input(count: Count) -> AsyncIterator[bytes]:
    read = cast(BufferedReader, sys.stdin.buffer).read1
    while piece := await anyio.to_thread.run_sync(read, _PIECE, abandon_on_cancel=True):
        yield piece
        count(len(piece))


def sent(asked: Asked, url: str, upload: str | None, count: Count, codings: str, files: ExitStack) -> Sent:
    """Make the request for one URL.

    :param upload: the file to upload; ``"-"`` for standard input; ``None`` for none.
    :param count: called with the number of bytes of an upload that were sent.
    :param codings: the content codings that we can decode.
    :param files: gets the open files of forms, to close them.
    :raises Failed: if a file cannot be read.
    :raises httpx2.InvalidURL: if the URL is not valid.
    """
    given, removed = _fields(asked.fields)
    names = {name.lower() for name, _ in given} | removed
    body, size, kind = _body(asked, upload, count, files)
    made = _url(asked, url, upload)
    user = None if asked.user is None else _user(asked.user)
    if user is None and made.userinfo:
        user = made.username, made.password
    fields: list[tuple[str, str]] = []
    if asked.bearer is not None:
        fields.append(("Authorization", f"Bearer {asked.bearer}"))
    elif user is not None and not asked.digest:
        fields.append(("Authorization", _basic(*user)))
    if asked.range is not None:
        fields.append(("Range", f"bytes={asked.range}"))
    if asked.agent:
        fields.append(("User-Agent", asked.agent))
    fields.append(("Accept", _JSON if asked.json else "*/*"))
    if asked.compressed:
        fields.append(("Accept-Encoding", codings))
    if asked.referer:
        fields.append(("Referer", asked.referer))
    if kind is not None:
        fields.append(("Content-Type", kind))
    if size is not None:
        fields.append(("Content-Length", str(size)))
    form_type = None
    if asked.form:
        types = [field for field in given if field[0].lower() == "content-type" and "boundary=" not in field[1].lower()]
        given = [field for field in given if field not in types]
        form_type = types[0][1] if types else None
    fields = [field for field in fields if field[0].lower() not in names] + given
    url = str(made.copy_with(userinfo=b"")) if made.userinfo else str(made)
    return Sent(_method(asked, upload), url, fields, frozenset(removed), body, size, user, form_type)


def _fields(lines: list[str]) -> tuple[list[tuple[str, str]], set[str]]:
    given, removed = [], set()
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            given.append((line.removesuffix(";").strip(), ""))
        elif value.strip():
            given.append((name.strip(), value.strip()))
        else:
            removed.add(name.strip().lower())
    return given, removed


def _method(asked: Asked, upload: str | None) -> str:
    if asked.method is not None:
        return asked.method
    if asked.head:
        return "HEAD"
    if upload is not None:
        return "PUT"
    return "POST" if asked.posts else "GET"


def _url(asked: Asked, given: str, upload: str | None) -> httpx2.URL:
    url = with_scheme(given)
    if asked.as_query and asked.data:
        url, hash_sign, fragment = url.partition("#")
        data = quote(asked.data, safe="!$%&'()*+,-./:;=?@[\\]^_`{|}~")
        joint = "" if url.endswith(("?", "&")) else "&" if "?" in url else "?"
        url += joint + data + hash_sign + fragment
    made = httpx2.URL(url)
    if made.scheme not in ("http", "https", ""):
        text = f"cannot request {shown_url(given)!r}: its scheme is {made.scheme!r}, not http or https"
        raise Failed(Exit.UNSUPPORTED, text)
    if not made.scheme or not made.host:
        raise Failed(Exit.URL, f"cannot request {shown_url(given)!r}: it has no host")
    path, question_mark, query = made.raw_path.partition(b"?")
    if upload not in (None, "-") and path.endswith(b"/"):
        name = quote(os.fsencode(Path(str(upload)).name), safe="").encode("ascii")
        made = made.copy_with(raw_path=path + name + question_mark + query)
    return made


def _user(given: str) -> tuple[str, str]:
    name, colon, password = given.partition(":")
    if not colon and sys.stdin.isatty():
        password = getpass(f"password of {name}: ")
    return name, password


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode("utf-8", "surrogateescape")).decode("ascii")


def _body(
    asked: Asked, upload: str | None, count: Count, files: ExitStack
) -> tuple[dict[str, Any], int | None, str | None]:
    """Arguments of ``build_request``; the body's size, if it is a file and the size is known; its media type."""
    if upload == "-":
        return {"content": _standard_input(count)}, None, None
    if upload is not None:
        return {"content": FileBody(upload, count)}, _size(upload), None
    if asked.form:
        say_ignored = _nothing if asked.silent else say
        return {"files": [_part(*each, files, say_ignored) for each in asked.form]}, None, None
    if asked.sends_data:
        return {"content": asked.data}, None, _JSON if asked.json else _FORM
    return {}, None, _JSON if asked.json else None


def _size(path: str) -> int | None:
    try:
        with open(path, "rb") as file:
            return file.seek(0, 2) if file.seekable() else None
    except OSError as error:
        raise Failed(Exit.READ, f"cannot read {path}: {error.strerror}") from error


def _part(
    name: str, content: str, literal: bool, files: ExitStack, ignored: Callable[[str], None]
) -> tuple[str, tuple[Any, ...]]:
    """One part of a form, as httpx2 takes it: the file's name, its content, its type."""
    if literal:
        return name, (None, content)
    sign = content[:1] if content.startswith(("@", "<")) else ""
    content, settings = _settings(content.removeprefix(sign), ignored)
    kind, file_name = settings.get("type"), settings.get("filename")
    if not sign:
        return name, (file_name, content, kind) if kind else (file_name, content)
    try:
        file = sys.stdin.buffer if content == "-" else files.enter_context(open(content, "rb"))  # noqa: SIM115
        content_of = file.read() if content == "-" or sign == "<" else file
    except OSError as error:
        raise Failed(Exit.READ, f"cannot read {content}: {error.strerror}") from error
    if sign == "@":
        file_name = Path(content).name if file_name is None else file_name
        kind = kind or _type(file_name) or _type(content) or "application/octet-stream"
    return name, (file_name, content_of, kind) if kind else (file_name, content_of)


def _type(path: str) -> str | None:
    return _TYPES.get(Path(path).suffix.lower())


#: A word in quotes, and what follows it up to the next semicolon.
_QUOTED = re.compile(r'\s*"((?:\\[\\"]|[^"])*+)"[^;]*', re.ASCII)
_SETTING = re.compile(r"\s*(type|filename|encoder|headers)=", re.ASCII | re.IGNORECASE)
_BLANKS = " \t\n\v\f\r"


def _settings(content: str, ignored: Callable[[str], None]) -> tuple[str, dict[str, str]]:
    """The content of a part, and its settings, as curl reads them: ``content;type=…;filename=…``.

    :raises Failed: for settings of curl that we do not have.
    """
    content, rest = _word(content)
    settings: dict[str, str] = {}
    last = ""
    while rest:
        match = _SETTING.match(rest, 1)
        if match is None:
            piece, semicolon, after = rest[1:].partition(";")
            if last == "type":  # a parameter of the media type
                settings["type"] += ";" + piece.rstrip(_BLANKS)
            elif piece.strip(_BLANKS):
                ignored(f"allswell: {piece.strip(_BLANKS)!r} is ignored: it is no setting of a part of a form")
            rest = semicolon + after
            continue
        last = match[1].lower()
        if last in ("encoder", "headers"):
            raise Failed(Exit.USAGE, f"the option -F has no setting {last!r}")
        value, rest = _word(rest[match.end() :])
        settings.setdefault(last, value)
    return content, settings


def _word(text: str) -> tuple[str, str]:
    """The text up to the next semicolon, or a text in quotes; and the rest."""
    quoted = _QUOTED.match(text)
    if quoted is not None:
        return re.sub(r'\\([\\"])', r"\1", quoted[1]), text[quoted.end() :]
    word, semicolon, rest = text.partition(";")
    return word.strip(_BLANKS), semicolon + rest


def _nothing(_: str) -> None:
    """Say nothing."""
