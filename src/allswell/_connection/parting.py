"""What the peer of a connection has said of its leaving."""

from __future__ import annotations

from allswell._errors import AllswellError


class Parting:
    """How far the peer has left.

    :ivar goodbye: the goodbye that it has said: ``"GOAWAY"``, or ``""``.
    :ivar words: how it said that it leaves, and why: ``"sent GOAWAY, ENHANCE_YOUR_CALM"``.
    :ivar ended: whether all that it sends has come. Our half of a tunnel may have something to say yet.
    """

    __slots__ = ("ended", "goodbye", "words")

    def __init__(self) -> None:
        self.goodbye = ""
        self.words = ""
        self.ended = False

    def on_leaving(self, goodbye: str, error: AllswellError | None) -> str:
        """It has said that it leaves. Return the reason for which the connection closes.

        :param goodbye: its name; ``""`` if the protocol has none.
        :param error: the peer's reason, if it has one.
        """
        self.goodbye = goodbye
        if error is not None:
            self.words = str(error).removeprefix("the peer ")
            return str(error)
        if goodbye and not self.words:
            self.words = f"sent {goodbye}"
        return "the server is leaving"
