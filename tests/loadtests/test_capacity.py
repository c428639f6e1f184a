"""The search for the highest rate that keeps the SLO."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from loadtests import capacity, options
from loadtests.capacity import Answer, Capacity, CapacityError, Probe, judge, limits, lines, search
from loadtests.others import Others
from loadtests.slo import Objective, Slo, SloError
from tests.loadtests.recordings import lognormal, run
from tests.loadtests.servers import listening
from tests.loadtests.sextants import one_at_a_time

ALLOWED = {"digit-raw": 40.0}


def service_of(most: float, *, by_generator: bool = False) -> Callable[[float], Probe]:
    def try_rate(rate: float) -> Probe:
        holds = rate <= most
        return Probe(rate, {"digit-raw": 1.0}, "" if holds else "too slow", by_generator=by_generator and not holds)

    return try_rate


@pytest.mark.parametrize("most", [3.0, 37.0, 100.0, 333.0, 4321.0])
@pytest.mark.parametrize("growth", [2.0, 1.25])
def test_a_search_ends_within_five_percent_below_the_capacity(most: float, growth: float):
    found = search(service_of(most), 100.0, growth).rate
    assert found <= most
    assert found > most / 1.06  # 5 %, and rates are tried to three digits


def test_one_failed_probe_is_not_believed():
    tried: list[float] = []

    def disturbed(rate: float) -> Probe:
        tried.append(rate)
        return Probe(rate, {}, "a neighbour" if tried.count(rate) == 1 else "" if rate <= 500 else "too slow")

    assert search(disturbed).rate == pytest.approx(500, rel=0.06)


def test_a_rate_that_holds_is_not_asked_again_and_one_that_does_not_is_asked_twice():
    tried: list[float] = []

    def told(rate: float) -> Probe:
        tried.append(rate)
        return service_of(500)(rate)

    search(told)
    assert all(tried.count(rate) == (1 if rate <= 500 else 2) for rate in tried)


def test_a_generator_that_was_disturbed_gets_more_chances():
    left = iter([True] * 2)

    def disturbed(rate: float) -> Probe:
        if rate == 400 and next(left, False):
            return Probe(rate, {}, "late", by_generator=True)
        return service_of(500)(rate)

    found = search(disturbed)
    assert found.rate == pytest.approx(500, rel=0.06)
    assert not found.at_least


def test_a_failure_while_others_took_the_machine_is_excused():
    left = iter([0.8] * 2)

    def disturbed(rate: float) -> Probe:
        return Probe(rate, {}, "too slow", others=next(left, 0.0)) if rate > 500 else Probe(rate, {}, others=0.8)

    tried: list[float] = []

    def told(rate: float) -> Probe:
        tried.append(rate)
        return disturbed(rate)

    search(told)
    assert tried.count(800) == 2 + 2, "two excused, and two that count"
    assert tried.count(400) == 1, "what holds in spite of others holds"


def test_what_others_take_is_told_from_what_the_service_takes():
    """The same half second, once knowing the process that was busy in it, once not."""
    spin = psutil.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with Others(lambda: [spin]) as informed, Others(list) as blind, Others(None) as unable:
            before = spin.cpu_times()
            time.sleep(0.5)
            after = spin.cpu_times()
    finally:
        spin.kill()
        spin.wait()
    taken = (after.user - before.user + after.system - before.system) / 0.5
    assert blind.cores - informed.cores == pytest.approx(taken, abs=0.1)
    assert blind.cores >= taken - 0.1
    assert unable.cores == 0


def test_where_the_generator_is_at_its_end_the_capacity_is_at_least_that():
    found = search(service_of(500, by_generator=True))
    assert found.at_least
    answer = Answer("digit", ALLOWED, [found])
    assert "≥" in lines([answer])
    assert "PROCESSES" in str(answer)


def test_a_service_that_holds_nothing_is_told():
    with pytest.raises(CapacityError, match=r"not even .* hold: too slow"):
        search(service_of(0))


def test_the_median_of_the_searches_counts_and_their_spread_is_told():
    answer = Answer("all", ALLOWED, [Capacity(rate, {"digit-raw": rate / 10}) for rate in (90.0, 100.0, 120.0)])
    assert answer.rate == 100
    assert answer.spread == pytest.approx(0.3)
    row = lines([answer]).splitlines()[-1]
    assert row == "| all, mixed | 100 | 30% | 10 of 40 ms (digit-raw) |"


# --- what makes a rate hold ----------------------------------------------------------------------------------


def test_one_stall_does_not_decide():
    def stalled(_: object, due: float) -> tuple[float, str | None]:
        return (1.0 if 3 <= due < 3.4 else 0.005), None

    probe = judge(run({"digit-raw": stalled}, [(1000.0, 7.0)]), 1000, ALLOWED)
    assert probe.holds
    assert probe.p99_ms["digit-raw"] == pytest.approx(5, rel=0.06)


def test_a_queue_that_grows_does():
    """A rate 2 % above the capacity: each second, the answers come 20 ms later."""
    probe = judge(run({"digit-raw": lambda _, due: (0.002 + 0.02 * due, None)}, [(1000.0, 7.0)]), 1000, ALLOWED)
    assert not probe.holds
    assert "digit-raw" in probe.broken
    assert "at most 40 ms" in probe.broken


def test_the_first_second_of_a_probe_is_for_settling():
    def cold(_: object, due: float) -> tuple[float, str | None]:
        return (0.5 if due < 1 else 0.005), None

    assert judge(run({"digit-raw": cold}, [(100.0, 3.0)]), 100, ALLOWED).holds


def test_every_route_that_is_promised_something_is_held_to_it():
    routes = {"digit-raw": lognormal(0.002), "sentiment": lognormal(0.2)}
    probe = judge(run(routes, [(400.0, 7.0)]), 400, {"digit-raw": 40.0, "sentiment": 60.0})
    assert "p99 of sentiment" in probe.broken


def test_one_error_is_one_too_many_even_while_settling():
    def failing(_: object, due: float) -> tuple[float, str | None]:
        return 0.002, "429" if due == 0 else None

    assert judge(run({"digit-raw": failing}), 100, ALLOWED).broken == "1 × 429"


def test_a_generator_that_did_not_keep_up_is_told_from_a_service_that_did_not():
    found = run({"digit-raw": lognormal(0.002)})
    assert judge(found, 100, ALLOWED).holds
    assert judge(found, 200, ALLOWED).by_generator, "half of the requests are missing"
    full = run({"digit-raw": lambda _, due: (0.002, "not sent: 8000 connections in use" if due == 3 else None)})
    assert judge(full, 100, ALLOWED).by_generator
    for request in range(30):
        found.recording.add("digit-raw", 3, 3.02, 3.03, None)
        found.recording.add("digit-raw", 4 + request % 5, 9, 9.001, None)
    assert judge(found, 100, ALLOWED).by_generator, "its requests were sent late"


def test_a_route_without_an_answer_does_not_hold():
    probe = judge(run({"digit-raw": lognormal(0.002)}), 100, {"digit-raw": 40.0, "image": 40.0})
    assert math.isnan(probe.p99_ms["image"])
    assert not probe.holds


def test_limits_are_those_of_the_routes_asked_and_of_all_together():
    slo = Slo({"all": Objective(p99_ms=60), "digit-raw": Objective(p99_ms=40), "image": Objective(p99_ms=50)})
    assert limits(slo, "digit") == {"all": 60, "digit-raw": 40}
    with pytest.raises(SloError, match="no p99_ms for sentiment"):
        limits(Slo({"digit-raw": Objective(p99_ms=40), "sentiment": Objective(p50_ms=5)}), "sentiment")


# --- the command ---------------------------------------------------------------------------------------------


def test_the_command_finds_the_capacity_of_a_server_whose_pace_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """At most 100/s: 25/s hold, 400/s do not; in between the machine has a say."""
    monkeypatch.setattr(capacity, "PRECISION", 16.0)
    monkeypatch.setattr(capacity, "LATE_SECONDS", 60.0)
    monkeypatch.setattr(capacity, "PAUSE_SECONDS", 0.0)
    slo = tmp_path / "slo.toml"
    slo.write_text("[digit-raw]\np99_ms = 400\n", "utf-8")
    with listening(one_at_a_time(0.01)) as url:
        asked = ["--host", url, "--route", "digit-raw", "--slo", str(slo), "--rate", "25", "--times", "1"]
        assert capacity.main([*asked, "--seconds", "2"]) == options.MET
    told = capsys.readouterr().out
    print(told)
    assert "25/s  holds" in told
    assert "does not hold: p99 of digit-raw" in told
    (row,) = [line for line in told.splitlines() if line.startswith("| digit-raw |")]
    assert 25 <= float(row.split("|")[2]) <= 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--route", "digit,nonsense"], 'unknown route "nonsense"; expected one of all, digit,'),
        (["--rate", "0"], "rate: expected a number above 0, received 0"),
        (["--times", "0"], "expected at least one search"),
        (["--host", "127.0.0.1", "--port", "9"], "no server at http://127.0.0.1:9"),
    ],
)
def test_bad_use_is_one_line_and_status_two(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(options, "interruptible", lambda main, arguments: main(arguments))
    try:
        status = options.run("capacity", capacity.main, arguments)
    except SystemExit as ended:
        status = ended.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status == options.BAD_USE
    assert line.startswith("capacity: ")
    assert said in line
