"""Small data sets made by our own code, shaped as the real ones, for smoke runs, tests and payloads.

Everything follows from its seed. A class is easy to tell from the others, so that a few epochs on a thousand
rows learn it, and the pictures and texts are of the kind people send, so that they exercise the real
preprocessing.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from serving.preprocessing.image import to_digit
from serving.preprocessing.text import tokenize

DEFAULT_FONT: Final = "Aileron"
"""The font that Pillow brings along."""

# Of the fonts that matplotlib brings along, those with upright or slanted digits of the usual kind.
_MATPLOTLIB_FONTS: Final = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmtt10",
)


@functools.cache
def fonts() -> tuple[str, ...]:
    """Names of the fonts that `draw_digit` can use: Pillow's own and, where it is installed, matplotlib's."""
    return (DEFAULT_FONT, *(name for name in _MATPLOTLIB_FONTS if _font_file(name) is not None))


def draw_digit(  # noqa: PLR0913 - a drawing has that many properties, all but the digit with a default
    digit: int,
    *,
    size: tuple[int, int] = (280, 280),
    font: str = DEFAULT_FONT,
    height: float = 0.6,
    angle: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    pen: int = 0,
    ink: int = 0,
    paper: int = 255,
) -> Image.Image:
    """Draw one digit as a person would send it.

    Args:
        digit: 0 to 9.
        size: width and height of the picture in pixels.
        font: one of `fonts`.
        height: of the digit, as a share of the picture's shorter side.
        angle: rotation in degrees, counter-clockwise.
        shift: of the digit's middle from the picture's, right and down, as shares of width and height.
        pen: pixels added around the strokes.
        ink: grey level of the digit, 0 to 255.
        paper: grey level of the background, 0 to 255.

    Returns:
        A picture in mode ``L``.
    """
    pixels = height * min(size)
    # The em is not the digit's height: measure once at a size where rounding does not matter.
    _, top, _, bottom = _font(font, 200).getbbox("0")
    face = _font(font, max(1, round(200 * pixels / (bottom - top))))
    left, top, right, bottom = face.getbbox(str(digit), stroke_width=pen)
    side = int(np.ceil(np.hypot(right - left, bottom - top))) + 4
    mask = Image.new("L", (side, side))
    # Whole pixels: at a fraction Pillow cuts off the glyph's edge.
    corner = (round((side - left - right) / 2), round((side - top - bottom) / 2))
    ImageDraw.Draw(mask).text(corner, str(digit), fill=255, font=face, stroke_width=pen)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC)
    picture = Image.new("L", size, paper)
    place = tuple(round(length * (0.5 + share) - side / 2) for length, share in zip(size, shift, strict=True))
    picture.paste(ink, (place[0], place[1]), mask)
    return picture


def digits(n: int, seed: int, names: Sequence[str] | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Digits as MNIST holds them: drawn in changing fonts, pens, slants and sizes, then through `to_digit`.

    Args:
        n: how many.
        seed: of every random choice.
        names: the fonts to draw with, all of `fonts` unless given.

    Returns:
        Pixels uint8 (n, 28, 28), white ink on black, and labels uint8 (n,), 0 to 9, evenly spread.
    """
    rng = np.random.default_rng(seed)
    labels = _labels(n, rng)
    names = fonts() if names is None else names
    pixels = np.empty((n, 28, 28), np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        drawn = draw_digit(
            int(label),
            size=(64, 64),
            font=names[int(rng.integers(len(names)))],
            height=rng.uniform(0.45, 0.7),
            angle=rng.uniform(-12.0, 12.0),
            shift=(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)),
            pen=int(rng.integers(2)),
        )
        image[:] = to_digit(drawn)
    return pixels, labels


def objects(n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Coloured shapes as CIFAR-10 holds objects: class k is one of five shapes in one of ten hues.

    Place, size, shade and background vary, and every pixel carries noise.

    Returns:
        Pixels uint8 (n, 32, 32, 3) RGB and labels uint8 (n,), 0 to 9, evenly spread.
    """
    rng = np.random.default_rng(seed)
    labels = _labels(n, rng)

    def draw(low: float, high: float, *shape: int) -> NDArray[np.float32]:
        return rng.uniform(low, high, (n, *shape)).astype(np.float32)

    grid = np.arange(32, dtype=np.float32)
    radius = draw(7.0, 12.0, 1, 1)
    right = np.abs(grid - draw(12.0, 19.0, 1, 1))  # (n, 1, 32)
    down = np.abs(grid[:, None] - draw(12.0, 19.0, 1, 1))  # (n, 32, 1)
    far = np.hypot(right, down)
    shapes = (
        far < radius,  # disk
        np.maximum(right, down) < 0.85 * radius,  # square
        right + down < radius,  # diamond
        (np.minimum(right, down) < 0.3 * radius) & (np.maximum(right, down) < radius),  # cross
        (far < radius) & (far > 0.55 * radius),  # ring
    )
    inside = np.choose((labels % 5)[:, None, None], shapes)  # (n, 32, 32)
    hue = labels / 10.0 + rng.uniform(-0.02, 0.02, n)
    # A cosine per channel, a third of a turn apart: a cheap colour wheel.
    colour = 0.5 + 0.5 * np.cos(2.0 * np.pi * (hue[:, None] - np.array([0.0, 1.0, 2.0]) / 3.0))  # (n, 3)
    front = (255.0 * colour).astype(np.float32)[:, None, None, :] * draw(0.7, 1.0, 1, 1, 1)
    back = draw(40.0, 200.0, 1, 1, 1) + draw(-20.0, 20.0, 1, 1, 3)
    pictures = np.where(inside[..., None], front, back)
    pictures += 12.0 * rng.standard_normal(pictures.shape, np.float32)
    return np.clip(pictures, 0.0, 255.0).astype(np.uint8), labels


def reviews(n: int, seed: int) -> tuple[list[str], NDArray[np.uint8], list[str]]:
    """Film reviews put together from our own phrases, 5 to 600 words, with IMDB's ``<br />`` and apostrophes.

    Returns:
        The texts; labels uint8 (n,), 1 = positive, evenly spread; every word of the texts, most frequent
        first.
    """
    rng = np.random.default_rng(seed)
    labels = _labels(n, rng, classes=2)
    lengths = np.exp(rng.uniform(np.log(5.0), np.log(600.0), n)).astype(int)  # short ones and long ones
    texts = [_review(int(words), bool(label), rng) for words, label in zip(lengths, labels, strict=True)]
    counts = Counter(word for text in texts for word in tokenize(text))
    return texts, labels, [word for word, _ in counts.most_common()]


def _labels(n: int, rng: np.random.Generator, classes: int = 10) -> NDArray[np.uint8]:
    return rng.permutation(np.arange(n) % classes).astype(np.uint8)


def _font_file(name: str) -> Path | None:
    try:
        file = resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"
    except ModuleNotFoundError:
        return None
    return Path(str(file)) if file.is_file() else None


@functools.lru_cache(maxsize=512)
def _font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    if name == DEFAULT_FONT:
        font = ImageFont.load_default(pixels)
        if not isinstance(font, ImageFont.FreeTypeFont):
            message = "Pillow was built without FreeType, which drawing digits needs."
            raise RuntimeError(message)
        return font
    file = _font_file(name) if name in _MATPLOTLIB_FONTS else None
    if file is None:
        message = f"Unknown font {name!r}; expected one of {', '.join(fonts())}."
        raise ValueError(message)
    return ImageFont.truetype(str(file), pixels)


# --- reviews: a small grammar; {thing} becomes a word from the list of that name, all of it our own ---------

# fmt: off
_WORDS: Final = {
    "thing": (
        "film", "movie", "picture", "story", "plot", "script", "cast", "acting", "dialogue", "music",
        "ending", "camera work", "second half", "opening scene", "direction", "soundtrack", "villain", "hero",
        "pacing",
    ),
    "place": (
        "on a train", "at a small cinema", "with my sister", "late last night", "on a rainy Sunday",
        "at home",
    ),
    "detail": (
        "It is set in a harbour town", "Two brothers inherit a clock", "The budget can't have been large",
        "It runs for about two hours", "A lighthouse keeper finds a letter", "There's a dog in it",
        "Most of it happens in one kitchen", "The sequel's been announced", "I hadn't read the book",
        "It was shot in black and white", "The director's first work was a short", "Nobody explains the map",
    ),
    "good": (
        "wonderful", "moving", "brilliant", "funny", "charming", "clever", "superb", "delightful", "gripping",
        "warm",
    ),
    "bad": (
        "awful", "boring", "dull", "clumsy", "terrible", "lifeless", "tedious", "stupid", "painful", "flat",
    ),
    "loved": ("loved", "enjoyed", "admired", "adored", "couldn't stop praising"),
    "hated": ("hated", "regretted", "couldn't stand", "disliked", "slept through"),
}
_NEUTRAL: Final = (
    "{detail}.", "I saw it {place}.", "{detail}, and the {thing} takes its time.",
    "You know how it goes: {detail}.", "About the {thing}, I'll say little here.<br /><br />",
    "(We watched it {place}.)",
)
_POSITIVE: Final = (
    "The {thing} is {good}!", "I {loved} the {thing}.", "What a {good} {thing}, I'd watch it again.",
    "Don't miss this {good} {thing}.<br /><br />", "It isn't {bad} at all; the {thing} was {good}.",
    "10/10, {good}.",
)
_NEGATIVE: Final = (
    "The {thing} is {bad}.", "I {hated} the {thing}...", "What a {bad} {thing}, I want my evening back.",
    "Avoid this {bad} {thing}.<br /><br />", "It isn't {good} at all; the {thing} was {bad}.",
    "2/10, {bad}!",
)
# fmt: on


def _review(words: int, positive: bool, rng: np.random.Generator) -> str:  # noqa: FBT001 - the label itself
    """Phrases until there are ``words`` words, a verdict first and then in two of five; cut to the length."""
    verdicts = _POSITIVE if positive else _NEGATIVE
    found: list[str] = []
    while len(found) < words:
        phrase = _pick(verdicts if not found or rng.random() < 0.4 else _NEUTRAL, rng)
        found += phrase.format_map({name: _pick(choices, rng) for name, choices in _WORDS.items()}).split()
    return " ".join(found[:words])


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
