"""Whether the installed httpx2 is the one that the short ways (`_short.py`) were written for.

A short way does the work of one or more functions of httpx2. It is right only if those functions are the ones that it
was written after. So the hash of each one's source is listed here. If a release changes a function, all requests take
httpx2's own way, and ``tests/client/test_short.py`` names the function. Then read what changed, adapt the short way,
and enter the new hash. If httpx2 is installed without its sources, its version is compared instead.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import httpx2

#: The version that these hashes are of.
VERSION = "2.16.2"

#: By module and name: the hash of a function's source, or of a constant.
HASHES: dict[str, dict[str, str]] = {
    "httpx2._auth": {
        "Auth.async_auth_flow": "099af2acfd38",
        "Auth.auth_flow": "d834bbe2c4ef",
        "Auth.requires_request_body": "60a33e6cf515",
    },
    "httpx2._client": {
        "BaseClient.build_request": "d02f3d736b20",
        "BaseClient._merge_url": "7110fd60c19b",
        "BaseClient._merge_headers": "15b84d40aab1",
        "BaseClient._build_request_auth": "c444a14a705a",
        "AsyncClient.send": "5f97b3543501",
        "AsyncClient._send_handling_auth": "55c331fe0853",
        "AsyncClient._send_handling_redirects": "8e0566b87991",
        "AsyncClient._send_single_request": "eb7ef7d7d2d3",
        "AsyncClient.aclose": "1494cde5da7f",
        "AsyncClient.__aexit__": "f38dab4298ad",
        "BoundAsyncStream.__init__": "7134d4189316",
        "BoundAsyncStream.__aiter__": "80b3111ef016",
        "BoundAsyncStream.aclose": "827baff71ac1",
        "ClientState.OPENED": "add304b62734",
        "UseClientDefault": "8ea3beeabe7e",
        "logger.name": "855ea34a9ba0",
    },
    "httpx2._content": {
        "ByteStream.__init__": "f60fbc545c58",
        "ByteStream.__iter__": "68ad3a2344c8",
        "ByteStream.__aiter__": "8af6d34d7deb",
        "encode_request": "49c8bd85f01d",
    },
    "httpx2._decoders": {
        "ByteChunker.__init__": "c390c7f40ecb",
        "ByteChunker.decode": "2198ddf2b656",
        "ByteChunker.flush": "e563ad227364",
        "IdentityDecoder.decode": "cf2454f86de2",
        "IdentityDecoder.flush": "d721ec4e1b54",
    },
    "httpx2._exceptions": {
        "request_context": "669f2f0282fd",
    },
    "httpx2._models": {
        "_normalize_header_key": "c077e054ff04",
        "_normalize_header_value": "e7af60ff52d4",
        "Cookies.extract_cookies": "07ec7b3bc4a0",
        "Headers.__init__": "d60bb14196b3",
        "Headers.encoding": "2648dc000f40",
        "Headers.raw": "495cc30b927e",
        "Headers.keys": "c7729d69adaf",
        "Headers.update": "859502a700db",
        "Headers.__getitem__": "9b6550dd9d37",
        "Headers.__setitem__": "198a4c5d3c3a",
        "Headers.__delitem__": "8471d92d38e3",
        "Headers.__contains__": "7ac633c7e50c",
        "Request.__init__": "4e2073c6f69b",
        "Request._prepare": "08ecae52c8e4",
        "Request.read": "50d88baefde0",
        "Response.__init__": "efb93300e1cf",
        "Response.aclose": "ee0ffdf19098",
        "Response.aiter_bytes": "03d97f389f99",
        "Response.aiter_raw": "3e2386b7266b",
        "Response.aread": "adb1a0857a4a",
        "Response.has_redirect_location": "f1737dbdc2d6",
        "Response._get_content_decoder": "3803f460b5db",
    },
    "httpx2._urlparse": {
        "COMPONENT_REGEX": "0dc0e8a30c72",
        "MAX_URL_LENGTH": "0f255ec16482",
        "PATH_SAFE": "5f54a26c0775",
        "QUERY_SAFE": "6ff3ed604cd1",
        "UNRESERVED_CHARACTERS": "c35426e8e82f",
        "URL_REGEX": "0a86ec522365",
        "AUTHORITY_REGEX": "8c4b0e11a8d5",
        "IPv4_STYLE_HOSTNAME": "cd63c385f256",
        "ParseResult._fields": "79cb7adee672",
        "ParseResult.copy_with": "4bd41b9ec49c",
        "ParseResult.netloc": "ecf3f7f83f45",
        "urlparse": "851d33074191",
        "encode_host": "a67561d82c10",
        "normalize_port": "7907aea9281d",
        "validate_path": "debaa4056559",
        "normalize_path": "f3cf126241d3",
        "quote": "28a96f85c1fc",
        "percent_encoded": "91f1fe2b7c90",
    },
    "httpx2._urls": {
        "URL.__init__": "1cba2e70c6d7",
        "URL.copy_with": "c9e9c97398c8",
        "URL.is_absolute_url": "b5102e424619",
        "URL.is_relative_url": "2cb527fe6b47",
        "URL.raw_path": "34312fc11cc6",
    },
}


def find(module: str, name: str) -> Any:
    """The object that a module of httpx2 has under a (dotted) name; ``None`` if it has none."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def known() -> bool:
    """Whether the installed httpx2 is the one that the hashes are of."""
    try:
        return not any(True for _ in changed())
    except OSError:
        return httpx2.__version__ == VERSION and all(map(_is_whole, HASHES))


def changed() -> Iterator[tuple[str, str]]:
    """The names whose hash is not the listed one, each with the hash that it has.

    :raises OSError: if there are no sources.
    """
    sources: dict[str, list[bytes]] = {}
    for module, names in HASHES.items():
        for name, known_hash in names.items():
            found = _hash(module, name, sources)
            if found != known_hash:
                yield f"{module}.{name}", found


def _hash(module: str, name: str, sources: dict[str, list[bytes]]) -> str:
    found = find(module, name)
    code = _code(found)
    constant = getattr(found, "pattern", found)  # (the repr of a compiled regular expression is cut off)
    text = repr(constant).encode() if code is None else _source(code, sources)
    return hashlib.sha256(text).hexdigest()[:12]


@contextmanager
def _any() -> Iterator[None]:
    yield


#: The code of the wrapper that contextlib makes. The function is under it. (Other wrappers may be a tool's patch.)
_HELPER = _any.__code__


def _code(found: Any) -> CodeType | None:
    function = found.fget if isinstance(found, property) else found
    if getattr(function, "__code__", None) is _HELPER:
        function = getattr(function, "__wrapped__", None)
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _is_whole(module: str) -> bool:
    """Whether a module has all listed names, and all the functions among them are from one file: none is patched."""
    found = [find(module, name) for name in HASHES[module]]
    return None not in found and len({code.co_filename for code in map(_code, found) if code is not None}) == 1


def _source(code: CodeType, sources: dict[str, list[bytes]]) -> bytes:
    """A function's lines: up to the first line that is not indented deeper, without the blank lines at the end."""
    lines = sources.get(code.co_filename)
    if lines is None:
        with open(code.co_filename, "rb") as file:
            lines = sources[code.co_filename] = file.read().splitlines()
    start = code.co_firstlineno - 1
    depth = _depth(lines[start])
    end = start + 1
    while end < len(lines) and not lines[end - 1].lstrip().startswith((b"def ", b"async def ")):  # past its decorators
        end += 1
    while end < len(lines) and (
        not lines[end] or _depth(lines[end]) > depth or lines[end].lstrip().startswith(b")")  # its parameters' end
    ):
        end += 1
    return b"\n".join(lines[start:end]).rstrip()


def _depth(line: bytes) -> int:
    return len(line) - len(line.lstrip())
