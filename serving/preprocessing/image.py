"""Image files to the pixels a network takes, and pixels back to PNG; training and serving share every line.

Two steps, so that a service can tell a broken file from an unsuitable picture: `open_image` turns the bytes
of an upload into an upright, opaque picture in mode ``L`` or ``RGB``; `to_digit`, `to_rgb` and `to_grey`
turn that into an array of the network's size.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

DIGIT_SIDE: Final = 28
DIGIT_BOX: Final = 20

# What people send, by decoders that are small or well fuzzed. TIFF and PPM are left out on purpose: they are
# rarely sent; the first is a container of a dozen codecs, the second is partly decoded in Python.
_FORMATS: Final[tuple[tuple[bytes, str, type[ImageFile]], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "PNG", PngImageFile),
    (b"\xff\xd8\xff", "JPEG", JpegImageFile),
    (b"GIF8", "GIF", GifImageFile),
    (b"BM", "BMP", BmpImageFile),
    (b"RIFF", "WebP", WebPImageFile),
)
_ACCEPTED: Final = ", ".join(name for _, name, _ in _FORMATS)

# PNG (W3C, third edition), sections 5.3 and 11.2.1: signature and head of the first chunk, its content, and the
# head and the checksum of any. Plain is 8-bit grey or RGB, not interlaced.
_PLAIN_PNG: Final = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_PLAIN_KINDS: Final = {b"\x08\0\0\0\0": "L", b"\x08\x02\0\0\0": "RGB"}
_IHDR: Final = struct.Struct(">II5s")
_CHUNK: Final = struct.Struct(">I4s")
_CRC: Final = struct.Struct(">I")

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the move that undoes it."""

# Finding the ink in a picture of a digit. Levels are fractions of the picture's own contrast.
_WORKING_SIDE: Final = 512  # larger pictures are first averaged down to between this and twice this
_LEAST_CONTRAST: Final = 32  # of 255: paler than a faint pencil, stronger than sensor noise on bare paper
_CLEAN, _DIRTY = 0.1, 0.4  # bounds of what counts as paper, however clean or dirty the border is
_DUST: Final = 16384  # one pixel in so many may differ more from the paper than the ink does
_SPECKS: Final = 0.002  # share of the ink on each side that may lie outside the digit's box
_THINNEST: Final = 2.4  # pixels in the 20×20 box: the median of MNIST, a quarter of which is below 2.1
_FINE: Final = 4  # strokes are thickened on a grid this many times finer than the final one


class ImageError(ValueError):
    """The image cannot be used; the message says what was received and what is expected."""


class MalformedImageError(ImageError):
    """The bytes are not an image in an accepted format, or the file is truncated or damaged."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than accepted."""


class UnsupportedImageError(ImageError):
    """The image is well formed but unusable: it is animated, or no digit is drawn on it."""


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode an image file into an upright, opaque picture.

    The size is checked from the header, before any pixel is decoded. The EXIF orientation is applied,
    transparency is laid on white, 16-bit grey is scaled (not clipped) to 8 bits, CMYK and palettes are
    resolved; colour profiles are ignored. Thread safe: nothing of Pillow's global state is used or changed.

    Args:
        data: a whole PNG, JPEG, GIF, BMP or WebP file with one frame.
        max_pixels: width × height may not exceed this.

    Returns:
        The decoded picture, in mode ``L`` if the file holds grey values and ``RGB`` otherwise.

    Raises:
        MalformedImageError: ``data`` is not such a file, or is truncated or damaged.
        ImageTooLargeError: there are more than ``max_pixels`` pixels.
        UnsupportedImageError: the image is animated.
    """
    if (plain := _open_plain_png(data, max_pixels)) is not None:
        return plain
    name, decoder = _identify(data)
    try:
        if decoder is WebPImageFile:  # Pillow allocates its canvas on opening
            _check_size(_webp_size(data), max_pixels)
        image = decoder(io.BytesIO(data))
        _check_size(image.size, max_pixels)
        if getattr(image, "is_animated", False):
            message = f"The {name} image is animated; expected a single picture."
            raise UnsupportedImageError(message)
        image.load()
        return _opaque(_rotate_upright(image))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        message = f"The {name} image is far too large; at most {max_pixels} pixels are accepted."
        raise ImageTooLargeError(message) from None
    except Exception:  # noqa: BLE001 - decoders meet hostile bytes and raise some dozen unrelated types
        message = f"The {name} image ({len(data)} B) is truncated or damaged and cannot be decoded."
        raise MalformedImageError(message) from None


def to_digit(image: Image.Image) -> NDArray[np.uint8]:
    """Turn a picture of one digit, as a person would send it, into what MNIST would hold of it.

    A grey image of exactly 28×28 is taken as it is: it is an MNIST digit already. Of any other, the ink is
    what differs from the background (the median colour of the border), whether darker or lighter; faint
    differences are paper. Then as MNIST was made (LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based
    learning applied to document recognition", section III-A): the ink's box is scaled into 20×20,
    antialiased and with its aspect kept, and centred by its centre of mass in 28×28. Strokes thinner than
    MNIST's are thickened, so that a fine pen on a large sheet stays legible.

    Args:
        image: any size, mode ``L`` or ``RGB``.

    Returns:
        uint8 (28, 28), white ink (255) on black (0).

    Raises:
        UnsupportedImageError: nothing is drawn on the image.
    """
    if image.mode == "L" and image.size == (DIGIT_SIDE, DIGIT_SIDE):
        return np.array(image)
    ink = _crop(_ink(_shrink(image))).astype(np.float32)
    ink /= 255.0
    width = _stroke_width(ink) * DIGIT_BOX / max(ink.shape)
    if width < _THINNEST:
        ink = _thicken(ink, _THINNEST - width)
    return _centre(_fit(ink, DIGIT_BOX))


def to_rgb(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Resize a picture to uint8 (height, width, 3), 0 to 255; a picture of that size keeps its pixels.

    Pillow's antialiased bilinear filter. The whole picture is squeezed into the shape, aspect not kept, as
    Keras' image loaders do by default: nothing of the object is cut off, and nothing invented at the sides.
    """
    return np.asarray(_resize(_convert(image, "RGB"), height, width))


def to_grey(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Turn a picture into grey (ITU-R 601 luma) and resize it like `to_rgb`: uint8 (height, width)."""
    return np.asarray(_resize(_convert(image, "L"), height, width))


def resize_batch(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize uint8 (n, h, w, 3) to uint8 (n, height, width, 3), every image exactly as `to_rgb` does."""
    if images.shape[1:3] == (height, width):
        return images
    resized = np.empty((len(images), height, width, 3), np.uint8)
    for target, image in zip(resized, images, strict=True):
        target[:] = to_rgb(Image.fromarray(image), height, width)
    return resized


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 (h, w) grey or (h, w, 3) RGB as a PNG file, at the fastest compression."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def grid(images: NDArray[np.uint8], columns: int, gap: int = 2) -> NDArray[np.uint8]:
    """Lay grey images uint8 (n, h, w), n ≥ 1, side by side in rows of ``columns``, on black.

    Returns:
        uint8 (rows·h + (rows - 1)·gap, columns·w + (columns - 1)·gap), of at most n columns; cells left over
        in the last row are black.
    """
    count, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    down, right = height + gap, width + gap
    cells = np.zeros((rows * columns, down, right), np.uint8)
    cells[:count, :height, :width] = images
    sheet = cells.reshape(rows, columns, down, right).swapaxes(1, 2).reshape(rows * down, columns * right)
    return sheet[: rows * down - gap, : columns * right - gap]


# --- reading files ------------------------------------------------------------------------------------------


def _identify(data: bytes) -> tuple[str, type[ImageFile]]:
    """Name and decoder by the first bytes; Pillow's `open` would try, warn and limit on its own terms."""
    for signature, name, decoder in _FORMATS:
        if data.startswith(signature):
            return name, decoder
    received = f"data in no known image format ({len(data)} B)" if data else "an empty image"
    message = f"Received {received}; expected one of {_ACCEPTED}."
    raise MalformedImageError(message)


def _open_plain_png(data: bytes, max_pixels: int) -> Image.Image | None:
    """Decode a PNG of 8-bit grey or RGB that holds nothing but pixels, as most small ones do.

    Pillow's decoder without its reading of files: the same pixels in half of the time. Whatever is not that
    plain, too large or damaged gives None, for Pillow to read or to refuse.
    """
    if not data.startswith(_PLAIN_PNG):
        return None
    parts: list[bytes] = []
    try:
        width, height, kind = _IHDR.unpack_from(data, len(_PLAIN_PNG))
        mode = _PLAIN_KINDS.get(kind)
        if mode is None or not 0 < width * height <= max_pixels:
            return None
        start, kind = 8, b"IHDR"
        while kind != b"IEND":
            length, kind = _CHUNK.unpack_from(data, start)
            end = start + 8 + length
            if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[start + 4 : end]):
                return None
            if kind == b"IDAT":
                parts.append(data[start + 8 : end])
            elif kind != b"IEND" and start > 8:
                return None
            start = end + 4
        return Image.frombytes(mode, (width, height), b"".join(parts), "zip", mode, 0)
    except (struct.error, ValueError):
        return None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        message = f"The image has {width}×{height} pixels; at most {max_pixels} in all are accepted."
        raise ImageTooLargeError(message)
    if width * height == 0:
        message = f"The image has {width}×{height} pixels; expected at least one."
        raise MalformedImageError(message)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP header (RFC 9649, sections 2.5 to 2.7)."""

    def number(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], "little")

    match data[12:16]:
        case b"VP8X":
            return number(24, 3) + 1, number(27, 3) + 1
        case b"VP8L":
            bits = number(21, 4)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF
    message = "Received a RIFF file that is not WebP."
    raise MalformedImageError(message)


def _rotate_upright(image: Image.Image) -> Image.Image:
    """Undo the rotation of the camera that EXIF tells of; an unreadable EXIF block tells of none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - metadata must not decide whether a good picture is read
        orientation = None
    move = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if move is None else image.transpose(move)


def _opaque(image: Image.Image) -> Image.Image:
    """Convert any mode that the accepted formats have to ``L`` or ``RGB``, transparency laid on white."""
    match image.mode:
        case "I;16":
            return _from_16_bits(image)
        case "CMYK":
            # Pillow takes every CMYK JPEG as inverted, which only Adobe's are.
            return (image if "adobe" in image.info else ImageChops.invert(image)).convert("RGB")
        case "1" | "L" | "LA":
            mode = "L"
        case "P":
            colours = np.reshape(image.getpalette("RGB") or [], (-1, 3))
            mode = "L" if (colours == colours[:, :1]).all() else "RGB"
        case _:
            mode = "RGB"
    if not image.has_transparency_data:
        return _convert(image, mode)
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert(mode)


def _from_16_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to ``L``: 65 535 / 257 = 255; Pillow's own conversion has changed between releases."""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)


# --- digits -------------------------------------------------------------------------------------------------


def _shrink(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels (channels, h, w); large pictures averaged down, which bounds what the steps after this cost."""
    factor = max(image.size) // _WORKING_SIDE
    small = image.reduce(factor) if factor > 1 else image
    return np.stack([np.asarray(channel) for channel in small.split()])


def _ink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How much ink is at each pixel: uint8 (channels, h, w) to uint8 (h, w), paper exactly 0, ink 255."""
    edges = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    border = np.concatenate(edges, axis=1)  # (channels, 2h + 2w)
    background = np.median(border, axis=1).astype(np.uint8)
    distance = _distance(pixels, background[:, None, None])
    # The contrast is that of the strongest pixels but a few, which may be dust.
    stronger = distance.size - np.cumsum(Image.fromarray(distance).histogram())
    contrast = int(np.argmax(stronger <= distance.size // _DUST))
    if contrast < _LEAST_CONTRAST:
        message = (
            f"Nothing is drawn on the image: its pixels differ from the colour of its border by at most "
            f"{contrast} of 255 levels; expected a digit that differs by at least {_LEAST_CONTRAST}."
        )
        raise UnsupportedImageError(message)
    # Four median deviations of the border hold nearly all of its noise, or all of an even shading. The ramp
    # from paper to ink is the steeper the dirtier the paper, about half the contrast: where a stroke ends.
    dirt = 4.0 * float(np.median(_distance(border, background[:, None]))) / contrast
    paper = min(max(dirt, _CLEAN), _DIRTY)
    ramp = (np.arange(256) / contrast - paper) / (1.0 - 2.0 * paper)
    return np.asarray(Image.fromarray(distance).point(np.rint(255.0 * ramp.clip(0.0, 1.0)).tolist()))


def _distance(pixels: NDArray[np.uint8], colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Largest difference over the channels, the first axis; all in uint8, which is fastest."""
    apart = np.maximum(pixels, colour) - np.minimum(pixels, colour)
    largest: NDArray[np.uint8] = apart[0] if len(apart) == 1 else apart.max(axis=0)
    return largest


def _crop(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut out the box that holds the ink, but for specks around it."""
    for axis in (0, 1):
        share = np.cumsum(ink.sum(axis=1 - axis), dtype=np.float64)
        share /= share[-1]
        first, last = np.searchsorted(share, [_SPECKS, 1.0 - _SPECKS])
        ink = ink.take(range(first, last + 1), axis)
    return ink


def _stroke_width(ink: NDArray[np.float32]) -> float:
    """Mean width of the strokes in pixels: area over half the perimeter.

    The perimeter is π/4 of the edges met along all rows and columns (Cauchy and Crofton's formula).
    """
    inside = np.pad(ink, 1)
    edges = float(np.abs(np.diff(inside, axis=0)).sum() + np.abs(np.diff(inside, axis=1)).sum())
    return 2.0 * float(ink.sum()) / (np.pi / 4.0 * edges)


def _thicken(ink: NDArray[np.float32], missing: float) -> NDArray[np.float32]:
    """Widen strokes by ``missing`` pixels of the 20×20 box: a dilation by a soft disk on a finer grid."""
    radius = missing * _FINE / 2.0
    reach = int(radius) + 1
    fine = np.pad(_fit(ink, _FINE * DIGIT_BOX - 2 * reach), reach)
    # Scaling paled lines finer than the grid, but their crossings less: the typical level becomes full ink.
    fine = np.minimum(fine * (fine.sum() / np.square(fine).sum()), np.float32(1.0))
    wide: NDArray[np.float32] = fine.copy()
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            weight = radius + 1.0 - math.hypot(down, right)
            if weight > 0.0:
                np.maximum(wide, np.roll(fine, (down, right), (0, 1)) * min(weight, 1.0), out=wide)
    return wide


def _fit(ink: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Scale so that the longer side becomes ``side``, and the strongest ink 1 again."""
    height, width = (max(1, round(length * side / max(ink.shape))) for length in ink.shape)
    scaled = np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR))
    full: NDArray[np.float32] = scaled / scaled.max()
    return full


def _centre(ink: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Place ink (h, w), both at most 20, in 28×28, its centre of mass in the middle to the nearest pixel."""
    digit = np.zeros((DIGIT_SIDE, DIGIT_SIDE), np.uint8)
    corner = []
    for axis, length in enumerate(ink.shape):
        mass = ink.sum(axis=1 - axis, dtype=np.float64)
        centre = float(mass @ (np.arange(length) + 0.5)) / float(mass.sum())
        corner.append(min(max(round(DIGIT_SIDE / 2 - centre), 0), DIGIT_SIDE - length))
    (top, left), (height, width) = corner, ink.shape
    digit[top : top + height, left : left + width] = np.rint(ink * 255.0)
    return digit


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert to ``mode``; Pillow would copy a picture that is in it already, a tenth of a small one's decoding."""
    return image if image.mode == mode else image.convert(mode)


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)
