"""`make loadtest` against the real service: one that answers, and one that it starts; and what it says of bad use."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from loadtests import options
from loadtests import run as loadtest
from loadtests.load import Load
from loadtests.runfile import Run
from loadtests.server import NoServerError, check, is_here, totals, url_of
from loadtests.slo import Objective, Slo
from serving.metrics import Metrics
from tests.conftest import ROOT, Server, free_port
from tests.loadtests.recordings import lognormal, run
from tests.loadtests.servers import OK, answering, listening

LENIENT = "[all]\np99_ms = 14000\nerror_share = 0\n"


def slo_file(folder: Path, text: str = LENIENT) -> Path:
    path = folder / "slo.toml"
    path.write_text(text, "utf-8")
    return path


def command(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.run", *map(str, arguments)],
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("SEXTANT_")}, **variables},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    print(done.stdout, done.stderr)
    return done


def test_a_mixed_load_on_a_server_that_answers(server: Server, tmp_path: Path):
    load = ["--host", server.url, "--minutes", 0.07, "--rate", 50, "--folder", tmp_path / "run"]
    done = command(*load, "--slo", slo_file(tmp_path))
    found = Run.load(tmp_path / "run")
    assert done.returncode == (options.MET if found.valid else options.INVALID)
    assert found.recording.total().count == 210
    assert found.recording.total().errors == {}
    assert found.about["host"] == server.url
    assert done.stdout.endswith(f"{tmp_path / 'run' / 'report.html'}\n")
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert ET.parse(tmp_path / "run" / "junit.xml").getroot()[0].get("failures") == "0"  # noqa: S314
    assert all(sample.resident_mb == {} for sample in found.server), "it is not ours to look into"
    assert found.server[0].t == 0
    first, last = (sum(found.server[at].metrics["sextant_batch_rows_sum"].values()) for at in (0, -1))
    assert last - first >= 210, "every request was a row or more of some batch in the meantime"
    assert [sample.t for sample in found.server] == sorted(sample.t for sample in found.server)


def test_a_service_is_started_when_none_answers_and_stopped_in_the_end(small_models: Path, tmp_path: Path):
    slo = slo_file(tmp_path, "[digit-raw]\np99_ms = 0.001\nerror_share = 0\n")
    load = [
        "--port",
        free_port(),
        "--route",
        "digit-raw",
        "--minutes",
        0.05,
        "--rate",
        40,
        "--folder",
        tmp_path / "run",
        "--attempts",
        2,
    ]
    done = command(*load, "--slo", slo, SEXTANT_MODELS_DIR=str(small_models), SEXTANT_MODELS="mnist_mlp")
    found = Run.load(tmp_path / "run")
    assert "(started for this" in done.stdout
    assert done.stdout.count("once more: ") == 1, "an SLO that cannot be met is tried as often as was asked"
    processes = {int(process) for sample in found.server for process in sample.resident_mb}
    assert len(processes) >= 2, "a supervisor and a worker"
    assert not any(psutil.pid_exists(process) for process in processes)
    assert max(found.server[-1].resident_mb.values()) > 50
    if found.valid:
        assert done.returncode == options.BROKEN
        breaches = [line for line in done.stdout.splitlines() if line.startswith("digit-raw: ")]
        assert [re.sub(r"[\d.]+ ms;", "N ms;", line) for line in breaches] == [
            "digit-raw: p99 of N ms; at most 0.001 ms"
        ]


def test_a_run_whose_generator_did_not_keep_up_has_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = run({"digit-raw": lognormal(0.5)}, invalid="p99 of sent − due is 12 ms")
    slo = Slo({"digit-raw": Objective(p99_ms=40)})
    assert loadtest.conclude(found, slo, tmp_path) == options.INVALID
    told = capsys.readouterr().out
    assert "p99 of sent − due is 12 ms" in told
    assert "at most 40 ms" not in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "127.0.0.1:9"], "no server at http://127.0.0.1:9: "),
        (["--host", "ftp://127.0.0.1"], "expected a host such as"),
        (["--port", "70000"], "expected a host such as"),
        (["--shape", "nonsense"], "unknown shape 'nonsense'; expected one of smoke, "),
        (["--route", "nonsense"], 'unknown route "nonsense"; expected one of all, digit, '),
        (["--rate", "0"], "rate: expected a number above 0, received 0"),
        (["--rate=-3"], "rate: expected a number above 0, received -3"),
        (["--rate", "fast"], "invalid float value: 'fast'"),
        (["--clients", "0"], "clients: expected a number above 0, received 0"),
        (["--processes", "0"], "processes: expected a number above 0, received 0"),
        (["--minutes", "0"], "shape smoke takes at least 1 s; received 0 s"),
        (["--loop", "half-open"], "invalid choice: 'half-open'"),
        (["--attempts", "0"], "--attempts: expected at least 1, received 0"),
        (["--workers", "2", "--bind", "here"], "expected workers at ADDRESS:PORT, received 2 at 'here'"),
        (["--slo", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_bad_use_is_one_line_and_status_two(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert said in refused(arguments, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[digits]\np99_ms = 5\n", 'unknown route "digits"'),
        ("[image]\np98_ms = 5\n", '[image] unknown key "p98_ms"'),
        ("[image]\np99_ms = 5\n", "promises nothing for digit-raw"),
    ],
)
def test_an_slo_that_cannot_be_held_against_the_run_is_refused_before_it(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    slo = slo_file(tmp_path, text)
    assert said in refused(["--slo", str(slo), "--route", "digit-raw"], monkeypatch, capsys)


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(options, "interruptible", lambda main, arguments: main(arguments))
    try:
        status = options.run("loadtest", loadtest.main, arguments)
    except SystemExit as ended:
        status = ended.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status == options.BAD_USE
    assert line.startswith("loadtest: ")
    return line


# --- the server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("10.0.0.5", "http://10.0.0.5:3000"),
        ("10.0.0.5:8000", "http://10.0.0.5:8000"),
        ("[::1]", "http://[::1]:3000"),
        ("localhost", "http://localhost:3000"),
        ("http://example.com", "http://example.com"),
        ("https://example.com/sextant/", "https://example.com/sextant"),
    ],
)
def test_a_server_is_named_by_its_host_with_a_port_or_by_its_url(host: str, url: str):
    assert url_of(host) == url


@pytest.mark.parametrize("host", ["", "http://", "ftp://10.0.0.5", "10.0.0.5:port", "10.0.0.5:70000"])
def test_what_is_no_host_is_told(host: str):
    with pytest.raises(NoServerError, match="expected a host such as"):
        url_of(host)


def test_this_machine_is_told_from_others():
    assert all(is_here(f"http://{host}:3000") for host in ("127.0.0.1", "[::1]", "localhost"))
    assert not any(is_here(f"http://{host}:3000") for host in ("10.0.0.5", "localhost.example"))


def test_another_server_is_not_taken_for_sextant():
    with listening(answering(OK)) as url, pytest.raises(NoServerError, match="is not Sextant"):
        check(url)


def test_a_service_that_is_still_loading_is_told():
    models = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + b'{"models":[]}'
    busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with listening(answering(busy, models)) as url, pytest.raises(NoServerError, match=r"not ready: .* 503"):
        check(url)


def test_metrics_are_read_as_the_service_writes_them():
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.answered("/v1/digit", 200, 0.002)
    metrics.answered("/v1/digit", 200, 0.002)
    metrics.refused('/v1/"odd" route', "requests")
    metrics.flush()
    found = totals(generate_latest(registry).decode())
    assert found["sextant_requests_total"] == {"/v1/digit 200": 2}
    assert found["sextant_refusals_total"] == {'requests /v1/\\"odd\\" route': 1}
    assert found.keys() <= {
        f"sextant_{name}"
        for name in ("requests_total", "refusals_total", "batch_rows_sum", "compute_seconds_sum", "queue_seconds_sum")
    }


def test_the_metrics_of_a_running_service_have_what_reports_are_made_from(server: Server):
    server.post("/v1/digit", bytes(784), "application/octet-stream")
    found = totals(server.get("/metrics").text)
    for name in ("batch_rows", "compute_seconds", "queue_seconds"):
        assert "mnist_mlp" in found[f"sextant_{name}_sum"]
        assert "mnist_mlp" in found[f"sextant_{name}_count"]
    assert any(key.startswith("/v1/digit") for key in found["sextant_requests_total"])


def test_what_conducts_a_load_test_does_not_import_gevent():
    told = "import sys, loadtests.run, loadtests.capacity, loadtests.soak; print('gevent' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_several_processes_get_a_port_of_their_own_on_this_machine(tmp_path: Path):
    words = Load(processes=2).command("http://127.0.0.1:3000", tmp_path / "run.json")
    assert "--processes=2" in words
    assert "--master-bind-host=127.0.0.1" in words
    ports = {word.partition("=")[2] for word in words if "port=" in word}
    assert len(ports) == 1
    assert ports != {"5557"}


def test_the_load_can_come_from_workers_elsewhere(server: Server, tmp_path: Path):
    port = free_port()
    load = ["--host", server.url, "--route", "digit-raw", "--minutes", 0.05, "--rate", 60, "--workers", 1]
    locust = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--worker", "--headless"]
    worker = subprocess.Popen(
        [*locust, "--master-host", "127.0.0.1", "--master-port", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        command(*load, "--bind", f"127.0.0.1:{port}", "--slo", slo_file(tmp_path), "--folder", tmp_path / "run")
        worker.wait(20)
    finally:
        worker.kill()
        worker.wait()
    assert Run.load(tmp_path / "run").recording.total().count == 180


def test_the_load_can_be_shared_by_processes(server: Server, tmp_path: Path):
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    load = ["--host", server.url, "--route", "digit", "--minutes", 0.05, "--rate", 60, "--processes", 2]
    command(*load, "--slo", slo_file(tmp_path), "--folder", tmp_path / "run")
    found = Run.load(tmp_path / "run")
    assert found.about["processes"] == 2
    assert found.recording.total().count == 180


@pytest.mark.parametrize("seconds", [0.0, 0.004, 0.008, 0.1, 2.0])
def test_a_run_that_is_ended_leaves_nothing_behind(seconds: float, small_models: Path, tmp_path: Path):
    """Whatever it is about to start just then; as a background job of a shell too, for which Ctrl-C is ignored."""
    models = tmp_path / "models"
    models.symlink_to(small_models)  # a path of its own, by which its processes are known
    load = ["--port", str(free_port()), "--minutes", "1", "--rate", "20", "--folder", str(tmp_path / "run")]
    started = subprocess.Popen(
        ["bash", "-c", 'trap "" INT; exec "$@"', "-", sys.executable, "-m", "loadtests.run", *load],
        cwd=ROOT,
        env={**os.environ, "SEXTANT_MODELS_DIR": str(models), "SEXTANT_MODELS": "mnist_mlp"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        assert "started for this" in started.stdout.readline()
        assert len(running_with(models)) > 1, "the service"
        time.sleep(seconds)
        started.terminate()
        assert started.wait(60) == 130
    finally:
        started.kill()
        started.communicate()
    assert not running_with(models)


def running_with(models: Path) -> list[psutil.Process]:
    """The processes whose environment names these models."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("SEXTANT_MODELS_DIR") == str(models):
                found.append(process)
    return found
