"""The answer of a classifier, shared by the tasks that name things."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from serving.manifest import Manifest


class Answer(BaseModel):
    """What every answer says of its origin."""

    model: str
    version: int


class Classification(BaseModel):
    """One image, named."""

    label: str
    index: int = Field(description="of the label, from 0")
    confidence: float = Field(description="probability of the label")
    probabilities: list[float] = Field(description="of every label, in their order")


class PicturesBody(BaseModel):
    """Pictures as JSON; a picture may also be sent as a file, as it is."""

    images: list[Any] = Field(
        description="each the base64 of an image file, or nested numbers from 0 to 255 of the model's size",
    )
    model: str | None = Field(None, description="the model that shall answer")


def header(manifest: Manifest) -> dict[str, Any]:
    """Name the model that answers."""
    return {"model": manifest.model, "version": manifest.version}


def classify(probabilities: NDArray[np.float32], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Name the most probable class of each row of float32 (rows, labels)."""
    return [
        {"label": labels[index], "index": index, "confidence": row[index], "probabilities": row}
        for index, row in zip(probabilities.argmax(axis=1).tolist(), probabilities, strict=True)
    ]
