"""The models as they are committed: complete, as good as their gates ask, and right through HTTP."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.manifest import Manifest, file_digests, read_manifest
from serving.preprocessing.image import encode_png
from tests.conftest import Server
from tests.e2e.conftest import EXPORTED
from training import synthetic
from training.architectures.mnist_mlp import TRAINED_FONTS
from training.registry import architectures

COMMITTED = (
    "cifar10_cnn",
    "imdb_gru",
    "imdb_lstm",
    "mnist_gan_discriminator",
    "mnist_gan_generator",
    "mnist_mlp",
    "mnist_vae_decoder",
    "mnist_vae_encoder",
)
LARGEST_FILE = 12_000_000


def _folder(model: str) -> Path:
    return max((EXPORTED / model).glob("[1-9]*"), key=lambda path: int(path.name))


@pytest.fixture(params=COMMITTED)
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return read_manifest(_folder(request.param))


def test_every_file_is_the_one_that_was_published(manifest: Manifest) -> None:
    folder = _folder(manifest.model)
    assert file_digests(folder) == manifest.files
    assert all(path.stat().st_size < LARGEST_FILE for path in folder.rglob("*") if path.is_file())


def test_its_figures_pass_the_gates(manifest: Manifest) -> None:
    gates = architectures()[manifest.architecture].gates
    assert gates
    for name, gate in gates.items():
        assert manifest.metrics[name].value >= gate.least, name
    assert max(manifest.parity.saved_model, manifest.parity.onnx) <= 1e-5
    assert manifest.parity.batch_sizes == (1, 3, 32)


def test_a_recurrent_graph_costs_its_own_length() -> None:
    for model in ("imdb_lstm", "imdb_gru"):
        assert read_manifest(_folder(model)).metrics["speedup"].value >= 15


def test_every_model_is_served(committed: Server) -> None:
    models = committed.get("/v1/models").json()["models"]
    assert {row["model"]: row["state"] for row in models} == dict.fromkeys(COMMITTED, "AVAILABLE")
    assert committed.get("/readyz").status_code == 200


def _read(server: Server, image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    answer = server.post("/v1/digit", file.getvalue(), "image/png")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["predictions"][0]["label"])


def test_digits_drawn_in_fonts_it_never_saw_are_read(committed: Server) -> None:
    """Black ink on white, any size, off centre, a little turned: at least nine in ten."""
    fonts = [font for font in synthetic.fonts() if not font.startswith(TRAINED_FONTS)]
    assert len(fonts) >= 3
    random = np.random.default_rng(7)
    right = []
    for font in fonts:
        for digit in range(10):
            side = int(random.choice([28, 48, 100, 300, 900]))
            drawn = synthetic.draw_digit(
                digit,
                size=(side + int(random.integers(side)), side),
                font=font,
                height=random.uniform(0.4, 0.75),
                angle=random.uniform(-8, 8),
                shift=(random.uniform(-0.1, 0.1), random.uniform(-0.1, 0.1)),
            )
            right.append(_read(committed, drawn) == str(digit))
    assert np.mean(right) >= 0.9


@pytest.mark.parametrize("digit", range(10))
def test_the_digit_asked_for_is_the_digit_drawn(committed: Server, digit: int) -> None:
    answer = committed.get(f"/v1/gan/sample?n=20&digit={digit}&seed=3", headers={"accept": "application/json"})
    images = [sample["png"] for sample in answer.json()["samples"]]
    read = committed.post("/v1/digit", json.dumps({"images": images}), "application/json").json()["predictions"]
    assert [row["label"] for row in read].count(str(digit)) >= 18


@pytest.mark.parametrize("model", ["imdb_lstm", "imdb_gru"])
@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A wonderful film. I loved every minute of it; the acting is superb and the story moving.", "positive"),
        ("One of the best movies I have seen in years, funny and touching. Highly recommended!", "positive"),
        ("A terrible waste of time. The plot is stupid, the acting awful, and I was bored to death.", "negative"),
        ("The worst movie ever made: dull, badly written and poorly acted. Avoid it.", "negative"),
    ],
)
def test_plain_verdicts_are_understood(committed: Server, model: str, text: str, label: str) -> None:
    answer = committed.post(f"/v1/sentiment?model={model}", text, "text/plain").json()
    assert answer["model"] == model
    assert answer["predictions"][0]["label"] == label


def test_what_is_no_digit_is_anomalous_and_a_digit_is_not(committed: Server) -> None:
    objects, _ = synthetic.objects(20, seed=1)
    strange = _anomalies(committed, [encode_png(image) for image in objects])
    answer = committed.get("/v1/gan/sample?n=20&seed=1", headers={"accept": "application/json"}).json()
    ordinary = _anomalies(committed, [base64.b64decode(sample["png"]) for sample in answer["samples"]])
    assert all(strange)
    assert sum(ordinary) <= 4


def _anomalies(server: Server, files: list[bytes]) -> list[bool]:
    body = {"images": [base64.b64encode(file).decode() for file in files]}
    answer = server.post("/v1/vae/anomaly", json.dumps(body), "application/json")
    assert answer.status_code == 200, answer.text
    return [row["anomalous"] for row in answer.json()["predictions"]]
