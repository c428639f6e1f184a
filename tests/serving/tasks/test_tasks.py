import numpy as np
import pytest

from serving.tasks import DuplicateEndpointError, Endpoint, discover, endpoint
from serving.tasks.sample import anomaly_score


def test_every_route_of_the_service_is_found():
    assert {(found.path, found.methods) for found in discover()} == {
        ("/v1/digit", ("POST",)),
        ("/v1/image", ("POST",)),
        ("/v1/sentiment", ("POST",)),
        ("/v1/gan/sample", ("GET", "POST")),
        ("/v1/vae/sample", ("GET", "POST")),
        ("/v1/vae/reconstruct", ("POST",)),
        ("/v1/vae/anomaly", ("POST",)),
    }


@pytest.mark.parametrize(("name", "path"), [("digit", "/v1/another"), ("another", "/v1/digit")])
def test_a_duplicate_name_or_path_is_refused(name: str, path: str):
    before = discover()
    with pytest.raises(DuplicateEndpointError, match="Digit"):
        endpoint(type("Again", (Endpoint,), {"name": name, "path": path}))
    assert discover() == before


def test_the_anomaly_score_is_that_of_the_formula():
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (2, 28, 28), np.uint8)
    mean, log_variance = rng.standard_normal((2, 2, 4), np.float32)
    drawn = rng.random((2, 28, 28), np.float32)
    drawn[0, 0, 0], drawn[0, 0, 1] = 0.0, 1.0  # certain, and wrong: clipped, not infinite
    found = anomaly_score(pixels, mean, log_variance, drawn)
    for index in range(2):
        expected = 0.0
        for value, guess in zip(pixels[index].ravel() / 255, drawn[index].ravel(), strict=True):
            p = min(max(float(guess), 1e-7), 1 - 1e-7)
            expected -= value * np.log(p) + (1 - value) * np.log(1 - p)
        for mu, log_var in zip(mean[index], log_variance[index], strict=True):
            expected += 0.5 * (np.exp(float(log_var)) + float(mu) ** 2 - 1 - float(log_var))
        assert found[index] == pytest.approx(expected, rel=1e-6)


def test_a_perfect_reconstruction_at_the_prior_scores_nothing():
    pixels = np.zeros((1, 28, 28), np.uint8)
    nothing = np.zeros((1, 4), np.float32)
    assert anomaly_score(pixels, nothing, nothing, pixels.astype(np.float32))[0] == pytest.approx(0, abs=1e-3)
