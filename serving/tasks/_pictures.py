"""Reading requests that hold pictures: files, raw pixels, JSON. Shared by the tasks that take them."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.errors import MalformedError, TooLargeError, UnusableError
from serving.http.media import MULTIPART, OCTETS, looks_like_image, looks_like_json, parse_multipart
from serving.http.messages import JSON, Request
from serving.preprocessing.image import (
    ImageError,
    ImageTooLargeError,
    MalformedImageError,
    UnsupportedImageError,
    open_image,
)
from serving.tasks import Limits, Query
from serving.tasks._reading import check_rows, kind, merge_options, read_json, unsupported

TAKES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", MULTIPART, OCTETS, JSON)
SentT = TypeVar("SentT")
ReadT = TypeVar("ReadT")

_PROBLEMS: dict[type[ImageError], type[MalformedError | TooLargeError | UnusableError]] = {
    MalformedImageError: MalformedError,
    ImageTooLargeError: TooLargeError,
    UnsupportedImageError: UnusableError,
}


class Raw(NamedTuple):
    """Raw pixels; ``declared`` when the client said that it sends bytes."""

    data: bytes
    declared: bool


Picture: TypeAlias = Image.Image | Raw | list[Any]
"""A decoded file, raw pixels, or nested numbers."""


def decode_pictures(request: Request, limits: Limits) -> Query:
    """Read one picture or several, in whichever form they came.

    Raises:
        MalformedError: the body is empty, or a picture or the JSON cannot be read.
        TooLargeError: the files have more pixels together than the cap.
        UnsupportedMediaError: the media type is none of `TAKES`.
        UnusableError: the JSON lacks "images", or holds too many; or a picture is animated.
    """
    body, media_type = request.body, request.media_type
    if not body:
        raise MalformedError(f"The body is empty; expected one of {', '.join(TAKES)}.")
    if media_type in ("", OCTETS):
        if looks_like_image(body):
            media_type = "image/*"
        elif media_type == "" and looks_like_json(body):
            media_type = JSON
        else:
            return Query((Raw(body, media_type == OCTETS),), request.query)
    if media_type == JSON:
        content = read_json(body)
        images = _images(content, limits)
        pictures = _each(_Files(limits).from_json, images)
        return Query(pictures, merge_options(request.query, content, ("images",)))
    if media_type == MULTIPART:
        fields, files = parse_multipart(body, request.parameters.get("boundary", ""))
        check_rows(len(files), "files", limits.max_rows)
        return Query(_each(_Files(limits).open, files), merge_options(request.query, fields))
    if media_type.startswith("image/") and "svg" not in media_type:
        return Query(_each(_Files(limits).open, (body,)), request.query)
    raise unsupported(media_type, TAKES)


def to_pixels(
    pictures: Sequence[Picture], shape: tuple[int, ...], fit: Callable[[Image.Image], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Stack pictures into uint8 (n, *shape), 0-255.

    Args:
        pictures: as `decode_pictures` gives them.
        shape: (height, width) or (height, width, 3); raw pixels and numbers must have it. Grey numbers may
            also be flat.
        fit: makes a decoded file into uint8 ``shape``.

    Raises:
        UnusableError: raw pixels or numbers of another size, numbers outside 0-255, nothing drawn.
        MalformedError: raw bytes that are neither an image nor of the right size.
    """
    rows = _each(lambda picture: _fit(picture, shape, fit), pictures)
    return rows[0][None] if len(rows) == 1 else np.stack(rows)  # the usual case needs no copy


def _images(content: dict[str, Any], limits: Limits) -> list[Any]:
    if "images" not in content:
        raise UnusableError('The JSON object has no "images": expected {"images": [...]}.')
    images = content["images"]
    if not isinstance(images, list):
        raise UnusableError(f'"images" must be a list; received {kind(images)}.')
    check_rows(len(images), "images", limits.max_rows)
    return images


def _each(read: Callable[[SentT], ReadT], pictures: Sequence[SentT]) -> list[ReadT]:
    """Read pictures one by one; a problem says with which, when there are several."""
    done: list[ReadT] = []
    for number, picture in enumerate(pictures, 1):
        place = f"Image {number} of {len(pictures)}: " if len(pictures) > 1 else ""
        try:
            done.append(read(picture))
        except ImageError as error:
            problem = next(problem for kind_, problem in _PROBLEMS.items() if isinstance(error, kind_))
            raise problem(place + str(error)) from error
        except (MalformedError, UnusableError) as error:
            raise type(error)(place + error.detail) from error
    return done


class _Files:
    """Opens the image files of one request. They are held together, so their pixels are counted together."""

    def __init__(self, limits: Limits) -> None:
        self._most = self._left = limits.max_image_pixels

    def open(self, data: bytes) -> Image.Image:
        if not data:
            raise MalformedError("The file is empty.")
        try:
            image = open_image(data, max_pixels=self._left)
        except ImageTooLargeError as error:
            if self._left == self._most:
                raise
            raise ImageTooLargeError(f"{error} A request may have {self._most}, of all its images together.") from error
        self._left -= image.width * image.height
        return image

    def from_json(self, image: object) -> Picture:
        if isinstance(image, list):
            return image
        if not isinstance(image, str):
            raise UnusableError(f"Expected the base64 of an image file, or nested numbers; received {kind(image)}.")
        encoded = image.partition(",")[2] if image.startswith("data:") else image
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MalformedError("The string is not base64.") from error
        return self.open(data)


def _fit(
    picture: Picture, shape: tuple[int, ...], fit: Callable[[Image.Image], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    if isinstance(picture, Image.Image):
        return fit(picture)
    if isinstance(picture, Raw):
        return _from_bytes(picture, shape)
    return _from_numbers(picture, shape)


def _from_bytes(raw: Raw, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = math.prod(shape)
    if len(raw.data) != size:
        problem = UnusableError if raw.declared else MalformedError
        raise problem(
            f"Expected an image file, or {size} raw bytes ({_by(shape)}); received {len(raw.data)} bytes "
            "that are not an image file."
        )
    return np.frombuffer(raw.data, np.uint8).reshape(shape)


def _from_numbers(numbers: list[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read nested, or for grey also flat, whole numbers from 0 to 255."""
    flat = len(shape) == 2 and len(numbers) == math.prod(shape)
    leaves = numbers if flat else _leaves(numbers, shape, shape)
    try:
        pixels = bytes(leaves)  # reads and checks whole numbers 10 times faster than numpy
    except (TypeError, ValueError):
        pixels = _from_floats(leaves, shape)
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _leaves(numbers: object, shape: tuple[int, ...], whole: tuple[int, ...]) -> list[Any]:
    """Flatten nested lists of exactly ``shape``; checked before numpy sees it, which would take anything."""
    if not isinstance(numbers, list):
        raise UnusableError(f"Expected {_by(whole)} numbers; received {kind(numbers)} in place of a list.")
    if len(numbers) != shape[0]:
        raise UnusableError(f"Expected {_by(whole)} numbers; a list holds {len(numbers)} in place of {shape[0]}.")
    if len(shape) == 1:
        return numbers
    if len(shape) == 2 and set(map(type, numbers)) == {list} and set(map(len, numbers)) == {shape[1]}:
        return list(chain.from_iterable(numbers))  # all is well: half of the time of looking at every row
    return list(chain.from_iterable(_leaves(row, shape[1:], whole) for row in numbers))


def _from_floats(numbers: list[Any], shape: tuple[int, ...]) -> bytes:
    wrong = next((number for number in numbers if type(number) not in (int, float)), None)
    if wrong is not None or None in numbers:
        raise UnusableError(f"Expected {_by(shape)} numbers from 0 to 255; {kind(wrong)} is among them.")
    low, high = min(numbers), max(numbers)
    if low < 0 or high > 255:
        raise UnusableError(f"Expected numbers from 0 to 255; received {low:g} to {high:g}.")
    if any(number % 1 for number in numbers):
        raise UnusableError("Expected whole numbers from 0 to 255, not scaled: scaling is part of the model.")
    return bytes(map(int, numbers))


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
