"""Replicas behind HAProxy: the configuration, the verdict, and one real restart under load."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from string import Template

import httpx
import numpy as np
import pytest

from deploy.replicas.__main__ import FIGURES, NAME, PICTURE, conclude, main
from deploy.replicas.drain import REQUESTS, Drained, request
from deploy.replicas.findings import Finding, lines
from deploy.replicas.pool import Pool, ports
from deploy.replicas.proxy import READY, TEMPLATE, ProxyError, program, read_stats, render
from deploy.replicas.scenarios import Course, Event, Scenario, perform, rolling
from loadtests import options
from loadtests.bars import Bar
from loadtests.load import Load
from loadtests.processes import Server, ServerError, free_port
from loadtests.runfile import Run
from serving.settings import Settings
from tests.loadtests.recordings import Draw, lognormal, run

LEAST = 1000
BEGIN = 10.0


def haproxy() -> str:
    try:
        return program()
    except ProxyError as error:
        pytest.skip(str(error))


def found(name: str, before: Draw, since: Draw, course: Course, *, least: int = LEAST, invalid: str = "") -> Finding:
    """Ten quiet seconds and twenty since, at 100/s."""

    def both(random: object, due: float) -> tuple[float, str | None]:
        return (before if due < BEGIN else since)(random, due)  # type: ignore[arg-type]

    told = run({"digit-raw": both}, [(100.0, 30.0)], invalid=invalid)
    return Finding(name, name, told, (Event(BEGIN + 0.4, "SIGTERM"), Event(21.0, "ready")), course, least)


def bar(finding: Finding | Drained, words: str) -> Bar:
    (one,) = [bar for bar in finding.bars() if words in bar.what]
    return one


# --- the configuration -------------------------------------------------------------------------------------------


def test_the_configuration_names_every_replica_where_it_listens():
    text = render(TEMPLATE.read_text("utf-8"), 8080, Path("/run/socket"), {"a": 3001, "b": 3002})
    assert "    server a 127.0.0.1:3001\n    server b 127.0.0.1:3002\n" in text
    assert "bind 127.0.0.1:8080" in text
    assert 'stats socket "/run/socket"' in text
    assert "$" not in text


def test_a_configuration_without_replicas_is_refused():
    with pytest.raises(ValueError, match="at least one replica"):
        render(TEMPLATE.read_text("utf-8"), 8080, Path("/run/socket"), {})


def test_haproxy_accepts_the_configuration_without_a_warning(tmp_path: Path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(render(TEMPLATE.read_text("utf-8"), 8080, tmp_path / "socket", {"a": 3001, "b": 3002}), "utf-8")
    told = subprocess.run([haproxy(), "-c", "-f", str(file)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "WARNING" not in told.stdout + told.stderr


def test_what_the_configuration_goes_by_is_what_the_service_does():
    settings, text = Settings(), TEMPLATE.read_text("utf-8")
    seconds = {"inter": 0.5, "fastinter": 0.2}
    for name, value in seconds.items():
        assert f" {name} {1000 * value:.0f}ms" in text
    assert sum(seconds.values()) < settings.drain_seconds  # out before it stops listening
    assert " maxconn 64\n" in text
    assert (
        settings.max_batch_size <= 64 < settings.max_requests
    )  # batches fill, and nothing that waits here is refused there
    assert "keeps\n    # them for 75 s" in text
    assert settings.keep_alive_seconds == 75


def test_without_a_replica_haproxy_answers_as_the_service_would(tmp_path: Path):
    listen, nobody = free_port(), free_port()
    file = tmp_path / "haproxy.cfg"
    file.write_text(render(TEMPLATE.read_text("utf-8"), listen, tmp_path / "socket", {"a": nobody}), "utf-8")
    with Server([haproxy(), "-db", "-f", str(file)], listen, tmp_path, {}) as server:
        with pytest.raises(ServerError, match="last answered 503"):
            server.wait_until_ready(READY, 2.0)
        answer = httpx.get(f"http://127.0.0.1:{listen}/v1/models")
    assert answer.status_code == answer.json()["status"] == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"


def test_haproxys_table_is_read_by_server():
    table = "# pxname,svname,status,scur,\nclients,FRONTEND,OPEN,1,\nreplicas,a,UP,3,\nreplicas,b,DOWN,0,\n\n"
    stats = read_stats(table)
    assert stats.keys() == {"a", "b"}
    assert (stats["a"]["scur"], stats["b"]["status"]) == ("3", "DOWN")


def test_ports_are_free_and_none_that_the_system_gives_to_connections():
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("utf-8").split()[0])
    found = ports(3)
    assert len(set(found)) == 3
    assert max(found) < lowest


def test_the_template_asks_for_nothing_that_is_not_filled_in():
    assert set(Template(TEMPLATE.read_text("utf-8")).get_identifiers()) == {"port", "socket", "servers"}


# --- the verdict -------------------------------------------------------------------------------------------------


def test_a_restart_that_nobody_noticed_is_good():
    finding = found("rolling", lognormal(0.01), lognormal(0.015), Course(exits=(0, 0, 0)))
    assert finding.invalid == ""
    assert all(bar.met for bar in finding.bars())
    assert finding.p99_ratio == pytest.approx(1.5, rel=0.3)
    assert (finding.quiet.count, finding.since.count) == (800, 2000)  # without the first two seconds


def test_one_failed_request_spoils_a_restart():
    def one(random: object, due: float) -> tuple[float, str | None]:
        return 0.01, "503" if due == 17.0 else None

    finding = found("rolling", lognormal(0.01), one, Course(exits=(0, 0, 0)))
    assert bar(finding, "requests that failed").met is False
    assert bar(finding, "p99").met is True
    assert finding.disturbed_seconds == 1


def test_a_restart_that_users_feel_is_not_good():
    finding = found("rolling", lognormal(0.01), lognormal(0.05), Course(exits=(0, 0, 0)))
    assert bar(finding, "p99").met is False
    assert finding.disturbed_seconds > 15


def test_calm_after_the_last_event_does_not_make_up_for_what_users_felt():
    def slow_at_first(random: np.random.Generator, due: float) -> tuple[float, str | None]:
        slow = 10.5 <= due < 10.6
        return (0.2 if slow else 0.01), "503" if due >= 29.99 else None

    course = Course(exits=(0, 0, 0))
    finding = found("rolling", lognormal(0.01), slow_at_first, course, least=900)
    assert finding.end == 21.0  # the second of the last event
    assert finding.disturbed.count == 1100
    assert finding.disturbed.response.percentile(99.5) > 0.1
    assert bar(finding, "requests that failed").measured == 1  # counted to the end
    longer = found("rolling", lognormal(0.01), slow_at_first, course, least=1500)
    assert (longer.end, longer.disturbed.count) == (25.0, 1500)


def test_a_replica_that_did_not_end_by_itself_is_told():
    finding = found("rolling", lognormal(0.01), lognormal(0.01), Course(exits=(0, -9, 0)))
    assert bar(finding, "status 0").measured == 1


@pytest.mark.parametrize(("in_flight", "beyond"), [(4, 0), (1, 2)])
def test_of_a_killed_replica_only_what_was_in_flight_may_fail(in_flight: int, beyond: int):
    def three(random: object, due: float) -> tuple[float, str | None]:
        return 0.01, "connection closed" if 10.0 <= due < 10.03 else None

    finding = found("kill-replica", lognormal(0.01), three, Course(in_flight=(in_flight,)))
    assert bar(finding, "beyond").measured == beyond
    assert bar(finding, "requests that failed").measured == pytest.approx(100 * 3 / 2000)
    assert bar(finding, "requests that failed").met is False


@pytest.mark.parametrize(("seconds", "met"), [(4.9, True), (5.1, False)])
def test_a_worker_has_five_seconds_to_come_back(seconds: float, *, met: bool):
    finding = found("kill-worker", lognormal(0.01), lognormal(0.01), Course(back_seconds=(seconds,)))
    assert bar(finding, "back after").met is met


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"least": 2001}, "2000 requests, expected at least 2001"),
        ({"invalid": "the generator did not keep up"}, "did not keep up"),
    ],
)
def test_too_few_requests_or_a_late_generator_make_no_verdict(change: dict[str, object], why: str):
    finding = found("rolling", lognormal(0.01), lognormal(0.01), Course(exits=(0,)), **change)  # type: ignore[arg-type]
    assert why in finding.invalid


def test_requests_that_fail_before_anything_is_done_make_no_verdict():
    finding = found("hang", lognormal(0.01, errors=0.1), lognormal(0.01), Course())
    assert "failed before anything was done" in finding.invalid


def test_figures_can_be_kept_and_read():
    finding = found("hang", lognormal(0.01), lognormal(0.01), Course(in_flight=(2,)))
    told = json.loads(json.dumps(finding.figures(), allow_nan=False))
    assert told["since"]["requests"] == 2000
    assert told["events"][0] == {"second": BEGIN + 0.4, "what": "SIGTERM"}
    assert "| hang | 2000 | 0 |" in lines([finding])


def drained(answers: dict[int, int], *, waiting: int = REQUESTS, unanswered: int = 0, status: int = 0) -> Drained:
    return Drained(answers, {}, unanswered, waiting, status, 5.0, 4.0)


def test_every_accepted_request_has_to_be_answered_and_refused_ones_were_not_accepted():
    assert all(bar.met for bar in drained({200: REQUESTS - 5, 429: 5}).bars())
    assert bar(drained({200: REQUESTS - 1}, unanswered=1), "not answered").measured == 1
    assert bar(drained({200: REQUESTS - 1, 503: 1}), "not answered").measured == 1
    assert bar(drained({200: REQUESTS}, status=-9), "exit status").met is False


def test_a_queue_that_was_empty_already_makes_no_verdict():
    assert "without an answer when SIGTERM came" in drained({200: REQUESTS}, waiting=3).invalid


def test_the_queue_is_filled_and_not_overfilled():
    texts = json.loads(request(words=5).body)["texts"]
    rows = REQUESTS * len(texts)
    assert 0.9 * Settings().max_queue_rows < rows <= Settings().max_queue_rows
    assert Settings().max_requests > REQUESTS
    assert len(set(texts)) == len(texts)


# --- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--scenario", "rolling,earthquake"], "'earthquake'"),
        (["--replicas", "1"], "received 1"),
        (["--rate", "0"], "rate: expected a number above 0"),
        (["--route", "weather"], 'unknown route "weather"'),
    ],
)
def test_bad_use_gets_one_line_and_status_2(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(options, "interruptible", lambda main, arguments: main(arguments))
    try:
        status: object = options.run(NAME, main, arguments)
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr()
    assert status == 2
    assert told.err.startswith("replicas: ")
    assert why in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


@pytest.mark.parametrize(
    ("since", "least", "status"),
    [(0.01, LEAST, 0), (0.05, LEAST, 1), (0.01, 3000, 3)],
    ids=["met", "broken", "invalid"],
)
def test_the_status_says_what_was_found_and_figures_and_pictures_are_kept(
    since: float, least: int, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    finding = found("rolling", lognormal(0.01), lognormal(since), Course(exits=(0,)), least=least)
    assert conclude([finding], drained({200: REQUESTS}), 100.0, 3, tmp_path) == status
    told = json.loads((tmp_path / FIGURES).read_text("utf-8"))
    assert told["scenarios"]["rolling"]["since"]["requests"] == 2000
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr()
    assert ("NOT met" in shown.out) == (status == 1)
    assert ("INVALID" in shown.err) == (status == 3)


def test_a_replica_is_replaced_under_load_and_no_request_fails(tmp_path: Path):
    haproxy()
    scenario = Scenario("restart of one", lambda *_: 0.0, lambda pool, tell: rolling(pool, tell, pool.replicas[:1]))
    with Pool(2, tmp_path, {"SEXTANT_MODELS": "mnist_mlp"}) as pool:
        load = Load(shape="steady", route="digit", rate=50, seconds=3 + pool.start_seconds + 6)
        told = perform(scenario, pool, load, 3.0, tmp_path / "locust.log")
        served = {name: int(row["stot"]) for name, row in pool.proxy.stats().items() if name != "BACKEND"}
    total = Run.from_json(told.document).recording.total()
    assert not told.outlasted
    assert total.count >= 400
    assert total.failed == 0, total.errors
    assert told.course.exits == (0,)
    assert [event.what.partition(": ")[2] for event in told.events] == [
        "SIGTERM",
        "exit 0, new start",
        "ready",
        "in service",
    ]
    assert min(served.values()) > 0
