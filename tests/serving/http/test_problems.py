"""Whatever is sent, the right problem comes back and the next request is answered."""

import base64
import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import Server
from tests.serving import pictures

PNG, JSON, OCTETS, TEXT = "image/png", "application/json", "application/octet-stream", "text/plain"
DIGIT, IMAGE, SENTIMENT = "/v1/digit", "/v1/image", "/v1/sentiment"
PIXELS = pictures.mnist_like().tolist()

BIG = base64.b64encode(pictures.file(pictures.Image.new("L", (2500, 3000), 255))).decode()


def images(*values: object) -> str:
    return json.dumps({"images": values})


def changed(row: int, column: int, value: object) -> str:
    pixels = [list(row) for row in PIXELS]
    pixels[row][column] = value
    return images(pixels)


HOSTILE = {
    "empty body": (DIGIT, b"", PNG, 400, "empty"),
    "empty body as nothing": (DIGIT, b"", "", 400, "empty"),
    "empty JSON body": (DIGIT, b"", JSON, 400, "empty"),
    "text as image": (DIGIT, b"this is no image", PNG, 400, "image"),
    "text as nothing": (DIGIT, b"this is no image", "", 400, "784 raw bytes"),
    "truncated PNG": (DIGIT, pictures.file(pictures.digit())[:300], PNG, 400, "truncated"),
    "cut in the header": (IMAGE, pictures.file(pictures.digit())[:20], PNG, 400, ""),
    "20 000 x 20 000 PNG": (DIGIT, pictures.bomb(), PNG, 413, "pixels"),
    "20 000 x 20 000 photo": (IMAGE, pictures.bomb(), PNG, 413, "pixels"),
    "a picture too many": (IMAGE, images(*[BIG] * 3), JSON, 413, "Image 3 of 3: The image has 2500×3000 pixels"),
    "animated GIF": (DIGIT, pictures.animated_gif(), "image/gif", 422, "animated"),
    "nothing drawn": (DIGIT, pictures.file(pictures.Image.new("L", (60, 60), 255)), PNG, 422, ""),
    "783 raw bytes": (DIGIT, bytes(783), OCTETS, 422, "784 raw bytes"),
    "raw bytes of a digit as photo": (IMAGE, bytes(784), OCTETS, 422, "3072 raw bytes"),
    "SVG": (DIGIT, b"<svg/>", "image/svg+xml", 415, "image/png"),
    "PDF": (DIGIT, b"%PDF-1.7", "application/pdf", 415, JSON),
    "text on an image route": (IMAGE, b"hello", TEXT, 415, PNG),
    "image on a text route": (SENTIMENT, b"hello", PNG, 415, TEXT),
    "not JSON": (DIGIT, b'{"images": [', JSON, 400, "JSON"),
    "JSON list": (DIGIT, b"[1, 2]", JSON, 422, "a list"),
    "JSON number": (SENTIMENT, b"5", JSON, 422, "a number"),
    "JSON null": (SENTIMENT, b"null", JSON, 422, "null"),
    "nested 10 000 deep": (DIGIT, b'{"images": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", JSON, 400, "JSON"),
    "nested 500 deep": (DIGIT, b'{"images": ' + b"[" * 500 + b"]" * 500 + b"}", JSON, 422, "28"),
    "NaN": (DIGIT, b'{"images": [[NaN]]}', JSON, 400, "JSON"),
    "no images": (DIGIT, b"{}", JSON, 422, '"images"'),
    "images of the wrong kind": (DIGIT, b'{"images": "x"}', JSON, 422, "a string"),
    "no image at all": (DIGIT, b'{"images": []}', JSON, 422, "received 0"),
    "65 images": (DIGIT, images(*[PIXELS] * 65), JSON, 422, "received 65"),
    "strings for numbers": (DIGIT, changed(3, 4, "7"), JSON, 422, "a string is among them"),
    "null for a number": (DIGIT, changed(3, 4, None), JSON, 422, "null is among them"),
    "ragged rows": (DIGIT, images([*PIXELS[:-1], PIXELS[-1][:-1]]), JSON, 422, "27 in place of 28"),
    "a long string among short ones": (DIGIT, images([["x" * 100_000, *[1] * 27]] * 28), JSON, 422, "string"),
    "27 rows": (DIGIT, images(PIXELS[:-1]), JSON, 422, "28×28"),
    "a photo of 28x28": (IMAGE, images(PIXELS), JSON, 422, "32×32×3"),
    "256": (DIGIT, changed(0, 0, 256), JSON, 422, "0 to 256"),
    "-1": (DIGIT, changed(0, 0, -1), JSON, 422, "-1 to 255"),
    "10**30": (DIGIT, changed(0, 0, 10**30), JSON, 422, "0 to 255"),
    "scaled numbers": (DIGIT, changed(0, 0, 0.5), JSON, 422, "not scaled"),
    "an object for an image": (DIGIT, images({"a": 1}), JSON, 422, "an object"),
    "not base64": (DIGIT, images("***"), JSON, 400, "base64"),
    "base64 of text": (DIGIT, images(base64.b64encode(b"no image").decode()), JSON, 400, "image"),
    "the second of two": (DIGIT, images(PIXELS, "***"), JSON, 400, "Image 2 of 2"),
    "10 MB of digits": (DIGIT, b'{"images": [[' + b"1," * 5_000_000 + b"1]]}", JSON, 413, "4194304 bytes"),
    "3 MB of digits": (DIGIT, b'{"images": [[' + b"1," * 1_500_000 + b"1]]}", JSON, 422, "28×28"),
    "multipart without boundary": (DIGIT, b"--x\r\n", "multipart/form-data", 400, "boundary"),
    "multipart of nonsense": (DIGIT, b"nonsense", "multipart/form-data; boundary=x", 400, "boundary"),
    "multipart cut short": (
        DIGIT,
        b'--x\r\ncontent-disposition: form-data; name="a"; filename="b"\r\n\r\nabc',
        "multipart/form-data; boundary=x",
        400,
        "cut short",
    ),
    "multipart without a file": (
        DIGIT,
        b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\nabc\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
        422,
        "received 0",
    ),
    "top of 0": (IMAGE + "?top=0", pictures.file(pictures.digit()), PNG, 422, "from 1 to 10; received 0"),
    "top of 11": (IMAGE + "?top=11", pictures.file(pictures.digit()), PNG, 422, "received 11"),
    "unknown model": (
        IMAGE + "?model=resnet",
        pictures.file(pictures.digit()),
        PNG,
        404,
        "cifar10_cnn, vgg16_transfer",
    ),
    "model of another task": (
        IMAGE + "?model=mnist_mlp",
        pictures.file(pictures.digit()),
        PNG,
        404,
        "cifar10_cnn",
    ),
    "model of the wrong kind": (SENTIMENT, '{"text": "x", "model": {"a": 1}}', JSON, 404, "imdb_lstm"),
    "empty text": (SENTIMENT, '{"text": ""}', JSON, 422, "empty"),
    "blank text": (SENTIMENT, b" \n\t ", TEXT, 422, "empty"),
    "no text": (SENTIMENT, b"", TEXT, 400, "empty"),
    "text and texts": (SENTIMENT, '{"text": "a", "texts": ["b"]}', JSON, 422, "one of the two"),
    "a number for a text": (SENTIMENT, '{"texts": ["a", 5]}', JSON, 422, "a number"),
    "invalid UTF-8": (SENTIMENT, b"good \xff\xfe film", TEXT, 400, "byte 5"),
    "invalid UTF-8 in JSON": (SENTIMENT, b'{"text": "\xff"}', JSON, 400, "JSON"),
    "another charset": (SENTIMENT, b"bon", f"{TEXT}; charset=iso-8859-1", 415, "utf-8"),
    "5 MB of text": (SENTIMENT, b"good " * 1_000_000, TEXT, 413, "4194304"),
    "n of 0": ("/v1/gan/sample?n=0", b"", "", 422, "from 1 to 256; received 0"),
    "n of -1": ("/v1/gan/sample?n=-1", b"", "", 422, "received -1"),
    "n of 10**9": ("/v1/vae/sample?n=1000000000", b"", "", 422, "received 1000000000"),
    "n of x": ("/v1/gan/sample?n=x", b"", "", 422, "'x'"),
    "n of nothing": ("/v1/gan/sample?n=", b"", "", 422, "''"),
    "n of 1.5": ("/v1/gan/sample", '{"n": 1.5}', JSON, 422, "1.5"),
    "n of true": ("/v1/gan/sample", '{"n": true}', JSON, 422, "n must be a whole number"),
    "n of a list": ("/v1/gan/sample", '{"n": [1]}', JSON, 422, "a list"),
    "n of 10**30": ("/v1/gan/sample?n=" + "9" * 10_000, b"", "", 422, "n must be a whole number"),
    "a negative seed": ("/v1/gan/sample?seed=-3", b"", "", 422, "seed must be"),
    "a seed of 2**64": (f"/v1/vae/sample?seed={2**64}", b"", "", 422, "seed must be"),
    "digit 10": ("/v1/gan/sample?digit=10", b"", "", 422, "from 0 to 9; received 10"),
    "a digit for the VAE": ("/v1/vae/sample?digit=1", b"", "", 422, "/v1/gan/sample"),
    "sample of a discriminator": (
        "/v1/gan/sample?model=mnist_gan_discriminator",
        b"",
        "",
        404,
        "mnist_gan_generator",
    ),
    "sample of text": ("/v1/gan/sample", b"n=3", TEXT, 415, JSON),
    "33 parameters": ("/v1/gan/sample?" + "&".join(f"a{i}=1" for i in range(33)), b"", "", 400, "32"),
    "anomaly of text": ("/v1/vae/anomaly", b"no image", PNG, 400, ""),
    "reconstruction of nothing": ("/v1/vae/reconstruct", b"", PNG, 400, "empty"),
    "unknown route": ("/v1/digits", b"", "", 404, "/v1/digit"),
    "unknown route elsewhere": ("/v2/digits", b"", "", 404, "/v2/digits"),
    "trailing slash": ("/v1/digit/", b"", "", 404, "/v1/digit"),
    "post to models": ("/v1/models", b"", "", 405, "GET"),
}


def check_problem(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert len(problem["detail"]) < 600
    return problem


@pytest.mark.parametrize(("path", "content", "media_type", "status", "says"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_request_gets_its_problem_and_the_next_one_is_answered(
    server: Server, path: str, content: bytes | str, media_type: str, status: int, says: str
):
    problem = check_problem(server.post(path, content, media_type), status)
    assert says in problem["detail"]
    assert "Traceback" not in problem["detail"]
    assert "/serving/" not in problem["detail"]
    assert server.post(DIGIT, images(PIXELS), JSON).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", DIGIT, "POST"),
        ("PUT", IMAGE, "POST"),
        ("DELETE", "/v1/gan/sample", "GET, POST"),
        ("PATCH", "/v1/models/mnist_mlp", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(server: Server, method: str, path: str, allowed: str):
    response = httpx.request(method, server.url + path)
    check_problem(response, 405)
    assert response.headers["allow"] == allowed


def test_an_unknown_model_lists_those_there_are(server: Server):
    assert "mnist_mlp" in check_problem(server.get("/v1/models/resnet"), 404)["detail"]


def test_a_compressed_body_is_not_taken(server: Server):
    response = server.post(SENTIMENT, b"\x1f\x8b", TEXT, headers={"content-encoding": "gzip"})
    assert "gzip" in check_problem(response, 415)["detail"]


def test_a_body_without_length_is_capped_as_it_arrives(server: Server):
    def endless():
        for _ in range(100):
            yield b"good " * 20_000

    response = httpx.post(server.url + SENTIMENT, content=endless(), headers={"content-type": TEXT}, timeout=30)
    check_problem(response, 413)


def test_a_client_that_goes_away_disturbs_nobody(server: Server):
    address = urlsplit(server.url)
    for sent in (
        b"POST /v1/digit HTTP/1.1\r\nhost: x\r\ncontent-length: 784\r\n\r\nabc",  # body cut
        b"POST /v1/digit HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
        b"content-length: 784\r\n\r\n" + bytes(784),  # answer not awaited
        b"\x16\x03\x01 no HTTP at all\r\n\r\n",
    ):
        with socket.create_connection((address.hostname, address.port), 10) as connection:
            connection.sendall(sent)
        assert server.post(DIGIT, images(PIXELS), JSON).status_code == 200


def test_problems_are_logged_without_a_traceback(server: Server):
    server.post(DIGIT, b"no image", PNG)
    time.sleep(0.2)
    assert "Traceback" not in server.log.read_text(errors="replace")
