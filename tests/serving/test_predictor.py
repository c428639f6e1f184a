import asyncio
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from prometheus_client import CollectorRegistry

from serving.errors import UnavailableError
from serving.metrics import Metrics
from serving.repository import Repository, load_repository
from serving.settings import Settings
from tests.models import digit_model, image_model

FOREVER = float("inf")


def load(root: Path, **settings: object) -> Repository:
    return load_repository(Settings(models_dir=root, **settings), Metrics(CollectorRegistry()))


def test_more_rows_than_a_batch_are_answered_in_order(tmp_path: Path):
    folder = digit_model(tmp_path)
    predictor = load(tmp_path, max_batch_size=4).predictors["mnist_mlp"]
    pixels = np.random.default_rng(1).integers(0, 256, (11, 28, 28), np.uint8)
    outputs = asyncio.run(predictor.predict({"pixels": pixels}, FOREVER))
    expected = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"pixels": pixels})[0]
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)


def test_a_dead_thread_fails_its_requests_and_turns_readiness_off(tmp_path: Path):
    image_model(tmp_path, "vgg16_transfer", side=48, layers=1500)
    digit_model(tmp_path)
    repository = load(tmp_path)
    predictor = repository.predictors["vgg16_transfer"]
    assert not predictor.inline
    assert predictor._executor is not None
    predictor._executor.shutdown()
    assert repository.ready
    assert repository.alive
    with pytest.raises(UnavailableError):
        asyncio.run(predictor.predict({"pixels": np.zeros((1, 48, 48, 3), np.uint8)}, FOREVER))
    assert not repository.ready
    assert not repository.alive


def test_a_closed_repository_answers_nothing_more(tmp_path: Path):
    digit_model(tmp_path)
    repository = load(tmp_path)
    repository.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        asyncio.run(repository.predictors["mnist_mlp"].predict({"pixels": np.zeros((1, 28, 28), np.uint8)}, FOREVER))
