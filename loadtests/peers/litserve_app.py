"""LitServe: one ``LitAPI`` a question, each with a worker process of its own, as LitServe has it.

LitServe parses the body as JSON before its API sees it, so there is no form for raw bytes, and files come as base64.
Its ZeroMQ queue is on (``fast_queue``), as its documentation advises for high rates. Batching is off: at 16 and at 64
rows it changed the digits' rate by no more than the noise.

    python -m loadtests.peers.litserve_app --port 3000
"""

# No postponed annotations: LitServe reads the one of `request` as a type.
import argparse
import base64
import signal
from typing import Any

import litserve
import numpy as np
from fastapi import Response
from numpy.typing import NDArray

from loadtests.peers.models import (
    Answer,
    DigitModel,
    GanModel,
    ImageModel,
    SentimentModel,
    digit_from_file,
    digits_from_numbers,
    image_from_file,
)
from serving.preprocessing.image import encode_png


class Digit(litserve.LitAPI):
    """Read a digit from nested numbers, or from the base64 of a file."""

    def setup(self, device: str) -> None:
        """Load the model."""
        del device
        self.model = DigitModel()

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.uint8]:
        """Read the pixels."""
        if "image" in request:
            return digit_from_file(base64.b64decode(request["image"]))
        return digits_from_numbers(request["images"])

    def predict(self, x: NDArray[np.uint8]) -> Answer:
        """Classify them."""
        return self.model.answer(x)


class Image(litserve.LitAPI):
    """Say what the base64 of an image file shows."""

    def setup(self, device: str) -> None:
        """Load the model."""
        del device
        self.model = ImageModel()

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.uint8]:
        """Read the pixels."""
        return image_from_file(base64.b64decode(request["image"]))

    def predict(self, x: NDArray[np.uint8]) -> Answer:
        """Classify them."""
        return self.model.answer(x)


class Sentiment(litserve.LitAPI):
    """Judge a review."""

    def setup(self, device: str) -> None:
        """Load the model."""
        del device
        self.model = SentimentModel()

    def decode_request(self, request: dict[str, Any]) -> str:
        """Read the text."""
        return str(request["text"])

    def predict(self, x: str) -> Answer:
        """Judge it."""
        return self.model.answer(x)


class GanSample(litserve.LitAPI):
    """Draw a digit as PNG."""

    def setup(self, device: str) -> None:
        """Load the model."""
        del device
        self.model = GanModel()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Read what to draw."""
        return request

    def predict(self, x: dict[str, Any]) -> NDArray[np.uint8]:
        """Draw it."""
        return self.model.sample(x["digit"], x["seed"])

    def encode_response(self, output: NDArray[np.uint8]) -> Response:
        """Encode it."""
        return Response(encode_png(output), media_type="image/png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # on SIGTERM LitServe would leave its workers behind
    apis = [
        Digit(api_path="/v1/digit"),
        Image(api_path="/v1/image"),
        Sentiment(api_path="/v1/sentiment"),
        GanSample(api_path="/v1/gan/sample"),
    ]
    server = litserve.LitServer(apis, accelerator="cpu", fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
