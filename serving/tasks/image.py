"""``/v1/image``: what a photograph shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from serving.http.messages import Reply, Request, json_reply
from serving.preprocessing.image import to_rgb
from serving.tasks import Endpoint, Limits, Query, endpoint
from serving.tasks._classes import Answer, Classification, PicturesBody, classify, header
from serving.tasks._pictures import TAKES, decode_pictures, to_pixels
from serving.tasks._reading import whole_number

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from serving.batching import Rows
    from serving.manifest import Manifest
    from serving.predictor import Predictor

_DEFAULT_TOP = 3


class Ranked(BaseModel):
    """One of the most probable labels."""

    label: str
    confidence: float


class RankedClassification(Classification):
    """One image, named, with the runners-up."""

    top: list[Ranked] = Field(description="most probable first")


class ImageAnswer(Answer):
    """One prediction an image, in their order."""

    predictions: list[RankedClassification]


class ImageBody(PicturesBody):
    """Photographs as JSON."""

    top: int | None = Field(None, description=f"how many labels to rank; {_DEFAULT_TOP} by default")


@endpoint
class ImageEndpoint(Endpoint["Rows"]):
    """Say what a photograph shows: an image file of any size, raw RGB bytes, or JSON."""

    name = "image"
    path = "/v1/image"
    task = "image"
    takes = TAKES
    body: ClassVar = ImageBody
    answer: ClassVar = ImageAnswer

    def serves(self, manifest: Manifest) -> bool:
        """Take the models of the task."""
        return manifest.task == "image"

    def decode(self, request: Request, limits: Limits) -> Query:
        """Read the images."""
        return decode_pictures(request, limits)

    def preprocess(self, query: Query, models: tuple[Predictor, ...], limits: Limits) -> Rows:  # noqa: ARG002
        """Resize them to the model's size: uint8 (n, height, width, 3), RGB."""
        manifest = models[0].manifest
        _top(query, manifest)
        height, width = (manifest.preprocessing.parameters[side] for side in ("height", "width"))
        pixels = to_pixels(query.items, (height, width, 3), lambda image: to_rgb(image, height, width))
        return {manifest.inputs[0].name: pixels}

    def run(self, inputs: Rows, models: tuple[Predictor, ...], deadline: float) -> Coroutine[Any, Any, Rows]:
        """Have them classified."""
        return models[0].predict(inputs, deadline)

    def postprocess(
        self, request: Request, query: Query, inputs: Rows, outputs: Rows, models: tuple[Predictor, ...]
    ) -> Reply:
        """Name each image and rank its labels."""
        del request, inputs
        manifest = models[0].manifest
        probabilities = outputs[manifest.outputs[0].name]
        top = _top(query, manifest)
        predictions = classify(probabilities, manifest.labels)
        for prediction, row in zip(predictions, probabilities, strict=True):
            best = sorted(range(len(row)), key=row.tolist().__getitem__, reverse=True)[:top]
            prediction["top"] = [{"label": manifest.labels[index], "confidence": row[index]} for index in best]
        return json_reply({**header(manifest), "predictions": predictions})


def _top(query: Query, manifest: Manifest) -> int:
    labels = len(manifest.labels)
    return whole_number(query.options, "top", 1, labels) or min(_DEFAULT_TOP, labels)
