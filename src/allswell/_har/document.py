"""A recording in the format HAR 1.2: http://www.softwareishard.com/blog/har-12-spec/

Names that begin with ``_`` are our own, as the format allows. Times are in milliseconds. An unknown length is -1. So is
a time that does not apply, if it is ``blocked``, ``dns``, ``connect`` or ``ssl``; the other times are 0 then.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import httpx2

from allswell import _gzip
from allswell._errors import AllswellError
from allswell._fields import shown_url
from allswell._har.hops import Answer, Attempt, Heard, Hop, Made, Phase
from allswell._messages import Headers

#: This stands in place of a secret.
REDACTED = "[redacted]"
#: The fields whose value is a URL. Its query may have secrets.
_URLS = frozenset({"content-location", "location", "referer"})
#: How many bytes of content are decoded at a time.
_PORTION = 64 * 1024
#: Content with one of these is not taken for text: NUL, and surrogates, which UTF-8 cannot encode.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_FORM = "application/x-www-form-urlencoded"


class Secrets:
    """Hides what must not be shown.

    :param names: the names of header fields, query parameters, and fields of urlencoded forms. Case does not
        matter.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(name.lower() for name in names)

    def field(self, name: str, value: str) -> str:
        """The value of a header field, without secrets."""
        lower = name.lower()
        if lower in self._names:
            return REDACTED
        return self.url(value) if lower in _URLS else value

    def url(self, url: str) -> str:
        """A URL, without user name, password and fragment."""
        head, mark, query = shown_url(url).partition("#")[0].partition("?")
        return head + mark + self.form(query)

    def form(self, text: str) -> str:
        """A query or an urlencoded form, without the values that are secret."""
        return "&".join(self._pair(pair) for pair in text.split("&")) if self._names else text

    def _pair(self, pair: str) -> str:
        name, equals, _ = pair.partition("=")
        return f"{name}={REDACTED}" if equals and unquote_plus(name).lower() in self._names else pair


def entries(hop: Hop, secrets: Secrets, most: int) -> Iterator[tuple[float, dict[str, Any]]]:
    """The entries of a hop, one for each attempt, and when each began (seconds since the epoch).

    :param most: how many bytes of a body are shown.
    """
    first = hop.attempts[0].began
    for number, attempt in enumerate(hop.attempts, 1):
        began_at = hop.began_at + attempt.began - first
        timings = _timings(attempt)
        entry: dict[str, Any] = {
            "startedDateTime": datetime.fromtimestamp(began_at, UTC).isoformat(timespec="milliseconds"),
            "time": round(sum(each for name, each in timings.items() if each > 0 and name != "ssl"), 3),
            "request": _request(hop, attempt, secrets, most),
            "response": _response(attempt, secrets, most),
            "cache": {},
            "timings": timings,
        }
        if isinstance(attempt.peer, tuple):
            entry["serverIPAddress"], entry["_serverPort"] = attempt.peer
        if attempt.connection is not None:
            entry["connection"] = str(attempt.connection)
        if attempt.why:
            entry["_attempt"] = {"number": number, "why": attempt.why, "processed": attempt.processed}
        elif number > 1:
            entry["_attempt"] = {"number": number}
        yield began_at, entry


# --- Times, in milliseconds


def _milliseconds(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)


def _timings(attempt: Attempt) -> dict[str, float]:
    """How long each step took. A step that is not over ends with the last event of the attempt."""
    known = [attempt.began, attempt.sent_at, attempt.uploaded_at, attempt.answered_at, attempt.over_at]
    over = max(each for each in known if each is not None)
    sent = attempt.sent_at if attempt.sent_at is not None else over
    if attempt.sent_at is None and attempt.answer is not None:
        sent = attempt.began  # this transport has no event for it
    answered = attempt.answered_at if attempt.answered_at is not None else over
    uploaded = min(max(sent, attempt.uploaded_at or sent), answered)  # (the rest may go while the response comes)
    phases = _phases(attempt, sent)
    found = [each for each in phases if each.name == "dns"]
    made = [each for each in phases if each.name != "dns"]
    secured = [each for each in made if each.name in ("tls", "quic")]
    connecting = made[0].began if made else sent
    connected = max(each.ended for each in made) if made else sent
    looked = min(max(each.ended for each in found), connecting) - found[0].began if found else 0.0
    return {
        "blocked": _milliseconds(sent - attempt.began - max(0.0, looked) - (connected - connecting)),
        "dns": _milliseconds(looked) if found else -1,
        "connect": _milliseconds(connected - connecting) if made else -1,
        "ssl": _milliseconds(min(sum(each.ended - each.began for each in secured), connected - connecting))
        if secured
        else -1,
        "send": _milliseconds(uploaded - sent),
        "wait": _milliseconds(answered - uploaded),
        "receive": _milliseconds(over - answered),
    }


def _phases(attempt: Attempt, until: float) -> list[Phase]:
    """The phases of the dial of its connection, in order. There are none if the connection was not made for it.

    If several attempts raced, only the phases of the winner count. If there is no winner, all count.

    :param until: phases are cut at this instant.
    """
    made = attempt.made
    if made is None or (attempt.sent_at is not None and attempt.carried_by is not made):
        return []
    began = sorted((each for each in made.phases if each.began >= attempt.began), key=lambda each: each.began)
    if attempt.sent_at is None:
        return [each._replace(ended=min(each.ended, until)) for each in began]
    done = [each for each in began if not each.failed and each.ended <= until]
    if attempt.http_version == "HTTP/3":
        done = [each for each in done if each.name in ("dns", "quic", "proxy")]
    lowest = [each for each in done if each.name in ("tcp", "quic")]
    return [each for each in done if each.name not in ("tcp", "quic") or each is lowest[-1]]


def connections(numbered: Mapping[int, Made], used: Collection[int]) -> list[dict[str, Any]]:
    """The connections that requests went out on, and how they ended."""
    told = []
    for number, made in numbered.items():
        if number not in used:
            continue
        entry: dict[str, Any] = {"connection": str(number)}
        if made.opened is not None:
            entry |= {"layers": made.opened.layers, "httpVersion": made.opened.http_version, "tls": made.opened.tls}
        if made.end is not None:
            end = made.end
            layers = [
                {
                    "layer": each.layer,
                    "said": each.said,
                    "heard": each.heard,
                    "outcome": each.outcome.value,
                    "time": _milliseconds(each.seconds),
                }
                for each in end.layers
            ]
            entry["end"] = {"reason": end.reason, "clean": end.clean, "cut": end.cut, "layers": layers}
        told.append(entry)
    return told


# --- Heads


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _pairs(headers: Headers) -> list[tuple[str, str]]:
    return [(_text(name), _text(value)) for name, value in headers]


def _first(headers: Iterable[tuple[str, str]], name: str) -> str:
    return next((value for each, value in headers if each.lower() == name), "")


def _named(pairs: Iterable[tuple[str, str]], secrets: Secrets) -> list[dict[str, str]]:
    return [{"name": name, "value": secrets.field(name, value)} for name, value in pairs]


def _request(hop: Hop, attempt: Attempt, secrets: Secrets, most: int) -> dict[str, Any]:
    headers = _pairs(hop.headers)
    url = secrets.url(str(hop.url))
    body = attempt.upload if hop.content is None else Heard(most, hop.content)
    made: dict[str, Any] = {
        "method": hop.method,
        "url": url,
        "httpVersion": attempt.http_version,
        "cookies": _named_cookies(_first(headers, "cookie"), secrets),
        "headers": _named(headers, secrets),
        "queryString": [
            {"name": name, "value": value} for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True)
        ],
        "headersSize": -1,
        "bodySize": body.size,
    }
    if body.size:
        kind = _first(headers, "content-type")
        kept = bytes(body.kept[:most])
        text, encoding = _as_text(kept, kind, cut=len(kept) < body.size)
        if kind.partition(";")[0].strip().lower() == _FORM and not encoding:
            text = secrets.form(text)
        made["postData"] = {"mimeType": kind, "params": [], "text": text}
        if encoding:
            made["postData"]["_encoding"] = encoding
        if len(kept) < body.size:
            made["postData"]["comment"] = f"the first {len(kept)} of {body.size} bytes"
    return made


def _response(attempt: Attempt, secrets: Secrets, most: int) -> dict[str, Any]:
    answer = attempt.answer
    if answer is None:
        return {
            "status": 0,
            "statusText": "",
            "httpVersion": attempt.http_version,
            "cookies": [],
            "headers": [],
            "content": {"size": 0, "mimeType": ""},
            "redirectURL": "",
            "headersSize": -1,
            "bodySize": -1,
            "_error": attempt.error or attempt.why or "it had no response yet when the recording ended",
        }
    headers = _pairs(answer.headers)
    made: dict[str, Any] = {
        "status": answer.status,
        "statusText": _text(answer.reason),
        "httpVersion": answer.http_version,
        "cookies": [_set_cookie(value, secrets) for name, value in headers if name.lower() == "set-cookie"],
        "headers": _named(headers, secrets),
        "content": _content(attempt, answer, most),
        "redirectURL": secrets.url(_first(headers, "location")),
        "headersSize": -1,
        "bodySize": attempt.body.size if attempt.body is not None and not attempt.decoded else -1,
    }
    if attempt.error:
        made["_error"] = attempt.error
    return made


def _named_cookies(text: str, secrets: Secrets) -> list[dict[str, str]]:
    """The cookies of a request."""
    pairs = (each.strip().partition("=") for each in text.split(";") if each.strip())
    return [{"name": name, "value": secrets.field("cookie", value)} for name, _, value in pairs]


def _set_cookie(text: str, secrets: Secrets) -> dict[str, Any]:
    """A cookie that a response sets."""
    pair, *attributes = text.split(";")
    name, _, value = pair.strip().partition("=")
    made: dict[str, Any] = {"name": name, "value": secrets.field("set-cookie", value)}
    made |= {"httpOnly": False, "secure": False}
    for each in attributes:
        word, _, value = each.strip().partition("=")
        match word.lower():
            case "path" | "domain":
                made[word.lower()] = value
            case "expires" if (at := _instant(value)) is not None:
                made["expires"] = at.isoformat()
            case "httponly":
                made["httpOnly"] = True
            case "secure":
                made["secure"] = True
    return made


def _instant(text: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


# --- Bodies


def _content(attempt: Attempt, answer: Answer, most: int) -> dict[str, Any]:
    kind = _first(_pairs(answer.headers), "content-type")
    body = attempt.body
    if body is None:
        return {"size": 0, "mimeType": kind, "comment": "another attempt followed; the body is not recorded"}
    kept, remarks = bytes(body.kept[:most]), []
    shown, size, whole = kept, body.size, len(kept) == body.size
    coded = not attempt.decoded and any(name.lower() == b"content-encoding" for name, _ in answer.headers)
    if coded and kept:
        shown, more, coded = _decoded(answer, kept, most)
        size = len(shown) if coded else size
        whole = whole and not more
    made: dict[str, Any] = {"size": size, "mimeType": kind}
    if not whole:
        remarks.append(f"the first {len(shown)} bytes" + ("" if coded else f" of {size}"))
    if not body.whole:
        remarks.append("the rest was not read")
    text, encoding = _as_text(shown, kind, cut=not (whole and body.whole))
    if text:
        made["text"] = text
    if encoding:
        made["encoding"] = encoding
    if coded and whole and body.whole:
        made["compression"] = size - body.size
    if remarks:
        made["comment"] = "; ".join(remarks)
    return made


class _Source(httpx2.SyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self._content


def _decoded(answer: Answer, content: bytes, most: int) -> tuple[bytes, bool, bool]:
    """Decode content. Return its first bytes, whether there are more, and whether it could be decoded at all."""
    response = _gzip.Response(answer.status, headers=answer.headers, stream=_Source(content))
    found = bytearray()
    try:
        for piece in response.iter_bytes(_PORTION):
            found += piece
            if len(found) > most:
                return bytes(found[:most]), True, True
    except (httpx2.DecodingError, AllswellError):  # it was cut, or its coding is not the one that its field names
        return (bytes(found), True, True) if found else (content, True, False)
    return bytes(found), False, True


def _as_text(content: bytes, kind: str, *, cut: bool) -> tuple[str, str]:
    """Content as text for JSON, and the encoding of that text: ``"base64"``, or ``""`` for none."""
    charset = httpx2.Response(200, headers={"content-type": kind}).charset_encoding if kind.isascii() else None
    for each in dict.fromkeys((charset or "utf-8", "utf-8")):
        text = _in_charset(content, each, cut=cut)
        if text is not None:
            return text, ""
    return b64encode(content).decode("ascii"), "base64"


def _in_charset(content: bytes, charset: str, *, cut: bool) -> str | None:
    """Content as text; ``None`` if it is not text. The peer names the charset, so it may be any codec, or wrong.

    :param cut: whether the last character may be incomplete.
    """
    try:
        text = content.decode(charset)
    except UnicodeDecodeError as error:
        whole = content[: error.start]
        return _in_charset(whole, charset, cut=False) if cut and error.start >= len(content) - 4 else None
    except (LookupError, ValueError):
        return None
    return None if _NO_TEXT.search(text) else text
