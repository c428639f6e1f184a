"""What the routes answer, over a real socket."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.preprocessing.image import to_digit, to_rgb
from serving.tasks.sample import anomaly_score
from tests.conftest import Server
from tests.models import DIGITS, OBJECTS, THRESHOLD
from tests.serving import pictures

PNG, JSON, OCTETS = "image/png", "application/json", "application/octet-stream"


def run(models: Path, model: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(models / model / "1" / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def predictions(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


def open_png(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    return image


class TestDigit:
    def test_an_image_file_is_read_as_a_person_would_send_it(self, server: Server, small_models: Path):
        image = pictures.digit(7)
        response = server.post("/v1/digit", pictures.file(image), PNG)
        (found,) = predictions(response)
        expected = run(small_models, "mnist_mlp", pixels=to_digit(image)[None])["probabilities"][0]
        assert response.json() | {"predictions": []} == {
            "model": "mnist_mlp",
            "version": 1,
            "predictions": [],
        }
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
        assert found["index"] == expected.argmax()
        assert found["label"] == DIGITS[found["index"]]
        assert found["confidence"] == max(found["probabilities"])

    def test_all_forms_of_one_digit_get_the_same_answer(self, server: Server):
        pixels = pictures.mnist_like()
        png = pictures.file(Image.fromarray(pixels))
        encoded = base64.b64encode(png).decode()
        answers = [
            predictions(server.post("/v1/digit", content, media_type))
            for content, media_type in (
                (png, PNG),
                (png, ""),  # looked at
                (png, "application/x-www-form-urlencoded"),  # curl --data-binary
                (png, OCTETS),
                (pixels.tobytes(), OCTETS),
                (pixels.tobytes(), ""),
                (json.dumps({"images": [encoded]}), JSON),
                (json.dumps({"images": [f"data:image/png;base64,{encoded}"]}), JSON),
                (json.dumps({"images": [pixels.tolist()]}), JSON),
                (json.dumps({"images": [pixels.ravel().tolist()]}), ""),
                (json.dumps({"images": [pixels.astype(float).tolist()]}), f"{JSON}; charset=utf-8"),
            )
        ]
        assert all(answer == answers[0] for answer in answers)

    def test_several_files_get_several_answers_in_order(self, server: Server):
        files = [pictures.file(Image.fromarray(pictures.mnist_like(seed))) for seed in range(3)]
        single = [predictions(server.post("/v1/digit", file, PNG))[0] for file in files]
        form = [(f"field{index}", (f"{index}.png", file, PNG)) for index, file in enumerate(files)]
        together = predictions(server.post("/v1/digit", None, files=form))
        for one, other in zip(single, together, strict=True):
            assert one["label"] == other["label"]
            np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-5)
        many = {"images": [base64.b64encode(file).decode() for file in files]}
        assert len(predictions(server.post("/v1/digit", json.dumps(many), JSON))) == 3

    @pytest.mark.parametrize("mode", ["CMYK", "I;16", "P", "RGBA", "LA", "1", "RGB"])
    def test_every_kind_of_pixel_is_read_right(self, server: Server, mode: str):
        plain = pictures.digit(4)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(plain).astype(np.uint16) * 257)
        elif mode in ("RGBA", "LA"):  # the digit drawn on nothing
            image = Image.new(mode, plain.size, (0,) * len(mode))
            image.putalpha(plain.point(lambda level: 255 - level))
        else:
            image = plain.convert("RGB").convert(mode)
        sent = pictures.file(image, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 95} if mode == "CMYK" else {}))
        (found,) = predictions(server.post("/v1/digit", sent, "image/jpeg" if mode == "CMYK" else PNG))
        (expected,) = predictions(server.post("/v1/digit", pictures.file(plain), PNG))
        np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=0.1)


class TestImage:
    def test_the_labels_are_ranked(self, server: Server, small_models: Path):
        photo = Image.fromarray(pictures.photo(side=50))
        (found,) = predictions(server.post("/v1/image?top=4", pictures.file(photo), PNG))
        expected = run(small_models, "cifar10_cnn", pixels=to_rgb(photo, 32, 32)[None])["probabilities"][0]
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
        order = np.argsort(-expected)[:4]
        assert [entry["label"] for entry in found["top"]] == [OBJECTS[index] for index in order]
        assert found["top"][0] == {"label": found["label"], "confidence": found["confidence"]}

    def test_all_forms_of_one_photo_get_the_same_answer(self, server: Server):
        pixels = pictures.photo()
        png = pictures.file(Image.fromarray(pixels))
        answers = [
            predictions(server.post("/v1/image", content, media_type))
            for content, media_type in (
                (png, PNG),
                (pixels.tobytes(), OCTETS),
                (json.dumps({"images": [pixels.tolist()]}), JSON),
                (json.dumps({"images": [base64.b64encode(png).decode()]}), JSON),
            )
        ]
        assert all(answer == answers[0] for answer in answers)

    @pytest.mark.parametrize("how", ["query", "json", "form"])
    def test_the_model_is_chosen_by_name_and_gets_its_own_size(self, server: Server, small_models: Path, how: str):
        photo = pictures.photo(side=48)
        png = pictures.file(Image.fromarray(photo))
        if how == "query":
            response = server.post("/v1/image?model=vgg16_transfer", png, PNG)
        elif how == "json":
            body = {"images": [base64.b64encode(png).decode()], "model": "vgg16_transfer"}
            response = server.post("/v1/image", json.dumps(body), JSON)
        else:
            form = {"data": {"model": "vgg16_transfer"}, "files": {"photo": ("photo.png", png)}}
            response = server.post("/v1/image", None, **form)
        assert response.json()["model"] == "vgg16_transfer"
        expected = run(small_models, "vgg16_transfer", pixels=photo[None])["probabilities"][0]
        np.testing.assert_allclose(predictions(response)[0]["probabilities"], expected, atol=1e-4)


class TestSentiment:
    def test_plain_text_is_judged_and_counted(self, server: Server):
        (found,) = predictions(server.post("/v1/sentiment", "The film was GOOD, magnificently good.", "text/plain"))
        assert found["label"] == "positive"
        assert 0.5 < found["confidence"] <= 1
        assert (found["tokens"], found["unknown_tokens"], found["truncated"]) == (6, 1, False)

    @pytest.mark.parametrize(
        ("content", "media_type"),
        [
            ("bad film", "text/plain; charset=utf-8"),
            ("bad film", ""),
            ('{"text": "bad film"}', JSON),
            ('{"texts": ["bad film"]}', ""),
        ],
    )
    def test_all_forms_of_one_text_get_the_same_answer(self, server: Server, content: str, media_type: str):
        (found,) = predictions(server.post("/v1/sentiment", content, media_type))
        assert found == predictions(server.post("/v1/sentiment", "bad film", "text/plain"))[0]
        assert found["label"] == "negative"

    def test_texts_of_any_length_keep_their_order(self, server: Server):
        texts = ["good", "bad " * 30, "good " * 400, "bad"]
        response = server.post("/v1/sentiment?model=imdb_gru", json.dumps({"texts": texts}), JSON)
        found = predictions(response)
        assert response.json()["model"] == "imdb_gru"
        assert [entry["label"] for entry in found] == ["positive", "negative", "positive", "negative"]
        assert [entry["truncated"] for entry in found] == [False, False, True, False]
        assert [entry["tokens"] for entry in found] == [1, 30, 400, 1]

    def test_unknown_words_alone_are_answered_and_counted(self, server: Server):
        (found,) = predictions(server.post("/v1/sentiment", "zyx wvut ≈ ω", "text/plain"))
        assert found["tokens"] == found["unknown_tokens"] == 4

    def test_a_megabyte_of_text_is_cut_and_says_so(self, server: Server):
        (found,) = predictions(server.post("/v1/sentiment", "good film " * 100_000, "text/plain"))
        assert found["truncated"]
        assert found["tokens"] == 200_000


class TestSampling:
    @pytest.mark.parametrize("route", ["/v1/gan/sample", "/v1/vae/sample"])
    def test_the_same_seed_gives_the_same_picture_and_another_does_not(self, server: Server, route: str):
        first, again, other = (server.get(f"{route}?n=5&seed={seed}") for seed in (3, 3, 4))
        assert first.headers["content-type"] == "image/png"
        assert first.headers["x-sextant-seed"] == "3"
        assert first.content == again.content
        assert first.content != other.content

    def test_without_a_seed_one_is_drawn_and_told(self, server: Server):
        first, second = server.get("/v1/gan/sample?n=1"), server.get("/v1/gan/sample?n=1")
        assert first.headers["x-sextant-seed"] != second.headers["x-sextant-seed"]
        again = server.get(f"/v1/gan/sample?n=1&seed={first.headers['x-sextant-seed']}")
        assert again.content == first.content

    def test_the_origin_of_a_picture_is_told(self, server: Server):
        headers = server.get("/v1/vae/sample?n=1").headers
        assert (headers["x-sextant-model"], headers["x-sextant-version"]) == ("mnist_vae_decoder", "1")

    def test_json_holds_every_sample_and_its_digit(self, server: Server):
        answer = server.get("/v1/gan/sample?n=12&seed=1", headers={"accept": JSON}).json()
        assert answer["model"] == "mnist_gan_generator"
        assert answer["seed"] == 1
        assert [sample["digit"] for sample in answer["samples"]] == [0, 0, 1, 1, *range(2, 10)]
        assert {open_png(base64.b64decode(sample["png"])).size for sample in answer["samples"]} == {(28, 28)}

    def test_one_digit_can_be_asked_for(self, server: Server, small_models: Path):
        answer = server.post(
            "/v1/gan/sample", json.dumps({"n": 2, "digit": 4, "seed": 9}), JSON, headers={"accept": JSON}
        ).json()
        noise = np.random.default_rng(9).standard_normal((2, 8), np.float32)
        drawn = run(small_models, "mnist_gan_generator", noise=noise, digit=np.array([4, 4], np.int32))["pixels"]
        assert [sample["digit"] for sample in answer["samples"]] == [4, 4]
        for sample, pixels in zip(answer["samples"], drawn, strict=True):
            found = np.asarray(open_png(base64.b64decode(sample["png"]))).astype(int)
            assert np.abs(found - pixels * 255).max() <= 1

    def test_a_hundred_samples_are_a_square_of_one_digit_a_row(self, server: Server):
        grid = open_png(server.get("/v1/gan/sample?n=100&seed=1").content)
        assert grid.width == grid.height
        assert grid.mode == "L"

    def test_a_post_without_body_takes_the_defaults(self, server: Server):
        assert server.post("/v1/vae/sample").status_code == 200


class TestAutoencoder:
    def test_the_anomaly_score_is_the_negative_elbo(self, server: Server, small_models: Path):
        pixels = np.stack([pictures.mnist_like(), np.full((28, 28), 255, np.uint8)])
        found = predictions(server.post("/v1/vae/anomaly", json.dumps({"images": pixels.tolist()}), JSON))
        codes = run(small_models, "mnist_vae_encoder", pixels=pixels)
        redrawn = run(small_models, "mnist_vae_decoder", latent=codes["mean"])["pixels"]
        scores = anomaly_score(pixels, codes["mean"], codes["log_variance"], redrawn)
        np.testing.assert_allclose([entry["score"] for entry in found], scores, rtol=1e-4)
        assert [entry["threshold"] for entry in found] == [THRESHOLD] * 2
        assert [entry["anomalous"] for entry in found] == [score > THRESHOLD for score in scores]

    def test_a_strange_image_is_not_made_to_look_like_a_digit(self, server: Server):
        black_on_white = predictions(server.post("/v1/vae/anomaly", pictures.file(pictures.digit()), PNG))[0]
        white = Image.eval(pictures.digit(), lambda level: 255 - level)
        white_on_black = predictions(server.post("/v1/vae/anomaly", pictures.file(white), PNG))[0]
        assert black_on_white["score"] > white_on_black["score"]

    def test_a_reconstruction_stands_beside_its_original(self, server: Server):
        pixels = pictures.mnist_like()
        png = pictures.file(Image.fromarray(pixels))
        pair = open_png(server.post("/v1/vae/reconstruct", png, PNG).content)
        assert pair.width > 2 * 28
        assert 28 <= pair.height < 2 * 28
        answer = server.post("/v1/vae/reconstruct", png, PNG, headers={"accept": JSON}).json()
        (entry,) = answer["reconstructions"]
        assert np.array_equal(np.asarray(open_png(base64.b64decode(entry["original"]))), pixels)
        assert open_png(base64.b64decode(entry["reconstruction"])).size == (28, 28)


class TestModels:
    def test_every_model_is_listed_with_its_facts(self, server: Server, small_models: Path):
        listed = {entry["model"]: entry for entry in server.get("/v1/models").json()["models"]}
        assert set(listed) == {path.name for path in small_models.iterdir()}
        facts = listed["mnist_mlp"]
        assert (facts["version"], facts["state"], facts["task"]) == (1, "AVAILABLE", "digit")
        assert facts["labels"] == list(DIGITS)
        assert facts["inputs"] == [{"name": "pixels", "dtype": "uint8", "shape": [None, 28, 28]}]
        assert str(facts["batching"]["batch_size"]) in facts["batching"]["milliseconds"]

    def test_one_model_is_told_in_tensorflow_servings_shape(self, server: Server):
        answer = server.get("/v1/models/imdb_lstm").json()
        assert answer["model_version_status"] == [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
        assert answer["models"][0]["model"] == "imdb_lstm"


class TestBentoML:
    """What is handed to BentoML's own application."""

    def test_its_page_and_metrics_are_there(self, server: Server):
        assert "text/html" in server.get("/").headers["content-type"]
        server.get("/v1/models")
        assert "sextant_requests_total" in server.get("/metrics").text

    def test_its_page_may_load_nothing_from_elsewhere(self, server: Server):
        """BentoML's page asks for a tracker; the browser is told to refuse it."""
        page = server.get("/")
        assert "https://www.googletagmanager.com" in page.text  # else the policy has lost its reason
        assert page.headers["content-security-policy"].startswith("default-src 'self'")

    def test_the_openapi_page_lists_the_routes_with_what_they_take_and_answer(self, server: Server):
        paths = server.get("/docs.json").json()["paths"]
        digit = paths["/v1/digit"]["post"]
        assert {"application/json", "image/png", "multipart/form-data"} <= set(digit["requestBody"]["content"])
        assert {"200", "400", "413", "415", "422", "429", "504"} <= set(digit["responses"])
        assert "text/plain" in paths["/v1/sentiment"]["post"]["requestBody"]["content"]
        sample = paths["/v1/gan/sample"]["get"]
        assert {entry["name"] for entry in sample["parameters"]} == {"n", "digit", "seed", "model"}
        assert "image/png" in sample["responses"]["200"]["content"]
        for route in ("/v1/image", "/v1/vae/sample", "/v1/vae/reconstruct", "/v1/vae/anomaly", "/v1/models/{model}"):
            assert route in paths

    def test_its_client_calls_the_routes_by_name(self, server: Server):
        pixels = pictures.mnist_like().tolist()
        with bentoml.SyncHTTPClient(server.url) as client:
            answer = client.digit(images=[pixels])
            assert answer == server.post("/v1/digit", json.dumps({"images": [pixels]}), JSON).json()
            assert client.sentiment(text="good film", model="imdb_gru")["model"] == "imdb_gru"
            drawn = client.gan_sample(n=2, seed=5)
        assert open_png(drawn.read_bytes()).size == open_png(server.get("/v1/gan/sample?n=2&seed=5").content).size


def test_live_and_ready(server: Server):
    assert server.get("/livez").status_code == 200
    assert server.get("/readyz").status_code == 200
