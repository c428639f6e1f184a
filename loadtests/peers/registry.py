"""Every server of the comparison: how it is started, and how each payload is sent to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from loadtests.payloads import Payload, payloads
from loadtests.peers import Peer, Request

_PAYLOADS: Final = payloads()


def _as_is(payload: Payload) -> Request:
    return Request("POST", payload.path, payload.media_type, payload.body)


_ALL: Final = {name: _as_is(payload) for name, payload in _PAYLOADS.items()}
_SENTIMENT: Final = {name: request for name, request in _ALL.items() if name.startswith("sentiment-")}


def _bentoml(service: str) -> Callable[[str, int], list[str]]:
    def command(python: str, port: int) -> list[str]:
        return [python, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]

    return command


def _uvicorn(app: str) -> Callable[[str, int], list[str]]:
    def command(python: str, port: int) -> list[str]:
        speed = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        return [python, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port), *speed]

    return command


PEERS: Final = (
    Peer("sextant", "Sextant", "bentoml", _bentoml("serving.service:Sextant"), _ALL),
    Peer("bare-asgi", "bare ASGI on uvicorn", "uvicorn", _uvicorn("loadtests.peers.bare_asgi:app"), _ALL),
    Peer("fastapi", "FastAPI + orjson, by hand", "fastapi", _uvicorn("loadtests.peers.fastapi_app:app"), _ALL),
    Peer(
        "fastapi-plain-graph",
        "FastAPI, plain tf2onnx graph",
        "fastapi",
        _uvicorn("loadtests.peers.fastapi_plain_graph:app"),
        _SENTIMENT,
    ),
)
EXTRA_PEERS: Final[tuple[Peer, ...]] = ()
