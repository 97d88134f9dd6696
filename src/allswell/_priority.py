"""The priority of a request (RFC 9218): what callers give as the value of the Priority field.

It is a Dictionary of Structured Fields (RFC 9651 §3.2). A server silently ignores a malformed one. So it is checked
where the caller gives it.
"""

from __future__ import annotations

import re
from functools import cache

from allswell._errors import LocalProtocolError
from allswell._fields import as_bytes
from allswell._messages import Headers

_KEY = rb"[a-z*][a-z0-9_\-.*]*"
_BARE_ITEM = rb"|".join(  # RFC 9651 §3.3
    (
        rb"-?[0-9]{1,12}\.[0-9]{1,3}",  # Decimal
        rb"-?[0-9]{1,15}",  # Integer
        rb'"(?:[ !#-\[\]-~]|\\["\\])*"',  # String
        rb"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*",  # Token
        rb":[A-Za-z0-9+/=]*:",  # Byte Sequence
        rb"\?[01]",  # Boolean
        rb"@-?[0-9]{1,15}",  # Date
        rb'%"(?:[ !#$&-~]|%[0-9a-f]{2})*"',  # Display String
    )
)
_PARAMETERS = rb"(?:; *%b(?:=(?:%b))?)*" % (_KEY, _BARE_ITEM)
_ITEM = rb"(?:%b)%b" % (_BARE_ITEM, _PARAMETERS)
_INNER_LIST = rb"\( *+(?:%b(?: ++%b)*+)? *+\)" % (_ITEM, _ITEM)
_COMMA = re.compile(rb"[ \t]*,[ \t]*").match

_URGENCY = re.compile(rb"-?[0-9]{1,15}").fullmatch
_MOST_URGENCY = 7


@cache
def _member() -> re.Pattern[bytes]:
    """A member of a Dictionary. (To compile it takes as long as some imports, and few programs need it.)"""
    return re.compile(rb"(%b)(?:=(%b|%b))?%b" % (_KEY, _INNER_LIST, _BARE_ITEM, _PARAMETERS))


def priority_value(given: object) -> bytes:
    """Check a priority that a caller gave, such as ``"u=1, i"``. An empty one means the defaults: ``"u=3, i=?0"``.

    Other members than ``u`` and ``i`` are accepted, because some may be defined later (RFC 9218 §4.3).

    :raises LocalProtocolError: if it is not a Dictionary, ``u`` is not from 0 to 7, or ``i`` is not a Boolean.
    """
    value = as_bytes(given, "priority").strip(b" ")
    members = _members(value)
    urgency = members.get(b"u", b"0")
    if not (urgency and _URGENCY(urgency) and 0 <= int(urgency) <= _MOST_URGENCY):
        raise LocalProtocolError("the urgency u of a priority must be a number from 0 to 7 (RFC 9218 §4.1)")
    if members.get(b"i") not in (None, b"?0", b"?1"):
        raise LocalProtocolError("the i of a priority must have no value, or ?0 or ?1 (RFC 9218 §4.2)")
    return value


def _members(value: bytes) -> dict[bytes, bytes | None]:
    """The members of a Dictionary, without their parameters. The last one with a key counts (RFC 9651 §4.2.2)."""
    members: dict[bytes, bytes | None] = {}
    if not value:
        return members
    position, read = 0, _member().match
    while (member := read(value, position)) is not None:
        members[member[1]] = member[2]
        if member.end() == len(value):
            return members
        if (comma := _COMMA(value, member.end())) is None:
            break
        position = comma.end()
    raise LocalProtocolError('the priority must be a list of members such as "u=1, i" (RFC 9218 §4, RFC 9651 §3.2)')


def with_priority(headers: Headers, value: bytes) -> Headers:
    """A header section with this priority, in place of the one that it had."""
    fields = [field for field in headers if field[0].lower() != b"priority"]
    if value:
        fields.append((b"Priority", value))
    return fields
