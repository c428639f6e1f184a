import pytest

from serving.errors import MalformedError
from serving.http.media import (
    looks_like_image,
    looks_like_json,
    parse_media_type,
    parse_multipart,
    prefers_json,
)
from serving.http.receive import parse_query
from tests.serving import pictures


@pytest.mark.parametrize(
    ("header", "media_type", "parameters"),
    [
        ("", "", {}),
        ("Image/PNG", "image/png", {}),
        ("text/plain; charset=UTF-8", "text/plain", {"charset": "UTF-8"}),
        ('multipart/form-data; boundary="a b;\\"c"', "multipart/form-data", {"boundary": 'a b;"c'}),
        ("application/x-www-form-urlencoded", "", {}),
        ("application/x-www-form-urlencoded; charset=utf-8", "", {}),
    ],
)
def test_a_media_type_is_told_from_its_parameters(header: str, media_type: str, parameters: dict[str, str]):
    assert parse_media_type(header) == (media_type, parameters)


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("", False),
        ("*/*", False),
        ("image/png", False),
        ("application/json", True),
        ("Application/JSON", True),
        ("image/png, application/json", False),
        ("image/png;q=0.5, application/json;q=0.9", True),
        ("application/json;q=0", False),
        ("text/html, application/json;q=0.9, */*;q=0.8", True),
    ],
)
def test_json_is_sent_to_who_prefers_it_to_an_image(accept: str, json: bool):
    assert prefers_json(accept) is json


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_an_image_file_is_known_by_its_beginning(format_: str):
    assert looks_like_image(pictures.file(pictures.digit(), format_))


def test_pixels_and_text_are_not_taken_for_images_or_json():
    for content in (bytes(784), pictures.mnist_like().tobytes(), b"BMW is a car", b"[1]"):
        assert not looks_like_image(content)
        assert not looks_like_json(content)
    assert looks_like_json(b' \n {"a": 1}')


def part(disposition: str, content: bytes) -> bytes:
    head = f"--x\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: image/png\r\n\r\n"
    return head.encode() + content + b"\r\n"


def test_files_and_fields_of_a_form_are_told_apart_and_kept_whole():
    binary = bytes(range(256)) * 3 + b"\r\n--not the boundary\r\n"
    body = (
        part('name="a"; filename="a.png"', binary)
        + part('name="model"', b"imdb_gru")
        + part('name="b"; filename=""', b"")
        + b"--x--\r\n"
    )
    assert parse_multipart(body, "x") == ({"model": "imdb_gru"}, [binary, b""])


@pytest.mark.parametrize(
    "body", [b"", b"--x", b"--x\r\n", part('name="a"; filename="b"', b"c"), b"--y\r\n\r\n\r\n--y--\r\n"]
)
def test_a_form_that_does_not_follow_its_boundary_is_malformed(body: bytes):
    with pytest.raises(MalformedError):
        parse_multipart(body, "x")


def test_a_form_of_thousands_of_parts_is_refused():
    body = b"".join(part(f'name="{index}"', b"") for index in range(2000)) + b"--x--\r\n"
    with pytest.raises(MalformedError, match="1024 parts"):
        parse_multipart(body, "x")


def test_of_a_repeated_parameter_the_last_value_counts():
    assert parse_query(b"n=1&n=2&model=a%20b&empty=") == {"n": "2", "model": "a b", "empty": ""}
    assert parse_query(b"") == {}
