"""The command beside curl: the same requests, the same bytes, the same exit status."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.curl_origin import BODY, Origin, curl_origin
from tests.support.forked import Forked, forked
from tests.support.servers import lacks

#: What is in the folder where both run.
_FILES = {
    "lines": b"one\r\ntwo\nthree\n",
    "data.txt": b"some text\n",
    "page.html": b"<p>",
    "odd.bin": b"\0\1\2",
    "part": BODY[:100],
    "whole": BODY,
    "fields": b"X-A: 1\nX-B: 2\n",
    "form.txt": b"%{http_code}\\n\n%{size_download}\\n\n",
    "odd #%?.txt": b"odd name\n",
    "a;b,c.txt": b"semicolon\n",
    "jar": b"# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tkept\tyes\n",
}

#: By name: arguments, with ORIGIN for its URL, CLOSED for one that nobody listens to. Standard input is "from stdin".
_CALLS: dict[str, list[str]] = {
    "plain": ["ORIGIN/a/b?c=d"],
    "dots": ["ORIGIN/a/./b/../c"],
    "fragment": ["ORIGIN/a#b"],
    "two URLs": ["ORIGIN/a", "ORIGIN/b"],
    "URL option": ["--url", "ORIGIN/a"],
    "-d": ["-d", "a=1", "ORIGIN/a"],
    "-d twice": ["-d", "a=1", "--data", "b=2&c", "ORIGIN/a"],
    "-d empty": ["-d", "", "ORIGIN/a"],
    "-d with a dash": ["-d", "-a", "ORIGIN/a"],
    "-d file": ["-d", "@lines", "ORIGIN/a"],
    "-d stdin": ["-d@-", "ORIGIN/a"],
    "-d with a type": ["-d", "a", "-H", "Content-Type: text/plain", "ORIGIN/a"],
    "--data-raw": ["--data-raw", "@lines", "ORIGIN/a"],
    "--data-binary": ["--data-binary", "@lines", "ORIGIN/a"],
    "--data-urlencode": [
        "--data-urlencode",
        "a=x y&é+~",
        "--data-urlencode",
        "=b c",
        "--data-urlencode",
        "d e",
        "ORIGIN/a",
    ],
    "--data-urlencode = before @": ["--data-urlencode", "a@b=c", "--data-urlencode", "d=@e", "ORIGIN/a"],
    "--data-urlencode files": ["--data-urlencode", "f@data.txt", "--data-urlencode", "@data.txt", "ORIGIN/a"],
    "--json": ["--json", '{"a":', "--json", " 1}", "ORIGIN/a"],
    "-G": ["-G", "-d", "a=1", "--data-urlencode", "b=x y", "ORIGIN/a?c=2"],
    "-G and --json": ["-G", "--json", "{}", "ORIGIN/a"],
    "-G and an empty query": ["-G", "-d", "a=1", "ORIGIN/a?"],
    "-G and -I": ["-G", "-I", "-d", "a=1", "ORIGIN/a"],
    "-F": ["-F", "a=text", "-F", "f=@data.txt", "-F", "g=@odd.bin;type=image/png;filename=other.png", "ORIGIN/a"],
    "-F more": [
        "-F",
        "a=<data.txt",
        "-F",
        "b=x;type=text/html",
        "--form-string",
        "c=@x;type=y",
        "-F",
        "d=@page.html",
        "ORIGIN/a",
    ],
    "-F quotes": ["-F", 'a"b=c', "-F", 'f=@data.txt;filename="x y.txt"', "ORIGIN/a"],
    "-F quoted": ["-F", 'a="x;y\\"z"', "-F", "b=x; type=text/plain", "-F", 'f=@"a;b,c.txt"', "ORIGIN/a"],
    "-F another name without a type": [
        "-F",
        "f=@page.html;filename=x",
        "-F",
        "g=@page.html;filename=x.txt",
        "ORIGIN/a",
    ],
    "-F unknown settings": ["-F", "a= x ;y=z", "-F", "b=x;y;type=text/html", "ORIGIN/a"],
    "-F type with a charset": [
        "-F",
        "a=x;type=text/plain; charset=utf-8",
        "-F",
        "f=@data.txt;type=text/plain;charset=utf-8;filename=y",
        "ORIGIN/a",
    ],
    "-F content from a file": ["-F", "f=<-", "-F", "g=<data.txt;type=text/html", "ORIGIN/a"],
    "-F and other blanks": ["-F", "a= \u00a0x\u2003 ", "-F", 'b= "\u00a0"', "ORIGIN/a"],
    "-F and a Content-Type": ["-F", "a=b", "-H", "Content-Type: multipart/form-data", "ORIGIN/a"],
    "-T": ["-T", "data.txt", "ORIGIN/up/"],
    "-T name": ["-T", "data.txt", "ORIGIN/up/name"],
    "-T stdin": ["-T", "-", "-H", "Expect:", "ORIGIN/up"],
    "-T odd name": ["-T", "odd #%?.txt", "ORIGIN/up%2Fup/?a=b"],
    "-T .": ["-T", ".", "-H", "Expect:", "ORIGIN/up"],
    "-T and -X": ["-T", "data.txt", "-X", "POST", "ORIGIN/up"],
    "-X": ["-X", "DELETE", "ORIGIN/a"],
    "-X in lower case": ["-X", "delete", "ORIGIN/a"],
    "-X with data": ["-XPATCH", "-da=1", "ORIGIN/a"],
    "-I": ["-I", "ORIGIN/body_of"],
    "-I and -X": ["-I", "-X", "GET", "ORIGIN/body_of"],
    "-I, -X and -f": ["-I", "-f", "-X", "GET", "ORIGIN/status/404"],
    "-i": ["-i", "ORIGIN/a"],
    "-i twice": ["-i", "ORIGIN/a", "ORIGIN/b"],
    "-iL": ["-iL", "ORIGIN/redirect/2"],
    "-H": ["-H", "X-A: 1", "-H", "x-b:2", "-H", "Accept:", "-H", "X-Empty;", "-H", "X-A: 3", "ORIGIN/a"],
    "-H not ASCII": ["-H", "X-A: é", "ORIGIN/a"],
    "-H empty": ["-H", "", "ORIGIN/a"],
    "-H file": ["-H", "@fields", "ORIGIN/a"],
    "-H Host": ["-H", "Host: example.org", "ORIGIN/a"],
    "-A": ["-A", "someone/1", "ORIGIN/a"],
    "-A none": ["-A", "", "ORIGIN/a"],
    "-e": ["-e", "http://before.example/", "ORIGIN/a"],
    "-e auto": ["-L", "-e", "http://before.example/;auto", "ORIGIN/redirect/2"],
    "-e auto and no URL": ["-L", "-e", ";auto", "ORIGIN/redirect/1"],
    "-u": ["-u", "ada:love:lace", "ORIGIN/a"],
    "user in the URL": ["http://ada:lovelace@127.0.0.1:PORT/a"],
    "--digest": ["--digest", "-u", "ada:lovelace", "ORIGIN/digest"],
    "--digest and -i": ["-i", "--digest", "-u", "ada:lovelace", "ORIGIN/digest"],
    "--oauth2-bearer and -u": ["-u", "ada:lovelace", "--oauth2-bearer", "token", "ORIGIN/a"],
    "--oauth2-bearer": ["--oauth2-bearer", "token", "ORIGIN/a"],
    "-b": ["-b", "a=1; b=2", "ORIGIN/a"],
    "-b and -H": ["-b", "a=1", "-H", "Cookie: b=2", "ORIGIN/a"],
    "-H Cookie and -L": ["-L", "-H", "Cookie: a=1", "ORIGIN/redirect/2"],
    "-H Cookie to another host": ["-L", "-H", "Cookie: a=1", "ORIGIN/redirect/1?to=http://localhost:PORT/x"],
    "-H Cookie and --location-trusted": [
        "--location-trusted",
        "-H",
        "Cookie: a=1",
        "ORIGIN/redirect/1?to=http://localhost:PORT/x",
    ],
    "-b file": ["-b", "jar", "ORIGIN/a"],
    "-b on redirects": ["-L", "-b", "a=1", "ORIGIN/redirect/1"],
    "-b engine": ["-b", "", "ORIGIN/cookies", "ORIGIN/a"],
    "no cookies": ["ORIGIN/cookies", "ORIGIN/a"],
    "-c -": ["-c", "-", "ORIGIN/cookies"],
    "-o": ["-o", "one", "ORIGIN/a", "-o", "two", "ORIGIN/b", "ORIGIN/c"],
    "-o fewer than URLs": ["-o", "one", "ORIGIN/a", "ORIGIN/b"],
    "-o empty name": ["-o", "", "ORIGIN/a"],
    "-o and -i": ["-i", "-o", "out", "ORIGIN/a"],
    "-o empty": ["-o", "out", "ORIGIN/empty"],
    "-o no folder": ["-o", "none/out", "ORIGIN/a"],
    "-o no folder, nothing to write": ["-o", "none/out", "ORIGIN/empty"],
    "--create-dirs": ["--create-dirs", "-o", "new/out", "ORIGIN/a"],
    "--output-dir": ["--output-dir", "new", "--create-dirs", "-O", "ORIGIN/dir/name?x"],
    "--output-dir and a path from the root": ["--output-dir", "new", "--create-dirs", "-o", "/dev/null", "ORIGIN/a"],
    "-O encoded": ["-O", "ORIGIN/dir/a%20b%2Fc?x"],
    "-O": ["-O", "ORIGIN/dir/name?x"],
    "-O and no URL": ["-O", "http://[::/name"],
    "-O without a name": ["-O", "ORIGIN/"],
    "--remote-name-all": ["--remote-name-all", "ORIGIN/one", "ORIGIN/two"],
    "-C -": ["-C", "-", "-o", "part", "ORIGIN/part"],
    "-C number": ["-C", "10200", "ORIGIN/part"],
    "-C complete": ["-C", "-", "-o", "whole", "ORIGIN/part"],
    "-C complete, no parts": ["-C", "-", "-o", "whole", "ORIGIN/body_of"],
    "-C no parts": ["-C", "-", "-o", "part", "ORIGIN/body_of"],
    "-C and another part": ["-C", "50", "-o", "part", "ORIGIN/fixed"],
    "-C and a huge part": ["-C", "50", "-o", "part", "ORIGIN/huge"],
    "-C and -I": ["-C", "5", "-I", "ORIGIN/a"],
    "-C error page": ["-C", "-", "-o", "part", "ORIGIN/status/404"],
    "-C error page and -f": ["-f", "-C", "-", "-o", "part", "ORIGIN/status/404"],
    "-C nothing there": ["-C", "-", "-o", "new", "ORIGIN/part"],
    "-r": ["-r", "5-9", "ORIGIN/part"],
    "-r one number": ["-r", "10190", "ORIGIN/part"],
    "-D": ["-D", "heads", "ORIGIN/a"],
    "-D -": ["-D", "-", "ORIGIN/a"],
    "--compressed": ["--compressed", "ORIGIN/gzip"],
    "packed": ["-H", "Accept-Encoding: gzip", "ORIGIN/gzip"],
    "redirect not followed": ["ORIGIN/redirect/1"],
    "-L": ["-L", "ORIGIN/redirect/3"],
    "-L POST 302": ["-L", "-d", "a=1", "ORIGIN/redirect/1"],
    "-L POST 301": ["-L", "-d", "a=1", "ORIGIN/redirect/1?status=301"],
    "-L POST 303": ["-L", "-d", "a=1", "ORIGIN/redirect/1?status=303"],
    "-L POST 307": ["-L", "-d", "a=1", "ORIGIN/redirect/2?status=307"],
    "-L POST 308": ["-L", "--json", "{}", "ORIGIN/redirect/1?status=308"],
    "-L PUT 302": ["-L", "-T", "data.txt", "ORIGIN/redirect/1"],
    "-L PUT 307": ["-L", "-T", "data.txt", "ORIGIN/redirect/1?status=307"],
    "-L PUT --post303": ["-L", "--post303", "-T", "data.txt", "ORIGIN/redirect/1?status=303"],
    "-L form 307": ["-L", "-F", "f=@data.txt", "ORIGIN/redirect/1?status=307"],
    "-L --post302": ["-L", "--post302", "-d", "a=1", "ORIGIN/redirect/1"],
    "-L and -X": ["-L", "-X", "POST", "-d", "a=1", "ORIGIN/redirect/1"],
    "-L, -X PUT and data": ["-L", "-X", "PUT", "-d", "a=1", "ORIGIN/redirect/2"],
    "-L, -X DELETE 303": ["-L", "-X", "DELETE", "ORIGIN/redirect/1?status=303"],
    "-L, -X GET and data": ["-L", "-X", "GET", "-d", "a=1", "ORIGIN/redirect/2"],
    "-L, -X GET and a form": ["-L", "-X", "GET", "-F", "a=1", "ORIGIN/redirect/1"],
    "-L, -X GET and data 307": ["-L", "-X", "GET", "-d", "a=1", "ORIGIN/redirect/1?status=307"],
    "-L and -I": ["-L", "-I", "ORIGIN/redirect/1"],
    "-L and -u": ["-L", "-u", "a:b", "ORIGIN/redirect/1"],
    "-L to another host": ["-L", "-u", "a:b", "ORIGIN/redirect/1?to=http://localhost:PORT/x"],
    "-L and --digest": ["-L", "--digest", "-u", "a:b", "ORIGIN/redirect/1?to=/digest"],
    "--location-trusted and --digest": [
        *("--location-trusted", "--digest", "-u", "a:b"),
        "ORIGIN/redirect/1?to=http://localhost:PORT/digest",
    ],
    "-e auto and -H": ["-L", "-e", ";auto", "-H", "Referer: mine", "ORIGIN/redirect/1"],
    "--max-redirs": ["-L", "--max-redirs", "2", "ORIGIN/redirect/3"],
    "--max-redirs just": ["-L", "--max-redirs", "3", "ORIGIN/redirect/3"],
    "-f": ["-f", "ORIGIN/status/404"],
    "-f with a file": ["-f", "-o", "out", "ORIGIN/status/500"],
    "-f good": ["-f", "ORIGIN/status/201"],
    "--fail-with-body": ["--fail-with-body", "ORIGIN/status/404"],
    "404": ["ORIGIN/status/404"],
    "204": ["ORIGIN/status/204"],
    "-w": ["-w", "%{http_code} %{response_code} %{num_redirects} %{size_download} %{content_type}|%%\\n", "ORIGIN/a"],
    "-w more": [
        "-w",
        "\\t%{method} %{scheme} %{url_effective} %{remote_ip} %{http_version} %{num_connects}",
        "ORIGIN/a",
    ],
    "-w header": ["-w", "%header{content-type} %{num_headers} %{urlnum} %{exitcode}", "ORIGIN/a"],
    "-w file": ["-w", "@form.txt", "ORIGIN/a"],
    "-w header twice": ["-w", "%header{set-cookie}", "ORIGIN/cookies"],
    "-w redirect": ["-w", "%{redirect_url}", "ORIGIN/redirect/1"],
    "-w and a full disk": ["-w", "%{http_code}", "-i", "-o", "/dev/full", "ORIGIN/a"],
    "-w failed": ["-w", "%{http_code} %{exitcode}", "CLOSED"],
    "-w upload": ["-w", "%{size_upload}", "-T", "data.txt", "ORIGIN/a"],
    "--retry": ["--retry", "3", "ORIGIN/soon/3"],
    "--retry with a file": ["--retry", "3", "-o", "out", "ORIGIN/soon/3"],
    "--retry in vain": ["--retry", "1", "-f", "ORIGIN/soon/9"],
    "--retry POST": ["--retry", "3", "-d", "a=1", "ORIGIN/soon/2"],
    "--retry no whole number": ["--retry", "1.5", "ORIGIN/a"],
    "--retry with a line": ["--retry", "1_0", "ORIGIN/a"],
    "--retry not for 404": ["--retry", "3", "-f", "ORIGIN/status/404"],
    "--request-target": ["--request-target", "*", "-X", "OPTIONS", "ORIGIN/a"],
    "--connect-to": ["--connect-to", "name.example:80:127.0.0.1:PORT", "http://name.example/a"],
    "--resolve": ["--resolve", "name.example:PORT:127.0.0.1", "http://name.example:PORT/a"],
    "--resolve IDNA": ["--resolve", "xn--bcher-kva.example:PORT:127.0.0.1", "http://bücher.example:PORT/a"],
    "--connect-to and --resolve": [
        *("--connect-to", "name.example:80:other.example:PORT", "--resolve", "other.example:PORT:127.0.0.1"),
        "http://name.example/a",
    ],
    "--resolve and --connect-to": [
        *("--resolve", "name.example:80:192.0.2.1", "--connect-to", "name.example:80:127.0.0.1:PORT"),
        "http://name.example/a",
    ],
    "-x": ["-x", "ORIGIN", "http://name.example/a"],
    "-x with a password": ["-x", "http://ada:lovelace@127.0.0.1:PORT", "http://name.example/a"],
    "-U": ["-x", "ORIGIN", "-U", "ada:lovelace", "http://name.example/a"],
    "--noproxy": ["-x", "http://127.0.0.1:1", "--noproxy", "127.0.0.1", "ORIGIN/a"],
    "--noproxy with blanks": ["-x", "http://127.0.0.1:1", "--noproxy", "a.example 127.0.0.1", "ORIGIN/a"],
    "-Z": ["-Z", "-o", "one", "ORIGIN/a", "-o", "two", "ORIGIN/a"],
    "--fail-early": ["--fail-early", "-f", "ORIGIN/status/404", "ORIGIN/a"],
    "-s": ["-sS", "ORIGIN/a"],
    "refused": ["CLOSED"],
    "no such host": ["http://no.such.host.invalid/"],
    "no such proxy": ["-x", "http://no.such.host.invalid:1/", "ORIGIN/a"],
    "empty reply": ["ORIGIN/silent"],
    "cut short": ["ORIGIN/cut"],
    "-m": ["-m", "0.3", "ORIGIN/stuck"],
    "-m 0": ["-m", "0", "ORIGIN/a"],
    "-m negative": ["-m", "-1", "ORIGIN/a"],
    "--max-redirs -1": ["-L", "--max-redirs", "-1", "ORIGIN/redirect/2"],
    "TLS to no TLS": ["https://127.0.0.1:PORT/"],
    "empty URL": [""],
    "blank before the URL": [" ORIGIN/a"],
    "no host": ["http://"],
    "lone dash": ["ORIGIN/a", "-"],
    "unknown option": ["--there-is-none", "ORIGIN/a"],
    "no value": ["ORIGIN/a", "-o"],
    "no URL": ["-s"],
    "two methods": ["-d", "a", "-F", "b=c", "ORIGIN/a"],
    "no such form file": ["-F", "f=@none", "ORIGIN/a"],
    "no such upload": ["-T", "none", "ORIGIN/a"],
    "port out of range": ["http://127.0.0.1:99999/"],
    "no such authorities": ["--cacert", "none", "https://127.0.0.1:PORT/"],
    "no such certificate": ["--cert", "none", "https://127.0.0.1:PORT/"],
    "several failures": ["ORIGIN/silent", "CLOSED"],
}

_STDIN = b"from stdin"


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with curl_origin() as made:
        yield made


@pytest.fixture(scope="module")
def ours() -> Iterator[Forked]:
    with forked({}) as made:
        yield made


def _folder(folder: Path, origin: Origin) -> None:
    origin.forget()
    folder.mkdir()
    for name, content in _FILES.items():
        (folder / name).write_bytes(content)


def _result(done: subprocess.CompletedProcess[bytes], folder: Path, origin: Origin) -> dict[str, Any]:
    written = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        "status": done.returncode,
        "out": _comparable(done.stdout),
        "requests": [_request(each) for each in origin.requests],
        "files": {name: _comparable(content) for name, content in written.items()},
    }


def _comparable(text: bytes) -> bytes:
    if b"HTTP Cookie File" in text:  # curl's comments, and its order
        text = b"\n".join(sorted(line for line in text.splitlines() if not line.startswith(b"# ") and line))
    return re.sub(rb"-{2,}[0-9a-f]{16,}|\b[0-9a-f]{32}\b", b"BOUNDARY", text)


def _request(request: dict[str, Any]) -> dict[str, Any]:
    """What matters of it: the name of the program, a boundary and what follows from it are each program's own."""
    fields: list[tuple[str, str]] = []
    for name, value in request["fields"]:
        if name == "user-agent" and re.fullmatch(r"(curl|allswell)/[\d.]+", value):
            value = "OURS"
        if name == "content-type" and "boundary=" in value:
            boundary = value.partition("boundary=")[2]
            request = {**request, "body": request["body"].replace(boundary.encode(), b"BOUNDARY")}
            request["body"] = request["body"].replace(b"--BOUNDARY", b"BOUNDARY").strip(b"-\r\n")
            value = value.replace(boundary, "BOUNDARY")
            fields = [field for field in fields if field[0] != "content-length"]
        if name == "authorization" and value.startswith("Digest"):
            value = "Digest"
        if name in ("proxy-connection", "expect"):  # curl alone sends them
            continue
        if name == "accept-encoding" and ", " in value:
            value = "gzip" if "gzip" in value else "none of them"
        if name == "cookie":
            value = "; ".join(sorted(value.split("; ")))
        fields.append((name, value))
    target = re.sub("%[0-9a-f]{2}", lambda match: match[0].upper(), request["target"])
    return {**request, "fields": fields, "target": target}


@pytest.fixture(scope="module")
def curl() -> str:
    found = shutil.which("curl")
    if found is None:
        lacks("curl is not installed")
    return found


@pytest.mark.parametrize("name", _CALLS)
def test_it_does_as_curl_does(
    name: str, curl: str, ours: Forked, origin: Origin, closed_port: int, tmp_path: Path
) -> None:
    closed = f"http://127.0.0.1:{closed_port}"
    places = {"ORIGIN": f"http://127.0.0.1:{origin.port}", "PORT": str(origin.port), "CLOSED": closed}
    arguments = [re.sub("ORIGIN|PORT|CLOSED", lambda match: places[match[0]], each) for each in _CALLS[name]]
    _folder(tmp_path / "theirs", origin)
    command = [curl, "--disable", "--no-progress-meter", *arguments]
    curled = subprocess.run(command, input=_STDIN, capture_output=True, timeout=60, cwd=tmp_path / "theirs")
    theirs = _result(curled, tmp_path / "theirs", origin)
    _folder(tmp_path / "ours", origin)
    done = ours.call(arguments, tmp_path / "ours", _STDIN, tmp_path)
    assert _result(done, tmp_path / "ours", origin) == theirs, (curled.stderr + done.stderr).decode()


def test_a_login_by_digest_stays_with_its_origin(ours: Forked, origin: Origin, tmp_path: Path) -> None:
    """As in curl, which asks the other origin twice, though: it is no row of the table."""
    _folder(tmp_path / "ours", origin)
    url = f"http://127.0.0.1:{origin.port}/redirect/1?to=http://localhost:{origin.port}/digest"
    done = ours.call(["-L", "--digest", "-u", "a:b", url], tmp_path / "ours", _STDIN, tmp_path)
    assert (done.returncode, done.stdout) == (0, b"who are you?")
    assert [each["target"] for each in origin.requests][1:] == ["/digest"]
    assert not any(name == "authorization" for each in origin.requests for name, _ in each["fields"])
