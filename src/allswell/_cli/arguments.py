"""The command line, read as curl reads it.

Options and URLs may come in any order. Short options may be put together (``-sSL``), and the last may have a value
(``-XPUT``, ``-o file``). The value of a long option is the next argument, or follows ``=``. ``--no-NAME`` undoes a
switch. After ``--`` there are only URLs.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from allswell import __version__
from allswell._cli.exits import Exit, Failed
from allswell._config import DEFAULT_GRACE


@dataclass(slots=True)
class Asked:
    """What the command line asks for.

    :ivar outputs: for each URL, in order: a path, or ``None`` for the name in the URL.
    :ivar fields: header fields as given: ``Name: value``; ``Name:`` to send none; ``Name;`` for an empty value.
    :ivar data: the body that ``-d``, ``--json`` and the other options for data make together.
    :ivar said: the output of ``--help`` or ``--version``, if one of these was given.
    """

    urls: list[str] = field(default_factory=list)
    outputs: list[str | None] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    data: bytes | None = None
    json: bool = False
    form: list[tuple[str, str, bool]] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    connect_to: list[tuple[str, str, str, str]] = field(default_factory=list)
    addresses: list[tuple[str, str, str, str]] = field(default_factory=list)

    method: str | None = None
    as_query: bool = False
    head: bool = False
    include: bool = False
    verbose: bool = False
    silent: bool = False
    show_error: bool = False
    bar: bool = False
    no_meter: bool = False
    fail: bool = False
    fail_with_body: bool = False
    fail_early: bool = False
    location: bool = False
    max_redirects: float = 50
    post301: bool = False
    post302: bool = False
    post303: bool = False
    trusted_location: bool = False
    compressed: bool = False
    insecure: bool = False
    cacert: str | None = None
    pins: str | None = None
    doh_url: str | None = None
    cert: str | None = None
    cert_type: str = "PEM"
    key: str | None = None
    password: str | None = None
    user: str | None = None
    digest: bool = False
    bearer: str | None = None
    proxy: str | None = None
    proxy_user: str | None = None
    proxy_insecure: bool = False
    no_proxy: str | None = None
    unix_socket: str | None = None
    agent: str = f"allswell/{__version__}"
    referer: str = ""
    auto_referer: bool = False
    cookie_jar: str | None = None
    junk_session: bool = False
    resume: str | None = None
    range: str | None = None
    target: str | None = None
    dump: str | None = None
    output_dir: str | None = None
    create_dirs: bool = False
    remote_name_all: bool = False
    write_out: str | None = None
    retry: float = 0
    retry_delay: float = 0
    retry_max_time: float = 0
    retry_refused: bool = False
    retry_all: bool = False
    max_time: float | None = None
    connect_timeout: float | None = None
    parallel: bool = False
    parallel_max: float = 50
    version: str | None = None
    ends: bool = False
    har: str | None = None
    grace: float = DEFAULT_GRACE
    said: str | None = None

    @property
    def sends_data(self) -> bool:
        """Whether data is the request's body."""
        return self.data is not None and not self.as_query

    @property
    def posts(self) -> bool:
        """Whether data or a form is the request's body."""
        return bool(self.form) or self.sends_data

    def has_field(self, name: str) -> bool:
        """Whether a header field of this name (in lower case) is given."""
        return any(line.partition(":")[0].rstrip("; ").lower() == name for line in self.fields)


class _Option(NamedTuple):
    names: str  # the letter, if it has one, and the word: "X request"
    value: str | None  # the name of its value in the help; None for a switch
    text: str
    act: Callable[[Asked, Any], None]


def _set(name: str, to: Any = None) -> Callable[[Asked, Any], None]:
    return lambda asked, value: setattr(asked, name, value if to is None or value is False else to)


def _number(name: str, least: float = 0.0, *, whole: bool = False) -> Callable[[Asked, Any], None]:
    def act(asked: Asked, value: str) -> None:
        try:
            if "_" in value or not value.isascii():  # Python takes more than curl does
                raise ValueError
            number = int(value) if whole else float(value)
        except ValueError:
            raise Failed(Exit.USAGE, f"{value!r} is not a {'whole ' if whole else ''}number") from None
        if not least <= number < math.inf:
            raise Failed(Exit.USAGE, f"{value!r} is out of range: the number must be finite, and at least {least:g}")
        setattr(asked, name, number)

    return act


def _add(name: str) -> Callable[[Asked, Any], None]:
    return lambda asked, value: getattr(asked, name).append(value)


def _several(name: str) -> Callable[[Asked, Any], None]:
    """A value, or ``@FILE`` with one value in each line."""

    def act(asked: Asked, value: str) -> None:
        if value.startswith("@"):
            lines = _content(value[1:]).decode("utf-8", "surrogateescape").splitlines()
            getattr(asked, name).extend(line for line in lines if line)
        else:
            getattr(asked, name).append(value)

    return act


def _data(kind: str) -> Callable[[Asked, Any], None]:
    def act(asked: Asked, value: str) -> None:
        piece = _encoded(value) if kind == "urlencode" else _piece(kind, value)
        joint = b"" if kind == "json" else b"&"
        asked.data = piece if asked.data is None else asked.data + joint + piece
        asked.json = asked.json or kind == "json"

    return act


def _piece(kind: str, value: str) -> bytes:
    if not value.startswith("@") or kind == "raw":
        return as_bytes(value)
    content = _content(value[1:])
    return content.translate(None, b"\r\n\0") if kind == "ascii" else content


def _encoded(value: str) -> bytes:
    """``content``, ``=content``, ``name=content``, ``@file``, ``name@file``."""
    at = value.find("=") if "=" in value else value.find("@")
    name, content = ("", as_bytes(value)) if at < 0 else (value[:at], as_bytes(value[at + 1 :]))
    if at >= 0 and value[at] == "@":
        content = _content(value[at + 1 :])
    encoded = quote_plus(content, safe="").encode("ascii")
    return as_bytes(name) + b"=" + encoded if name else encoded


def _content(path: str) -> bytes:
    """The content of a file, or of standard input for ``-``."""
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Failed(Exit.READ, f"cannot read {path}: {error.strerror}") from error


def _form(literal: bool) -> Callable[[Asked, Any], None]:
    def act(asked: Asked, value: str) -> None:
        name, equals, content = value.partition("=")
        if not equals:
            raise Failed(Exit.USAGE, "a part of a form must be NAME=CONTENT")  # (not shown: it may be a secret)
        asked.form.append((name, content, literal))

    return act


def _header(asked: Asked, value: str) -> None:
    if not value:
        return  # as in curl: a script may have a variable there
    _several("fields")(asked, value)
    for line in asked.fields:
        if ":" not in line and not line.endswith(";"):
            raise Failed(Exit.USAGE, "a header must be of the form 'Name: value'")  # (not shown: it may be a secret)


def _other_place(asked: Asked, value: str) -> None:
    """``HOST1:PORT1:HOST2:PORT2``. IPv6 addresses are in brackets."""
    parts = _parts(value)
    if len(parts) != 4 or not all(port == "" or port.isdecimal() for port in parts[1::2]):
        raise Failed(Exit.USAGE, f"{value!r} is not HOST1:PORT1:HOST2:PORT2")
    asked.connect_to.append((parts[0], parts[1], parts[2], parts[3]))


def _address(asked: Asked, value: str) -> None:
    """``HOST:PORT:ADDRESS``. Of several addresses, only the first is used."""
    parts = _parts(value.removeprefix("+"))
    if len(parts) < 3 or not parts[2]:
        raise Failed(Exit.USAGE, f"{value!r} is not HOST:PORT:ADDRESS")
    address = ":".join(parts[2:]).partition(",")[0].strip("[]")
    host = "" if parts[0] == "*" else parts[0]
    asked.addresses.append((host, parts[1], address, ""))


def _parts(value: str) -> list[str]:
    parts, inside = [""], False
    for letter in value:
        inside = letter == "[" or (inside and letter != "]")
        if letter == ":" and not inside:
            parts.append("")
        elif letter not in "[]":
            parts[-1] += letter
    return parts


def _format(asked: Asked, value: str) -> None:
    asked.write_out = _piece("ascii", value).decode("utf-8", "replace")


def _output(asked: Asked, value: str) -> None:
    if not value:
        raise Failed(Exit.USAGE, "the option -o requires the name of a file")
    asked.outputs.append(value)


def _range(asked: Asked, value: str) -> None:
    asked.range = value if "-" in value else f"{value}-"


def _referer(asked: Asked, value: str) -> None:
    asked.referer, auto, _ = value.partition(";auto")
    asked.auto_referer = bool(auto)


def _socks(scheme: str) -> Callable[[Asked, Any], None]:
    return lambda asked, value: setattr(asked, "proxy", f"{scheme}://{value}")


def _upload(asked: Asked, value: str) -> None:
    asked.uploads.append("-" if value == "." else value)


def _cert_type(asked: Asked, value: str) -> None:
    if value.upper() not in ("PEM", "P12"):
        raise Failed(Exit.USAGE, f"{value!r} is neither PEM nor P12")
    asked.cert_type = value.upper()


def _help(asked: Asked, _: object) -> None:
    asked.said = usage()


def _version(asked: Asked, _: object) -> None:
    from allswell._quic import native

    asked.said = f"allswell {__version__}{' with allswell-native' if native.loops is not None else ''}"


def _nothing(_: Asked, __: object) -> None:
    """Do nothing: this is the default."""


_OPTIONS = (
    _Option("X request", "METHOD", "the method, in place of the one that the other options choose", _set("method")),
    _Option("H header", "FIELD", "'Name: value'; 'Name:' to send none; 'Name;' for an empty one; @FILE", _header),
    _Option("d data", "DATA", "send a form; @FILE for a file's content without line ends", _data("ascii")),
    _Option("data-ascii", "DATA", "the same", _data("ascii")),
    _Option("data-raw", "DATA", "the same, but @ has no meaning", _data("raw")),
    _Option("data-binary", "DATA", "the same, but @FILE keeps line ends", _data("binary")),
    _Option("data-urlencode", "DATA", "the same, URL-encoded: NAME=DATA, NAME@FILE", _data("urlencode")),
    _Option("json", "DATA", "send JSON, and ask for JSON; @FILE", _data("json")),
    _Option("F form", "NAME=DATA", "a part of a multipart form; @FILE, <FILE; ;type=, ;filename=", _form(False)),
    _Option("form-string", "NAME=DATA", "the same, but @, < and ; have no meaning", _form(True)),
    _Option("G get", None, "send the data in the URL's query", _set("as_query")),
    _Option("T upload-file", "FILE", "send a file with PUT; - or . for standard input", _upload),
    _Option("I head", None, "ask for the head only, and show it", _set("head")),
    _Option("r range", "RANGE", "ask for a part, in bytes: 0-99", _range),
    _Option("C continue-at", "OFFSET", "continue a download there; - for the output file's size", _set("resume")),
    _Option("request-target", "TARGET", "the request target, in place of the URL's path and query", _set("target")),
    _Option("compressed", None, "ask for compressed content, and decode it", _set("compressed")),
    _Option("url", "URL", "a URL", _add("urls")),
    _Option("o output", "FILE", "write to a file: the first -o is for the first URL, and so on", _output),
    _Option("O remote-name", None, "write to a file named as in the URL", lambda asked, _: asked.outputs.append(None)),
    _Option("remote-name-all", None, "-O for all URLs", _set("remote_name_all")),
    _Option("output-dir", "FOLDER", "the folder of these files", _set("output_dir")),
    _Option("create-dirs", None, "make folders that are missing", _set("create_dirs")),
    _Option("i include", None, "write the response's head, too", _set("include")),
    _Option("D dump-header", "FILE", "write the heads of responses to a file; - for standard output", _set("dump")),
    _Option("v verbose", None, "show the heads of requests and responses on standard error", _set("verbose")),
    _Option("w write-out", "FORMAT", "write this at the end: '%{http_code} %{time_total}\\n'; @FILE", _format),
    _Option("s silent", None, "show no progress and no errors", _set("silent")),
    _Option("S show-error", None, "show errors in spite of -s", _set("show_error")),
    _Option("# progress-bar", None, "show progress as a simple bar, also without a terminal", _set("bar")),
    _Option("no-progress-meter", None, "show no progress", _set("no_meter")),
    _Option("f fail", None, "a status of 400 or more is an error; do not write its body", _set("fail")),
    _Option("fail-with-body", None, "the same, but write its body", _set("fail_with_body")),
    _Option("fail-early", None, "stop after the first URL that fails", _set("fail_early")),
    _Option("L location", None, "follow redirects", _set("location")),
    _Option("location-trusted", None, "the same, and send passwords to other hosts, too", _set("trusted_location")),
    _Option(
        "max-redirs", "N", "follow at most so many (50); -1 for any number", _number("max_redirects", -1, whole=True)
    ),
    _Option("post301", None, "keep the method POST after a redirect with 301", _set("post301")),
    _Option("post302", None, "after 302", _set("post302")),
    _Option("post303", None, "after 303", _set("post303")),
    _Option("A user-agent", "NAME", "send this as User-Agent; '' for none", _set("agent")),
    _Option("e referer", "URL", "send this as Referer; URL;auto: after redirects, their URL", _referer),
    _Option("b cookie", "DATA", "send cookies: 'a=1; b=2', or a file of cookies", _add("cookies")),
    _Option("c cookie-jar", "FILE", "write all cookies to a file at the end", _set("cookie_jar")),
    _Option("j junk-session-cookies", None, "ignore session cookies in files", _set("junk_session")),
    _Option("u user", "NAME:PASSWORD", "log in to the server", _set("user")),
    _Option("basic", None, "log in by Basic; the default", _nothing),
    _Option("digest", None, "log in by Digest", _set("digest")),
    _Option("oauth2-bearer", "TOKEN", "log in by a bearer token", _set("bearer")),
    _Option("x proxy", "URL", "use a proxy: http, https, socks5, socks5h", _set("proxy")),
    _Option("U proxy-user", "NAME:PASSWORD", "log in to the proxy", _set("proxy_user")),
    _Option("proxy-insecure", None, "accept any certificate of the proxy", _set("proxy_insecure")),
    _Option("socks5", "HOST:PORT", "use a SOCKS proxy", _socks("socks5")),
    _Option("socks5-hostname", "HOST:PORT", "the same, and let the proxy resolve names", _socks("socks5h")),
    _Option("noproxy", "HOSTS", "use no proxy for these hosts; * for all", _set("no_proxy")),
    _Option("unix-socket", "PATH", "connect to a Unix socket", _set("unix_socket")),
    _Option("resolve", "HOST:PORT:ADDRESS", "use this address for that host and port", _address),
    _Option("doh-url", "URL", "resolve names by DNS over HTTPS", _set("doh_url")),
    _Option("connect-to", "HOST1:PORT1:HOST2:PORT2", "connect to the second in place of the first", _other_place),
    _Option("k insecure", None, "accept any certificate", _set("insecure")),
    _Option("cacert", "FILE", "trust these certificates (PEM) and no others", _set("cacert")),
    _Option("pinnedpubkey", "HASHES", "accept only these keys: 'sha256//…;sha256//…'", _set("pins")),
    _Option("E cert", "FILE[:PASSWORD]", "show a client certificate", _set("cert")),
    _Option("cert-type", "TYPE", "the type of that file: PEM or P12", _cert_type),
    _Option("key", "FILE", "the certificate's private key", _set("key")),
    _Option("pass", "PASSWORD", "the key's password", _set("password")),
    _Option("m max-time", "SECONDS", "the limit for each URL, until its response was read", _number("max_time")),
    _Option("connect-timeout", "SECONDS", "the limit for making each connection", _number("connect_timeout")),
    _Option(
        "retry",
        "N",
        "try so often again, after timeouts and 408, 429, 500, 502, 503, 504",
        _number("retry", whole=True),
    ),
    _Option("retry-delay", "SECONDS", "pause before each retry; 1, 2, 4, … by default", _number("retry_delay")),
    _Option("retry-max-time", "SECONDS", "the limit for all retries together", _number("retry_max_time")),
    _Option("retry-connrefused", None, "retry after refused connections, too", _set("retry_refused")),
    _Option("retry-all-errors", None, "retry after any error", _set("retry_all")),
    _Option("Z parallel", None, "request all URLs at the same time", _set("parallel")),
    _Option("parallel-max", "N", "request at most so many at the same time (50)", _number("parallel_max", whole=True)),
    _Option("http1.1", None, "use HTTP/1.1 only", _set("version", "1.1")),
    _Option("http2", None, "use HTTP/2, or else HTTP/1.1; the default", _set("version", "2")),
    _Option("http2-prior-knowledge", None, "use HTTP/2 only, also without TLS", _set("version", "2only")),
    _Option("http3", None, "use HTTP/3, or else the others", _set("version", "3")),
    _Option("http3-only", None, "use HTTP/3 only", _set("version", "3only")),
    _Option("ends", None, "show on standard error how each layer of each connection ended", _set("ends")),
    _Option("har", "FILE", "record all requests and responses in a file (HAR 1.2), without passwords", _set("har")),
    _Option("grace", "SECONDS", f"the time for all goodbyes together ({DEFAULT_GRACE:g})", _number("grace")),
    _Option("h help", None, "show this", _help),
    _Option("V version", None, "show the version", _version),
    _Option("N no-buffer", None, "write each piece as it comes; the default", _nothing),
    _Option("g globoff", None, "{} and [] in URLs have no meaning; the default", _nothing),
    _Option("q disable", None, "read no configuration file; the default", _nothing),
)
_BY_NAME = {name: option for option in _OPTIONS for name in option.names.split()}
_BY_NAME |= {"http1": _BY_NAME["http1.1"], "buffer": _BY_NAME["no-buffer"]}


def parse(arguments: Sequence[str]) -> Asked:
    """Read the command line.

    :raises Failed: if it is wrong, or names a file that cannot be read.
    """
    asked = Asked()
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            asked.urls.extend(rest)
        elif argument.startswith("--"):
            _long(asked, argument[2:], rest)
        elif argument.startswith("-"):
            _short(asked, argument[1:], rest)
        else:
            asked.urls.append(argument)
        if asked.said is not None:
            return asked
    asked.location = asked.location or asked.trusted_location
    _check(asked)
    return asked


def _long(asked: Asked, argument: str, rest: Iterator[str]) -> None:
    name, equals, value = argument.partition("=")
    option = _BY_NAME.get(name) if len(name) > 1 else None
    if option is None and name.startswith("no-") and len(name) > 4:
        option = _BY_NAME.get(name[3:])
        if option is not None and option.value is None and not equals:
            return option.act(asked, False)
        option = None
    if option is None:
        raise Failed(Exit.USAGE, f"there is no option --{name}")
    if option.value is None:
        if equals:
            raise Failed(Exit.USAGE, f"the option --{name} takes no value")
        return option.act(asked, True)
    return option.act(asked, value if equals else _next(f"--{name}", rest))


def _short(asked: Asked, letters: str, rest: Iterator[str]) -> None:
    if not letters:
        raise Failed(Exit.USAGE, "there is no option -")
    while letters:
        letter, letters = letters[0], letters[1:]
        option = _BY_NAME.get(letter)
        if option is None:
            raise Failed(Exit.USAGE, f"there is no option -{letter}")
        if option.value is not None:
            return option.act(asked, letters or _next(f"-{letter}", rest))
        option.act(asked, True)
    return None


def _next(name: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise Failed(Exit.USAGE, f"the option {name} requires a value")
    return value


def _check(asked: Asked) -> None:
    if not asked.urls:
        raise Failed(Exit.USAGE, "the command line has no URL")
    if sum((asked.sends_data, bool(asked.form), bool(asked.uploads), asked.head)) > 1:
        raise Failed(Exit.USAGE, "-d, -F, -T and -I cannot be used together")
    if asked.resume is not None and (asked.uploads or not (asked.resume == "-" or asked.resume.isdecimal())):
        raise Failed(Exit.USAGE, "-C takes a number or -, and cannot be used with -T")


def as_bytes(text: str) -> bytes:
    """An argument as the system gave it."""
    return text.encode("utf-8", "surrogateescape")


def with_scheme(url: str) -> str:
    """A URL of the command line. If it has no scheme, it gets https."""
    return url if "://" in url else f"https://{url}"


def usage() -> str:
    """The text of ``--help``."""
    lines = ["usage: allswell [OPTION ...] URL ...", ""]
    lines += ["HTTP requests that end well. https:// is added to a URL without a scheme.", ""]
    for option in _OPTIONS:
        *letter, word = option.names.split()
        head = (f"-{letter[0]}, " if letter else "    ") + f"--{word}" + (f" {option.value}" if option.value else "")
        text = textwrap.wrap(option.text, 70)
        if len(head) < 30:
            lines.append(f"  {head:<30}{text[0]}")
        else:
            lines += [f"  {head}", f"  {'':<30}{text[0]}"]
        lines += [f"  {'':<30}{line}" for line in text[1:]]
    return "\n".join(lines)
