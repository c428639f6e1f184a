"""Right answers of the real service pass, and answers that mean something else fail with their reason."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from loadtests.checks import check
from loadtests.payloads import POOL, ROUTES, Payload, pools
from serving.preprocessing.image import encode_png
from tests.conftest import Server

POOLS = pools()
JSON = {"content-type": "application/json"}
PNG = {"content-type": "image/png"}
Change = Callable[[dict[str, Any]], object]


def ask(server: Server, payload: Payload) -> httpx.Response:
    headers = {"content-type": payload.media_type} if payload.media_type else {}
    headers |= {"accept": payload.accept} if payload.accept else {}
    return httpx.request(payload.method, server.url + payload.path, content=payload.body, headers=headers, timeout=60)


@pytest.mark.parametrize("route", ROUTES)
def test_the_services_answers_pass(server: Server, route: str):
    for payload in POOLS[route][: POOL // 4]:
        answer = ask(server, payload)
        assert check(route, payload, answer.status_code, answer.headers, answer.content) is None


def test_an_answer_to_another_question_does_not_pass(server: Server):
    one, four = (next(p for p in POOLS["digit-json"] if p.rows == rows) for rows in (1, 4))
    answer = ask(server, one)
    assert check("digit-json", four, 200, answer.headers, answer.content) == (
        "wrong answer: not the number of predictions asked for"
    )


@pytest.mark.parametrize("status", [429, 500, 404, 204])
def test_another_status_than_200_is_its_own_reason(status: int):
    assert check("digit-raw", POOLS["digit-raw"][0], status, JSON, b"{}") == str(status)


def predictions(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "version": 1, "predictions": list(rows)}


def digit() -> dict[str, Any]:
    probabilities = [0.02] * 10
    probabilities[7] = 0.82
    return {"label": "7", "index": 7, "confidence": 0.82, "probabilities": probabilities}


def image() -> dict[str, Any]:
    return {
        **digit(),
        "label": "ship",
        "top": [{"label": "ship", "confidence": 0.82}, {"label": "cat", "confidence": 0.02}],
    }


def sentiment() -> dict[str, Any]:
    return {"label": "positive", "confidence": 0.9, "tokens": 12, "unknown_tokens": 0, "truncated": False}


def anomaly() -> dict[str, Any]:
    return {"score": 200.5, "threshold": 160.0, "anomalous": True}


def picture(width: int = 28, height: int = 28) -> bytes:
    return encode_png(np.zeros((height, width), np.uint8))


def text(width: int = 28) -> str:
    return base64.b64encode(picture(width)).decode()


def samples() -> dict[str, Any]:
    return {
        "model": "m",
        "version": 1,
        "seed": 5,
        "samples": [{"png": text(), "digit": 3}, {"png": text(), "digit": 3}],
    }


def pairs() -> dict[str, Any]:
    return {"model": "m", "version": 1, "reconstructions": [{"original": text(), "reconstruction": text()}]}


ASKED = Payload("any", "/", "", b"")
QUESTIONS: dict[str, tuple[Payload, Callable[[], dict[str, Any]]]] = {
    "digit": (replace(ASKED, kind="digit"), lambda: predictions(digit())),
    "image": (replace(ASKED, kind="image"), lambda: predictions(image())),
    "sentiment": (replace(ASKED, kind="sentiment", tokens=(12,)), lambda: predictions(sentiment())),
    "anomaly": (replace(ASKED, kind="anomaly"), lambda: predictions(anomaly())),
    "samples": (replace(ASKED, kind="samples", accept="application/json", rows=2, digit=3, seed=5), samples),
    "pairs": (replace(ASKED, kind="pairs", accept="application/json"), pairs),
}


def row(**changes: object) -> Change:
    """Change fields of the first prediction."""
    return lambda answer: answer["predictions"][0].update(changes)


def sample(**changes: object) -> Change:
    return lambda answer: answer["samples"][0].update(changes)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_right_answers_made_by_hand_pass(kind: str):
    payload, answer = QUESTIONS[kind]
    assert check("any", payload, 200, JSON, json.dumps(answer()).encode()) is None


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("digit", row(probabilities=[0.1] * 9), "expected 10 probabilities"),
        ("digit", row(probabilities=[0.2] * 9 + [-0.8]), "a probability is not from 0 to 1"),
        ("digit", row(probabilities=[1.2, *[0.0] * 9]), "a probability is not from 0 to 1"),
        ("digit", row(probabilities=[0.0201] * 7 + [0.82, 0.02, 0.0213]), "the probabilities do not sum to 1"),
        ("digit", row(index=3), "the label is not the most probable one"),
        ("digit", row(index=10), "the label is not the most probable one"),
        ("digit", row(confidence=0.5), "the label is not the most probable one"),
        ("digit", row(label="3"), "label and index of a digit differ"),
        ("digit", row(probabilities=[None] * 10), "a field is missing or of the wrong type"),
        (
            "digit",
            lambda answer: answer["predictions"][0].pop("probabilities"),
            "a field is missing or of the wrong type",
        ),
        ("digit", lambda answer: answer.pop("predictions"), "a field is missing or of the wrong type"),
        ("digit", lambda answer: answer["predictions"].clear(), "not the number of predictions asked for"),
        ("digit", lambda answer: answer.pop("model"), "no model and version"),
        ("digit", lambda answer: answer.update(version="1"), "no model and version"),
        ("image", row(label=""), "no label"),
        ("image", row(top=[]), "top does not rank the probabilities"),
        ("image", row(top=[{"label": "ship", "confidence": 0.02}]), "top does not rank the probabilities"),
        ("image", row(label="cat"), "top does not begin with the label"),
        ("sentiment", row(label="neutral"), "label is neither positive nor negative"),
        ("sentiment", row(confidence=0.4), "the confidence is not from 0.5 to 1"),
        ("sentiment", row(confidence=1.1), "the confidence is not from 0.5 to 1"),
        ("sentiment", row(tokens=13), "not the number of tokens that was sent"),
        ("sentiment", row(unknown_tokens=13), "impossible unknown_tokens or truncated"),
        ("sentiment", row(truncated=None), "impossible unknown_tokens or truncated"),
        ("anomaly", row(anomalous=False), "anomalous does not follow from score and threshold"),
        ("anomaly", row(score=None), "a field is missing or of the wrong type"),
        ("samples", sample(digit=4), "not the digit that was asked for"),
        ("samples", sample(png="%"), "a picture is not base64"),
        ("samples", sample(png=text(30)), "not a PNG file of 28×28 pixels"),
        ("samples", lambda answer: answer.update(seed=6), "not the seed that was sent"),
        ("samples", lambda answer: answer["samples"].pop(), "not the number of samples asked for"),
        (
            "pairs",
            lambda answer: answer["reconstructions"][0].pop("original"),
            "a field is missing or of the wrong type",
        ),
        ("pairs", lambda answer: answer.update(reconstructions=[]), "not the number of reconstructions asked for"),
    ],
)
def test_an_answer_that_means_something_else_fails_with_its_reason(kind: str, change: Change, reason: str):
    payload, make = QUESTIONS[kind]
    answer = make()
    change(answer)
    found = check("any", payload, 200, JSON, json.dumps(answer).encode())
    assert found is not None
    assert found.startswith(f"wrong answer: {reason}")


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        (JSON, b"{", "not JSON"),
        (JSON, b"[]", "not a JSON object"),
        (PNG, b"{}", "expected application/json, received image/png"),
        ({}, b"{}", "expected application/json, received no media type"),
    ],
)
def test_what_is_no_json_object_fails(headers: dict[str, str], body: bytes, reason: str):
    assert check("digit-raw", POOLS["digit-raw"][0], 200, headers, body) == f"wrong answer: {reason}"


# Cells of 28×28 with 2 between them, in rows as square as can be.
@pytest.mark.parametrize(("kind", "rows", "size"), [
    ("samples", 1, (28, 28)), ("samples", 4, (58, 58)), ("samples", 16, (118, 118)), ("samples", 5, (88, 58)),
    ("pairs", 1, (58, 28)),
])  # fmt: skip
def test_a_picture_must_be_a_whole_png_of_the_size_of_its_grid(kind: str, rows: int, size: tuple[int, int]):
    payload = replace(ASKED, kind=kind, rows=rows)
    file = picture(*size)
    assert check("any", payload, 200, PNG, file) is None
    told = f"wrong answer: not a PNG file of {size[0]}×{size[1]} pixels"
    assert check("any", payload, 200, PNG, picture(size[0] + 1, size[1])) == told
    assert check("any", payload, 200, PNG, b"\xff" + file[1:]) == told
    assert check("any", payload, 200, PNG, file[:-1]) == "wrong answer: not a whole PNG file"
    assert check("any", payload, 200, PNG, b"") == "wrong answer: not a whole PNG file"
    assert check("any", payload, 200, JSON, file) == "wrong answer: expected image/png, received application/json"
