"""A request as it was received, and the reply to it: plain values that tasks read and make.

Named tuples, since one of each is made a request: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import orjson

JSON = "application/json"
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Request(NamedTuple):
    """One request, its body complete.

    Attributes:
        method: upper case.
        path: without the query.
        query: the last value of each query parameter.
        media_type: lower case, without parameters; "" when the client did not say.
        parameters: the media type's parameters (``boundary``, ``charset``).
        accept: the ``Accept`` header; "" when there is none.
        body: as sent.
    """

    method: str
    path: str
    query: Mapping[str, str] = NOTHING
    media_type: str = ""
    parameters: Mapping[str, str] = NOTHING
    accept: str = ""
    body: bytes = b""


class Reply(NamedTuple):
    """One reply, encoded once."""

    body: bytes
    media_type: str = JSON
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


def json_reply(content: object) -> Reply:
    """Encode ``content``, numpy values included, as JSON."""
    return Reply(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
