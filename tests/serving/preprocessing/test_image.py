"""Image files of every kind that people and attackers send, and digits as MNIST would hold them."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from serving.preprocessing import image as module
from serving.preprocessing.image import (
    ImageError,
    ImageTooLargeError,
    MalformedImageError,
    UnsupportedImageError,
    encode_png,
    grid,
    open_image,
    resize_batch,
    to_digit,
    to_grey,
    to_rgb,
)
from training.synthetic import draw_digit, fonts

MAX_PIXELS = 1_000_000
GREY = np.array([[0, 1, 100, 255]] * 3, np.uint8)
RGB = np.stack([GREY, GREY[:, ::-1], np.full_like(GREY, 7)], axis=-1)
ALPHA = np.array([[0, 51, 204, 255]] * 3, np.uint8)
ORIENTATION = 0x0112


def encode(picture: Image.Image | NDArray[Any], file_format: str = "PNG", **options: object) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    image = open_image(data, max_pixels=max_pixels)
    assert image.mode in {"L", "RGB"}
    return np.asarray(image)


def over_white(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    alpha = (ALPHA / 255.0).reshape(ALPHA.shape + (1,) * (pixels.ndim - 2))
    return pixels * alpha + 255.0 * (1.0 - alpha)


def png_with_size(width: int, height: int) -> bytes:
    """A PNG whose header, with a right checksum, promises more pixels than the few that follow."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = bytearray(encode(GREY))
    data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    return bytes(data)


class TestModes:
    @pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP"])
    def test_grey_keeps_its_values(self, file_format: str) -> None:
        np.testing.assert_array_equal(read(encode(GREY, file_format)), GREY)

    @pytest.mark.parametrize("file_format", ["PNG", "BMP"])
    def test_rgb_keeps_its_values(self, file_format: str) -> None:
        np.testing.assert_array_equal(read(encode(RGB, file_format)), RGB)

    def test_lossless_webp_keeps_its_values(self) -> None:
        np.testing.assert_array_equal(read(encode(RGB, "WEBP", lossless=True)), RGB)

    @pytest.mark.parametrize(("file_format", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
    def test_lossy_formats_come_close(self, file_format: str, options: dict[str, int]) -> None:
        smooth = np.tile(np.linspace(40, 200, 64, dtype=np.uint8), (48, 1))
        pixels = read(encode(np.stack([smooth] * 3, axis=-1), file_format, **options))
        assert pixels.shape == (48, 64, 3)
        assert np.abs(pixels[..., 0].astype(int) - smooth).max() <= 8

    def test_grey_jpeg_stays_grey(self) -> None:
        assert read(encode(GREY, "JPEG")).shape == GREY.shape

    def test_one_bit_becomes_black_and_white(self) -> None:
        np.testing.assert_array_equal(read(encode(GREY >= 100)), np.where(GREY >= 100, 255, 0))

    def test_sixteen_bit_grey_is_scaled_not_clipped(self) -> None:
        values = np.array([[0, 128, 129, 257 * 100, 257 * 200 + 100, 65_535]], np.uint16)
        np.testing.assert_array_equal(read(encode(values)), [[0, 0, 1, 100, 200, 255]])

    def test_palette_is_resolved(self) -> None:
        paletted = Image.fromarray(RGB).quantize(4)
        assert paletted.mode == "P"
        np.testing.assert_array_equal(read(encode(paletted)), RGB)

    def test_grey_palette_becomes_grey(self) -> None:
        paletted = Image.fromarray(GREY).convert("P")
        assert Image.open(io.BytesIO(encode(paletted))).mode == "P"
        np.testing.assert_array_equal(read(encode(paletted)), GREY)

    def test_adobe_cmyk_is_converted(self) -> None:
        inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
        np.testing.assert_allclose(read(encode(inks, "JPEG", quality=100)), [[[255, 0, 0]] * 8] * 8, atol=3)

    def test_cmyk_without_adobes_mark_is_not_inverted(self) -> None:
        data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
        start = data.index(b"\xff\xee")
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        # The file's values are now taken as they stand: full cyan and full black.
        np.testing.assert_allclose(read(data[:start] + data[end:]), 0, atol=3)

    @pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
    def test_transparent_rgb_lies_on_white(self, file_format: str) -> None:
        layer = np.dstack([RGB, ALPHA])
        options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
        np.testing.assert_allclose(read(encode(layer, file_format, **options)), over_white(RGB), atol=1)

    def test_transparent_grey_lies_on_white_and_stays_grey(self) -> None:
        np.testing.assert_allclose(read(encode(np.dstack([GREY, ALPHA]))), over_white(GREY), atol=1)

    @pytest.mark.parametrize(
        ("picture", "transparent", "expected"),
        [
            (Image.fromarray(GREY), 100, [0, 1, 255, 255]),
            (Image.fromarray(GREY.astype(np.uint16) * 257), 100 * 257, [0, 1, 255, 255]),
            (Image.fromarray(GREY < 100), 0, [255, 255, 255, 255]),
            (Image.fromarray(RGB), (100, 1, 7), [[0, 255, 7], [1, 100, 7], [255, 255, 255], [255, 0, 7]]),
        ],
        ids=["grey", "16-bit", "1-bit", "rgb"],
    )
    def test_a_transparent_colour_becomes_white(
        self, picture: Image.Image, transparent: object, expected: list[Any]
    ) -> None:
        np.testing.assert_array_equal(read(encode(picture, transparency=transparent))[0], expected)

    @pytest.mark.parametrize("file_format", ["PNG", "GIF"])
    def test_a_transparent_palette_entry_becomes_white(self, file_format: str) -> None:
        paletted = Image.fromarray(RGB).quantize(4)
        data = encode(paletted, file_format, transparency=int(np.asarray(paletted)[0, 2]))
        expected = RGB.copy()
        expected[:, 2] = 255
        np.testing.assert_array_equal(read(data), expected)

    def test_half_transparent_palette_entries_lie_on_white(self) -> None:
        paletted = Image.fromarray(np.full((2, 2, 3), (200, 0, 0), np.uint8)).quantize(1)
        np.testing.assert_allclose(read(encode(paletted, transparency=b"\x80"))[0, 0], [227, 127, 127], atol=1)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_turned_camera_is_turned_back(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = encode(RGB, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(read(data), np.asarray(expected))
        assert read(data).shape == ((4, 3, 3) if orientation > 4 else (3, 4, 3))

    @pytest.mark.parametrize("exif", [b"Exif\0\0not a TIFF block", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"\xff" * 40])
    def test_broken_exif_does_not_spoil_a_good_picture(self, exif: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(read(encode(RGB, exif=exif)), RGB)

    def test_a_still_picture_with_a_preview_is_read(self) -> None:
        """Phones write JPEG files that hold a second, smaller picture (MPO): that is no animation."""
        second = Image.fromarray(RGB)
        data = encode(RGB, "MPO", save_all=True, append_images=[second])
        assert read(data).shape == RGB.shape


class TestUnusableFiles:
    @pytest.mark.parametrize(
        "data",
        [b"", b"\0", b"a digit, in words", b"%PDF-1.7", b"<svg/>", encode(GREY, "TIFF"), encode(GREY, "PPM")],
        ids=["empty", "nul", "text", "pdf", "svg", "tiff", "ppm"],
    )
    def test_other_data_is_malformed_and_the_formats_are_named(self, data: bytes) -> None:
        with pytest.raises(MalformedImageError, match="expected one of PNG, JPEG, GIF, BMP, WebP"):
            read(data)

    @pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
    @pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
    def test_a_truncated_file_is_malformed(self, file_format: str, share: float) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        data = encode(noise, file_format)
        with pytest.raises(MalformedImageError):
            read(data[: int(share * len(data))])

    @pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
    def test_damaged_files_raise_nothing_but_image_errors(self, file_format: str) -> None:
        rng = np.random.default_rng(1)
        noise = rng.integers(0, 256, (16, 16, 3), np.uint8)
        data = encode(Image.fromarray(noise).quantize(16) if file_format in {"GIF", "PNG"} else noise, file_format)
        outcomes = set()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(400):
                damaged = bytearray(data)
                for place in rng.integers(0, min(len(data), 200), 3):
                    damaged[place] = rng.integers(256)
                try:
                    read(bytes(damaged))
                    outcomes.add("read")
                except ImageError as error:
                    outcomes.add(type(error).__name__)
        assert "MalformedImageError" in outcomes

    @pytest.mark.parametrize("size", [(20_000, 20_000), (12_000, 9_000), (2**31 - 1, 2**31 - 1)])
    def test_a_bomb_is_refused_by_its_header_without_a_warning(self, size: tuple[int, int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageTooLargeError, match=f"{size[0]}×{size[1]} pixels; at most 1000000"):
                read(png_with_size(*size))

    @pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
    def test_the_cap_holds_for_every_format(self, file_format: str) -> None:
        data = encode(RGB, file_format)
        assert read(data, max_pixels=12).shape == RGB.shape
        with pytest.raises(ImageTooLargeError, match="4×3 pixels; at most 11"):
            read(data, max_pixels=11)

    @pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}], ids=["VP8", "VP8L", "VP8X"])
    def test_every_kind_of_webp_header_is_measured(self, options: dict[str, Any]) -> None:
        with pytest.raises(ImageTooLargeError, match="300×200"):
            read(encode(Image.new("RGB", (300, 200)), "WEBP", **options), max_pixels=59_999)

    @pytest.mark.parametrize("file_format", ["PNG", "GIF", "WEBP"])
    def test_an_animation_is_refused(self, file_format: str) -> None:
        other = Image.fromarray(255 - GREY)
        data = encode(GREY, file_format, save_all=True, append_images=[other])
        with pytest.raises(UnsupportedImageError, match="is animated; expected a single picture"):
            read(data)

    def test_messages_tell_nothing_of_the_inside(self) -> None:
        for data in (
            b"text",
            encode(GREY)[:50],
            png_with_size(20_000, 20_000),
            b"GIF89a",
            b"RIFF0000WEBPVP8X",
        ):
            with pytest.raises(ImageError) as caught:
                read(data)
            assert caught.value.__suppress_context__ or caught.value.__context__ is None
            assert not any(word in str(caught.value) for word in ("PIL", "Pillow", "BytesIO", "0x", "Traceback"))

    def test_many_threads_get_what_one_gets(self) -> None:
        files = [encode(draw_digit(digit)) for digit in range(10)] * 4
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda data: to_digit(open_image(data, max_pixels=MAX_PIXELS)), files))
        for data, pixels in zip(files, together, strict=True):
            np.testing.assert_array_equal(pixels, to_digit(open_image(data, max_pixels=MAX_PIXELS)))


def centre_of_mass(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Row and column, of pixel middles: 14.0 is the middle of 28."""
    mass = pixels / pixels.sum()
    places = np.arange(28) + 0.5
    return np.array([mass.sum(axis=1) @ places, mass.sum(axis=0) @ places])


def ink_box(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    rows, columns = np.nonzero(pixels)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Largest correlation over shifts by a pixel, which rounding the centre of mass may cause."""
    shifts = itertools.product((-1, 0, 1), repeat=2)
    return max(float(np.corrcoef(one.ravel(), np.roll(other, s, (0, 1)).ravel())[0, 1]) for s in shifts)


def scribble(side: int, pen: int) -> Image.Image:
    """A zigzag like a 2, drawn with a pen of that many pixels."""
    image = Image.new("L", (side, side), 255)
    points = [(0.3, 0.3), (0.45, 0.15), (0.65, 0.25), (0.6, 0.5), (0.3, 0.85), (0.7, 0.85)]
    ImageDraw.Draw(image).line([(x * side, y * side) for x, y in points], fill=0, width=pen, joint="curve")
    return image


class TestDigits:
    def test_a_grey_28x28_is_taken_as_it_is(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
        np.testing.assert_array_equal(to_digit(Image.fromarray(pixels)), pixels)

    @pytest.mark.parametrize("font", fonts())
    @pytest.mark.parametrize("digit", range(10))
    def test_the_ink_fits_20x20_and_its_mass_lies_in_the_middle(self, digit: int, font: str) -> None:
        pixels = to_digit(draw_digit(digit, font=font, size=(300, 220), shift=(0.15, -0.1), angle=7))
        assert pixels.shape == (28, 28)
        assert pixels.dtype == np.uint8
        assert pixels.max() == 255
        assert max(ink_box(pixels)) in {19, 20}  # the outermost edge may round to nothing
        assert np.abs(centre_of_mass(pixels) - 14.0).max() <= 0.52  # half a pixel, and grey levels are rounded

    def test_the_aspect_is_kept(self) -> None:
        bar = Image.new("L", (200, 200), 255)
        bar.paste(0, (90, 40, 110, 140))
        assert ink_box(to_digit(bar)) == (20, 4)

    def test_a_negative_gives_the_same_digit(self) -> None:
        for digit in range(10):
            drawn = draw_digit(digit, ink=30, paper=220)
            np.testing.assert_array_equal(to_digit(ImageOps.invert(drawn)), to_digit(drawn))

    def test_a_thin_and_pale_pen_gives_full_strokes(self) -> None:
        black, pencil = draw_digit(3), draw_digit(3, ink=170)
        assert similarity(to_digit(pencil), to_digit(black)) > 0.99

    @pytest.mark.parametrize(("ink", "paper"), [("red", "green"), ("navy", "black"), ("gold", "white")])
    def test_coloured_ink_is_seen_whatever_its_luma(self, ink: str, paper: str) -> None:
        drawn = draw_digit(5)
        coloured = Image.composite(Image.new("RGB", drawn.size, paper), Image.new("RGB", drawn.size, ink), drawn)
        assert similarity(to_digit(coloured), to_digit(drawn)) > 0.99

    @pytest.mark.parametrize("shift", [(-0.2, 0.1), (0.2, 0.2), (0.0, -0.2)])
    def test_where_the_digit_stands_does_not_matter(self, shift: tuple[float, float]) -> None:
        for digit in range(10):
            moved = draw_digit(digit, height=0.5, shift=shift)
            assert similarity(to_digit(moved), to_digit(draw_digit(digit, height=0.5))) > 0.99

    @pytest.mark.parametrize("side", [40, 60, 140, 600, 1500, 4000])
    def test_how_large_the_picture_is_does_not_matter(self, side: int) -> None:
        for digit in (0, 2, 4, 7):
            other = to_digit(draw_digit(digit, size=(side, side)))
            assert similarity(other, to_digit(draw_digit(digit))) > 0.98

    @pytest.mark.parametrize(("side", "pen"), [(60, 1), (280, 1), (1000, 1), (1000, 5), (4000, 1)])
    def test_a_fine_pen_leaves_strokes_as_wide_as_a_broad_one(self, side: int, pen: int) -> None:
        broad = to_digit(scribble(280, 28))
        fine = to_digit(scribble(side, pen))
        assert similarity(fine, broad) > 0.8
        # Typical grey level of the strokes, weighted by ink: pale strokes would be far below.
        assert np.square(fine.astype(float)).sum() / fine.sum() > 180

    def test_shaded_and_noisy_paper_is_cleaned(self) -> None:
        rng = np.random.default_rng(2)
        drawn = np.asarray(draw_digit(6, ink=40, paper=215)).astype(float)
        photo = drawn + np.linspace(-25, 25, 280) + rng.normal(0, 4, drawn.shape)
        pixels = to_digit(Image.fromarray(photo.clip(0, 255).astype(np.uint8)))
        assert similarity(pixels, to_digit(draw_digit(6))) > 0.97
        assert (pixels[:3] == 0).all()

    def test_jpeg_artefacts_are_cleaned(self) -> None:
        data = encode(draw_digit(8, size=(120, 120)), "JPEG", quality=20)
        pixels = to_digit(open_image(data, max_pixels=MAX_PIXELS))
        assert similarity(pixels, to_digit(draw_digit(8, size=(120, 120)))) > 0.98

    def test_a_speck_of_dust_does_not_shrink_the_digit(self) -> None:
        dusty = draw_digit(4, height=0.4)
        dusty.paste(0, (3, 3, 5, 5))
        np.testing.assert_array_equal(to_digit(dusty), to_digit(draw_digit(4, height=0.4)))

    def test_digits_of_the_right_size_pass_nearly_unchanged(self) -> None:
        """What is already as MNIST holds it, but in a colour file, comes out as it was."""
        for digit in range(10):
            pixels = to_digit(draw_digit(digit, pen=6))
            again = to_digit(Image.fromarray(pixels).convert("RGB"))
            assert similarity(pixels, again) > 0.97

    @pytest.mark.parametrize("size", [(1, 1), (28, 29), (280, 280), (1, 500), (3000, 2000)])
    @pytest.mark.parametrize("level", [0, 200, 255])
    def test_an_empty_sheet_is_unusable(self, size: tuple[int, int], level: int) -> None:
        with pytest.raises(UnsupportedImageError, match="Nothing is drawn on the image"):
            to_digit(Image.new("L", size, level))

    def test_a_noisy_empty_sheet_is_unusable(self) -> None:
        noise = np.random.default_rng(3).normal(200, 3, (400, 300)).astype(np.uint8)
        with pytest.raises(UnsupportedImageError, match=r"at most \d+ of 255 levels"):
            to_digit(Image.fromarray(noise))

    @pytest.mark.parametrize("draw", [
        lambda image: image.putpixel((0, 0), 0),
        lambda image: image.paste(0, (0, 0, image.width, 1)),
        lambda image: image.paste(0, (image.width // 2, 0, image.width, image.height)),
    ], ids=["dot", "line", "half"])  # fmt: skip
    @pytest.mark.parametrize("size", [(2, 2), (27, 28), (5, 3000), (3000, 5)])
    def test_odd_drawings_and_shapes_give_some_digit_or_an_image_error(
        self, draw: Callable[[Image.Image], None], size: tuple[int, int]
    ) -> None:
        image = Image.new("L", size, 255)
        draw(image)
        try:
            pixels = to_digit(image)
        except UnsupportedImageError:
            return
        assert pixels.shape == (28, 28)
        assert pixels.max() == 255


class TestResizing:
    def test_the_right_size_keeps_every_pixel(self) -> None:
        np.testing.assert_array_equal(to_rgb(Image.fromarray(RGB), 3, 4), RGB)
        np.testing.assert_array_equal(to_grey(Image.fromarray(GREY), 3, 4), GREY)

    def test_grey_becomes_three_equal_channels(self) -> None:
        np.testing.assert_array_equal(to_rgb(Image.fromarray(GREY), 3, 4), np.stack([GREY] * 3, axis=-1))

    def test_rgb_becomes_luma(self) -> None:
        pixels = to_grey(Image.new("RGB", (5, 5), (255, 0, 0)), 2, 2)
        np.testing.assert_array_equal(pixels, np.full((2, 2), 76))

    def test_shrinking_averages(self) -> None:
        """A fine checkerboard becomes grey; without antialiasing it would become stripes or one colour."""
        board = (np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
        assert np.abs(to_rgb(Image.fromarray(board), 32, 32).astype(int) - 127).max() <= 16

    def test_the_whole_picture_is_squeezed_into_the_shape(self) -> None:
        wide = Image.new("RGB", (300, 100), "blue")
        wide.paste((255, 0, 0), (0, 0, 30, 100))
        pixels = to_rgb(wide, 32, 32)
        assert pixels.shape == (32, 32, 3)
        assert (pixels[:, 0] == [255, 0, 0]).all()
        assert (pixels[:, -1] == [0, 0, 255]).all()

    @pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40), (224, 224)])
    def test_a_batch_is_resized_as_its_images_are(self, height: int, width: int) -> None:
        images = np.random.default_rng(4).integers(0, 256, (3, 32, 32, 3), np.uint8)
        batch = resize_batch(images, height, width)
        assert batch.dtype == np.uint8
        for resized, image in zip(batch, images, strict=True):
            np.testing.assert_array_equal(resized, to_rgb(Image.fromarray(image), height, width))

    def test_an_empty_batch_stays_empty(self) -> None:
        assert resize_batch(np.empty((0, 32, 32, 3), np.uint8), 8, 9).shape == (0, 8, 9, 3)


class TestWriting:
    @pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
    def test_png_gives_back_what_was_written(self, pixels: NDArray[np.uint8]) -> None:
        np.testing.assert_array_equal(read(encode_png(pixels)), pixels)

    def test_a_grid_lays_images_out_row_by_row(self) -> None:
        images = np.arange(1, 6, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
        np.testing.assert_array_equal(
            grid(images, columns=3, gap=1),
            [
                [1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3],
                [1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3],
                [0] * 11,
                [4, 4, 4, 0, 5, 5, 5, 0, 0, 0, 0],
                [4, 4, 4, 0, 5, 5, 5, 0, 0, 0, 0],
            ],
        )

    @pytest.mark.parametrize(("count", "shape"), [(1, (28, 28)), (10, (28, 298)), (25, (88, 298))])
    def test_a_grid_has_a_gap_only_between_images(self, count: int, shape: tuple[int, int]) -> None:
        assert grid(np.ones((count, 28, 28), np.uint8), columns=10).shape == shape

    def test_images_without_a_gap_touch(self) -> None:
        assert grid(np.ones((4, 2, 2), np.uint8), columns=2, gap=0).all()


def _read_or_refuse(data: bytes, max_pixels: int = 1000) -> tuple[str, object]:
    try:
        image = open_image(data, max_pixels=max_pixels)
    except ImageError as error:
        return type(error).__name__, str(error)
    return image.mode, np.asarray(image).tolist()


@given(
    mode=st.sampled_from(["L", "RGB"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    options=st.fixed_dictionaries({}, optional={"compress_level": st.integers(0, 9), "dpi": st.just((72, 72))}),
    damage=st.one_of(
        st.none(),
        st.tuples(st.just("change"), st.integers(0, 5000), st.integers(0, 255)),
        st.tuples(st.just("cut"), st.integers(0, 5000), st.just(0)),
        st.tuples(st.just("repeat"), st.integers(0, 60), st.integers(1, 60)),
    ),
    seed=st.integers(0, 9),
)
def test_a_plain_png_is_read_and_refused_as_any_other(
    mode: str, size: tuple[int, int], options: dict[str, Any], damage: tuple[str, int, int] | None, seed: int
):
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    data = bytearray(file.getvalue())
    if damage is not None:
        how, where, what = damage
        where %= len(data)
        if how == "change":
            data[where] = what
        elif how == "cut":
            del data[where:]
        else:
            data[where:where] = data[where : where + what]
    found = _read_or_refuse(bytes(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PLAIN_PNG", b"no such signature")
        assert _read_or_refuse(bytes(data)) == found
    if damage is None and size[0] * size[1] <= 1000:
        assert found == (mode, pixels.tolist())
    # A picture of this kind takes the short way, unless something else is in its file.
    plain = module._open_plain_png(bytes(data), 1000)
    assert damage is not None or (plain is None) == ("dpi" in options or size[0] * size[1] > 1000)


def _chunks(pixels: NDArray[np.uint8], *kinds: bytes) -> bytes:
    """A PNG of these chunks, in this order; an IDAT holds all pixels."""
    height, width = pixels.shape
    content = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)),
    }
    chunks = (
        struct.pack(">I", len(content.get(kind, b"")))
        + kind
        + (body := content.get(kind, b""))
        + struct.pack(">I", zlib.crc32(kind + body))
        for kind in kinds
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "kinds",
    [
        (b"IHDR", b"IDAT", b"IEND"),
        (b"IHDR", b"IHDR", b"IDAT", b"IEND"),
        (b"IHDR", b"IDAT", b"IDAT", b"IEND"),
        (b"IHDR", b"IEND"),
        (b"IHDR", b"IEND", b"IDAT"),
        (b"IHDR", b"IDAT"),
        (b"IHDR", b"tEXt", b"IDAT", b"IEND"),
        (b"IHDR", b"IDAT", b"ABCD", b"IEND"),
    ],
    ids=lambda kinds: " ".join(kind.decode() for kind in kinds),
)
def test_chunks_in_any_order_are_read_and_refused_as_pillow_does(
    kinds: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
):
    data = _chunks(GREY, *kinds)
    found = _read_or_refuse(data)
    monkeypatch.setattr(module, "_PLAIN_PNG", b"no such signature")
    assert _read_or_refuse(data) == found
