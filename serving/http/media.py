"""Media types: what a body is, what a client wants back, and the files inside multipart."""

from __future__ import annotations

import re

from serving.errors import MalformedError
from serving.http.messages import JSON

MULTIPART = "multipart/form-data"
OCTETS = "application/octet-stream"
TEXT = "text/plain"
FORM = "application/x-www-form-urlencoded"

_PARAMETER = re.compile(r';\s*([!#$%&\'*+.^_`|~\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))')
_IMAGE_MAGIC = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM....\0\0\0\0|RIFF....WEBP",
    re.DOTALL,
)
_MAX_PARTS = 1024


def parse_media_type(header: str) -> tuple[str, dict[str, str]]:
    """Split a ``Content-Type`` header into the lower-case type and its parameters.

    curl calls any ``--data-binary`` a form unless told otherwise, and no route takes forms: that type counts
    as none, so that the body is looked at instead.
    """
    media_type = header.partition(";")[0].strip().lower()
    if media_type == FORM:
        return "", {}
    if ";" not in header:
        return media_type, {}
    return media_type, {
        name.lower(): token or re.sub(r"\\(.)", r"\1", quoted) for name, quoted, token in _PARAMETER.findall(header)
    }


def looks_like_image(body: bytes) -> bool:
    """Whether ``body`` begins as a PNG, JPEG, GIF, BMP or WebP file does."""
    return _IMAGE_MAGIC.match(body) is not None


def looks_like_json(body: bytes) -> bool:
    """Whether ``body`` begins as a JSON object does."""
    return body[:64].lstrip().startswith(b"{")


def prefers_json(accept: str) -> bool:
    """Whether an ``Accept`` header asks for JSON rather than for an image (RFC 9110, 12.5.1).

    Without the header, or when both are as welcome, the image is preferred: JSON must be named.
    """
    if JSON not in accept.lower():
        return False
    qualities: dict[str, float] = {}
    for part in accept.lower().split(","):
        media_type, _, parameters = part.strip().partition(";")
        quality = re.search(r"q\s*=\s*([01](?:\.\d{0,3})?)", parameters)
        qualities[media_type.strip()] = float(quality[1]) if quality else 1.0
    image = max((qualities[name] for name in ("image/png", "image/*") if name in qualities), default=0.0)
    return qualities.get(JSON, 0.0) > image


def parse_multipart(body: bytes, boundary: str) -> tuple[dict[str, str], list[bytes]]:
    """Split a ``multipart/form-data`` body into its fields and its files (RFC 7578).

    A part with a file name is a file, whatever its field is called, as HTML forms and ``curl -F`` send it;
    the others are text fields.

    Raises:
        MalformedError: there is no boundary, or the body does not follow it.
    """
    # Imported here: training imports the tasks, but never reads multipart.
    from python_multipart.exceptions import MultipartParseError  # noqa: PLC0415
    from python_multipart.multipart import MultipartParser, parse_options_header  # noqa: PLC0415

    if not boundary:
        raise MalformedError(f"Content-Type {MULTIPART} has no boundary parameter.")
    fields: dict[str, str] = {}
    files: list[bytes] = []
    headers: dict[str, str] = {}
    name, value, content = bytearray(), bytearray(), bytearray()
    ended = False

    def header_end() -> None:
        headers[name.decode("latin-1").lower()] = value.decode("utf-8", "replace")
        name.clear()
        value.clear()

    def part_end() -> None:
        _, options = parse_options_header(headers.get("content-disposition", ""))
        if b"filename" in options:
            files.append(bytes(content))
        else:
            fields[options.get(b"name", b"").decode("utf-8", "replace")] = content.decode("utf-8", "replace")
        headers.clear()
        content.clear()
        if len(fields) + len(files) > _MAX_PARTS:
            raise MalformedError(f"The multipart body has more than {_MAX_PARTS} parts.")

    def end() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        boundary.encode("latin-1", "replace"),
        {
            "on_header_field": lambda data, start, stop: name.extend(data[start:stop]),
            "on_header_value": lambda data, start, stop: value.extend(data[start:stop]),
            "on_header_end": header_end,
            "on_part_data": lambda data, start, stop: content.extend(data[start:stop]),
            "on_part_end": part_end,
            "on_end": end,
        },
    )
    try:
        parser.write(body)
    except MultipartParseError as error:
        raise MalformedError("The multipart body does not follow its boundary.") from error
    if not ended:
        raise MalformedError("The multipart body is cut short: its closing boundary is missing.")
    return fields, files
