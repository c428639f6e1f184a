"""Real servers for the tests: the service as `bentoml serve` runs it, on a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.models import publish_all

ROOT = Path(__file__).resolve().parent.parent
BENTOML = [sys.executable, "-m", "bentoml"]
_START_SECONDS = 200


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, path: str, **options: object) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)  # type: ignore[arg-type]

    def post(self, path: str, content: bytes | str = b"", media_type: str = "", **options: object) -> httpx.Response:
        headers = {"content-type": media_type} if media_type else {}
        headers |= options.pop("headers", {})  # type: ignore[arg-type]
        return httpx.post(self.url + path, content=content, headers=headers, timeout=60, **options)  # type: ignore[arg-type]


def workers(server: Server) -> list[psutil.Process]:
    """The processes that answer, without their supervisor."""
    return [child for child in psutil.Process(server.pid).children(recursive=True) if "--worker-id" in child.cmdline()]


@contextlib.contextmanager
def serve(root: Path, log: Path, *, wait_for: int = 200, **settings: str) -> Iterator[Server]:
    """Run ``bentoml serve`` until the block ends.

    Args:
        root: the model repository.
        log: where the server's output goes.
        wait_for: status of ``/readyz`` that tells that loading is over.
        settings: ``SEXTANT_*`` variables, without the prefix and in lower case.
    """
    environment = {f"SEXTANT_{name.upper()}": value for name, value in settings.items()}
    command = [*BENTOML, "serve", "serving.service:Sextant"]
    with running(command, log, wait_for=wait_for, SEXTANT_MODELS_DIR=str(root), **environment) as server:
        yield server


@contextlib.contextmanager
def running(
    command: list[str], log: Path, *, folder: Path = ROOT, wait_for: int = 200, **environment: str
) -> Iterator[Server]:
    """Run ``bentoml serve`` or what leads to it until the block ends, on a free port.

    Args:
        command: the program and its arguments.
        log: where its output goes.
        folder: where it runs.
        wait_for: status of ``/readyz`` that tells that loading is over.
        environment: variables over those of the tests; none of theirs for Sextant or make are handed on.
    """
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SEXTANT_", "MAKE", "PORT"))}
    # Servers that share a store share the files of their metrics too, and each clears them when it starts.
    own = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(log.parent / "bentoml"), "PORT": str(port)}
    own["SEXTANT_DRAIN_SECONDS"] = "0"  # nobody is left to be told when a test has ended
    own["BENTOML_PORT"] = own["PORT"]  # the one is make's, the other BentoML's
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, **own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", log, process)
    try:
        _wait_until_loaded(server, process, wait_for)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the group is this server's own session
            process.wait()


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with one small model for every route."""
    return publish_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(small_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service with the small models."""
    with serve(small_models, tmp_path_factory.mktemp("server") / "log.txt", max_body_bytes=str(4 * 2**20)) as running:
        yield running


def _wait_until_loaded(server: Server, process: subprocess.Popen[bytes], wait_for: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            # /v1/models answers once loading is over, whatever came of it.
            loaded = wait_for == 200 or server.get("/v1/models").status_code == 200
            if loaded and server.get("/readyz").status_code == wait_for:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not come up:\n{server.log.read_text(errors='replace')}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
