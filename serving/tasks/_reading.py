"""Reading what clients send: JSON objects, whole numbers, media types. Shared by the tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from serving.errors import MalformedError, UnsupportedMediaError, UnusableError

_WHOLE = re.compile(r"-?[0-9]{1,25}")


def read_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        MalformedError: it is not JSON (NaN, and nesting deeper than 1024, are not).
        UnusableError: it is JSON, but not an object.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"The body is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UnusableError(f"Expected a JSON object; received {kind(content)}.")
    return content


def merge_options(query: Mapping[str, str], content: Mapping[str, Any], items: Sequence[str] = ()) -> dict[str, Any]:
    """Join the query string and a JSON object, without ``items`` and nulls; the query string wins."""
    options = {name: value for name, value in content.items() if value is not None and name not in items}
    options.update(query)
    return options


def whole_number(options: Mapping[str, Any], name: str, low: int, high: int, default: int | None = None) -> int | None:
    """Read a whole number from ``low`` to ``high``, given as a number or, in a query string, as text.

    Raises:
        UnusableError: it is something else, or out of range.
    """
    value = options.get(name)
    if value is None:
        return default
    number = int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        plain = isinstance(number, int | float | str) and not isinstance(number, bool)
        received = repr(number)[:40] if plain else kind(number)
        raise UnusableError(f"{name} must be a whole number from {low} to {high}; received {received}.")
    return number


def kind(value: object) -> str:
    """Name a JSON value's type for a message."""
    if value is None:
        return "null"
    for type_, name in (
        (bool, "true or false"),
        (int | float, "a number"),
        (str, "a string"),
        (list, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, type_):
            return name
    return type(value).__name__


def unsupported(media_type: str, takes: Sequence[str]) -> UnsupportedMediaError:
    """Name the media types a route takes."""
    return UnsupportedMediaError(f"Content-Type {media_type[:100]} is not taken here; taken are {', '.join(takes)}.")


def check_rows(count: int, what: str, limit: int) -> None:
    """Refuse none, and more than ``limit``.

    Raises:
        UnusableError: so it is.
    """
    if not 1 <= count <= limit:
        raise UnusableError(f"Expected 1 to {limit} {what} in a request; received {count}.")
