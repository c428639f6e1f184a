"""What the model line published, served: each route answers with what it was trained to tell."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.manifest import read_manifest
from tests.conftest import Server, serve
from training import synthetic
from training.datasets import CIFAR10_LABELS

pytestmark = pytest.mark.timeout(1800)  # the first test may wait for the smoke run itself


@pytest.fixture(scope="module")
def served(smoke_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(smoke_repository, tmp_path_factory.mktemp("served") / "log.txt") as running:
        yield running


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def opened(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def post_images(server: Server, route: str, files: list[bytes]) -> httpx.Response:
    body = {"images": [base64.b64encode(file).decode() for file in files]}
    return server.post(route, json.dumps(body), "application/json")


def labels(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [entry["label"] for entry in response.json()["predictions"]]


def test_every_model_is_ready(served: Server, smoke_repository: Path):
    assert served.get("/readyz").status_code == 200
    listed = {entry["model"]: entry for entry in served.get("/v1/models").json()["models"]}
    assert set(listed) == {path.name for path in smoke_repository.iterdir()}
    for model, entry in listed.items():
        assert (entry["version"], entry["state"]) == (1, "AVAILABLE")
        manifest = read_manifest(smoke_repository / model / "1")
        assert entry["architecture"] == manifest.architecture
    status = served.get("/v1/models/mnist_mlp").json()["model_version_status"]
    assert [(entry["version"], entry["state"]) for entry in status] == [("1", "AVAILABLE")]


def test_drawn_digits_are_read(served: Server):
    files = [png(synthetic.draw_digit(digit)) for digit in range(10)]
    found = labels(post_images(served, "/v1/digit", files))
    right = sum(label == str(digit) for digit, label in enumerate(found))
    assert right >= 7, found


def test_drawn_objects_are_recognised(served: Server):
    pixels, truth = synthetic.objects(40, seed=77)
    response = post_images(served, "/v1/image?top=3", [png(Image.fromarray(image)) for image in pixels])
    assert response.json()["model"] == "cifar10_cnn"
    found = labels(response)
    assert np.mean([label == CIFAR10_LABELS[index] for label, index in zip(found, truth, strict=True)]) > 0.5
    (first, *_) = response.json()["predictions"]
    assert len(first["top"]) == 3
    assert first["top"][0]["label"] == first["label"]


def test_the_large_image_model_is_asked_by_name(served: Server):
    pixels, _ = synthetic.objects(2, seed=78)
    response = post_images(served, "/v1/image?model=vgg16_transfer", [png(Image.fromarray(image)) for image in pixels])
    assert response.json()["model"] == "vgg16_transfer"
    assert set(labels(response)) <= set(CIFAR10_LABELS)
    for entry in response.json()["predictions"]:
        assert sum(entry["probabilities"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("model", ["imdb_lstm", "imdb_gru"])
def test_opinions_are_told_apart(served: Server, model: str):
    texts = [
        "What a wonderful, moving film. I loved the acting.",
        "What an awful, boring film. I hated the acting.",
    ]
    response = served.post(f"/v1/sentiment?model={model}", json.dumps({"texts": texts}), "application/json")
    assert response.json()["model"] == model
    assert labels(response) == ["positive", "negative"]
    assert all(entry["unknown_tokens"] <= 1 for entry in response.json()["predictions"])


@pytest.mark.parametrize("route", ["/v1/gan/sample", "/v1/vae/sample"])
def test_samples_are_drawn_and_come_again_with_their_seed(served: Server, route: str):
    answers = [
        served.get(f"{route}?n=4&seed={seed}", headers={"accept": "application/json"}).json() for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]
    drawn = [opened(sample["png"]) for sample in answers[0]["samples"]]
    assert [image.shape for image in drawn] == [(28, 28)] * 4
    assert all(np.ptp(image) > 0 for image in drawn)


def test_a_redrawn_digit_is_closer_to_its_original_than_to_another(served: Server):
    pixels, truth = synthetic.digits(40, seed=79)
    one, other = pixels[truth == 0][0], pixels[truth == 1][0]
    response = served.post(
        "/v1/vae/reconstruct", png(Image.fromarray(one)), "image/png", headers={"accept": "application/json"}
    )
    (entry,) = response.json()["reconstructions"]
    np.testing.assert_array_equal(opened(entry["original"]), one)
    redrawn = opened(entry["reconstruction"]).astype(float)
    assert np.abs(redrawn - one).mean() < np.abs(redrawn - other).mean()


def test_what_is_no_digit_is_strange(served: Server, smoke_repository: Path):
    threshold = read_manifest(smoke_repository / "mnist_vae_encoder" / "1").parameters["threshold"]
    digits, _ = synthetic.digits(20, seed=80)
    noise = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    images = [png(Image.fromarray(image)) for image in (*digits, *noise)]
    response = post_images(served, "/v1/vae/anomaly", images)
    assert response.status_code == 200, response.text
    found = response.json()["predictions"]
    assert [entry["threshold"] for entry in found] == pytest.approx([threshold] * len(found))
    assert all(entry["anomalous"] == (entry["score"] > entry["threshold"]) for entry in found)
    assert [entry["anomalous"] for entry in found[-2:]] == [True, True]
    assert sum(entry["anomalous"] for entry in found[:-2]) <= 3
