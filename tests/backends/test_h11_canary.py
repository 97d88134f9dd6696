"""What is used of h11's inner works. A release that changes it fails here first."""

from __future__ import annotations

import h11
from h11._receivebuffer import ReceiveBuffer

NAMES = {"_receive_buffer", "_receivebuffer"}


def test_every_section_is_taken_from_the_buffer_by_its_lines() -> None:
    taken: list[int] = []

    class Lines(ReceiveBuffer):
        def maybe_extract_lines(self) -> list[bytearray] | None:
            lines = super().maybe_extract_lines()
            if lines is not None:
                taken.append(len(lines))
            return lines

    client = h11.Connection(h11.CLIENT)
    assert type(client._receive_buffer) is ReceiveBuffer
    client._receive_buffer = Lines()
    client.send(h11.Request(method=b"GET", target=b"/", headers=[(b"Host", b"a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(b"HTTP/1.1 103 Early\r\nA: b\r\n\r\n")
    client.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nB: c\r\n\r\n0\r\nC: d\r\n\r\n")
    events = [client.next_event() for _ in range(3)]
    assert [type(event) for event in events] == [h11.InformationalResponse, h11.Response, h11.EndOfMessage]
    assert taken == [2, 3, 1]
