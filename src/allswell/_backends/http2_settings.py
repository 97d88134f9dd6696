"""What the peer's SETTINGS say, as far as it concerns our requests."""

from __future__ import annotations

from h2.errors import ErrorCodes
from h2.settings import Settings

from allswell._backends.http2_errors import PeerError
from allswell._backends.interface import CapacityChanged, Event, SendWindowOpened
from allswell._backends.stream_limit import StreamLimit

#: RFC 9113 §6.9.2: the size of every window at first.
DEFAULT_WINDOW = 65535


class PeerSettings:
    """The settings of one connection's peer.

    :param assumed: the limit of streams until its first SETTINGS come. What they say is noted there.
    :ivar greeted: whether its first SETTINGS have come.
    :ivar streams: how many streams may be open at once.
    :ivar window: SETTINGS_INITIAL_WINDOW_SIZE: how many bytes we may send on a stream at first.
    :ivar section_limit: how large a header section it takes; ``None`` if it does not say.
    :ivar extended_connect: whether it takes extended CONNECT (RFC 8441 §3).
    :ivar priority_updates: whether PRIORITY_UPDATE is of use: until the first SETTINGS come without
        NO_RFC7540_PRIORITIES (RFC 9218 §2.1.1).
    """

    __slots__ = ("_assumed", "extended_connect", "greeted", "priority_updates", "section_limit", "streams", "window")

    def __init__(self, assumed: StreamLimit) -> None:
        self._assumed = assumed
        self.greeted = False
        self.streams = assumed.value
        self.window = DEFAULT_WINDOW
        self.section_limit: int | None = None
        self.extended_connect = False
        self.priority_updates = True

    def check_priorities(self, said: bool | None) -> None:
        """SETTINGS have come with this NO_RFC7540_PRIORITIES (``None``: without).

        :raises PeerError: if that has changed (RFC 9218 §2.1).
        """
        if not self.greeted:
            self.priority_updates = bool(said)
        elif said is not None and said != self.priority_updates:
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer changed NO_RFC7540_PRIORITIES")

    def receive(self, settings: Settings) -> list[Event]:
        """SETTINGS have come. Return the events for what they change.

        :param settings: all that are in force now.
        :raises PeerError: if the peer takes back extended CONNECT (RFC 8441 §3).
        """
        events: list[Event] = []
        self.greeted = True
        if self.extended_connect and not settings.enable_connect_protocol:
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer took back ENABLE_CONNECT_PROTOCOL")
        self.extended_connect = bool(settings.enable_connect_protocol)
        self.section_limit = settings.max_header_list_size
        limit = settings.max_concurrent_streams
        if limit != self.streams:
            self.streams = self._assumed.value = limit
            events.append(CapacityChanged())
        if settings.initial_window_size > self.window:
            events.append(SendWindowOpened(None))
        self.window = settings.initial_window_size
        return events
