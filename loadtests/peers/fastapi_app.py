"""What a careful team writes by hand: FastAPI, orjson and onnxruntime.

Bodies are read with ``await request.body()`` and parsed by orjson rather than through a model of 784 numbers, and
answers are encoded by orjson rather than by FastAPI: both are faster. The models take well under a millisecond but
for long reviews, so they run inline; a thread would cost more. Batching, deadlines, back pressure and metrics are
what such a service does without.
"""

from __future__ import annotations

import orjson
from fastapi import FastAPI, Request, Response

from loadtests.peers.models import (
    Answer,
    DigitModel,
    GanModel,
    ImageModel,
    SentimentModel,
    digit_from_bytes,
    digit_from_file,
    digits_from_numbers,
    image_from_file,
)
from serving.preprocessing.image import encode_png

app = FastAPI()
digits, images, sentiments, gan = DigitModel(), ImageModel(), SentimentModel(), GanModel()


@app.exception_handler(ValueError)
async def refuse(_: Request, error: ValueError) -> Response:
    """Answer 400 to what cannot be read."""
    return Response(orjson.dumps({"detail": str(error)}), 400, media_type="application/json")


@app.post("/v1/digit")
async def digit(request: Request) -> Response:
    """Read a digit from raw pixels, JSON or an image file."""
    body = await request.body()
    match request.headers.get("content-type"):
        case "application/octet-stream":
            pixels = digit_from_bytes(body)
        case "application/json":
            pixels = digits_from_numbers(orjson.loads(body)["images"])
        case _:
            pixels = digit_from_file(body)
    return _json(digits.answer(pixels))


@app.post("/v1/image")
async def image(request: Request) -> Response:
    """Say what an image file shows."""
    return _json(images.answer(image_from_file(await request.body())))


@app.post("/v1/sentiment")
async def sentiment(request: Request) -> Response:
    """Judge a review in plain text."""
    return _json(sentiments.answer((await request.body()).decode()))


@app.post("/v1/gan/sample")
async def sample(digit: int, seed: int) -> Response:
    """Draw a digit as PNG."""
    return Response(encode_png(gan.sample(digit, seed)), media_type="image/png")


def _json(answer: Answer) -> Response:
    return Response(orjson.dumps(answer), media_type="application/json")
