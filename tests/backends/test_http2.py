"""HTTP/2 between the backend and h2's server side: exchanges, fields, windows, streams that end early."""

from __future__ import annotations

import h2.connection
import pytest
from h2.config import H2Configuration
from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    PingReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.settings import SettingCodes
from h2.stream import StreamState
from hyperframe.frame import (
    ContinuationFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from allswell._backends.http2 import Http2
from allswell._backends.http2_core import core_connection, core_stream
from allswell._backends.http2_ids import StreamIds
from allswell._backends.interface import (
    Backend,
    BodyReceived,
    CapacityChanged,
    Event,
    ExchangeFailed,
    InformationalReceived,
    ResponseCompleted,
    ResponseReceived,
    SendWindowOpened,
    UploadRefused,
)
from allswell._errors import ExchangeReset, LocalProtocolError, NotProcessed, RemoteProtocolError, TransportError
from allswell._messages import Headers, RequestHead, ResponseHead
from tests.backends.h2_peer import OK, Link, data, encode_frame, get, rst, settings

HEAD = ResponseHead(200, [(b"server", b"pretend")], b"HTTP/2")


@pytest.fixture(params=[None, 1, 7], ids=["at once", "byte by byte", "in sevens"])
def step(request: pytest.FixtureRequest) -> int | None:
    value: int | None = request.param
    return value


def as_backend(client: Http2) -> Backend[memoryview]:
    return client


def test_is_a_backend() -> None:
    backend = as_backend(Http2(max_header_size=65536))
    assert (backend.name, backend.http_version, backend.says_goodbye) == ("h2", "HTTP/2", "GOAWAY")
    assert not backend.in_order
    assert not backend.must_abort


def test_the_first_output_is_preface_settings_and_window() -> None:
    client = Http2(max_header_size=1234, initial_window=70_000, connection_window=500_000)
    output = client.take_output()
    assert output.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    server = h2.connection.H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(output)
    assert server.remote_settings.initial_window_size == 70_000
    assert server.remote_settings.max_header_list_size == 1234
    assert server.remote_settings.enable_push == 0
    assert server.outbound_flow_control_window == 500_000
    assert client.take_output() == b""


def test_get(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.client.open(get(b"/path?q"), end=True)
    request, ended = link.to_server()
    assert isinstance(request, RequestReceived)
    assert isinstance(ended, StreamEnded)
    assert list(request.headers or []) == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":authority", b"example.org"),
        (b":path", b"/path?q"),
    ]
    link.server.send_headers(exchange, OK)
    link.server.send_data(exchange, b"hello ")
    link.server.send_data(exchange, b"world", end_stream=True, pad_length=3)
    assert link.to_client() == [
        ResponseReceived(exchange, HEAD),
        BodyReceived(exchange, b"hello world", 15),
        ResponseCompleted(exchange, []),
    ]
    assert link.client.capacity() > 100  # no limit was set


def test_many_at_once(step: int | None) -> None:
    link = Link(step=step)
    exchanges = [link.request(get(b"/%d" % number)) for number in range(50)]
    for exchange in exchanges:
        link.server.send_headers(exchange, OK)
    for exchange in reversed(exchanges):
        link.server.send_data(exchange, b"body of %d" % exchange, end_stream=True)
    events = link.to_client()
    bodies = {event.exchange: event.data for event in events if isinstance(event, BodyReceived)}
    assert bodies == {exchange: b"body of %d" % exchange for exchange in exchanges}
    assert sum(isinstance(event, ResponseCompleted) for event in events) == 50


def test_informational_and_trailers(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request()
    link.server.send_headers(exchange, [(b":status", b"103"), (b"link", b"</a>")])
    link.server.send_headers(exchange, OK)
    link.server.send_data(exchange, b"x")
    link.server.send_headers(exchange, [(b"checksum", b"abc")], end_stream=True)
    assert link.to_client() == [
        InformationalReceived(exchange, ResponseHead(103, [(b"link", b"</a>")], b"HTTP/2")),
        ResponseReceived(exchange, HEAD),
        BodyReceived(exchange, b"x", 1),
        ResponseCompleted(exchange, [(b"checksum", b"abc")]),
    ]


def test_a_head_in_many_fragments(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request()
    fields = [(b":status", b"200"), *((b"x-%d" % number, b"v" * 1000) for number in range(40))]
    block = link.encoder.encode(fields)
    pieces = [block[start : start + 1000] for start in range(0, len(block), 1000)]
    events = link.frames(
        HeadersFrame(exchange, pieces[0], flags=["END_STREAM"]),
        *(ContinuationFrame(exchange, piece) for piece in pieces[1:]),
        ContinuationFrame(exchange, b"", flags=["END_HEADERS"]),
    )
    assert events == [
        ResponseReceived(exchange, ResponseHead(200, fields[1:], b"HTTP/2")),
        ResponseCompleted(exchange, []),
    ]


def test_priority_and_padding_of_a_head_are_cut_off(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request()
    frame = link.headers(exchange, OK, "PADDED", "PRIORITY", "END_STREAM")
    frame.pad_length = 9
    assert link.frames(frame) == [ResponseReceived(exchange, HEAD), ResponseCompleted(exchange, [])]


# Fields


def test_connection_specific_fields_are_left_out() -> None:
    link = Link()
    link.client.open(
        get(
            headers=[
                (b"Host", b"other.example"),
                (b"Connection", b"keep-alive, X-Hop"),
                (b"Keep-Alive", b"5"),
                (b"Proxy-Connection", b"x"),
                (b"Transfer-Encoding", b"chunked"),
                (b"Upgrade", b"websocket"),
                (b"X-Hop", b"1"),
                (b"TE", b"gzip, trailers"),
                (b"X-Kept", b" value\t"),
            ]
        ),
        end=True,
    )
    request = link.to_server()[0]
    assert isinstance(request, RequestReceived)
    assert list(request.headers or [])[2:] == [
        (b":authority", b"other.example"),
        (b":path", b"/"),
        (b"te", b"trailers"),
        (b"x-kept", b"value"),
    ]


@pytest.mark.parametrize(
    "head",
    [
        get(headers=[(b"bad name", b"x")]),
        get(headers=[(b":path", b"/evil")]),
        get(headers=[(b"x", b"a\r\nb: c")]),
        get(headers=[(b"x", b"a\0")]),
        get(headers=[(b"host", b"a"), (b"host", b"b")]),
        get(headers=[(b"host", b"user@example.org")]),
        get(headers=[(b"content-length", b"many")]),
        get(headers=[(b"content-length", b"5")]),
        get(b"no-slash"),
        get(b"/with space"),
        get(method=b"G ET"),
        RequestHead(b"GET", b"https", b"example.org", b"/", [], b"websocket"),
        RequestHead(b"CONNECT", b"https", b"example.org", b"/", [], b"websocket"),
    ],
)
def test_what_cannot_be_said_changes_nothing(head: RequestHead) -> None:
    link = Link()
    with pytest.raises(LocalProtocolError):
        link.client.open(head, end=True)
    assert link.client.take_output() == b""
    exchange = link.request()
    assert exchange == 1
    link.server.send_headers(exchange, OK, end_stream=True)
    assert link.to_client()[-1] == ResponseCompleted(exchange, [])


@pytest.mark.parametrize(
    ("frames", "updates"),
    [([[100, 100]], b"\x3f\x45"), ([[0, 4096]], b"\x20\x3f\xe1\x1f"), ([[100], [100]], b"\x3f\x45"), ([[8192]], b"")],
)
def test_every_size_of_hpacks_table_that_the_peer_names_is_obeyed(
    frames: list[list[int]], updates: bytes, step: int | None
) -> None:
    """RFC 7541 §4.2, RFC 9113 §4.3.1, §6.5.3: also where one frame names several."""
    link = Link(step=step)
    link.request(get(headers=[(b"x-a", b"1")]))
    for sizes in frames:
        body = b"".join(b"\0\1" + size.to_bytes(4, "big") for size in sizes)
        assert link.deliver(encode_frame(4, 0, 0, body)) == []
    link.client.open(get(), end=True)
    *acknowledged, headers = link.output_frames()
    assert [(type(frame), set(frame.flags)) for frame in acknowledged] == [(SettingsFrame, {"ACK"})] * len(frames)
    assert isinstance(headers, HeadersFrame)
    assert headers.data.startswith(updates + b"\x82")


def test_a_head_larger_than_the_peer_takes_is_not_sent() -> None:
    """RFC 9113 §6.5.2."""
    link = Link(settings={SettingCodes.MAX_HEADER_LIST_SIZE: 1000})
    with pytest.raises(LocalProtocolError, match="1000 bytes"):
        link.client.open(get(headers=[(b"x", b"y" * 1000)]), end=True)
    assert link.client.take_output() == b""
    assert link.request() == 1


def test_absolute_form_and_asterisk() -> None:
    link = Link()
    link.client.open(RequestHead(b"GET", b"https", b"proxy:3128", b"http://origin:8080/x", []), end=True)
    link.client.open(RequestHead(b"OPTIONS", b"https", b"example.org", b"*", []), end=True)
    requests = [event for event in link.to_server() if isinstance(event, RequestReceived)]
    assert list(requests[0].headers or [])[1:] == [
        (b":scheme", b"http"),
        (b":authority", b"origin:8080"),
        (b":path", b"/x"),
    ]
    assert (b":path", b"*") in list(requests[1].headers or [])


# Uploads


def test_upload_within_both_windows(step: int | None) -> None:
    link = Link(step=step, settings={SettingCodes.INITIAL_WINDOW_SIZE: 100_000})
    exchange = link.request(get(method=b"POST", headers=[(b"Content-Length", b"150000")]), end=False)
    assert link.client.send_window(exchange) == 65535  # the connection's
    link.client.send_body(exchange, b"a" * 65535, end=False)
    assert link.client.send_window(exchange) == 0
    received = [event for event in link.to_server() if isinstance(event, DataReceived)]
    assert [len(event.data or b"") for event in received] == [16384, 16384, 16384, 16383]
    link.server.increment_flow_control_window(1_000_000)
    assert link.to_client() == [SendWindowOpened(None)]
    assert link.client.send_window(exchange) == 34465  # the stream's
    link.client.send_body(exchange, b"b" * 34465, end=False)
    link.to_server()
    link.server.increment_flow_control_window(50_000, exchange)
    assert link.to_client() == [SendWindowOpened(exchange)]
    link.client.send_body(exchange, b"c" * 50_000, end=True)
    assert isinstance(link.to_server()[-1], StreamEnded)
    assert link.client.send_window(exchange) == 0


def test_a_greater_initial_window_opens_shut_streams(step: int | None) -> None:
    link = Link(step=step, settings={SettingCodes.INITIAL_WINDOW_SIZE: 0})
    exchange = link.request(get(method=b"POST"), end=False)
    assert link.client.send_window(exchange) == 0
    assert link.frames(settings(INITIAL_WINDOW_SIZE=10)) == [SendWindowOpened(None)]
    assert link.client.send_window(exchange) == 10
    assert link.frames(settings(INITIAL_WINDOW_SIZE=5)) == []
    assert link.frames(settings(MAX_FRAME_SIZE=20000)) == []
    link.client.send_body(exchange, b"12345", end=False)
    assert link.frames(settings(INITIAL_WINDOW_SIZE=0)) == []
    assert link.client.send_window(exchange) == 0  # RFC 9113 §6.9.2: it may be below 0


def test_request_trailers() -> None:
    link = Link()
    exchange = link.request(get(method=b"POST"), end=False)
    link.client.send_body(exchange, b"x", end=True, trailers=[(b"Checksum", b"abc")])
    events = link.to_server()
    assert [type(event) for event in events] == [DataReceived, TrailersReceived, StreamEnded]
    trailers = events[1]
    assert isinstance(trailers, TrailersReceived)
    assert list(trailers.headers or []) == [(b"checksum", b"abc")]


def test_a_body_must_match_its_content_length() -> None:
    link = Link()
    exchange = link.request(get(method=b"POST", headers=[(b"Content-Length", b"3")]), end=False)
    with pytest.raises(LocalProtocolError):
        link.client.send_body(exchange, b"four", end=False)
    with pytest.raises(LocalProtocolError):
        link.client.send_body(exchange, b"2!", end=True)
    with pytest.raises(LocalProtocolError):
        link.client.send_body(exchange, b"3ee", end=True, trailers=[(b"a b", b"")])
    assert link.client.take_output() == b""
    link.client.send_body(exchange, b"3ee", end=True)
    assert isinstance(link.to_server()[-1], StreamEnded)


def test_more_than_the_window_is_refused() -> None:
    link = Link()
    exchange = link.request(get(method=b"POST"), end=False)
    with pytest.raises(LocalProtocolError):
        link.client.send_body(exchange, b"x" * 65536, end=False)


def resets(link: Link) -> list[tuple[int, int]]:
    """What was reset, and with which code."""
    return [(each.stream_id, each.error_code) for each in link.output_frames() if isinstance(each, RstStreamFrame)]


def test_the_upload_goes_on_behind_an_early_response(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request(get(method=b"POST"), end=False)
    link.server.send_headers(exchange, OK, end_stream=True)
    assert link.to_client() == [ResponseReceived(exchange, HEAD), ResponseCompleted(exchange, [])]
    assert link.client.send_window(exchange)
    link.client.send_body(exchange, b"late", end=True)
    assert [type(event) for event in link.to_server()] == [h2.events.DataReceived, h2.events.StreamEnded]
    assert resets(link) == []


def test_a_reset_behind_an_early_response_refuses_the_upload(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request(get(method=b"POST"), end=False)
    link.server.send_headers(exchange, OK, end_stream=True)
    link.server.reset_stream(exchange, ErrorCodes.NO_ERROR)
    assert link.to_client() == [
        ResponseReceived(exchange, HEAD),
        ResponseCompleted(exchange, []),
        UploadRefused(exchange),
    ]
    assert not link.client.send_window(exchange)
    link.client.send_body(exchange, b"late", end=True)
    link.client.stop(exchange)
    assert link.output_frames() == []


def test_an_upload_that_is_stopped_ends_with_no_error(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request(get(method=b"POST"), end=False)
    link.server.send_headers(exchange, OK)
    link.server.send_data(exchange, b"no", end_stream=True)
    assert isinstance(link.to_client()[-1], ResponseCompleted)
    link.client.stop(exchange)
    link.client.stop(exchange)
    assert resets(link) == [(exchange, ErrorCodes.NO_ERROR)]


@pytest.mark.parametrize("end", [False, True])
def test_a_reset_without_an_error_completes_what_has_all_come(end: bool, step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request(get(method=b"POST" if not end else b"GET"), end=end)
    link.server.send_headers(exchange, [*OK, (b"content-length", b"2")])
    link.server.send_data(exchange, b"no")
    link.server.reset_stream(exchange, ErrorCodes.NO_ERROR)
    events = link.to_client()[1:]
    refused = [] if end else [UploadRefused(exchange)]
    assert events == [BodyReceived(exchange, b"no", 2), *refused, ResponseCompleted(exchange, [])]
    assert not link.client.send_window(exchange)


@pytest.mark.parametrize(
    ("length", "code"), [(b"3", ErrorCodes.NO_ERROR), (b"2", ErrorCodes.CANCEL), (None, ErrorCodes.NO_ERROR)]
)
def test_any_other_reset_is_an_error(length: bytes | None, code: ErrorCodes) -> None:
    link = Link()
    exchange = link.request()
    link.server.send_headers(exchange, [*OK, *([(b"content-length", length)] if length else [])])
    link.server.send_data(exchange, b"no")
    link.server.reset_stream(exchange, code)
    assert isinstance(link.to_client()[-1], ExchangeFailed)


# Tunnels


def test_connect_becomes_a_tunnel(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request(RequestHead(b"CONNECT", b"https", b"proxy", b"origin:443", []), end=False)
    link.server.send_headers(exchange, OK)
    link.server.send_data(exchange, b"down")
    assert link.to_client() == [ResponseReceived(exchange, HEAD, tunnel=True), BodyReceived(exchange, b"down", 4)]
    link.client.send_body(exchange, b"up", end=False)
    link.server.send_data(exchange, b"", end_stream=True)
    assert link.to_client() == [ResponseCompleted(exchange, [])]
    link.client.send_body(exchange, b"still up", end=True)
    events = link.to_server()
    assert b"".join(event.data or b"" for event in events if isinstance(event, DataReceived)) == b"upstill up"
    assert link.client.send_window(exchange) == 0


def test_a_half_closed_tunnel_that_is_reset_refuses_uploads(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request(RequestHead(b"CONNECT", b"https", b"proxy", b"origin:443", []), end=False)
    link.frames(link.headers(exchange, OK, "END_STREAM"))
    assert link.frames(rst(exchange, ErrorCodes.CONNECT_ERROR)) == [UploadRefused(exchange)]
    assert link.client.receive_eof(None) == []


def test_extended_connect_where_offered() -> None:
    link = Link(settings={SettingCodes.ENABLE_CONNECT_PROTOCOL: 1})
    head = RequestHead(b"CONNECT", b"https", b"example.org", b"/chat", [(b"origin", b"x")], b"websocket")
    exchange = link.client.open(head, end=False)
    request = link.to_server()[0]
    assert isinstance(request, RequestReceived)
    assert list(request.headers or []) == [
        (b":method", b"CONNECT"),
        (b":scheme", b"https"),
        (b":authority", b"example.org"),
        (b":path", b"/chat"),
        (b":protocol", b"websocket"),
        (b"origin", b"x"),
    ]
    link.server.send_headers(exchange, [(b":status", b"200")])
    assert link.to_client() == [ResponseReceived(exchange, ResponseHead(200, [], b"HTTP/2"), tunnel=True)]


def settled(link: Link) -> list[Event]:
    """The server's SETTINGS arrive; what they mean beside the limit of streams."""
    return [event for event in link.to_client() if not isinstance(event, CapacityChanged)]


CHAT = RequestHead(b"CONNECT", b"https", b"example.org", b"/chat", [], b"websocket")


def test_extended_connect_waits_for_the_peers_settings() -> None:
    """And what is opened after it waits behind it: ids only grow. Nothing waits once they are there."""
    link = Link(settings={SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}, greet=False)
    before = link.client.open(get(b"/1"), end=True)
    chat, after, dropped = (link.client.open(head, end=True) for head in (CHAT, get(b"/5"), get(b"/7")))
    assert link.client.capacity() == 96
    assert link.client.send_window(chat) == 0
    link.client.cancel(dropped)
    requests = [event for event in link.to_server() if isinstance(event, RequestReceived)]
    assert [event.stream_id for event in requests] == [before]
    assert settled(link) == [SendWindowOpened(chat), SendWindowOpened(after)]
    requests = [event for event in link.to_server() if isinstance(event, RequestReceived)]
    assert [event.stream_id for event in requests] == [chat, after]
    assert requests[0].stream_ended is None  # it is a tunnel's beginning, whatever the caller said
    assert link.client.send_window(chat) == 65535


@pytest.mark.parametrize("trailers", [[], [(b"X-Sum", b"1")]], ids=["", "trailers"])
def test_the_end_of_a_body_without_content_waits_with_its_head(trailers: Headers) -> None:
    """The server would wait for ever for the rest of that request."""
    limits = {SettingCodes.ENABLE_CONNECT_PROTOCOL: 1, SettingCodes.MAX_CONCURRENT_STREAMS: 9}
    link = Link(settings=limits, greet=False)
    link.client.open(CHAT, end=False)
    after = link.client.open(get(method=b"POST"), end=False)
    link.client.send_body(after, b"", end=True, trailers=trailers)
    assert not [event for event in link.to_server() if isinstance(event, RequestReceived)]
    settled(link)
    events = [event for event in link.to_server() if getattr(event, "stream_id", None) == after]
    assert [type(event) for event in events] == [RequestReceived, *[TrailersReceived] * len(trailers), StreamEnded]
    link.server.send_headers(after, OK, end_stream=True)
    assert link.to_client()[-1] == ResponseCompleted(after, [])
    assert link.client.capacity() == 8  # the tunnel is what is left


def test_a_body_that_waits_with_its_head_is_as_long_as_it_says() -> None:
    link = Link(greet=False)
    link.client.open(CHAT, end=False)
    exchange = link.client.open(get(headers=[(b"Host", b"a"), (b"Content-Length", b"1")], method=b"POST"), end=False)
    with pytest.raises(LocalProtocolError, match="Content-Length"):
        link.client.send_body(exchange, b"", end=True)


def test_extended_connect_that_turns_out_not_to_be_offered() -> None:
    link = Link(greet=False)
    chat, after = link.client.open(CHAT, end=False), link.client.open(get(), end=True)
    link.to_server()
    [failed, opened] = settled(link)
    assert isinstance(failed, ExchangeFailed)
    assert failed.exchange == chat
    assert isinstance(failed.error, LocalProtocolError)
    assert opened == SendWindowOpened(after)


@pytest.mark.parametrize("way", ["goaway", "full", "eof"])
def test_what_was_held_and_never_said(way: str) -> None:
    link = Link(greet=False, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 0})
    chat, after = link.client.open(CHAT, end=False), link.client.open(get(), end=True)
    if way == "goaway":
        events = link.frames(GoAwayFrame(0, last_stream_id=2**31 - 1))[1:]
    elif way == "full":
        link = Link(
            greet=False, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 0, SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}
        )
        chat, after = link.client.open(CHAT, end=False), link.client.open(get(), end=True)
        events = settled(link)
    else:
        events = link.client.receive_eof(None)
    failed = [event for event in events if isinstance(event, ExchangeFailed)]
    assert [event.exchange for event in failed] == [chat, after] == [1, 3]
    assert failed == events
    for event in failed:
        assert isinstance(event.error, NotProcessed) == (way != "eof")


def test_end_without_goaway() -> None:
    """Nobody knows whether the server saw the requests without an answer: most likely it had ended before."""
    link = Link()
    answered, open_ = link.request(), link.request()
    link.frames(link.headers(answered))
    failed = {
        event.exchange: event.error for event in link.client.receive_eof(None) if isinstance(event, ExchangeFailed)
    }
    assert type(failed[answered]) is RemoteProtocolError
    error = failed[open_]
    assert isinstance(error, NotProcessed)
    assert not error.proven


def test_end_in_place_of_the_first_answer() -> None:
    link = Link()
    link.request()
    [failed] = link.client.receive_eof(None)
    assert isinstance(failed, ExchangeFailed)
    assert type(failed.error) is RemoteProtocolError


def test_a_refused_connect_is_no_tunnel() -> None:
    link = Link()
    exchange = link.request(RequestHead(b"CONNECT", b"https", b"proxy", b"origin:443", []), end=False)
    link.server.send_headers(exchange, [(b":status", b"407")], end_stream=True)
    events = link.to_client()
    assert events[0] == ResponseReceived(exchange, ResponseHead(407, [], b"HTTP/2"))
    assert events[1:] == [ResponseCompleted(exchange, [])]
    link.client.stop(exchange)
    assert resets(link) == [(exchange, ErrorCodes.NO_ERROR)]


# Flow control by consumption


def fill(link: Link, exchange: int, size: int) -> int:
    """Have the server send up to ``size`` bytes; what the windows let through."""
    sent = 0
    while sent < size:
        room = min(16384, size - sent, link.server.local_flow_control_window(exchange))
        if room <= 0:
            break
        link.server.send_data(exchange, b"d" * room)
        sent += room
    return sent


def test_credit_goes_back_when_consumed_and_not_for_each_piece() -> None:
    link = Link(initial_window=100_000, connection_window=1_000_000)
    exchange = link.request()
    link.server.send_headers(exchange, OK)
    assert fill(link, exchange, 10**6) == 100_000
    link.to_client()
    assert link.client.take_output() == b""
    for _ in range(4):
        link.client.consumed(exchange, 10_000)
        assert link.client.take_output() == b""
    link.client.consumed(exchange, 10_000)
    (update,) = link.output_frames()
    assert isinstance(update, WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (exchange, 50_000)


def test_a_stalled_reader_holds_only_its_own_stream() -> None:
    link = Link(initial_window=65_535, connection_window=128 * 65_535)
    stalled = [link.request() for _ in range(100)]
    for exchange in stalled:
        link.server.send_headers(exchange, OK)
        assert fill(link, exchange, 10**6) == 65_535
    link.to_client()
    last = link.request()
    link.server.send_headers(last, OK)
    total = 0
    while total < 10**6:
        sent = fill(link, last, 10**6 - total)
        assert sent
        total += sent
        for event in link.to_client():
            if isinstance(event, BodyReceived):
                link.client.consumed(last, event.credit)
        link.to_server()


@pytest.mark.parametrize("how", ["cancelled", "complete, then dropped", "reset by the peer"])
def test_six_abandoned_bodies_leave_the_connection_window_whole(how: str) -> None:
    size = 3 * 1024 * 1024
    link = Link(initial_window=4 * 1024 * 1024, connection_window=4 * 1024 * 1024)
    for _ in range(6):
        exchange = link.request()
        link.server.send_headers(exchange, OK)
        assert fill(link, exchange, size) == size
        if how == "complete, then dropped":
            link.server.end_stream(exchange)
        elif how == "reset by the peer":
            link.server.reset_stream(exchange, ErrorCodes.INTERNAL_ERROR)
        link.to_client()
        if how != "reset by the peer":
            link.client.cancel(exchange)
        link.client.cancel(exchange)
        link.to_server()


def test_late_frames_of_a_cancelled_stream_are_swallowed_and_accounted(step: int | None) -> None:
    link = Link(step=step, initial_window=200_000, connection_window=100_000)
    exchange, sibling = link.request(), link.request()
    link.server.send_headers(exchange, OK)
    link.to_client()
    link.client.cancel(exchange)
    assert fill(link, exchange, 60_000) == 60_000  # sent before the reset arrives
    link.server.send_headers(exchange, [(b"x-late", b"indexed")], end_stream=True)
    link.server.send_headers(sibling, [*OK, (b"x-late", b"indexed")], end_stream=True)
    events = link.to_client()
    assert isinstance(events[0], ResponseReceived)
    assert (b"x-late", b"indexed") in events[0].head.headers  # HPACK did not lose its way
    frames = link.output_frames()
    assert [type(frame) for frame in frames] == [RstStreamFrame, WindowUpdateFrame]
    assert isinstance(frames[0], RstStreamFrame)
    assert frames[0].error_code == ErrorCodes.CANCEL
    assert frames[1].stream_id == 0
    link.client.consumed(exchange, 60_000)
    assert link.client.take_output() == b""


def test_a_complete_response_may_be_read_late() -> None:
    link = Link(initial_window=100_000, connection_window=100_000)
    exchange = link.request()
    link.server.send_headers(exchange, OK)
    fill(link, exchange, 80_000)
    link.server.end_stream(exchange)
    link.to_client()
    link.client.consumed(exchange, 40_000)
    assert link.output_frames() == []
    link.client.consumed(exchange, 40_000)
    link.client.consumed(exchange, 40_000)  # no more than it received
    (update,) = link.output_frames()
    assert isinstance(update, WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (0, 80_000)


def test_padding_alone_is_given_back(step: int | None) -> None:
    link = Link(step=step, initial_window=1000, connection_window=65_535)
    exchange = link.request()
    link.frames(link.headers(exchange))
    frame = data(exchange, b"", "PADDED")
    frame.pad_length = 255
    assert link.frames(frame, frame, frame) == []
    assert [frame.stream_id for frame in link.output_frames()] == [exchange]


# Cancelling


def test_cancel_is_idempotent_and_spares_siblings() -> None:
    link = Link()
    first, second = link.request(), link.request()
    link.client.cancel(first)
    link.client.cancel(first)
    link.client.cancel(99)
    resets = [event for event in link.to_server() if isinstance(event, StreamReset)]
    assert [(event.stream_id, event.error_code) for event in resets] == [(first, ErrorCodes.CANCEL)]
    link.server.send_headers(second, OK, end_stream=True)
    assert link.to_client() == [ResponseReceived(second, HEAD), ResponseCompleted(second, [])]


def test_closed_streams_are_not_kept() -> None:
    link = Link()
    for number in range(5000):
        exchange = link.request()
        if number % 2:
            link.client.cancel(exchange)
        else:
            link.frames(link.headers(exchange, OK, "END_STREAM"))
        link.server.streams.clear()
    client = link.client
    assert not client._streams
    assert not client._h2.streams
    assert not client._unread
    assert len(client._ids._reset) <= 4096
    assert not client._h2._closed_streams


# Resets by the peer


def test_refused_stream_may_be_replayed(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request()
    (event,) = link.frames(rst(exchange, ErrorCodes.REFUSED_STREAM))
    assert isinstance(event, ExchangeFailed)
    assert isinstance(event.error, NotProcessed)
    assert event.error.proven
    assert isinstance(event.error.cause, ExchangeReset)
    assert event.error.cause.code == ErrorCodes.REFUSED_STREAM


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (ErrorCodes.INTERNAL_ERROR, "INTERNAL_ERROR"),
        (ErrorCodes.HTTP_1_1_REQUIRED, "HTTP/1.1"),
        (ErrorCodes.NO_ERROR, "NO_ERROR"),
        (0xABCDEF, "0xabcdef"),
    ],
)
def test_other_resets_are_the_exchanges_end(code: int, words: str, step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request()
    link.frames(link.headers(exchange))
    (event,) = link.frames(rst(exchange, code))
    assert isinstance(event, ExchangeFailed)
    assert isinstance(event.error, ExchangeReset)
    assert (event.error.code, event.error.by) == (code, "peer")
    assert words in str(event.error)


def test_refused_after_the_response_began_is_no_licence() -> None:
    link = Link()
    exchange = link.request()
    link.frames(link.headers(exchange))
    (event,) = link.frames(rst(exchange, ErrorCodes.REFUSED_STREAM))
    assert isinstance(event, ExchangeFailed)
    assert isinstance(event.error, ExchangeReset)


# Capacity


def test_capacity_follows_the_setting_both_ways(step: int | None) -> None:
    link = Link(step=step, greet=False)
    client = link.client
    assert client.capacity() == 100
    first, _ = client.open(get(), end=True), client.open(get(), end=True)
    assert client.capacity() == 98
    assert link.frames(settings(MAX_CONCURRENT_STREAMS=1)) == [CapacityChanged()]
    assert client.capacity() == 0
    with pytest.raises(NotProcessed) as caught:
        client.open(get(), end=True)
    assert caught.value.proven
    assert link.frames(settings(MAX_CONCURRENT_STREAMS=1)) == []
    client.cancel(first)
    assert client.capacity() == 0
    assert link.frames(settings(MAX_CONCURRENT_STREAMS=10)) == [CapacityChanged()]
    assert client.capacity() == 9


def test_capacity_ends_with_the_stream_ids() -> None:
    link = Link()
    link.client._ids = StreamIds(2**31 - 3)
    assert link.client.capacity() == 2
    link.client.open(get(), end=True)
    link.client.open(get(), end=True)
    assert link.client.capacity() == 0
    with pytest.raises(NotProcessed):
        link.client.open(get(), end=True)


# The connection's end


def test_ping() -> None:
    link = Link()
    assert link.client.ping()
    (event,) = link.to_server()
    assert isinstance(event, PingReceived)
    assert link.to_client() == []
    link.server.ping(b"12345678")
    link.to_client()
    (frame,) = link.output_frames()
    assert isinstance(frame, PingFrame)
    assert "ACK" in frame.flags
    assert frame.opaque_data == b"12345678"


def test_goodbye_is_the_last_word_and_said_once(step: int | None) -> None:
    link = Link(step=step)
    exchange = link.request()
    link.server.send_headers(exchange, OK, end_stream=True)
    link.to_client()
    link.client.goodbye()
    link.client.goodbye()
    (frame,) = link.output_frames()
    assert isinstance(frame, GoAwayFrame)
    assert frame.error_code == ErrorCodes.NO_ERROR
    assert link.client.capacity() == 0
    with pytest.raises(NotProcessed):
        link.client.open(get(), end=True)
    link.server.ping(b"12345678")
    link.server.close_connection()
    assert link.to_client() == []
    assert not link.client.ping()
    link.client.goodbye()
    assert link.client.take_output() == b""
    assert link.client.receive_eof(None) == []


def test_goodbye_with_exchanges_open_leaves_their_failure_to_the_end() -> None:
    link = Link()
    upload = link.request(get(method=b"POST"), end=False)
    link.client.goodbye()
    link.client.take_output()
    assert link.client.send_window(upload) == 0
    link.client.send_body(upload, b"", end=True)
    link.client.consumed(upload, 5)
    link.client.cancel(upload)
    assert link.client.take_output() == b""


def test_eof_fails_what_is_open() -> None:
    link = Link()
    exchange = link.request()
    (event,) = link.client.receive_eof(None)
    assert isinstance(event, ExchangeFailed)
    assert event.exchange == exchange
    assert isinstance(event.error, RemoteProtocolError)
    assert link.client.capacity() == 0
    assert link.client.receive_eof(None) == []


def test_a_cut_is_the_cause() -> None:
    link = Link()
    link.request()
    why = TransportError("reset", operation="read")
    assert link.client.receive_eof(why) == [ExchangeFailed(1, why)]


def test_what_is_used_of_h2_is_still_there() -> None:
    """A canary: these names are beyond h2's documented interface."""
    connection = core_connection(initial_window=1000, max_header_size=2000)
    assert connection.state_machine.state is ConnectionState.CLIENT_OPEN  # as if HEADERS had been sent
    assert connection.streams == {}
    assert connection.highest_outbound_stream_id == 0
    assert connection.outbound_flow_control_window == 65535
    assert connection.max_outbound_frame_size == 16384
    assert connection.open_outbound_streams == 0
    assert connection.local_settings.initial_window_size == 1000
    assert connection.remote_settings.max_concurrent_streams > 100  # h2's word for "no limit yet"
    assert connection.decoder.decode(b"\x82", raw=True) == [(b":method", b"GET")]
    assert not connection.decoder.header_table.dynamic_entries
    connection.decoder.decode(b"\x40\x01a\x01b", raw=True)
    assert list(connection.decoder.header_table.dynamic_entries) == [(b"a", b"b")]


@pytest.mark.parametrize(("ended", "state"), [(False, StreamState.OPEN), (True, StreamState.HALF_CLOSED_LOCAL)])
def test_what_is_used_of_h2s_streams_is_still_there(ended: bool, state: StreamState) -> None:
    """A canary: a stream that is made for h2 is one that h2 might have."""
    connection = core_connection(initial_window=1000, max_header_size=2000)
    connection.highest_outbound_stream_id = 1
    stream = connection.streams[1] = core_stream(connection, 1, 5, ended=ended)
    assert stream.state_machine.state is state
    assert stream.outbound_flow_control_window == 5
    [window] = connection.receive_data(encode_frame(8, 0, 1, b"\0\0\0\1"))
    assert isinstance(window, WindowUpdated)
    assert stream.outbound_flow_control_window == 6
    [reset] = connection.receive_data(encode_frame(3, 0, 1, b"\0\0\0\x08"))
    assert isinstance(reset, StreamReset)
    assert (reset.stream_id, reset.error_code) == (1, ErrorCodes.CANCEL)
