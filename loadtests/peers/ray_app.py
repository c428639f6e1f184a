"""Ray Serve: one deployment with one replica, behind its HTTP proxy.

On one machine Ray runs a dozen processes of its own (head, raylet, controller, proxy), which here share the one core.
``RAY_SERVE_THROUGHPUT_OPTIMIZED`` is set and the access log off, as its page on performance has it; its HAProxy
ingress is not used, since it listens on every interface.

    python -m loadtests.peers.ray_app --port 3000
"""

from __future__ import annotations

import argparse
import signal

import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

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


@serve.deployment(max_ongoing_requests=100)
class Models:
    """The four models."""

    def __init__(self) -> None:
        self.digits, self.images, self.sentiments, self.gan = DigitModel(), ImageModel(), SentimentModel(), GanModel()

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        body = await request.body()
        match request.url.path, request.headers.get("content-type"):
            case "/v1/digit", "application/octet-stream":
                reply = _json(self.digits.answer(digit_from_bytes(body)))
            case "/v1/digit", "application/json":
                reply = _json(self.digits.answer(digits_from_numbers(orjson.loads(body)["images"])))
            case "/v1/digit", _:
                reply = _json(self.digits.answer(digit_from_file(body)))
            case "/v1/image", _:
                reply = _json(self.images.answer(image_from_file(body)))
            case "/v1/sentiment", _:
                reply = _json(self.sentiments.answer(body.decode()))
            case "/v1/gan/sample", _:
                digit, seed = (int(request.query_params[name]) for name in ("digit", "seed"))
                reply = Response(encode_png(self.gan.sample(digit, seed)), media_type="image/png")
            case _:
                reply = Response(status_code=404)
        return reply


def _json(answer: Answer) -> Response:
    return Response(orjson.dumps(answer), media_type="application/json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that Ray's own processes end with this one
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    serve.run(Models.bind(), blocking=True)  # type: ignore[attr-defined]  # the decorator made it a Deployment
