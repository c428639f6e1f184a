"""Every server of the comparison: how it is started, and how each payload is sent to it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from pathlib import Path
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


def _uvicorn(*app: str) -> Callable[[str, int], list[str]]:
    def command(python: str, port: int) -> list[str]:
        fast = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        return [python, "-m", "uvicorn", *app, "--host", "127.0.0.1", "--port", str(port), *fast]

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
        _uvicorn("--factory", "loadtests.peers.fastapi_plain_graph:app"),
        _as_is(_REVIEWS),
    ),
    Peer(
        "fastapi-plain-bare",
        "FastAPI, plain tf2onnx graph, not padded",
        "fastapi",
        _uvicorn("--factory", "loadtests.peers.fastapi_plain_graph:bare"),
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


def _module(name: str) -> Callable[[str, int], list[str]]:
    def command(python: str, port: int) -> list[str]:
        return [python, "-m", f"loadtests.peers.{name}", "--port", str(port)]

    return command


def _mlserver(python: str, port: int) -> list[str]:
    # MLServer takes its port from a file or a variable alone.
    program = str(Path(python).with_name("mlserver"))
    return ["env", f"MLSERVER_HTTP_PORT={port}", program, "start", "loadtests/peers/mlserver_models"]


def _base64(name: str) -> str:
    return base64.b64encode(_body(name)).decode("ascii")


def _infer(model: str, **inputs: tuple[str, list[int], list[Any], str]) -> Request:
    """Write a request of the Open Inference Protocol from datatype, shape, data and content type of each input."""
    tensors = [
        {"name": name, "datatype": datatype, "shape": shape, "data": data, "parameters": {"content_type": content_type}}
        for name, (datatype, shape, data, content_type) in inputs.items()
    ]
    return _json(f"/v2/models/{model}/infer", {"inputs": tensors})


EXTRA_PEERS: Final = (
    Peer(
        "litserve",
        "LitServe",
        "litserve",
        _module("litserve_app"),
        {
            **_as_is(["digit-json"]),
            "digit-png": _json("/v1/digit", {"image": _base64("digit-png")}),
            "image-png": _json("/v1/image", {"image": _base64("image-png")}),
            **{name: _json("/v1/sentiment", {"text": _body(name).decode()}) for name in _REVIEWS},
            "gan-1": _json("/v1/gan/sample", _SEVEN),
        },
        environment="litserve",
    ),
    Peer(
        "mlserver",
        "MLServer",
        "mlserver",
        _mlserver,
        {
            "digit-json": _infer("digit", pixels=("UINT8", [1, 28, 28], list(_body("digit-raw")), "np")),
            "digit-png": _infer("digit_file", file=("BYTES", [1], [_base64("digit-png")], "base64")),
            "image-png": _infer("image_file", file=("BYTES", [1], [_base64("image-png")], "base64")),
            **{name: _infer("sentiment", text=("BYTES", [1], [_body(name).decode()], "str")) for name in _REVIEWS},
            "gan-1": _infer("gan_sample", **{name: ("INT64", [1], [value], "np") for name, value in _SEVEN.items()}),
        },
        environment="mlserver",
    ),
    Peer(
        "ray",
        "Ray Serve",
        "ray",
        _module("ray_app"),
        _as_is(),
        environment="ray",
        variables={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    ),
)
