"""The command's client, made from the options."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping, Sequence
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import httpx2

from allswell._cli.arguments import Asked, with_scheme
from allswell._cli.exits import Exit, Failed
from allswell._cli.output import Output
from allswell._client import AsyncClient
from allswell._client_certificate import ClientCertificate
from allswell._dial.dns_over_https import DnsOverHttps
from allswell._events import Event, PhaseEnded
from allswell._fields import no_url
from allswell._filters.keylog import new_context
from allswell._given import as_host
from allswell._pool.pool import ConnectionPool
from allswell._report import ConnectionEnd
from allswell._transport import AsyncTransport

#: As in curl.
_CONNECT_TIMEOUT = 300.0

#: The pool's settings for each option that chooses versions.
_VERSIONS: Mapping[str, Mapping[str, Any]] = {
    "1.1": {"http2": False},
    "2": {},
    "2only": {"http1": False},
    "3": {"http3": True},
    "3only": {"http3": "only"},
}


class CommandClient(AsyncClient):
    """A client that sends no header fields of its own, and follows redirects by curl's rules.

    :ivar codings: the content codings that it can decode.
    :ivar literal_cookies: the cookies that were given as ``-b name=value``. They go to the first host only.
    :ivar dump: where ``-D`` writes.
    :ivar looked_up: for each host, when its addresses were found, on the clock of :func:`monotonic`.
    """

    def __init__(self, asked: Asked, cookies: CookieJar, literal_cookies: str, ends: list[ConnectionEnd]) -> None:
        pool = _pool(asked, ends)
        proxies = _proxies(asked)
        places = [each for each in (asked.connect_to, asked.addresses) if each]  # in this order, as in curl
        transport = _Directed(places, pool) if places else None
        super().__init__(
            pool=pool,
            transport=transport,
            timeout=httpx2.Timeout(None, connect=asked.connect_timeout or _CONNECT_TIMEOUT),
            cookies=cookies,
            trust_env=asked.no_proxy != "*",
            event_hooks={"response": [_show_head]},
            **proxies,
        )
        self._asked = asked
        self.codings = self.headers["accept-encoding"]
        for name in list(self.headers):
            del self.headers[name]
        self.literal_cookies = literal_cookies
        self.dump = Output(asked.dump)
        self.looked_up: dict[str, float] = {}
        if asked.write_out is not None:
            pool.observers.add(self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, PhaseEnded) and event.phase == "dns" and event.found:
            self.looked_up[str(event.subject)] = event.began + event.seconds

    def check_redirect(self, url: httpx2.URL) -> None:
        """Refuse a redirect to a host without pins, if any host has pins.

        :raises Failed: if that is so.
        """
        if self._asked.pins is not None and _host(str(url)) not in _pins(self._asked):
            raise Failed(Exit.PINS, f"the server redirects to {url.host}, for which no key is pinned")

    def _redirect_method(self, request: httpx2.Request, response: httpx2.Response) -> str:
        # This overrides a private method of httpx2, which changes more methods to GET than curl does.
        return "GET" if self.drops_body(response) else request.method

    def drops_body(self, response: httpx2.Response) -> bool:
        """Whether the body is not sent again after this redirect. (What -X says does not count here, as in curl.)"""
        asked, status = self._asked, response.status_code
        kept = {301: asked.post301, 302: asked.post302, 303: asked.post303}.get(status, True)
        return (asked.posts and not kept) or (bool(asked.uploads) and status == 303)


class _Directed(AsyncTransport):
    """A transport that connects to another place than the URL's. Host and certificate are still those of the URL.

    :param places: lists of places. The first place of each list that fits is taken: what the first list leads to goes
        through the second.
    """

    def __init__(self, places: Sequence[Sequence[tuple[str, str, str, str]]], pool: ConnectionPool) -> None:
        super().__init__(pool=pool)
        try:
            self._places = [[(as_host(host), port, *to) for host, port, *to in each] for each in places]
        except ValueError as error:
            raise Failed(Exit.USAGE, str(error)) from error

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See the transport."""
        url = request.url
        for places in self._places:
            url = _directed(url, places)
        if url is not request.url:
            named = request.url.raw_host.decode("ascii")
            extensions = {**request.extensions, "sni_hostname": named}
            request = httpx2.Request(
                request.method, url, headers=request.headers, stream=request.stream, extensions=extensions
            )
        return await super().handle_async_request(request)


def _directed(url: httpx2.URL, places: Sequence[tuple[str, ...]]) -> httpx2.URL:
    """The URL with the host and port of the first place that fits; itself, if none does."""
    port = url.port or (443 if url.scheme == "https" else 80)
    for host, from_port, to_host, to_port in places:
        if host in ("", as_host(url.raw_host.decode("ascii"))) and from_port in ("", str(port)):
            return url.copy_with(host=to_host or url.host, port=int(to_port or port))
    return url


async def _show_head(response: httpx2.Response) -> None:
    """Tell the transfer of each response, also of those that ask for a login by Digest."""
    await response.request.extensions["head"](response)


def _pool(asked: Asked, ends: list[ConnectionEnd]) -> ConnectionPool:
    settings = dict(_VERSIONS.get(asked.version or "", {}))
    if asked.version == "3":
        settings["http3_origins"] = frozenset(filter(None, map(_origin, asked.urls)))
    try:
        context = new_context(False if asked.insecure else asked.cacert or True)
    except OSError as error:
        raise Failed(Exit.AUTHORITIES, f"cannot use {asked.cacert}: {error.strerror or error}") from error
    cert = _certificate(asked) if asked.cert else None
    try:
        return ConnectionPool(
            ssl_context=context,
            cert=cert,
            pins=_pins(asked),
            resolver=_resolver(asked.doh_url) if asked.doh_url else None,
            grace=asked.grace,
            uds=asked.unix_socket,
            on_connection_end=ends.append,
            max_connections=None,
            **settings,
        )
    except ssl.SSLError as error:
        raise Failed(Exit.CLIENT_CERTIFICATE, f"the client certificate cannot be used: {error}") from error
    except ValueError as error:
        raise Failed(Exit.USAGE, str(error)) from error


def _certificate(asked: Asked) -> ClientCertificate:
    path, colon, password = (asked.cert or "").partition(":")
    secret = asked.password or (password if colon else None)
    try:
        if asked.cert_type == "P12":
            return ClientCertificate.from_pkcs12(Path(path).read_bytes(), secret)
        return ClientCertificate.from_files(path, asked.key, secret)
    except OSError as error:
        raise Failed(Exit.CLIENT_CERTIFICATE, f"cannot use {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise Failed(Exit.CLIENT_CERTIFICATE, f"cannot use {path}: {error}") from error


def _pins(asked: Asked) -> dict[str, list[str]]:
    """The pins, for each host of the command line."""
    if asked.pins is None:
        return {}
    pins = [pin for pin in asked.pins.split(";") if pin]
    return {host: pins for each in asked.urls if (host := _host(each))}


def _resolver(url: str) -> DnsOverHttps:
    """A resolver by DNS over HTTPS. The addresses of its server come from the system's resolver."""
    try:
        host = httpx2.URL(url).host
        found = [str(each[4][0]) for each in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]
        return DnsOverHttps(url, found)
    except OSError as error:
        raise Failed(Exit.HOST_NAME, f"cannot resolve {host}: {error.strerror or error}") from error
    except httpx2.InvalidURL as error:
        raise Failed(Exit.USAGE, no_url(url, error)) from error
    except ImportError as error:
        raise Failed(Exit.USAGE, str(error)) from error


def _host(given: str) -> str:
    """The host of a URL, whatever its spelling."""
    try:
        return as_host(httpx2.URL(with_scheme(given)).raw_host.decode("ascii"))
    except (httpx2.InvalidURL, ValueError):
        return ""  # the request will fail with an error that names it


def _origin(given: str) -> str | None:
    try:
        url = httpx2.URL(with_scheme(given))
    except httpx2.InvalidURL:
        return None  # the request will fail with an error that names it
    return f"https://{url.netloc.decode('ascii')}" if url.scheme == "https" and url.host else None


def _proxies(asked: Asked) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if asked.proxy:
        given = asked.proxy if "://" in asked.proxy else f"http://{asked.proxy}"
        try:
            url = httpx2.URL(given)
            if url.port is None:
                url = url.copy_with(port=443 if url.scheme == "https" else 1080)  # as in curl
            name, colon, password = (asked.proxy_user or "").partition(":")
            auth = (name, password) if colon or name else None
            context = new_context(False) if asked.proxy_insecure and url.scheme == "https" else None
            found["proxy"] = httpx2.Proxy(url, auth=auth, ssl_context=context)
        except httpx2.InvalidURL as error:  # its text may quote a password
            raise Failed(Exit.PROXY_NAME, f"cannot use the proxy's URL: {no_url(given, error)}") from error
        except ValueError as error:
            raise Failed(Exit.PROXY_NAME, f"cannot use the proxy's URL: {error}") from error
    if asked.no_proxy == "*":
        return {}
    if asked.no_proxy is not None:
        hosts = [host.lstrip(".") for host in asked.no_proxy.replace(",", " ").split()]
        patterns = [f"all://{dots}{host}" for host in hosts for dots in ("", "*.")]
        found["mounts"] = dict.fromkeys(patterns)
    return found
