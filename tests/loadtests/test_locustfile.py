"""Locust with our options: on one process and on many, with its page, and when it is used badly."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from loadtests.payloads import ROUTES
from loadtests.self_test import ANSWER
from tests.conftest import ROOT, Server, free_port
from tests.loadtests.locusts import COMMAND, Recorded, environment, locust, record
from tests.loadtests.servers import Handler, answering, listening, request

RAW = ("--route", "digit-raw")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rate", "0"], "--rate: expected a number above 0, received 0"),
        (["--rate", "nan"], "--rate: expected a number above 0, received nan"),
        (["--clients", "0"], "--clients: expected a number above 0, received 0"),
        (["--minutes", "-1"], "--minutes: expected a number above 0, received -1"),
        (["--shape", "spike", "--minutes", "0.1"], "shape spike takes at least 15 s; received 6 s"),
        (["--host", "localhost:3000"], "--host: expected http://HOST:PORT, received 'localhost:3000'"),
        (["--shape", "hill"], "argument --shape: invalid choice: 'hill'"),
        (["--route", "digits"], "argument --route: invalid choice: 'digits'"),
        (["--rate", "many"], "argument --rate: invalid float value: 'many'"),
    ],
)
def test_bad_use_ends_with_2_and_says_what_was_received(options: list[str], told: str):
    done = locust(*options)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]


def test_importing_the_locustfile_loads_no_tensorflow():
    asked = "import sys, loadtests.locustfile; print({'tensorflow', 'keras', 'matplotlib.pyplot'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_mixed_run_against_the_service_is_answered_and_described(server: Server, tmp_path: Path):
    before = time.time()
    found = record(tmp_path, server.url, 4, "--rate", "50", "--seed", "3", shape="smoke")
    assert (found.total.count, found.total.errors) == (200, {})
    assert set(found.recording.routes()) == set(
        ROUTES
    )  # 14 vae are expected of 200; none would be one run in a million
    about = found.about
    assert {name: about[name] for name in ("shape", "loop", "rate", "users", "seconds", "seed", "processes")} == {
        "shape": "smoke", "loop": "open", "rate": 50, "users": None, "seconds": 4, "seed": 3, "processes": 1,
    }  # fmt: skip
    started = datetime.fromisoformat(about["started"]).timestamp()  # what the server's own figures are lined up by
    assert before < started < time.time() - 4
    assert about["host"] == server.url
    assert about["versions"]["locust"]
    assert about["machine"]["cores"] >= 1
    assert sum(about["weights"].values()) == 100
    assert found.told["stages"] == [{"start": 0, "end": 4, "rate": 50, "users": None}]


@pytest.mark.parametrize(("route", "expected"), [
    ("all", set(ROUTES)), ("digit", {"digit-raw", "digit-png", "digit-json"}), ("digit-raw", {"digit-raw"}),
])  # fmt: skip
def test_users_of_the_closed_loop_ask_what_the_route_says(
    server: Server, tmp_path: Path, route: str, expected: set[str]
):
    found = record(tmp_path, server.url, 3, "--loop", "closed", "--clients", "3", "--route", route)
    assert set(found.recording.routes()) == expected
    assert found.total.errors == {}
    assert found.total.response.max == found.total.service.max
    assert found.total.late.max == 0
    assert (found.about["users"], found.about["rate"], found.told["valid"]) == (3, None, True)
    assert found.told["stages"] == [{"start": 0, "end": 3, "rate": None, "users": 3}]


def test_closed_loop_users_tell_what_is_wrong_by_reason(tmp_path: Path):
    refused = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
    with listening(answering(ANSWER, refused, b"nonsense\r\n\r\n")) as url:
        found = record(tmp_path, url, 1, *RAW, "--loop", "closed", "--clients", "2")
    assert found.total.ok > 0
    assert {"429", "malformed answer"} == set(found.total.errors)
    found = record(tmp_path, f"http://127.0.0.1:{free_port()}", 1, *RAW, "--loop", "closed", "--clients", "2")
    assert set(found.total.errors) == {"connection refused"}
    assert found.total.response.count == 0


def test_a_spike_is_a_spike(tmp_path: Path):
    with listening(answering(ANSWER)) as url:
        found = record(tmp_path, url, 15, *RAW, "--rate", "20", shape="spike")
    assert found.seconds() == [20] * 5 + [200] * 5 + [20] * 5
    assert [stage["rate"] for stage in found.told["stages"]] == [20, 200, 20]


def test_steps_end_when_the_service_does_not_follow(tmp_path: Path):
    refused = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
    with listening(answering(ANSWER, refused)) as url:
        found = record(tmp_path, url, 60, *RAW, "--rate", "20", "--processes", "2", shape="steps")
    assert 14 < found.about["seconds"] < 40
    assert found.told["stages"][-1]["end"] == found.about["seconds"]
    assert found.told["stages"][0] == {"start": 0, "end": 10, "rate": 20, "users": None}
    assert found.whole, found.told["invalid"]
    assert found.seconds()[:10] == [20] * 10


def test_a_master_and_workers_record_one_run(tmp_path: Path):
    port, file = str(free_port()), tmp_path / "run.json"
    with listening(answering(ANSWER)) as url:
        told = [*RAW, "--host", url, "--rate", "61", "--shape", "steady", "--minutes", "0.05", "--record", str(file)]
        master = [*COMMAND, "--headless", "--master", "--master-bind-port", port, "--expect-workers", "2", *told]
        # What workers are to do their master tells them, whatever their own options are.
        worker = [*COMMAND, "--worker", "--master-port", port]
        processes = [
            subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for command in (master, worker, worker)
        ]
        try:
            said = [process.communicate(timeout=60)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert file.is_file(), said
    found = Recorded(json.loads(file.read_text()))
    assert found.seconds() == [61, 61, 61]
    assert (found.about["processes"], found.whole) == (2, True)
    assert found.about["host"] == url


def test_a_run_that_loses_a_process_does_not_count(tmp_path: Path):
    port, file, begun = str(free_port()), tmp_path / "run.json", threading.Event()
    with listening(telling(begun)) as url:
        told = [*RAW, "--host", url, "--rate", "20", "--shape", "steady", "--minutes", "0.1", "--record", str(file)]
        master = [*COMMAND, "--headless", "--master", "--master-bind-port", port, "--expect-workers", "2", *told]
        worker = [*COMMAND, "--worker", "--master-port", port]
        commands = (master, worker, worker)
        processes = [
            subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) for command in commands
        ]
        try:
            assert begun.wait(60)
            time.sleep(2)  # in the middle of it
            processes[2].kill()
            processes[0].wait(60)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    found = Recorded(json.loads(file.read_text()))
    assert found.told["invalid"] == "1 of 2 processes did not report at the end"


def test_a_run_that_is_ended_early_does_not_count(tmp_path: Path):
    file, begun = tmp_path / "run.json", threading.Event()
    with listening(telling(begun)) as url:
        told = [*RAW, "--host", url, "--rate", "20", "--shape", "steady", "--minutes", "5", "--record", str(file)]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background, and so on
        try:
            process = subprocess.Popen([*COMMAND, "--headless", *told], cwd=ROOT, env=environment())
        finally:
            signal.signal(signal.SIGINT, before)
        try:
            assert begun.wait(60)
            time.sleep(2)
            process.send_signal(signal.SIGINT)
            process.wait(30)
        finally:
            process.kill()
    found = Recorded(json.loads(file.read_text()))
    assert found.told["invalid"].startswith("it was ended after ")
    assert found.total.ok > 0  # what was found until then is kept


def test_locusts_own_page_starts_runs_and_shows_the_truth(tmp_path: Path):
    port, file = free_port(), tmp_path / "run.json"
    page = f"http://127.0.0.1:{port}"
    stalls = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal stalls
        while True:
            await request(reader)
            stalls += 1
            if stalls == 50:
                time.sleep(0.8)  # noqa: ASYNC251 - that is the stall
            writer.write(ANSWER)

    with listening(handle) as url:
        told = ["--host", url, "--web-host", "127.0.0.1", "--web-port", str(port), "--record", str(file)]
        process = subprocess.Popen([*COMMAND, *told, "--minutes", "0.05"], cwd=ROOT, env=environment())
        try:
            _until(lambda: httpx.get(page).is_success)
            asked = {"host": url, "rate": "100", "route": "digit-raw", "shape": "steady", "loop": "open"}
            for run in (1, 2):
                assert httpx.post(f"{page}/swarm", data=asked).json()["success"]
                _until(file.is_file)
                found = Recorded(json.loads(file.read_text()))
                assert found.seconds() == [100, 100, 100]
                if run == 1:
                    (row, _) = httpx.get(f"{page}/stats/requests").json()["stats"]
                    assert (row["name"], row["num_requests"]) == ("digit-raw", 300)
                    assert row["max_response_time"] >= 700
                file.unlink()
                _until(lambda: httpx.get(f"{page}/stats/requests").json()["state"] == "stopped")
        finally:
            process.terminate()
            process.wait(30)


def telling(begun: threading.Event) -> Handler:
    """A handler that tells of the first request, since how long Locust takes to start depends on the machine."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            begun.set()
            writer.write(ANSWER)

    return handle


def _until(true: object, seconds: float = 40) -> None:
    """Ask until the answer is yes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if true():  # type: ignore[operator]
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("not in time")
