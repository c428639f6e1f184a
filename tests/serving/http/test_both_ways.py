"""BentoML's own request stack and the lean front answer alike: one implementation, two ways in."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Server, serve
from tests.serving import pictures
from tests.serving.http.test_problems import HOSTILE

PIXELS = pictures.mnist_like()
PNG = pictures.file(pictures.digit())
BASE64 = base64.b64encode(PNG).decode()
REQUESTS = {
    "raw bytes": ("/v1/digit", PIXELS.tobytes(), "application/octet-stream"),
    "PNG": ("/v1/digit", PNG, "image/png"),
    "no media type": ("/v1/digit", PNG, ""),
    "numbers": ("/v1/digit", json.dumps({"images": PIXELS[None].tolist()}), "application/json"),
    "base64": ("/v1/digit", json.dumps({"images": [BASE64, BASE64]}), "application/json"),
    "photo": ("/v1/image?top=2", PNG, "image/png"),
    "photo for another model": ("/v1/image?model=vgg16_transfer", PNG, "image/png"),
    "text": ("/v1/sentiment", "a good film", "text/plain"),
    "texts": ("/v1/sentiment", '{"texts": ["good", "bad"], "model": "imdb_gru"}', "application/json"),
    "GAN": ("/v1/gan/sample", '{"n": 7, "seed": 3, "digit": 4}', "application/json"),
    "GAN by query": ("/v1/gan/sample?n=7&seed=3", "", ""),
    "VAE": ("/v1/vae/sample", '{"n": 7, "seed": 3}', "application/json"),
    "anomaly": ("/v1/vae/anomaly", PNG, "image/png"),
    "reconstruction": ("/v1/vae/reconstruct", PNG, "image/png"),
}
ROUTES = {path.partition("?")[0] for path, _, _ in REQUESTS.values()}
PROBLEMS = {
    name: (path, content, media_type)
    for name, (path, content, media_type, _, _) in HOSTILE.items()
    if path.partition("?")[0] in ROUTES  # what is no route, BentoML answers in its own words
}


@pytest.fixture(scope="module")
def idiomatic(small_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same service with BentoML's own request stack in front."""
    log = tmp_path_factory.mktemp("idiomatic") / "log.txt"
    with serve(small_models, log, front="bentoml") as running:
        yield running


@pytest.mark.parametrize(
    ("path", "content", "media_type"), (REQUESTS | PROBLEMS).values(), ids=(REQUESTS | PROBLEMS).keys()
)
def test_both_ways_give_the_same_status_type_and_body(
    server: Server, idiomatic: Server, path: str, content: bytes | str, media_type: str
):
    lean, slow = (way.post(path, content, media_type) for way in (server, idiomatic))
    assert lean.status_code == slow.status_code
    assert lean.headers["content-type"].partition(";")[0] == slow.headers["content-type"].partition(";")[0]
    for name in ("x-sextant-model", "x-sextant-version", "x-sextant-seed", "retry-after"):
        assert lean.headers.get(name) == slow.headers.get(name)
    assert lean.content == slow.content


def test_the_lean_front_is_in_place(server: Server, idiomatic: Server):
    """BentoML signs its answers; a release that moves the hook would let them through."""
    lean, slow = (way.post("/v1/digit", PIXELS.tobytes(), "application/octet-stream") for way in (server, idiomatic))
    assert "server" not in lean.headers
    assert slow.headers["server"].startswith("BentoML")


def test_uvicorn_asks_the_admission_before_there_is_any_asgi(small_models: Path):
    """A release of BentoML or uvicorn that moves the hook would refuse late, and nothing else would tell."""
    code = """
import uvicorn
from serving.service import Sextant

config = uvicorn.Config(Sextant.to_asgi())  # as BentoML's worker does
config.load()
print(config.http_protocol_class.__module__)
"""
    environment = {**os.environ, "SEXTANT_MODELS_DIR": str(small_models), "SEXTANT_FRONT": "lean"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "serving.http.protocol"
