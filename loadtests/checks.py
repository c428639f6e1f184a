"""Whether an answer means what it should: an impossible probability is a failure, as is a bad status."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from loadtests.payloads import Kind, Payload

REFUSED: Final = "429"
"""The reason of a request that was refused for overload, which a service may do."""
SUM_TOLERANCE: Final = 1e-3
"""How far from 1 the sum of rounded probabilities may be."""
_SIDE, _GAP = 28, 2
_CLASSES: Final = 10
_IHDR: Final = struct.Struct(">8sI4sII")
_END: Final = b"IEND\xaeB`\x82"


class WrongAnswerError(ValueError):
    """The answer is not the one to the question; the message says what was received and what was expected."""


def check(route: str, payload: Payload, status: int, headers: Mapping[str, Any], body: bytes) -> str | None:
    """Why an answer does not count, in a few words that are the same for all of its kind; None if it does.

    Args:
        route: of `loadtests.payloads.ROUTES`; named in no reason, which are told route by route.
        payload: what was sent.
        status: of HTTP.
        headers: of the answer, found by names in lower case.
        body: of the answer.
    """
    del route  # the payload's kind says what the answer holds
    if status != 200:
        return str(status)
    try:
        _meaning(payload, str(headers.get("content-type", "")), body)
    except WrongAnswerError as error:
        return f"wrong answer: {error}"
    return None


def _meaning(payload: Payload, media_type: str, body: bytes) -> None:
    """Raise `WrongAnswerError` unless ``body`` answers ``payload``."""
    if payload.kind in ("samples", "pairs") and not payload.accept:
        if media_type != "image/png":
            raise WrongAnswerError(f"expected image/png, received {media_type or 'no media type'}")
        _check_png(body, *_grid(payload))
        return
    if not media_type.startswith("application/json"):
        raise WrongAnswerError(f"expected application/json, received {media_type or 'no media type'}")
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise WrongAnswerError("not JSON") from None
    if not isinstance(answer, dict):
        raise WrongAnswerError("not a JSON object")
    if not isinstance(answer.get("model"), str) or not isinstance(answer.get("version"), int):
        raise WrongAnswerError("no model and version")
    try:
        _CHECKS[payload.kind](payload, answer)
    except (KeyError, TypeError, AttributeError) as error:  # a field that is missing or of another type
        raise WrongAnswerError(f"a field is missing or of the wrong type ({type(error).__name__}: {error})") from None


def _rows(payload: Payload, answer: Mapping[str, Any], name: str = "predictions") -> list[Any]:
    rows = answer[name]
    if not isinstance(rows, list) or len(rows) != payload.rows:
        raise WrongAnswerError(f"not the number of {name} asked for")
    return rows


def _check_classes(payload: Payload, answer: Mapping[str, Any]) -> None:
    for row in _rows(payload, answer):
        probabilities, index, label = row["probabilities"], row["index"], row["label"]
        if len(probabilities) != _CLASSES:
            raise WrongAnswerError(f"expected {_CLASSES} probabilities")
        # A NaN, which JSON cannot hold, comes as null and fails here by its type.
        if min(probabilities) < 0 or max(probabilities) > 1:
            raise WrongAnswerError("a probability is not from 0 to 1")
        if not abs(math.fsum(probabilities) - 1) <= SUM_TOLERANCE:
            raise WrongAnswerError("the probabilities do not sum to 1")
        highest = max(probabilities)
        if not 0 <= index < _CLASSES or probabilities[index] != highest or row["confidence"] != highest:
            raise WrongAnswerError("the label is not the most probable one")
        if not isinstance(label, str) or not label:
            raise WrongAnswerError("no label")
        if payload.kind == "digit" and label != str(index):
            raise WrongAnswerError("label and index of a digit differ")
        if payload.kind == "image":
            _check_top(row)


def _check_top(row: Mapping[str, Any]) -> None:
    ranked = [entry["confidence"] for entry in row["top"]]
    if ranked != sorted(row["probabilities"], reverse=True)[: len(ranked)] or not ranked:
        raise WrongAnswerError("top does not rank the probabilities")
    if row["top"][0]["label"] != row["label"]:
        raise WrongAnswerError("top does not begin with the label")


def _check_sentiment(payload: Payload, answer: Mapping[str, Any]) -> None:
    for row, tokens in zip(_rows(payload, answer), payload.tokens, strict=True):
        if row["label"] not in ("positive", "negative"):
            raise WrongAnswerError("label is neither positive nor negative")
        if not 0.5 <= row["confidence"] <= 1:
            raise WrongAnswerError("the confidence is not from 0.5 to 1")
        if row["tokens"] != tokens:
            raise WrongAnswerError("not the number of tokens that was sent")
        if not 0 <= row["unknown_tokens"] <= tokens or not isinstance(row["truncated"], bool):
            raise WrongAnswerError("impossible unknown_tokens or truncated")


def _check_anomaly(payload: Payload, answer: Mapping[str, Any]) -> None:
    for row in _rows(payload, answer):
        if not (math.isfinite(row["score"]) and math.isfinite(row["threshold"])):
            raise WrongAnswerError("score or threshold is not finite")
        if row["anomalous"] is not (row["score"] > row["threshold"]):
            raise WrongAnswerError("anomalous does not follow from score and threshold")


def _check_samples(payload: Payload, answer: Mapping[str, Any]) -> None:
    if answer["seed"] != payload.seed:
        raise WrongAnswerError("not the seed that was sent")
    for row in _rows(payload, answer, "samples"):
        _check_base64(row["png"])
        if payload.digit is not None and row["digit"] != payload.digit:
            raise WrongAnswerError("not the digit that was asked for")


def _check_pairs(payload: Payload, answer: Mapping[str, Any]) -> None:
    for row in _rows(payload, answer, "reconstructions"):
        _check_base64(row["original"])
        _check_base64(row["reconstruction"])


def _check_base64(text: str) -> None:
    try:
        file = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise WrongAnswerError("a picture is not base64") from None
    _check_png(file, _SIDE, _SIDE)


def _check_png(file: bytes, width: int, height: int) -> None:
    """Hold the head of a PNG file (W3C, sections 5.2 and 11.2.1) and its end against what it should be."""
    if len(file) < _IHDR.size or not file.endswith(_END):
        raise WrongAnswerError("not a whole PNG file")
    if _IHDR.unpack_from(file) != (b"\x89PNG\r\n\x1a\n", 13, b"IHDR", width, height):
        raise WrongAnswerError(f"not a PNG file of {width}×{height} pixels")


def _grid(payload: Payload) -> tuple[int, int]:
    """Width and height of the picture that shows all samples or pairs: rows of cells as square as can be."""
    cells, columns = (payload.rows, math.ceil(math.sqrt(payload.rows))) if payload.kind == "samples" else (2, 2)
    rows = -(-cells // columns)
    return columns * (_SIDE + _GAP) - _GAP, rows * (_SIDE + _GAP) - _GAP


def _check_nothing(payload: Payload, answer: Mapping[str, Any]) -> None:
    """Take any JSON: payloads of the bench do not say what their answer is."""


_CHECKS: Final[Mapping[Kind, Callable[[Payload, Mapping[str, Any]], None]]] = {
    "digit": _check_classes,
    "image": _check_classes,
    "sentiment": _check_sentiment,
    "anomaly": _check_anomaly,
    "samples": _check_samples,
    "pairs": _check_pairs,
    "": _check_nothing,
}
