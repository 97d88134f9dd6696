"""HAR files: what a recording tells of requests, and when and how it is written."""

from __future__ import annotations

import copy
import gzip
import json
import os
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx2
import pytest

import allswell
from allswell._clock import monotonic
from allswell._events import (
    ConnectionUsed,
    DialBegan,
    PhaseEnded,
    Place,
    RequestBegan,
    RequestSent,
    RequestSentBack,
    RequestWaits,
)
from allswell._fields import SIGNATURES
from allswell._har.document import Secrets, entries
from allswell._har.hops import Ear, Hop
from allswell._messages import RequestHead
from allswell.testing import Origin, Request, RequestExecuted, Response
from tests.support.har import faults

Spoken = Literal["h1", "h2", "h3"]
VERSIONS: dict[Spoken, str] = {"h1": "HTTP/1.1", "h2": "HTTP/2", "h3": "HTTP/3"}


def client_of(origin: Origin, **settings: Any) -> allswell.AsyncClient:
    http3: Literal["only", False] = "only" if origin.versions == {"h3"} else False
    return allswell.AsyncClient(verify=origin.client_context(), http3=http3, timeout=60, **settings)


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, which is valid."""
    har = json.loads(path.read_text(encoding="utf-8"))
    assert list(faults(har)) == []
    assert har["log"]["creator"] == {"name": "allswell", "version": allswell.__version__}
    entries: list[dict[str, Any]] = har["log"]["entries"]
    assert entries == sorted(entries, key=lambda each: str(each["startedDateTime"]))
    return entries


def contents(entries: list[dict[str, Any]]) -> list[str | None]:
    return [each["response"]["content"].get("text") for each in entries]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.har"


# --- What an entry tells


@pytest.mark.anyio
@pytest.mark.parametrize("spoken", VERSIONS)
async def test_an_entry_tells_all_of_a_request(spoken: Spoken, path: Path) -> None:
    def made(request: Request) -> Response:
        return Response(201, b"made", {"content-type": "text/plain", "x-seen": request.headers[0][0]})

    async with Origin({"/a": made}, versions=[spoken]) as origin, client_of(origin) as client:
        with client.har(path):
            await client.post(f"{origin.url}/a?x=1&y=&x=2#part", content=b"sent", headers={"content-type": "text/x"})
            await client.get(f"{origin.url}/a")
        first, second = read(path)
        assert first["request"]["method"] == "POST"
        assert first["request"]["url"] == f"{origin.url}/a?x=1&y=&x=2"
        pairs = [(each["name"], each["value"]) for each in first["request"]["queryString"]]
        assert pairs == [("x", "1"), ("y", ""), ("x", "2")]
        assert first["request"]["postData"] == {"mimeType": "text/x", "params": [], "text": "sent"}
        assert first["request"]["bodySize"] == 4
        assert "postData" not in second["request"]
        assert first["response"]["status"] == 201
        assert first["response"]["content"] == {"size": 4, "mimeType": "text/plain", "text": "made"}
        assert first["response"]["bodySize"] == 4
        for entry in (first, second):
            assert entry["request"]["httpVersion"] == entry["response"]["httpVersion"] == VERSIONS[spoken]
            assert entry["serverIPAddress"] == "127.0.0.1"
            assert entry["_serverPort"] == origin.port
        assert first["connection"] == second["connection"]
        assert 0 < first["timings"]["ssl"] <= first["timings"]["connect"]
        assert first["timings"]["dns"] > 0
        for each in ("dns", "connect", "ssl"):
            assert second["timings"][each] == -1  # it was there


def test_a_connection_that_another_request_got_is_not_counted() -> None:
    """One was made for it, and it went out on another that had room sooner."""
    ear, place = Ear(), Place("https://x.example", "https", "x.example", 443)
    request = httpx2.Request("GET", "https://x.example/")
    times: dict[int, float] = {}
    for used in (7, 8):
        hop, began = Hop(request, ear, 0), monotonic()
        with hop.current():
            ear.hear(RequestBegan(used, place, RequestHead(b"GET", b"https", b"x.example", b"/", [])))
        ear.hear(RequestWaits(used))
        ear.hear(DialBegan(7, place, used))
        ear.hear(PhaseEnded(7, "tcp", ("192.0.2.1", 443), began, monotonic() - began, None, ()))
        ear.hear(RequestSent(used, used, "HTTP/1.1", ("192.0.2.1", 443)))
        [(_, entry)] = entries(hop, Secrets(()), 0)
        times[used] = entry["timings"]["connect"]
    assert times[7] >= 0
    assert times[8] == -1


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_a_request_counts_as_sent_when_it_was(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes out as soon as there is a connection, before its task runs again; the next one has to be told."""
    now = 100.0
    monkeypatch.setattr("allswell._har.hops.monotonic", lambda: now)
    ear, place = Ear(), Place("https://x.example", "https", "x.example", 443)
    hops = []
    for used in (1, 2):
        hops.append(Hop(httpx2.Request("GET", "https://x.example/"), ear, 0))
        with hops[-1].current():
            ear.hear(RequestBegan(used, place, RequestHead(b"GET", b"https", b"x.example", b"/", [])))
        if used == 1:
            ear.hear(DialBegan(7, place, used))
            now += 1
            ear.hear(ConnectionUsed(7, True))
        now += 2
        ear.hear(RequestSent(used, 7, version, None))
        now += 4
        hops[-1].answered(httpx2.Response(200, content=b""))
        ear.hear(ConnectionUsed(7, False))
        now += 8
    first, second = (next(entries(hop, Secrets(()), 0))[1]["timings"] for hop in hops)
    assert (first["blocked"], first["wait"]) == (1000, 6000)
    assert (second["blocked"], second["wait"]) == (2000, 4000)


def test_a_pause_before_another_attempt_belongs_to_that_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("allswell._har.hops.monotonic", lambda: now)
    ear, place = Ear(), Place("https://x.example", "https", "x.example", 443)
    hop = Hop(httpx2.Request("GET", "https://x.example/"), ear, 0)
    with hop.current():
        ear.hear(RequestBegan(1, place, RequestHead(b"GET", b"https", b"x.example", b"/", [])))
    ear.hear(RequestSent(1, 7, "HTTP/2", None))
    now += 1
    ear.hear(RequestSentBack(1, "the server answered 503", 503, "perhaps", "HTTP/2"))
    now += 5
    ear.hear(RequestSent(1, 7, "HTTP/2", None))
    now += 2
    hop.answered(httpx2.Response(200, content=b""))
    (_, first), (_, second) = entries(hop, Secrets(()), 0)
    assert (first["timings"]["wait"], first["time"]) == (1000, 1000)
    assert (second["timings"]["blocked"], second["timings"]["wait"], second["time"]) == (5000, 2000, 7000)
    began, again = (datetime.fromisoformat(each["startedDateTime"]) for each in (first, second))
    assert (again - began).total_seconds() == 1


@pytest.mark.anyio
@pytest.mark.parametrize("spoken", VERSIONS)
async def test_connections_are_told_with_their_ends(spoken: Spoken, path: Path) -> None:
    async with Origin(versions=[spoken]) as origin:
        client = client_of(origin)
        with client.har(path) as har:
            async with client:
                await client.get(origin.url)
                [made] = har.as_dict()["log"]["_connections"]
                assert "end" not in made
        assert client.close_report is not None
        [end] = client.close_report.connections
        [made] = json.loads(path.read_text())["log"]["_connections"]
        [entry] = read(path)
        assert made["connection"] == entry["connection"]
        assert made["httpVersion"] == VERSIONS[spoken]
        told = [(each["layer"], each["said"], each["heard"], each["outcome"]) for each in made["end"]["layers"]]
        assert told == [(each.layer, each.said, each.heard, each.outcome.value) for each in end.layers]
        assert made["end"]["clean"] is True
        assert made["tls"] == ("" if spoken == "h3" else "TLSv1.3")


@pytest.mark.anyio
async def test_without_tls_there_is_no_ssl(path: Path) -> None:
    async with Origin(versions=["h1"], tls=False) as origin, allswell.AsyncClient() as client:
        with client.har(path):
            await client.get(origin.url)
            await client.get(origin.url.replace("127.0.0.1", "localhost"))
        first, second = read(path)
        for entry in (first, second):
            assert entry["timings"]["connect"] >= 0
            assert entry["timings"]["ssl"] == -1
        assert first["connection"] != second["connection"]


@pytest.mark.anyio
@pytest.mark.parametrize("spoken", ["h2", "h3"])
async def test_each_attempt_is_an_entry(spoken: Spoken, path: Path) -> None:
    """A refused one tells why another followed, and that the server did not process it."""
    async with Origin(versions=[spoken]) as origin, client_of(origin) as client:
        origin.refuse(2)
        with client.har(path):
            response = await client.post(origin.url, content=b"once")
        entries = read(path)
        assert [each["response"]["status"] for each in entries] == [0, 0, 200]
        ledger = [(each.why, each.processed) for each in response.extensions["attempts"]]
        told = [(each["_attempt"]["why"], each["_attempt"]["processed"]) for each in entries[:2]]
        assert told == ledger
        assert [each["_attempt"]["number"] for each in entries] == [1, 2, 3]
        assert [each["request"]["postData"]["text"] for each in entries] == ["once"] * 3
        assert all(entry["response"]["_error"].endswith(why) for entry, (why, _) in zip(entries, ledger, strict=False))


@pytest.mark.anyio
async def test_retries_that_the_caller_asked_for_are_entries(path: Path) -> None:
    statuses = iter([503, 421, 200])

    def answer(_: Request) -> Response:
        return Response(next(statuses), b"x")

    retry = allswell.Retry(backoff=0.001)
    async with Origin({"/": answer}, versions=["h1"]) as origin, client_of(origin, retry=retry) as client:
        with client.har(path):
            response = await client.get(f"{origin.url}/")
    entries = read(path)
    assert [each["response"]["status"] for each in entries] == [503, 421, 200]
    assert [each["_attempt"].get("processed") for each in entries] == ["perhaps", "declined", None]
    assert [each["_attempt"].get("why") for each in entries[:2]] == [
        each.why for each in response.extensions["attempts"]
    ]
    assert entries[1]["connection"] != entries[2]["connection"]  # 421 asks for another one


@pytest.mark.anyio
async def test_failed_attempts_to_connect_are_entries(path: Path, closed_port: int) -> None:
    async with allswell.AsyncClient(retry=allswell.Retry(attempts=2, backoff=0.001)) as client:
        with client.har(path), pytest.raises(httpx2.ConnectError):
            await client.get(f"http://127.0.0.1:{closed_port}/")
    first, second = read(path)
    assert first["_attempt"]["processed"] == "no"
    for entry in (first, second):
        assert entry["response"]["status"] == 0
        assert "refused" in entry["response"]["_error"]
        assert entry["request"]["httpVersion"] == ""
        assert entry["timings"]["connect"] >= 0
        assert "connection" not in entry


@pytest.mark.anyio
async def test_redirects_and_steps_of_auth_are_entries(path: Path) -> None:
    def guarded(request: Request) -> Response:
        if any(name == "authorization" for name, _ in request.headers):
            return Response(302, headers={"location": "/there?x=1"})
        challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
        return Response(401, b"who?", {"www-authenticate": challenge})

    routes: dict[str, Any] = {"/": guarded, "/there": Response(body=b"here")}
    async with Origin(routes, versions=["h1"]) as origin, client_of(origin, follow_redirects=True) as client:
        with client.har(path):
            await client.get(f"{origin.url}/", auth=httpx2.DigestAuth("user", "secret"))
    entries = read(path)
    assert [each["response"]["status"] for each in entries] == [401, 302, 200]
    assert [each["response"]["redirectURL"] for each in entries] == ["", "/there?x=1", ""]
    assert contents(entries) == ["who?", None, "here"]
    assert len({each["connection"] for each in entries}) == 1


# --- Bodies


@pytest.mark.anyio
async def test_content_is_decoded(path: Path) -> None:
    text = "häuser " * 1000
    zipped = gzip.compress(text.encode("utf-8"))
    routes = {
        "/zip": Response(200, zipped, {"content-encoding": "gzip", "content-type": "text/plain; charset=utf-8"}),
        "/latin": Response(200, "é".encode("latin-1"), {"content-type": "text/plain; charset=latin-1"}),
        "/png": Response(200, b"\x89PNG\0", {"content-type": "image/png"}),
        "/odd": Response(200, b"\xff", {"content-type": "text/plain; charset=no-such"}),
        "/lie": Response(200, b"not zipped", {"content-encoding": "gzip"}),
    }
    async with Origin(routes, versions=["h1"]) as origin, client_of(origin) as client:
        with client.har(path):
            for each in ("/zip", "/latin", "/png", "/odd"):
                await client.get(origin.url + each)
            with pytest.raises(httpx2.DecodingError):
                await client.get(f"{origin.url}/lie")
    unzipped, latin, png, odd, lie = (each["response"]["content"] for each in read(path))
    assert unzipped["text"] == text
    assert unzipped["size"] == len(text.encode("utf-8"))
    assert unzipped["compression"] == unzipped["size"] - len(zipped)
    assert latin["text"] == "é"
    assert (png["text"], png["encoding"], png["size"]) == ("iVBORwA=", "base64", 5)
    assert (odd["text"], odd["encoding"]) == ("/w==", "base64")
    assert lie["text"] == "not zipped"


@pytest.mark.anyio
async def test_bodies_are_recorded_up_to_a_limit(path: Path) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    routes = {
        "/long": Response(200, "ü".encode() * 500),
        "/bomb": Response(200, bomb, {"content-encoding": "gzip"}),
    }
    async with Origin(routes, versions=["h2"]) as origin, client_of(origin) as client:
        with client.har(path, max_body=101) as har:
            assert (await client.post(f"{origin.url}/long", content=b"0123456789" * 20)).text == "ü" * 500
        with client.har(path.with_name("bomb"), max_body=len(bomb)) as second:
            async with client.stream("GET", f"{origin.url}/bomb") as response:
                async for _ in response.aiter_raw():
                    pass
    [entry] = read(path)
    assert entry["response"]["content"]["text"] == "ü" * 50  # no half of a letter
    assert entry["response"]["content"]["size"] == entry["response"]["bodySize"] == 1000
    assert entry["response"]["content"]["comment"] == "the first 101 bytes of 1000"
    assert entry["request"]["postData"]["text"] == "0123456789" * 10 + "0"
    assert entry["request"]["bodySize"] == 200
    assert har.as_dict()["log"]["entries"] == [entry]
    [entry] = second.as_dict()["log"]["entries"]
    assert entry["response"]["content"]["size"] == len(bomb)
    assert entry["response"]["content"]["comment"] == f"the first {len(bomb)} bytes"


@pytest.mark.anyio
async def test_a_stream_is_recorded_as_far_as_it_is_read(path: Path) -> None:
    body = bytes(range(65, 91)) * 40_000
    async with Origin({"/": Response(body=body)}, versions=["h2"]) as origin, client_of(origin) as client:
        with client.har(path):
            async with client.stream("GET", f"{origin.url}/") as response:
                assert origin.record.of(RequestExecuted)
            async with client.stream("GET", f"{origin.url}/") as response, aclosing(response.aiter_raw()) as some:
                read_in_part = await anext(some)
            async with client.stream("GET", f"{origin.url}/") as response:
                pieces = [piece async for piece in response.aiter_raw()]
            assert b"".join(pieces) == body
            assert len(pieces) > 1
    unread, in_part, whole = (each["response"] for each in read(path))
    assert (unread["bodySize"], unread["content"]["comment"]) == (0, "the rest was not read")
    assert "text" not in unread["content"]
    assert in_part["content"]["text"].encode() == read_in_part
    assert in_part["content"]["comment"] == "the rest was not read"
    assert whole["bodySize"] == len(body)


@pytest.mark.anyio
async def test_a_body_that_is_cut_is_an_error_with_what_came(path: Path) -> None:
    async with Origin({"/": Response(body=b"0123456789")}, versions=["h1"]) as origin, client_of(origin) as client:
        origin.truncate()
        with client.har(path), pytest.raises(httpx2.RemoteProtocolError):
            await client.get(f"{origin.url}/")
    [entry] = read(path)
    assert entry["response"]["status"] == 200
    assert entry["response"]["_error"].startswith("RemoteProtocolError: ")
    assert entry["response"]["content"]["text"] == "01234"


@pytest.mark.anyio
@pytest.mark.parametrize("spoken", VERSIONS)
async def test_uploads_are_recorded_as_they_are_sent(spoken: Spoken, path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one, "
        yield b"two"

    received: list[bytes] = []

    def take(request: Request) -> Response:
        received.append(request.body)
        return Response()

    async with Origin({"/": take}, versions=[spoken]) as origin, client_of(origin) as client:
        with client.har(path):
            await client.post(f"{origin.url}/", content=pieces())
            await client.post(f"{origin.url}/", files={"file": ("name", b"\0\xff")}, data={"a": "b"})
    streamed, form = (each["request"] for each in read(path))
    assert (streamed["postData"]["text"], streamed["bodySize"]) == ("one, two", 8)
    assert form["postData"]["_encoding"] == "base64"
    assert form["bodySize"] == len(received[1])
    assert received[0] == b"one, two"


# --- Secrets


async def _secretive(origin: Origin, path: Path, **options: Any) -> str:
    async with client_of(origin, cookies={"c": "cookie-secret"}) as client:
        with client.har(path, **options):
            url = origin.url.replace("://", "://user:basic-secret@")
            await client.post(
                f"{url}/?Access_Token=query-secret&other=shown",
                headers={"Proxy-Authorization": "proxy-secret", "X-API-Key": "key-secret"},
                data={"password": "form-secret", "also": "shown-too"},
            )
    read(path)
    return path.read_text()


SECRETS = ["dXNlcjpiYXNpYy1zZWNyZXQ=", "cookie-", "set-", "query-", "proxy-", "key-", "form-", "location-"]


@pytest.mark.anyio
async def test_secrets_are_left_out(path: Path) -> None:
    headers = {
        "set-cookie": "s=set-secret; Secure",
        "location": "https://u:p-secret@x.example/?token=location-secret#x",
    }
    async with Origin({"/": Response(200, b"shown", headers)}, versions=["h1"]) as origin:
        text = await _secretive(origin, path)
        for each in SECRETS:
            assert (each if "=" in each else f"{each}secret") not in text
        assert "secret" not in text
        for each in ("shown", "other=shown", "shown-too", '"name": "c"', '"name": "s"', "Access_Token"):
            assert each in text
        text = await _secretive(origin, path, redact=())
        for each in SECRETS:
            assert (each if "=" in each else f"{each}secret") in text
        assert "basic-secret@" not in text
        assert "p-secret@" not in text
        text = await _secretive(origin, path, redact=["x-api-key"])
        assert "key-secret" not in text
        assert "cookie-secret" in text


@pytest.mark.anyio
@pytest.mark.parametrize(
    "url",
    [
        "ftp://u:a-secret@x.example/?x=a-secret#a-secret",
        "http://u:a-secret@x.example:99999/?x=a-secret",
        "x://h?x=a-secret",
    ],
)
async def test_errors_do_not_tell_of_queries_and_passwords(url: str, path: Path) -> None:
    async with allswell.AsyncClient() as client:
        with client.har(path, redact=["x"]), pytest.raises(httpx2.TransportError) as raised:
            await client.get(url)
    [entry] = read(path)
    assert "cannot request" in entry["response"]["_error"]
    for text in (path.read_text(), str(raised.value)):
        assert "a-secret" not in text


@pytest.mark.anyio
@pytest.mark.parametrize("name", sorted(SIGNATURES))
async def test_signatures_of_urls_are_left_out(name: str, path: Path) -> None:
    async with Origin() as origin, client_of(origin) as client:
        with client.har(path):
            await client.get(f"{origin.url}/?a=b&{name.upper()}=a-secret")
    [entry] = read(path)
    assert "a-secret" not in path.read_text()
    assert {"name": "a", "value": "b"} in entry["request"]["queryString"]


# --- The file


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("charset", "content"),
    [
        ("undefined", b"abc"),
        ("unicode_escape", rb"a\ud800"),
        ("utf-7", b"+2AA-"),
        ("no-such", b"abc"),
        ("utf-16", b"abc"),
        ("idna", b"xn--a\xff.."),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
async def test_no_charset_that_a_server_names_harms_the_file(
    charset: str, content: bytes, cut: bool, path: Path
) -> None:
    headers = {"content-type": f"text/plain; charset={charset}"}
    async with Origin({"/": Response(200, content, headers)}) as origin, client_of(origin) as client:
        with client.har(path, max_body=len(content) - cut):
            await client.get(f"{origin.url}/")
    [entry] = read(path)
    shown = entry["response"]["content"]
    if shown.get("encoding") == "base64":
        assert b64decode(shown["text"]) == content[: len(content) - cut]


@pytest.mark.anyio
async def test_an_error_may_have_any_text(path: Path) -> None:
    class Failing(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            raise OSError("no file \udcff")  # as Python shows names of files that are not UTF-8

    async with allswell.AsyncClient(transport=Failing()) as client:
        with client.har(path), pytest.raises(OSError, match="no file"):
            await client.get("http://example.org/")
    [entry] = read(path)
    assert entry["response"]["_error"] == "OSError: no file \udcff"


@pytest.mark.anyio
async def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    async with Origin() as origin, client_of(origin) as client:
        for path, error in ((tmp_path / "none" / "file.har", FileNotFoundError), (tmp_path, IsADirectoryError)):
            with pytest.raises(error), client.har(path):
                await client.get(origin.url)
        with pytest.raises(TypeError, match="collection of names"), client.har(tmp_path / "x", redact="cookie"):
            await client.get(origin.url)
        with pytest.raises(ValueError, match="max_body"), client.har(tmp_path / "x", max_body=-1):
            await client.get(origin.url)
        assert origin.requests == []
        await client.get(origin.url)  # and nothing is left of it
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_it_is_written_also_when_the_block_fails(path: Path) -> None:
    path.write_text("as before")
    async with Origin(versions=["h2"]) as origin, client_of(origin) as client:

        async def fails() -> None:
            with client.har(path):
                await client.get(origin.url)
                assert path.read_text() == "as before"
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fails()
        assert contents(read(path)) == ["ok"]
        origin.stall()
        async with anyio.create_task_group() as tasks:

            async def asked() -> None:
                with client.har(path):
                    await client.get(f"{origin.url}/stalled")

            tasks.start_soon(asked)
            await origin.seen(RequestExecuted, 2)
            tasks.cancel_scope.cancel()
        [entry] = read(path)
        assert entry["response"]["status"] == 200 or entry["response"]["_error"] == "cancelled"
        assert "cancelled" in entry["response"]["_error"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.anyio
async def test_what_is_under_way_at_the_end_is_told(path: Path) -> None:
    routes = {"/": Response(204)}
    async with Origin(routes) as origin, client_of(origin) as client, anyio.create_task_group() as tasks:
        origin.stall()  # before its head: there is no body
        with client.har(path):
            tasks.start_soon(client.get, f"{origin.url}/")
            await origin.seen(RequestExecuted)
        [entry] = read(path)
        assert entry["response"]["_error"] == "it had no response yet when the recording ended"
        origin.behave()


@pytest.mark.anyio
async def test_a_write_that_fails_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("as before")

    def full(*_: object) -> None:
        raise OSError("no space left")

    async with Origin() as origin, client_of(origin) as client:
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space left"), client.har(path):
            await client.get(origin.url)
    assert path.read_text() == "as before"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.anyio
async def test_a_link_and_a_device_stay_what_they_are(tmp_path: Path) -> None:
    link, device = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "there")
    os.mkfifo(device)
    reader = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    async with Origin() as origin, client_of(origin) as client:
        with client.har(link), client.har(device):
            await client.get(origin.url)
    assert link.is_symlink()
    assert contents(read(tmp_path / "there")) == ["ok"]
    assert device.is_fifo()
    assert json.loads(os.read(reader, 1 << 20))["log"]["version"] == "1.2"
    os.close(reader)


@pytest.mark.anyio
async def test_blocks_may_overlap_and_each_has_its_own(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    routes = {f"/{each}": Response(body=b"%d" % each) for each in range(4)}
    async with Origin(routes) as origin, client_of(origin) as client, client_of(origin) as other:
        first, second = client.har(outer, max_body=0), client.har(inner, redact=())
        with first:
            await client.get(f"{origin.url}/0", headers={"cookie": "a=b"})
            second.__enter__()
            await client.get(f"{origin.url}/1", headers={"cookie": "a=b"})
            await other.get(f"{origin.url}/0")
        await client.get(f"{origin.url}/2")
        second.__exit__(None, None, None)
        await client.get(f"{origin.url}/3")
    assert [each["request"]["url"][-1] for each in read(outer)] == ["0", "1"]
    assert [each["request"]["url"][-1] for each in read(inner)] == ["1", "2"]
    assert contents(read(outer)) == [None, None]
    assert contents(read(inner)) == ["1", "2"]
    assert "[redacted]" in outer.read_text()
    assert "[redacted]" not in inner.read_text()


@pytest.mark.anyio
async def test_requests_side_by_side(path: Path) -> None:
    async with Origin(versions=["h2"]) as origin, client_of(origin) as client:
        with client.har(path):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(client.get, f"{origin.url}/{number}")
    entries = read(path)
    assert {each["request"]["url"].rpartition("/")[2] for each in entries} == {str(number) for number in range(20)}
    assert len({each["connection"] for each in entries}) == 1
    assert sum(each["timings"]["connect"] >= 0 for each in entries) == 1  # the others waited for it


# --- What stands beside it


@pytest.mark.anyio
async def test_another_clients_requests_on_the_same_pool_are_not_recorded(path: Path) -> None:
    """Their attempts and connections are not mixed up, though each pool tells both of all."""
    async with Origin(versions=["h2"]) as origin:
        context = origin.client_context()
        pool = allswell.ConnectionPool(ssl_context=context)
        async with allswell.AsyncClient(pool=pool) as client, allswell.AsyncClient(pool=pool) as other:
            origin.refuse(1)
            with client.har(path), other.har(path.with_name("other")):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.get, f"{origin.url}/one")
                    tasks.start_soon(other.get, f"{origin.url}/other")
            assert not pool.observers.functions
    entries, others = read(path), read(path.with_name("other"))
    assert {each["request"]["url"] for each in entries} == {f"{origin.url}/one"}
    assert {each["request"]["url"] for each in others} == {f"{origin.url}/other"}
    assert sorted((len(entries), len(others))) == [1, 2]


@pytest.mark.anyio
async def test_the_callers_trace_hears_the_same(path: Path) -> None:
    async def heard(with_recording: bool) -> list[str]:
        names: list[str] = []

        async def trace(name: str, _: object) -> None:
            names.append(name)

        async with client_of(origin) as client:
            request = client.build_request("GET", origin.url, extensions={"trace": trace})
            if with_recording:
                with client.har(path):
                    response = await client.send(request)
            else:
                response = await client.send(request)
            assert response.request.extensions["trace"] is trace
        return names

    async with Origin(versions=["h2"]) as origin:
        assert await heard(True) == await heard(False)


@pytest.mark.anyio
async def test_a_transport_of_others_is_recorded_too(path: Path, trusting: ssl.SSLContext) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/fails":
            raise httpx2.ReadTimeout("too late")
        return httpx2.Response(200, text="mocked")

    async with Origin({"/": Response(body=b"theirs")}, versions=["h1"]) as origin:
        theirs = httpx2.AsyncHTTPTransport(verify=origin.client_context())
        mounts = {"all://mocked.example": httpx2.MockTransport(answer), "all://localhost": theirs}
        async with allswell.AsyncClient(mounts=mounts, verify=trusting) as client:
            with client.har(path):
                assert (await client.get("https://mocked.example/")).text == "mocked"
                with pytest.raises(httpx2.ReadTimeout):
                    await client.get("https://mocked.example/fails")
                await client.get(f"{origin.url}/")
    mocked, failed, real = read(path)
    assert mocked["response"]["content"]["text"] == "mocked"
    assert failed["response"]["_error"] == "ReadTimeout: too late"
    assert real["response"]["content"]["text"] == "theirs"
    assert real["timings"]["connect"] >= real["timings"]["ssl"] > 0
    assert real["serverIPAddress"] == "127.0.0.1"


@pytest.mark.anyio
async def test_nothing_is_in_between_without_a_recording() -> None:
    async with Origin() as origin, client_of(origin) as client:
        url = httpx2.URL(origin.url)
        assert client._transport_for_url(url) is client._transport


# --- The schema


BROKEN: dict[str, Callable[[Any], object]] = {
    "log.version is missing": lambda log: log.pop("version"),
    "log.pages is missing": lambda log: log.pop("pages"),
    "log.extra is not of the format": lambda log: log.update(extra=1),
    "entries[0].startedDateTime is no instant": lambda log: log["entries"][0].update(
        startedDateTime="2026-01-01T00:00"
    ),
    "entries[0].timings.wait is no number": lambda log: log["entries"][0]["timings"].update(wait=-1),
    "entries[0].time is": lambda log: log["entries"][0].update(time=1e9),
    "does not include ssl": lambda log: log["entries"][0]["timings"].update(ssl=1e9),
    "entries[0].response.status is no whole": lambda log: log["entries"][0]["response"].update(status="200"),
    "entries[0].request.headers[0].value is no text": lambda log: log["entries"][0]["request"]["headers"][0].update(
        value=None
    ),
    "entries[0].request.url is no url": lambda log: log["entries"][0]["request"].update(url="/"),
}


@pytest.mark.anyio
async def test_a_file_that_is_not_as_the_format_has_it_is_seen(path: Path) -> None:
    async with Origin() as origin, client_of(origin) as client:
        with client.har(path):
            await client.get(origin.url)
    har = json.loads(path.read_text())
    assert list(faults(har)) == []
    for fault, spoil in BROKEN.items():
        spoiled = copy.deepcopy(har)
        spoil(spoiled["log"])
        assert any(fault in each for each in faults(spoiled)), fault
