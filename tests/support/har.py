"""HAR 1.2 as its specification says it (http://www.softwareishard.com/blog/har-12-spec/), and a check against it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

_OPTIONAL = "?"
#: By object: its members, each with what it holds. A name that ends with "?" may be missing; "x[]" is a list of x.
SCHEMA: dict[str, dict[str, str]] = {
    "har": {"log": "log"},
    "log": {
        "version": "text",
        "creator": "creator",
        "browser?": "creator",
        "pages": "page[]",  # optional by the specification; Firefox reads no file without
        "entries": "entry[]",
        "comment?": "text",
    },
    "creator": {"name": "text", "version": "text", "comment?": "text"},
    "page": {"startedDateTime": "instant", "id": "text", "title": "text", "pageTimings": "pageTimings"},
    "pageTimings": {"onContentLoad?": "known", "onLoad?": "known", "comment?": "text"},
    "entry": {
        "pageref?": "text",
        "startedDateTime": "instant",
        "time": "number",
        "request": "request",
        "response": "response",
        "cache": "cache",
        "timings": "timings",
        "serverIPAddress?": "text",
        "connection?": "text",
        "comment?": "text",
    },
    "request": {
        "method": "text",
        "url": "url",
        "httpVersion": "text",
        "cookies": "cookie[]",
        "headers": "pair[]",
        "queryString": "pair[]",
        "postData?": "postData",
        "headersSize": "size",
        "bodySize": "size",
        "comment?": "text",
    },
    "response": {
        "status": "whole",
        "statusText": "text",
        "httpVersion": "text",
        "cookies": "cookie[]",
        "headers": "pair[]",
        "content": "content",
        "redirectURL": "text",
        "headersSize": "size",
        "bodySize": "size",
        "comment?": "text",
    },
    "cookie": {
        "name": "text",
        "value": "text",
        "path?": "text",
        "domain?": "text",
        "expires?": "instant",
        "httpOnly?": "bool",
        "secure?": "bool",
        "comment?": "text",
    },
    "pair": {"name": "text", "value": "text", "comment?": "text"},
    "postData": {"mimeType": "text", "params": "param[]", "text": "text", "comment?": "text"},
    "param": {"name": "text", "value?": "text", "fileName?": "text", "contentType?": "text", "comment?": "text"},
    "content": {
        "size": "whole",
        "compression?": "whole",
        "mimeType": "text",
        "text?": "text",
        "encoding?": "text",
        "comment?": "text",
    },
    "cache": {},
    "timings": {
        "blocked?": "known",
        "dns?": "known",
        "connect?": "known",
        "send": "number",
        "wait": "number",
        "receive": "number",
        "ssl?": "known",
        "comment?": "text",
    },
}


def _is(kind: str, value: Any) -> bool:
    """Whether it is one of these simple things. (A bool is no number.)"""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "text":
            return isinstance(value, str)
        case "bool":
            return isinstance(value, bool)
        case "number":
            return number and value >= 0
        case "known":  # or it does not apply
            return number and (value >= 0 or value == -1)
        case "whole":
            return number and isinstance(value, int)
        case "size":
            return number and isinstance(value, int) and value >= -1
        case "instant":  # ISO 8601, with its zone
            return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
        case "url":
            return isinstance(value, str) and "://" in value and "#" not in value
    raise AssertionError(kind)


def faults(value: Any, kind: str = "har", where: str = "har") -> Iterator[str]:
    """What is not as the specification has it."""
    if kind.endswith("[]"):
        if not isinstance(value, list):
            yield f"{where} is no list"
            return
        for number, each in enumerate(value):
            yield from faults(each, kind.removesuffix("[]"), f"{where}[{number}]")
        return
    members = SCHEMA.get(kind)
    if members is None:
        if not _is(kind, value):
            yield f"{where} is no {kind}: {value!r}"
        return
    if not isinstance(value, dict):
        yield f"{where} is no object"
        return
    known = {name.removesuffix(_OPTIONAL): of for name, of in members.items()}
    yield from (f"{where}.{name} is missing" for name in members if not name.endswith(_OPTIONAL) and name not in value)
    for name, each in value.items():
        if name in known:
            yield from faults(each, known[name], f"{where}.{name}")
        elif not name.startswith("_"):
            yield f"{where}.{name} is not of the format, and has no _"
    if kind == "entry" and not list(faults(value.get("timings"), "timings", "")):
        yield from _times(value, where)


def _times(entry: Any, where: str) -> Iterator[str]:
    timings = entry["timings"]
    total = sum(value for name, value in timings.items() if name not in ("ssl", "comment") and value > 0)
    if abs(total - entry.get("time", -1)) > 0.01:
        yield f"{where}.time is {entry.get('time')}, and its parts are {total}"
    if timings.get("ssl", -1) > timings.get("connect", -1):
        yield f"{where}.timings.connect does not include ssl"
