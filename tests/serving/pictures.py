"""Image files for the tests, drawn here."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont


def file(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def digit(value: int = 7, size: int = 100) -> Image.Image:
    """Black ink on white."""
    image = Image.new("L", (size * 2, size * 3 // 2), 255)
    ImageDraw.Draw(image).text((size // 2, 5), str(value), font=ImageFont.load_default(size), fill=0)
    return image


def mnist_like(seed: int = 0) -> NDArray[np.uint8]:
    """uint8 (28, 28), a white blot on black."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((28, 28), np.uint8)
    pixels[6:22, 8:20] = rng.integers(0, 256, (16, 12))
    return pixels


def photo(seed: int = 0, side: int = 32) -> NDArray[np.uint8]:
    """uint8 (side, side, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def animated_gif() -> bytes:
    frames = [Image.new("L", (40, 40), level) for level in (0, 120, 255)]
    return file(frames[0], "GIF", save_all=True, append_images=frames[1:])


def bomb(side: int = 20_000) -> bytes:
    """A valid grey PNG of side × side pixels in some kilobytes of deflated zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = bytes(side + 1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
