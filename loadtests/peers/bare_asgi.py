"""The limit: one ASGI function on uvicorn, with nothing between the socket and the models.

No framework, no validation, no metrics, no batching; a wrong request is a 500. What Python can answer at best.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import orjson

from loadtests.peers.models import (
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

Message: TypeAlias = MutableMapping[str, Any]

digits, images, sentiments, gan = DigitModel(), ImageModel(), SentimentModel(), GanModel()


async def app(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[..., Awaitable[None]]) -> None:
    """Answer one request."""
    if scope["type"] != "http":
        return
    message = await receive()
    body: bytes = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    match scope["path"]:
        case "/v1/digit":
            media_type, content = b"application/json", orjson.dumps(digits.answer(_digit(scope, body)))
        case "/v1/image":
            media_type, content = b"application/json", orjson.dumps(images.answer(image_from_file(body)))
        case "/v1/sentiment":
            media_type, content = b"application/json", orjson.dumps(sentiments.answer(body.decode()))
        case "/v1/gan/sample":
            options = dict(parse_qsl(scope["query_string"].decode()))
            media_type, content = b"image/png", encode_png(gan.sample(int(options["digit"]), int(options["seed"])))
        case path:
            raise LookupError(path)
    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _digit(scope: Message, body: bytes) -> Any:  # noqa: ANN401 - an array, as the models take it
    media_type = next(value for name, value in scope["headers"] if name == b"content-type")
    if media_type == b"application/octet-stream":
        return digit_from_bytes(body)
    if media_type == b"application/json":
        return digits_from_numbers(orjson.loads(body)["images"])
    return digit_from_file(body)
