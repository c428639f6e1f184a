"""Behaviour that shows only when many requests come at once, or when models are missing: on real servers."""

import asyncio
import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from serving.session import usable_cores
from tests.conftest import Server, serve
from tests.models import digit_model, image_model
from tests.serving import pictures

RAW = pictures.mnist_like().tobytes()
OCTETS = {"content-type": "application/octet-stream"}


def metric(server: Server, name: str, **labels: str) -> float:
    """Sum of the samples of a metric that have these labels."""
    total = 0.0
    for line in server.get("/metrics").text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


def flood(server: Server, path: str, content: bytes, headers: dict[str, str], count: int) -> list[httpx.Response]:
    """Send ``count`` requests at once, each on a connection of its own."""

    async def main() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            return await asyncio.gather(*(client.post(path, content=content, headers=headers) for _ in range(count)))

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "model", "content", "headers"),
    [
        ("/v1/digit", "mnist_mlp", RAW, OCTETS),
        ("/v1/image?model=vgg16_transfer", "vgg16_transfer", pictures.photo(side=48).tobytes(), OCTETS),
    ],
    ids=["on the loop", "in a thread"],
)
def test_requests_that_come_together_run_together(
    server: Server, path: str, model: str, content: bytes, headers: dict[str, str]
):
    rows, batches = (
        metric(server, "sextant_batch_rows_sum", model=model),
        metric(server, "sextant_batch_rows_count", model=model),
    )
    sent = 0
    for _ in range(20):  # the kernel decides what arrives together: ask until it has
        answers = flood(server, path, content, headers, 32)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) <= 4  # the last bit of a float may follow the batch
        sent += len(answers)
        ran = metric(server, "sextant_batch_rows_count", model=model) - batches
        if ran < sent:
            break
    assert metric(server, "sextant_batch_rows_sum", model=model) - rows == sent
    assert ran < sent  # so some batch held more than one


def test_metrics_are_right_whichever_worker_is_asked(small_models: Path, tmp_path: Path):
    with serve(small_models, tmp_path / "log.txt", workers="2", models="mnist_mlp") as server:
        for _ in range(60):
            assert server.post("/v1/digit", RAW, "application/octet-stream").status_code == 200
        # Each worker makes its figures known once a second, and at once when it is asked itself.
        _until(lambda: metric(server, "sextant_requests_total", route="/v1/digit", status="200") >= 60)
        for _ in range(10):
            assert metric(server, "sextant_requests_total", route="/v1/digit", status="200") == 60
            assert metric(server, "sextant_request_seconds_count", route="/v1/digit") == 60
            assert metric(server, "sextant_stage_seconds_count", route="/v1/digit", stage="decode") == 60
            assert metric(server, "sextant_batch_rows_sum", model="mnist_mlp") == 60
        assert metric(server, "sextant_model_info", model="mnist_mlp", state="AVAILABLE") == 1


def test_what_cannot_be_queued_is_refused_with_the_time_to_come_back(small_models: Path, tmp_path: Path):
    photos = json.dumps({"images": [pictures.photo(side=48).tolist()] * 4}).encode()
    headers = {"content-type": "application/json"}
    with serve(small_models, tmp_path / "log.txt", models="vgg16_transfer", max_queue_rows="1") as server:
        statuses: Counter[int] = Counter()
        for _ in range(10):
            answers = flood(server, "/v1/image", photos, headers, 24)
            statuses.update(answer.status_code for answer in answers)
            for answer in answers:
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1
                    assert answer.headers["content-type"] == "application/problem+json"
            if statuses[429]:
                break
        assert set(statuses) == {200, 429}
        assert metric(server, "sextant_refusals_total", reason="queue") == statuses[429]
        assert server.post("/v1/image", photos, "application/json").status_code == 200


def test_a_passed_deadline_is_told_and_a_slow_body_is_not_waited_for(small_models: Path, tmp_path: Path):
    with serve(
        small_models,
        tmp_path / "log.txt",
        models="vgg16_transfer",
        deadline_seconds="0.002",
        access_log="true",
    ) as server:
        photos = json.dumps({"images": [pictures.photo(side=48).tolist()] * 32}).encode()
        response = server.post("/v1/image", photos, "application/json")
        assert (response.status_code, response.headers["content-type"]) == (504, "application/problem+json")
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), 20) as connection:
            connection.sendall(b"POST /v1/image HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc")
            assert connection.recv(100).startswith(b"HTTP/1.1 504")
        logged = re.search(r'\{"method":.*\}', server.log.read_text())
        assert logged
        assert json.loads(logged[0]) | {"status": 504, "path": "/v1/image"} == json.loads(logged[0])


def test_too_many_requests_in_progress_are_refused(small_models: Path, tmp_path: Path):
    with serve(small_models, tmp_path / "log.txt", models="mnist_mlp", max_requests="1") as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), 20) as slow:
            slow.sendall(b"POST /v1/digit HTTP/1.1\r\nhost: x\r\ncontent-length: 784\r\n\r\nabc")
            _until(lambda: server.post("/v1/digit", RAW, "application/octet-stream").status_code == 429)
            assert server.get("/readyz").status_code == 200
        _until(lambda: server.post("/v1/digit", RAW, "application/octet-stream").status_code == 200)


def test_a_refusal_is_the_same_problem_from_the_head_of_a_request_as_from_its_whole(small_models: Path, tmp_path: Path):
    # What waits for 100-continue goes the whole way; everything else is refused in the protocol.
    head = b"POST /v1/digit?top=1 HTTP/1.1\r\nhost: x\r\ncontent-length: 784\r\n"
    with serve(small_models, tmp_path / "log.txt", models="mnist_mlp,cifar10_cnn", max_requests="1") as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), 20) as slow:
            slow.sendall(head + b"\r\nabc")
            _until(lambda: server.post("/v1/digit", RAW, "application/octet-stream").status_code == 429)
            early = server.post("/v1/digit", RAW, "application/octet-stream")
            late = server.post("/v1/digit", RAW, "application/octet-stream", headers={"expect": "100-continue"})
            assert late.status_code == early.status_code == 429
            assert late.content == early.content
            assert late.headers.keys() == early.headers.keys()
            for name in ("content-type", "retry-after"):
                assert late.headers[name] == early.headers[name]
            assert early.json()["detail"] == "1 requests are in progress on this route; try again."
            # The connection goes on after a refusal, its body passed over.
            with httpx.Client(base_url=server.url, limits=httpx.Limits(max_connections=1)) as client:
                for _ in range(3):
                    assert client.post("/v1/digit", content=RAW, headers=OCTETS).status_code == 429
                assert client.get("/livez").status_code == 200
            # Another route has its own count.
            photo = pictures.photo(side=32).tobytes()
            assert server.post("/v1/image", photo, "application/octet-stream").status_code == 200
            refused = metric(server, "sextant_refusals_total", route="/v1/digit", reason="requests")
            answered = metric(server, "sextant_requests_total", route="/v1/digit", status="429")
            assert refused == answered >= 5


def test_with_the_access_log_on_a_refusal_leaves_its_line_too(small_models: Path, tmp_path: Path):
    with serve(small_models, tmp_path / "log.txt", models="mnist_mlp", max_requests="1", access_log="true") as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), 20) as slow:
            slow.sendall(b"POST /v1/digit HTTP/1.1\r\nhost: x\r\ncontent-length: 784\r\n\r\nabc")
            _until(lambda: server.post("/v1/digit", RAW, "application/octet-stream").status_code == 429)
            _until(lambda: '"status":429' in server.log.read_text())


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a policy of Linux")
@pytest.mark.parametrize("workers", [1, usable_cores()])
def test_threads_take_turns_where_a_worker_has_but_one_core(workers: int, small_models: Path, tmp_path: Path):
    asked = os.SCHED_BATCH if workers == usable_cores() else os.SCHED_OTHER
    with serve(small_models, tmp_path / "log.txt", models="mnist_mlp", workers=str(workers)) as server:

        def policies() -> list[int]:
            children = psutil.Process(server.pid).children(recursive=True)
            return [os.sched_getscheduler(child.pid) for child in children if "worker.service" in str(child.cmdline())]

        _until(lambda: policies() == [asked] * workers)  # one worker that is ready makes a server that is


def test_without_metrics_only_the_metrics_are_missing(small_models: Path, tmp_path: Path):
    with serve(small_models, tmp_path / "log.txt", models="mnist_mlp", metrics="false") as server:
        assert server.post("/v1/digit", RAW, "application/octet-stream").status_code == 200
        assert "sextant_" not in server.get("/metrics").text


def test_clients_that_leave_a_dear_model_disturb_nobody(server: Server):
    photo = pictures.photo(side=48).tobytes()
    head = b"POST /v1/image?model=vgg16_transfer HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
    address = urlsplit(server.url)
    for _ in range(5):
        with socket.create_connection((address.hostname, address.port), 20) as connection:
            connection.sendall(head + b"content-length: %d\r\n\r\n" % len(photo) + photo)
    response = server.post("/v1/image?model=vgg16_transfer", photo, "application/octet-stream")
    assert response.status_code == 200


def test_a_broken_model_is_told_and_the_others_serve(tmp_path: Path):
    digit_model(tmp_path / "models")
    (image_model(tmp_path / "models") / "model.onnx").write_bytes(b"changed")
    with serve(tmp_path / "models", tmp_path / "log.txt") as server:
        states = {entry["model"]: entry for entry in server.get("/v1/models").json()["models"]}
        assert states["mnist_mlp"]["state"] == "AVAILABLE"
        assert states["cifar10_cnn"]["state"] == "UNAVAILABLE"
        assert "sha256" in states["cifar10_cnn"]["reason"]
        (status,) = server.get("/v1/models/cifar10_cnn").json()["model_version_status"]
        assert status["state"] == "END"
        assert "sha256" in status["status"]["error_message"]
        assert "not serving cifar10_cnn version 1: model.onnx has sha256" in server.log.read_text()
        assert server.post("/v1/digit", RAW, "application/octet-stream").status_code == 200
        photo = pictures.file(pictures.digit())
        for path in ("/v1/image", "/v1/image?model=cifar10_cnn"):
            response = server.post(path, photo, "image/png")
            assert (response.status_code, response.json()["title"]) == (503, "Service Unavailable")


def test_with_no_model_left_the_server_lives_and_is_not_ready(tmp_path: Path):
    (digit_model(tmp_path / "models") / "golden.npz").unlink()
    with serve(tmp_path / "models", tmp_path / "log.txt", wait_for=503) as server:
        assert server.get("/livez").status_code == 200
        ready = server.get("/readyz")
        assert (ready.status_code, ready.headers["content-type"]) == (503, "application/problem+json")
        assert server.post("/v1/digit", RAW, "application/octet-stream").status_code == 503


def test_a_wrong_setting_is_one_clear_error_at_start(small_models: Path, tmp_path: Path):
    log = tmp_path / "log.txt"
    with pytest.raises(RuntimeError, match="SEXTANT_WORKERS"), serve(small_models, log, workers="many"):
        pass
    assert "Traceback" not in log.read_text()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
