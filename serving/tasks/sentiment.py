"""``/v1/sentiment``: whether a review is positive or negative."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from serving.errors import MalformedError, UnusableError
from serving.http.media import TEXT, looks_like_json
from serving.http.messages import JSON, Reply, Request, json_reply
from serving.preprocessing.text import Encoded
from serving.tasks import Endpoint, Limits, Query, endpoint
from serving.tasks._classes import Answer, header
from serving.tasks._reading import check_rows, kind, merge_options, read_json, unsupported

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from serving.batching import Rows
    from serving.manifest import Manifest
    from serving.predictor import Predictor

_TAKES = (TEXT, JSON)
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")


class Sentiment(BaseModel):
    """The verdict on one text."""

    label: str = Field(description="positive or negative")
    confidence: float = Field(description="probability of the label")
    tokens: int = Field(description="words in the text")
    unknown_tokens: int = Field(description="words that the model does not know")
    truncated: bool = Field(description="whether only the end of the text was read, for its length")


class SentimentAnswer(Answer):
    """One prediction a text, in their order."""

    predictions: list[Sentiment]


class SentimentBody(BaseModel):
    """Texts as JSON."""

    text: str | None = Field(None, description="one text")
    texts: list[str] | None = Field(None, description="or several")
    model: str | None = Field(None, description="the model that shall answer")


@endpoint
class SentimentEndpoint(Endpoint[list[Encoded]]):
    """Judge a review: plain text, or JSON with one text or several."""

    name = "sentiment"
    path = "/v1/sentiment"
    task = "sentiment"
    takes = _TAKES
    body: ClassVar = SentimentBody
    answer: ClassVar = SentimentAnswer

    def serves(self, manifest: Manifest) -> bool:
        """Take the models of the task."""
        return manifest.task == "sentiment"

    def decode(self, request: Request, limits: Limits) -> Query:
        """Read the texts."""
        if not request.body:
            raise MalformedError(f"The body is empty; expected {' or '.join(_TAKES)}.")
        media_type = request.media_type or (JSON if looks_like_json(request.body) else TEXT)
        if media_type == TEXT:
            return Query((_check(_plain(request)),), request.query)
        if media_type != JSON:
            raise unsupported(media_type, _TAKES)
        content = read_json(request.body)
        texts = _texts(content, limits)
        return Query(texts, merge_options(request.query, content, ("text", "texts")))

    def preprocess(self, query: Query, models: tuple[Predictor, ...], limits: Limits) -> list[Encoded]:  # noqa: ARG002
        """Turn each text into token ids."""
        encoder = models[0].encoder
        if encoder is None:
            raise TypeError(f"{models[0].manifest.model} has no text preprocessing")
        return [encoder.encode(text) for text in query.items]

    def run(self, inputs: list[Encoded], models: tuple[Predictor, ...], deadline: float) -> Coroutine[Any, Any, Rows]:
        """Have every text judged; each is a piece of its own, so that like lengths meet in a batch."""
        name = models[0].manifest.inputs[0].name
        return models[0].predict_pieces([{name: text.ids[None]} for text in inputs], deadline)

    def postprocess(
        self,
        request: Request,
        query: Query,
        inputs: list[Encoded],
        outputs: Rows,
        models: tuple[Predictor, ...],
    ) -> Reply:
        """Give the verdicts."""
        del request, query
        manifest = models[0].manifest
        negative, positive = manifest.labels
        predictions = [
            {
                "label": positive if probability >= 0.5 else negative,
                "confidence": max(probability, 1 - probability),
                "tokens": text.tokens,
                "unknown_tokens": text.unknown_tokens,
                "truncated": text.truncated,
            }
            for text, probability in zip(inputs, outputs[manifest.outputs[0].name][:, 0].tolist(), strict=True)
        ]
        return json_reply({**header(manifest), "predictions": predictions})


def _plain(request: Request) -> str:
    charset = request.parameters.get("charset", "utf-8").lower()
    if charset not in _CHARSETS:
        raise unsupported(f"{TEXT}; charset={charset}", (f"{TEXT}; charset=utf-8", JSON))
    try:
        return request.body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(f"The text is not UTF-8: byte {error.start} cannot be read.") from error


def _texts(content: dict[str, Any], limits: Limits) -> list[str]:
    if ("text" in content) == ("texts" in content):
        raise UnusableError('Expected {"text": "…"} or {"texts": ["…", …]}, one of the two.')
    if "text" in content:
        return [_check(content["text"])]
    texts = content["texts"]
    if not isinstance(texts, list):
        raise UnusableError(f'"texts" must be a list; received {kind(texts)}.')
    check_rows(len(texts), "texts", limits.max_rows)
    return [_check(text) for text in texts]


def _check(text: object) -> str:
    if not isinstance(text, str):
        raise UnusableError(f"A text must be a string; received {kind(text)}.")
    if not text.strip():
        raise UnusableError("The text is empty; expected at least one word.")
    return text
