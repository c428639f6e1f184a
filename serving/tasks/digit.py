"""``/v1/digit``: which digit an image shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from serving.http.messages import Reply, Request, json_reply
from serving.preprocessing.image import to_digit
from serving.tasks import Endpoint, Limits, Query, endpoint
from serving.tasks._classes import Answer, Classification, PicturesBody, classify, header
from serving.tasks._pictures import TAKES, decode_pictures, to_pixels

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from serving.batching import Rows
    from serving.manifest import Manifest
    from serving.predictor import Predictor


class DigitAnswer(Answer):
    """One prediction an image, in their order."""

    predictions: list[Classification]


@endpoint
class Digit(Endpoint["Rows"]):
    """Read a handwritten digit: an image of any size, 28×28 raw bytes, or JSON."""

    name = "digit"
    path = "/v1/digit"
    task = "digit"
    takes = TAKES
    body: ClassVar = PicturesBody
    answer: ClassVar = DigitAnswer

    def serves(self, manifest: Manifest) -> bool:
        """Take the models of the task."""
        return manifest.task == "digit"

    def decode(self, request: Request, limits: Limits) -> Query:
        """Read the images."""
        return decode_pictures(request, limits)

    def preprocess(self, query: Query, models: tuple[Predictor, ...], limits: Limits) -> Rows:  # noqa: ARG002
        """Normalise them as MNIST was: uint8 (n, 28, 28)."""
        size = models[0].manifest.preprocessing.parameters
        shape = (size["height"], size["width"])
        return {models[0].manifest.inputs[0].name: to_pixels(query.items, shape, to_digit)}

    def run(self, inputs: Rows, models: tuple[Predictor, ...], deadline: float) -> Coroutine[Any, Any, Rows]:
        """Have them classified."""
        return models[0].predict(inputs, deadline)

    def postprocess(
        self, request: Request, query: Query, inputs: Rows, outputs: Rows, models: tuple[Predictor, ...]
    ) -> Reply:
        """Name each digit."""
        del request, query, inputs
        manifest = models[0].manifest
        probabilities = outputs[manifest.outputs[0].name]
        return json_reply({**header(manifest), "predictions": classify(probabilities, manifest.labels)})
