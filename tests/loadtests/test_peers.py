"""Every peer of the project's own environment answers what our service answers, so that only the server differs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from loadtests.payloads import payloads
from loadtests.peers import EXTRA_PEERS, PEERS, Peer, Request
from loadtests.peers.in_process import measure, rows
from tests.conftest import ROOT, free_port

NAMES = tuple(payloads())
OURS, *OTHERS = PEERS


@contextlib.contextmanager
def started(peer: Peer, folder: Path) -> Iterator[httpx.Client]:
    """Run a peer as it is in the benchmark until the block ends."""
    port = free_port()
    log = folder / "log.txt"
    command = peer.command(sys.executable, port)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SEXTANT_")}
    environment = {**inherited, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder), **peer.variables}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait(client, next(iter(peer.requests.values())), process, log)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the group is this server's own session
            process.wait()


def wait(client: httpx.Client, first: Request, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if send(client, first).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"it did not come up:\n{log.read_text(errors='replace')}")


def send(client: httpx.Client, request: Request) -> httpx.Response:
    headers = {"content-type": request.media_type} if request.media_type else {}
    return client.request(request.method, request.path, content=request.body, headers=headers)


def meaning(reply: httpx.Response) -> dict[str, Any] | np.ndarray:
    """The one prediction of a JSON answer, or the pixels of a PNG."""
    assert reply.status_code == 200, reply.text
    if reply.headers["content-type"] == "image/png":
        return np.array(Image.open(io.BytesIO(reply.content)))
    content = reply.json()
    (prediction,) = content if isinstance(content, list) else content["predictions"]
    return prediction


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, Any] | np.ndarray]:
    """What our service answers to every payload."""
    with started(OURS, tmp_path_factory.mktemp(OURS.name)) as client:
        return {name: meaning(send(client, request)) for name, request in OURS.requests.items()}


@pytest.mark.parametrize("peer", OTHERS, ids=lambda peer: peer.name)
def test_a_peer_answers_every_payload_as_our_service_does(
    peer: Peer, expected: Mapping[str, dict[str, Any] | np.ndarray], tmp_path: Path
):
    with started(peer, tmp_path) as client:
        answers = {name: meaning(send(client, request)) for name, request in peer.requests.items()}
    assert answers
    for name, answer in answers.items():
        ours = expected[name]
        if isinstance(ours, np.ndarray):
            assert np.array_equal(answer, ours), name
            continue
        assert answer.keys() == ours.keys(), name
        for field, value in ours.items():
            assert answer[field] == approximately(value), (name, field)


def approximately(value: object) -> object:
    if isinstance(value, float):
        return pytest.approx(value, abs=1e-4)
    if isinstance(value, list):
        return [approximately(item) for item in value]
    if isinstance(value, dict):
        return {key: approximately(item) for key, item in value.items()}
    return value


def test_our_service_comes_first_and_answers_every_payload():
    assert OURS.name == "sextant"
    assert tuple(OURS.requests) == NAMES


def test_every_peer_has_a_name_of_its_own_and_serves_only_payloads_that_there_are():
    peers = (*PEERS, *EXTRA_PEERS)
    assert len({peer.name for peer in peers}) == len({peer.title for peer in peers}) == len(peers)
    for peer in peers:
        assert peer.requests.keys() <= set(NAMES), peer.name
        assert "4711" in " ".join(peer.command("/bin/python", 4711)), peer.name


def test_a_peer_with_an_environment_of_its_own_has_its_pins_and_the_package_in_them():
    for peer in EXTRA_PEERS:
        pins = (ROOT / "requirements" / "peers" / f"{peer.environment}.txt").read_text(encoding="utf-8")
        assert any(line.startswith((f"{peer.package}==", f"{peer.package}[")) for line in pins.split("\n"))


def test_the_models_that_mlserver_is_pointed_at_are_there():
    (mlserver,) = (peer for peer in EXTRA_PEERS if peer.name == "mlserver")
    (source,) = ROOT.glob("loadtests/peers/mlserver_model.py")
    for request in mlserver.requests.values():
        name = request.path.split("/")[3]
        settings = json.loads((ROOT / "loadtests/peers/mlserver_models" / name / "model-settings.json").read_text())
        assert settings["name"] == name
        assert f"class {settings['implementation'].rpartition('.')[2]}(MLModel)" in source.read_text(encoding="utf-8")


def test_a_server_that_is_measured_does_not_hold_the_payloads():
    code = "import sys, loadtests.peers.bare_asgi; print([m for m in sys.modules if m.startswith('loadtests.p')])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "loadtests.peers.models" in result.stdout
    assert "loadtests.payloads" not in result.stdout


def test_in_process_measures_the_inputs_that_the_payloads_become():
    by_name = {name: row for name, _, row in rows()}
    assert by_name["digit"]["pixels"].tobytes() == payloads()["digit-raw"].body
    lengths = {name: row["tokens"].shape for name, row in by_name.items() if name.startswith("sentiment")}
    assert lengths == {"sentiment-20": (1, 21), "sentiment-230": (1, 231), "sentiment-500": (1, 500)}


def test_in_process_counts_rows_and_names_the_best_batch():
    name, graph, row = next(rows())
    assert name == "digit"
    result = measure(graph, row, 0.05)
    assert set(result["by_batch"]) == {1, 2, 4, 8, 16, 32, 64}
    assert result["rows_per_second"] == result["by_batch"][1] > 0
    assert (
        result["best_rows_per_second"] == max(result["by_batch"].values()) == result["by_batch"][result["best_batch"]]
    )
