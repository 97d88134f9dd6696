"""The HTTP/2 backend's h2 connection, which keeps state, set up for a client that does the rest itself.

These names are used beyond h2's documented interface: ``streams``, ``highest_outbound_stream_id``,
``outbound_flow_control_window``, ``encoder`` and ``decoder`` of the connection, its and the streams' ``state_machine``,
and ``H2Stream``.
"""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, H2Connection
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream, StreamInputs

from allswell._backends.http2_frames import MAX_FRAME_SIZE, NO_RFC7540_PRIORITIES
from allswell._backends.http2_hpack import FieldEncoder

#: At a round trip of 100 ms, 2 MiB allow 20 MB/s. It is also the most that one unread response can take.
INITIAL_WINDOW = 2 * 1024 * 1024
#: 128 streams' worth: more stalled readers than most servers admit streams (nginx: 128, Apache and Caddy: 100 to 250).
CONNECTION_WINDOW = 128 * INITIAL_WINDOW


def core_connection(*, initial_window: int, max_header_size: int) -> H2Connection:
    """A client's connection. Its preface and SETTINGS wait to be sent. Header fields are checked elsewhere."""
    connection = H2Connection(
        H2Configuration(
            client_side=True,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
    )
    settings = Settings(
        client=True,
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: initial_window,
            SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_SIZE,
            SettingCodes.MAX_HEADER_LIST_SIZE: max_header_size,
            NO_RFC7540_PRIORITIES: 1,  # type: ignore[dict-item]  # RFC 9218 §2.1; h2 has no name for it
        },
    )
    del settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]  # RFC 8441 §3: the server's to send
    connection.local_settings = settings
    connection.encoder = FieldEncoder()
    connection.initiate_connection()
    connection.state_machine.process_input(ConnectionInputs.SEND_HEADERS)  # we write HEADERS: h2 must be told
    return connection


def core_stream(connection: H2Connection, stream: int, window: int, *, ended: bool) -> H2Stream:
    """A stream in the state in which h2 would have it now.

    :param window: how many bytes we may still send.
    :param ended: whether we have ended our half.
    """
    core = H2Stream(stream, connection.config, connection.local_settings.initial_window_size, window)
    core.state_machine.process_input(StreamInputs.SEND_HEADERS)
    if ended:
        core.state_machine.process_input(StreamInputs.SEND_END_STREAM)
    return core
