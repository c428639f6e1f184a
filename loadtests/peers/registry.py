"""Every server of the comparison: how it is started, and how each payload is sent to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from loadtests.payloads import payloads
from loadtests.peers import Peer, Request

_PAYLOADS: Final = payloads()
_REVIEWS: Final = tuple(name for name in _PAYLOADS if name.startswith("sentiment-"))
_SEVEN: Final = {"digit": 7, "seed": 1}
_BOUNDARY: Final = "sextant"


def _bentoml(service: str) -> Callable[[str, int], list[str]]:
    def command(python: str, port: int) -> list[str]:
        return [python, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]

    return command


def _uvicorn(app: str) -> Callable[[str, int], list[str]]:
    def command(python: str, port: int) -> list[str]:
        fast = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        return [python, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port), *fast]

    return command


def _body(name: str) -> bytes:
    return _PAYLOADS[name].body


def _as_is(names: Iterable[str] = _PAYLOADS, path: str = "") -> dict[str, Request]:
    """Send the payloads as the service takes them, to its paths or to another."""
    sent = {name: _PAYLOADS[name] for name in names}
    return {name: Request("POST", path or it.path, it.media_type, it.body) for name, it in sent.items()}


def _json(path: str, content: Any) -> Request:  # noqa: ANN401 - whatever JSON can hold
    return Request("POST", path, "application/json", json.dumps(content).encode())


def _file(path: str, field: str, name: str) -> Request:
    """Send a PNG payload as a multipart form of one file."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n'
    body = f"{head}Content-Type: image/png\r\n\r\n".encode() + _body(name) + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Request("POST", path, f"multipart/form-data; boundary={_BOUNDARY}", body)


PEERS: Final = (
    Peer("sextant", "Sextant", "bentoml", _bentoml("serving.service:Sextant"), _as_is()),
    Peer("bare-asgi", "bare ASGI on uvicorn", "uvicorn", _uvicorn("loadtests.peers.bare_asgi:app"), _as_is()),
    Peer("fastapi", "FastAPI + orjson, by hand", "fastapi", _uvicorn("loadtests.peers.fastapi_app:app"), _as_is()),
    Peer(
        "fastapi-plain-graph",
        "FastAPI, plain tf2onnx graph",
        "fastapi",
        _uvicorn("loadtests.peers.fastapi_plain_graph:app"),
        _as_is(_REVIEWS),
    ),
    Peer(
        "bentoml-typed",
        "BentoML, typed API",
        "bentoml",
        _bentoml("loadtests.peers.bentoml_typed:Typed"),
        {
            **_as_is(["digit-raw"], "/digit_bytes"),
            **_as_is(["digit-json"], "/digit_numbers"),
            **_as_is(["digit-png"], "/digit_file"),
            **_as_is(["image-png"], "/image_file"),
            **_as_is(_REVIEWS, "/sentiment"),
            "gan-1": _json("/gan_sample", _SEVEN),
        },
    ),
    Peer(
        "bentoml-batchable",
        "BentoML, batchable=True",
        "bentoml",
        _bentoml("loadtests.peers.bentoml_batchable:Batchable"),
        {
            **_as_is(["digit-json"], "/digit_numbers"),
            "digit-png": _file("/digit_files", "images", "digit-png"),
            "image-png": _file("/image_files", "images", "image-png"),
            **{name: _json("/sentiments_of", {"texts": [_body(name).decode()]}) for name in _REVIEWS},
        },
    ),
)
EXTRA_PEERS: Final[tuple[Peer, ...]] = ()
