"""The bench: what it starts and stops, what it makes of its figures, and one run of it for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from loadtests import bench
from loadtests.bars import LATENCY_CASE, MANY_CASE, METRICS_CASE, Bar, bars
from loadtests.bench import Bench, Case, Contender, Turns
from loadtests.measurements import Measurements, middle
from loadtests.peers import Peer, Request
from loadtests.processes import Server, ServerError, Usage, ask, cores, free_port, pinned
from loadtests.result import Result
from loadtests.tables import END, START, MarkerError, disturbed, put_between_markers, report, summary
from tests.conftest import ROOT

GET = Request("GET", "/", "", b"")
PARENT = """
import os, signal, subprocess, sys
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: (child.kill(), os._exit(0)))
child = subprocess.Popen([sys.executable, "-c", {child!r}])
import http.server
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""


def web_server(python: str, port: int) -> list[str]:
    """Python's own, which answers GET / with 200."""
    return [python, "-m", "http.server", str(port), "--bind", "127.0.0.1"]


def parent(port: int, child: str, *, stubborn: bool = False) -> list[str]:
    """A web server with a child; nothing but force ends a stubborn one."""
    return [sys.executable, "-c", PARENT.format(child=child, stubborn=stubborn), str(port)]


def peer(name: str, *payloads: str) -> Peer:
    return Peer(name, name.title(), "numpy", web_server, dict.fromkeys(payloads or ("a",), GET))


def found(**rates: list[float]) -> Measurements:
    """Measurements of "case/server": a figure a repeat."""
    result = Measurements(machine={}, options={"connections": 16, "repeats": 3, "seconds": 4.0, "whole": True})
    for cell, values in rates.items():
        case, _, server = cell.partition("/")
        result.servers.setdefault(server, {"title": server})
        result.cases.setdefault(case, {"payload": case, "connections": 16, "main": True})
        for repeat, value in enumerate(values):
            row = {"repeat": repeat, "case": case, "server": server, "failed": 0, "worker_mb": 200.0, "cpu_ms": 0.1}
            row |= {"requests_per_second": value, "p50_ms": value, "p99_ms": value, "resident_mb": 1.0}
            result.rows.append({**row, "generator_bound": False, "server_busy": 1.0})
    return result


def bar(all_bars: list[Bar], *words: str) -> Bar:
    (one,) = [bar for bar in all_bars if all(word in bar.what for word in words)]
    return one


def test_a_ratio_is_the_median_of_those_within_each_repeat():
    measured = found(**{"a/x": [10, 300, 80], "a/y": [10, 100, 20]})
    assert middle(measured.ratios(("a", "x"), ("a", "y"))) == 3.0  # of 1, 3 and 4; the medians' own would be 4
    assert measured.median(("a", "x"), "requests_per_second") == 80
    assert measured.ratios(("a", "x"), ("a", "z")) == []
    assert measured.median(("b", "x"), "requests_per_second") is None


def test_a_server_that_answered_nothing_is_not_divided_by():
    measured = found(**{"a/x": [10, 30, 80], "a/y": [0, 10, 20]})
    assert measured.ratios(("a", "x"), ("a", "y")) == [3, 4]


def test_bars_are_met_missed_or_not_measured():
    measured = found(
        **{
            "digit-raw/sextant": [800, 700, 600],
            "digit-raw/bare-asgi": [1000, 1000, 1000],
            "digit-raw/fastapi": [400, 400, 400],
            f"{LATENCY_CASE}/sextant": [0.32, 0.33, 0.34],
            f"{LATENCY_CASE}/bare-asgi": [0.20, 0.20, 0.20],
            f"{METRICS_CASE}/sextant": [95, 95, 95],
            f"{METRICS_CASE}/no-metrics": [100, 100, 100],
            "sentiment-230/sextant": [500, 500, 500],
            f"{MANY_CASE}/sextant": [3000, 3000, 3000],
        }
    )
    for repeat in range(3):
        for name in ("sentiment-230", "image"):
            rows = {"rows_per_second": 600, "best_rows_per_second": 4000, "best_batch": 8}
            measured.in_process.append({"repeat": repeat, "name": name, **rows})
    measured.start_seconds.extend([3.0, 9.0, 4.0])
    held = bars(measured)
    assert bar(held, "digit-raw", "bare-asgi").measured == 0.7
    assert bar(held, "digit-raw", "bare-asgi").met is False
    assert bar(held, "digit-raw", "bare-asgi").figure == "0.7 × (0.6 … 0.8)"
    assert bar(held, "digit-raw", "fastapi").met is True
    assert bar(held, "digit-json", "fastapi").met is None
    assert bar(held, LATENCY_CASE).measured == pytest.approx(0.13)
    assert bar(held, LATENCY_CASE).met is True
    assert bar(held, "metrics").met is True
    assert bar(held, "sentiment-230", "batch of one").measured == pytest.approx(500 / 600)
    assert bar(held, "sentiment-230", "batch of one").met is False
    assert bar(held, MANY_CASE).met is True
    assert bar(held, "make serve").measured == 4.0
    assert bar(held, "memory").met is True
    assert bar(held, "failed").met is True
    measured.rows[0]["failed"] = 1
    measured.rows[0]["worker_mb"] = 261
    assert bar(bars(measured), "failed").met is False
    assert bar(bars(measured), "memory").met is False


def test_measurements_are_written_and_read_again(tmp_path: Path):
    measured = found(**{"a/x": [1, 2, 3]})
    measured.write(tmp_path / "new" / "bench.json")
    assert Measurements.read(tmp_path / "new" / "bench.json") == measured
    empty = Measurements({}, {})
    empty.write(tmp_path / "empty.json")
    assert Measurements.read(tmp_path / "empty.json") == empty


def test_tables_mark_what_failed_and_leave_out_what_was_not_measured():
    measured = found(**{"a/x": [1000, 2000, 3000], "b/x": [12.34, 12.34, 12.34], "b/y": [5, 5, 5]})
    measured.rows[0]["failed"] = 3
    measured.machine.update(
        processor="P", cores=2, system="Linux", python="3.11", packages={"numpy": "2.4"}, date="2026-01-01"
    )
    text = report(measured, "bench.png")
    assert "| a | 2000† | – |" in text
    assert "| b | 12.3 | 5 |" in text
    assert "P, 2 cores, Linux, Python 3.11; numpy 2.4; 2026-01-01." in text
    assert "| a | 2000† | – |" in summary(measured, "r.md", "r.png")


def test_the_table_of_ratios_has_the_others_and_the_cases_that_sextant_was_in():
    measured = found(**{"a/sextant": [100, 300, 80], "a/y": [10, 100, 20], "b/y": [5, 5, 5]})
    measured.machine.update(processor="", cores=2, system="", python="", packages={}, date="")
    ratios = report(measured, "bench.png").partition("Sextant's requests/s over")[2].partition("## ")[0]
    assert [line for line in ratios.splitlines() if line.startswith("|")] == [
        "| payload | y |",
        "| --- | ---: |",
        "| a | 4.00 |",
    ]


def test_rows_whose_server_was_robbed_of_its_core_are_named():
    measured = found(**{"a/x": [1, 2, 3], "b/x": [1, 2, 3]})
    assert disturbed(measured) == ""
    measured.rows[1]["server_busy"] = measured.rows[2]["server_busy"] = 0.6
    assert disturbed(measured) == "In 2 of 6 the server got less than 90% of its core: a → x."
    measured.cases["a"]["main"] = False  # with one connection it need not be busy
    assert disturbed(measured) == ""


def test_the_readme_keeps_everything_but_the_table(tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_text(f"# A\n\n{START}\nold\n{END}\n\nafter\n")
    put_between_markers(path, "new\n")
    put_between_markers(path, "newer\n")
    assert path.read_text() == f"# A\n\n{START}\nnewer\n{END}\n\nafter\n"


@pytest.mark.parametrize("text", ["", START, END, f"{END}{START}", f"{START}{START}{END}", f"{START}{END}{END}"])
def test_a_file_without_its_two_markers_is_left_alone(text: str, tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(MarkerError, match=r"README\.md: expected"):
        put_between_markers(path, "new\n")
    assert path.read_text() == text


def test_the_readme_shows_the_newest_results():
    results = bench.RESULTS / "bench.json"
    shown = (ROOT / "README.md").read_text("utf-8").partition(START)[2].partition(END)[0]
    measured = Measurements.read(results)
    assert shown == "\n" + summary(measured, "loadtests/results/bench.md", "loadtests/results/bench.png")
    assert (bench.RESULTS / "bench.md").read_text("utf-8") == report(measured, "bench.png")


def test_a_server_runs_on_its_core_with_its_children_and_the_bench_on_all(tmp_path: Path):
    mine, _ = cores()
    if mine is None:
        pytest.skip("one core only")
    before = os.sched_getaffinity(0)
    port = free_port()
    with Server(parent(port, "import time; time.sleep(600)"), port, tmp_path, {}, mine) as server:
        server.wait_until_ready(GET)
        assert [set(process.cpu_affinity()) for process in server.processes()] == [mine, mine]
        assert os.sched_getaffinity(0) == before
        usage = server.usage()
        assert usage.processes == 2
        assert 0 < usage.largest_bytes < usage.resident_bytes < 2 * usage.largest_bytes
    with pinned(mine):
        assert os.sched_getaffinity(0) == mine
    assert os.sched_getaffinity(0) == before


def test_a_paused_server_costs_nothing_and_goes_on_afterwards(tmp_path: Path):
    port = free_port()
    with Server(parent(port, "while True: pass"), port, tmp_path, {}) as server:
        server.wait_until_ready(GET)
        server.pause()
        while any(process.status() != psutil.STATUS_STOPPED for process in server.processes()):
            time.sleep(0.01)
        time.sleep(0.1)  # the last ticks are booked late
        before = server.usage().cpu_seconds
        assert "timed out" in ask(port, GET, seconds=0.3)
        assert server.usage().cpu_seconds == before
        server.resume()
        assert ask(port, GET) == "200"
        while server.usage().cpu_seconds <= before:  # its time is booked tick by tick; the test's own limit ends this
            time.sleep(0.01)


@pytest.mark.parametrize("paused", [False, True])
def test_a_stopped_server_leaves_nothing_behind(paused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("loadtests.processes._STOP_SECONDS", 0.3)
    port = free_port()
    with Server(parent(port, "import time; time.sleep(600)", stubborn=True), port, tmp_path, {}) as server:
        server.wait_until_ready(GET)
        processes = server.processes()
        if paused:
            server.pause()
    assert len(processes) == 2
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_a_server_that_ends_or_never_gets_ready_is_told_with_its_last_words(tmp_path: Path):
    command = [sys.executable, "-c", "print('the port is taken'); raise SystemExit(3)"]
    with (
        Server(command, free_port(), tmp_path, {}) as server,
        pytest.raises(ServerError, match=r"ended with status 3 .*\n    the port is taken"),
    ):
        server.wait_until_ready(GET)
    port = free_port()
    with Server(web_server(sys.executable, port), port, tmp_path, {}) as server:
        server.wait_until_ready(GET)
        with pytest.raises(ServerError, match=r"not ready after 1 s, last answered 404"):
            server.wait_until_ready(replace(GET, path="/nothing"), seconds=1)


def test_variables_of_this_project_and_of_make_are_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("SEXTANT_MODELS", "BENTOML_CONFIG", "MAKEFLAGS", "PORT"):
        monkeypatch.setenv(name, "surely wrong")
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    with Server([sys.executable, "-c", code], 1, tmp_path, {"SEXTANT_WORKERS": "2"}) as server:
        while server.running:
            time.sleep(0.01)
        environment = json.loads(server.last_words())
    assert "surely wrong" not in environment.values()
    assert environment["SEXTANT_WORKERS"] == "2"
    assert environment["BENTOML_HOME"].startswith(str(tmp_path))
    assert environment["PATH"] == os.environ["PATH"]


def test_every_server_of_a_case_takes_its_turns_in_each_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken: list[tuple[str, str]] = []
    take_turn = Bench._take_turn

    def noted(self: Bench, case: Case, one: Contender, turns: Turns) -> None:
        taken.append((case.name, one.name))
        take_turn(self, case, one, turns)

    monkeypatch.setattr(Bench, "_take_turn", noted)
    monkeypatch.setattr(bench, "_TURN", 0.1)
    contenders = tuple(Contender(name, name, peer(name)) for name in ("one", "two"))
    cases = [Case("first", "a", 2, contenders), Case("second", "a", 1, contenders[:1])]
    measured = Bench(cases, repeats=2, seconds=0.2, in_process=0, starts=0, home=tmp_path).run()
    assert taken == [
        *(("first", name) for name in ("one", "two", "two", "one")),
        *(("second", name) for name in ("one", "one")),
        *(("first", name) for name in ("two", "one", "one", "two")),  # who begins changes
        *(("second", name) for name in ("one", "one")),
    ]
    rows = [(row["repeat"], row["case"], row["server"]) for row in measured.rows]
    assert rows == [(n, *cell) for n in (0, 1) for cell in (("first", "one"), ("first", "two"), ("second", "one"))]
    for row in measured.rows:
        assert row["requests_per_second"] > 0
        assert row["status"].keys() == {"200"}
        assert row["failed"] == 0
        assert row["cpu_ms"] > 0
        assert row["worker_mb"] > 5
    assert all(told["ready_seconds"] > 0 for told in measured.servers.values())


def test_turns_are_added_up():
    done = np.array([0.1, 0.2, 0.3, 0.6])
    status = np.array([200, 200, 503, 200], np.int16)
    none = np.empty(0)
    results = [  # three answers come within each half second, two of them good; they took 100 and 200 ms
        Result("closed", (0, 0.5), done - took, done - took, done, status, none, errors, 1, 0, 9, 1, 0.4)
        for took, errors in ((0.1, {"reset": 2}), (0.2, {}))
    ]
    turns = Turns()
    turns.add(results[0], Usage(1, 5, 5, 1), Usage(1.25, 7, 6, 1))
    turns.add(results[1], Usage(2, 5, 5, 1), Usage(2.25, 9_000_000, 8_000_000, 2))
    figures = turns.figures()
    assert figures["requests_per_second"] == 4.0  # two good ones in each half second
    assert figures["failed"] == 2 * (1 + 1) + 2
    assert figures["errors"] == {"reset": 2}
    assert figures["cpu_ms"] == 1000 * 0.5 / 8
    assert figures["server_busy"] == 0.5
    assert (figures["worker_mb"], figures["resident_mb"], figures["processes"]) == (8.0, 9.0, 2)
    assert figures["p50_ms"] == pytest.approx(150)
    assert figures["response_ms"]["max"] == pytest.approx(200)


def test_a_server_that_cannot_run_is_told_and_the_others_are_measured(tmp_path: Path):
    broken = replace(peer("broken"), command=lambda python, _: [python, "-c", "raise SystemExit('no such port')"])
    missing = replace(peer("missing"), command=lambda *_: [str(tmp_path / "python")])
    contenders = tuple(Contender(it.name, it.title, it) for it in (broken, missing, peer("good")))
    measured = Bench(
        [Case("a", "a", 2, contenders)], repeats=1, seconds=0.1, in_process=0, starts=0, home=tmp_path
    ).run()
    assert "no such port" in measured.servers["broken"]["error"]
    assert "No such file" in measured.servers["missing"]["error"]
    assert {row["server"] for row in measured.rows} == {"good"}
    bench.write(measured, tmp_path / "results", "bench")
    assert "(ended with status 1 before it was ready)" in (tmp_path / "results" / "bench.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--peers", "nobody"], "no peer 'nobody'; there are sextant, bare-asgi"),
        (["--payloads", "digit-raw,nothing"], "no payload 'nothing'"),
        (["--repeats", "0"], "at least 1 repeat"),
        (["--seconds", "0"], "above 0 s"),
    ],
)
def test_bad_use_is_one_line_and_status_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_whole_run_asks_everything_that_the_bars_need():
    cases = bench.plan(bench._parser().parse_args([]))
    asked = {(case.name, one.name) for case in cases for one in case.contenders}
    measured = found(**{f"{case}/{server}": [1.0] for case, server in asked})
    measured.in_process.extend(
        {"repeat": 0, "name": name, "rows_per_second": 1, "best_rows_per_second": 1}
        for name in ("image", "sentiment-230")
    )
    measured.start_seconds.append(1.0)
    assert [bar.what for bar in bars(measured) if bar.met is None] == []


def test_the_service_and_its_peers_are_measured_for_real(tmp_path: Path):
    command = [sys.executable, "-m", "loadtests.bench", "--smoke", "--output", str(tmp_path)]
    chosen = ["--peers", "sextant,bare-asgi,bentoml-batchable"]
    done = subprocess.run(
        [*command, *chosen], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    measured = Measurements.read(tmp_path / "bench.json")
    assert {(row["case"], row["server"]) for row in measured.rows} == {
        ("digit-raw", "sextant"),
        ("digit-raw", "bare-asgi"),
        ("digit-json", "bentoml-batchable"),
    }
    for row in measured.rows:
        assert row["requests_per_second"] > 0, row
        assert row["errors"] == {}, row
    assert measured.servers["bentoml-batchable"]["title"].startswith("BentoML, batchable=True (bentoml 1.")
    assert measured.machine["cores"] >= 1
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "## Requests/s" in (tmp_path / "bench.md").read_text("utf-8")


def test_a_run_that_is_ended_stops_its_servers(tmp_path: Path):
    command = [sys.executable, "-m", "loadtests.bench", "--peers", "bare-asgi", "--payloads", "digit-raw"]
    process = psutil.Popen(
        [*command, "--seconds", "60", "--output", str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        while not (servers := process.children(recursive=True)) or connections(servers[0]) < bench.CONNECTIONS:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    assert status == 130
    assert not any(server.is_running() for server in servers)


def connections(server: psutil.Process) -> int:
    """How many clients are connected."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in server.net_connections("tcp"))
