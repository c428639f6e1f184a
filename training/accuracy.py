"""``python -m training.accuracy``: real test samples through the HTTP service, beside the manifests' figures.

What is served is what was trained, or this says so: images go as PNG files and reviews as raw text, the way clients
send them, and the accuracy over HTTP must equal the one measured in training within 0.2 points.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tqdm import tqdm

from serving.preprocessing.image import encode_png
from training import datasets

ALLOWED_POINTS = 0.2
CONNECTIONS = 8
START_SECONDS = 120
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Sample:
    """One test row as a client sends it, and the label it should be given."""

    body: bytes
    media_type: str
    label: str


@dataclass(frozen=True)
class Check:
    """The samples that a task's models are asked, where, and which figure of the manifest they must reproduce."""

    task: str
    route: str
    metric: str
    samples: Callable[[], list[Sample]]


def _pictures(data: datasets.Dataset) -> list[Sample]:
    rows = zip(data.test.x, data.test.y, strict=True)
    return [Sample(encode_png(image), "image/png", data.labels[label]) for image, label in rows]


def _reviews() -> list[Sample]:
    reviews = datasets.test_reviews()
    chosen = (reviews[row] for row in datasets.sampled_rows(len(reviews)))
    return [Sample(text.encode(), "text/plain", datasets.SENTIMENT_LABELS[label]) for text, label in chosen]


CHECKS = (
    Check("digit", "/v1/digit", "test_accuracy", lambda: _pictures(datasets.load_mnist(seed=0, smoke=False))),
    Check("image", "/v1/image", "test_accuracy", lambda: _pictures(datasets.load_cifar10(seed=0, smoke=False))),
    Check("sentiment", "/v1/sentiment", "sample_accuracy", _reviews),
)


def measure(client: httpx.Client, route: str, model: str, samples: Sequence[Sample]) -> float:
    """The share of samples to which ``model`` gives their label, each sent as a request of its own.

    Raises:
        httpx.HTTPStatusError: an answer other than 200.
    """

    def right(sample: Sample) -> bool:
        headers = {"Content-Type": sample.media_type}
        answer = client.post(route, params={"model": model}, content=sample.body, headers=headers)
        answer.raise_for_status()
        (prediction,) = answer.json()["predictions"]
        return bool(prediction["label"] == sample.label)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = tqdm(
            pool.map(right, samples), desc=model, total=len(samples), unit=" requests", leave=False, disable=None
        )
        return sum(answers) / len(samples)


def check(client: httpx.Client) -> bool:
    """Measure every classifier that the service lists and print a line each; whether all agree."""
    print(f"{'model':<16} {'route':<14} {'rows':>6} {'over HTTP':>10} {'manifest':>9} {'points apart':>13}")
    agree = True
    served = client.get("/v1/models").raise_for_status().json()["models"]
    for asked in CHECKS:
        models = [row for row in served if row.get("task") == asked.task and row["state"] == "AVAILABLE"]
        if not models:
            continue
        samples = asked.samples()
        for row in models:
            manifest = row["metrics"][asked.metric]["value"]
            found = measure(client, asked.route, row["model"], samples)
            apart = 100 * abs(found - manifest)
            agree &= apart <= ALLOWED_POINTS
            figures = f"{len(samples):>6} {found:>10.2%} {manifest:>9.2%} {apart:>13.2f}"
            print(f"{row['model']:<16} {asked.route:<14} {figures}", flush=True)
    print(f"within {ALLOWED_POINTS} points" if agree else f"NOT within {ALLOWED_POINTS} points")
    return agree


@contextmanager
def own_server() -> Iterator[str]:
    """Serve ``exported_models`` on a free port of this machine for the length of the block; yields its address.

    Raises:
        RuntimeError: it ended, or was not ready within two minutes.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:Sextant"]
    home = tempfile.TemporaryDirectory(prefix="sextant-")  # a server that shares another's home clears its metrics
    server = subprocess.Popen(  # noqa: S603 - our own command
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": home.name},
        stdout=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + START_SECONDS
        while not _ready(url):
            if server.poll() is not None or time.monotonic() > give_up:
                message = f"the service did not get ready; `make serve PORT={port}` shows why"
                raise RuntimeError(message)
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(30)
        home.cleanup()


def _ready(url: str) -> bool:
    try:
        return httpx.get(url + "/readyz").is_success
    except httpx.TransportError:
        return False


def main(arguments: list[str]) -> int:
    """0 when every classifier is as accurate over HTTP as its manifest says."""
    parser = argparse.ArgumentParser(prog="python -m training.accuracy", description=__doc__)
    parser.add_argument("--url", help="of a running service; without it one is started for the occasion")
    options = parser.parse_args(arguments)
    try:
        if options.url is None:
            with own_server() as url, httpx.Client(base_url=url, timeout=60) as client:
                agree = check(client)
        else:
            with httpx.Client(base_url=options.url, timeout=60) as client:
                agree = check(client)
    except (datasets.DatasetError, httpx.HTTPError, RuntimeError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
