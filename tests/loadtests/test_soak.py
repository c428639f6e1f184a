"""What drifts in a run that lasts, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests import options, soak
from loadtests.runfile import Sample
from loadtests.soak import drift, pace
from tests.conftest import Server
from tests.loadtests.recordings import Draw, lognormal, run

SECONDS = 300
P99 = "p99 of the last third over the first one's"
USUAL_P99 = "the same of their median tenths, minutes of 30"


def samples(worker: float = 0.0, *, restarted_at: int = SECONDS) -> tuple[Sample, ...]:
    """A supervisor, and a worker that grows by a share of its memory in the course of the run."""
    found = []
    for second in range(SECONDS):
        process = "20" if second < restarted_at else "30"
        ripple = 30 if second == 200 else 0  # a large answer on its way
        found.append(Sample(second + 0.5, {"10": 60.0, process: 200 * (1 + worker * second / SECONDS) + ripple}, {}))
    return tuple(found)


def verdicts(draw: Draw, server: tuple[Sample, ...] = ()) -> dict[str, bool | None]:
    found = drift(run({"digit-raw": draw}, [(50.0, SECONDS)], server=server))
    return {bar.what.partition(":")[0].partition(" (")[0]: bar.met for bar in found}


def test_a_run_that_does_not_drift():
    found = verdicts(lognormal(0.005), samples(0.02))
    assert set(found.values()) == {True}
    assert {"process 10", "process 20", "requests that failed"} <= found.keys()


def test_memory_that_grows_is_found_in_the_process_that_it_is_in():
    found = verdicts(lognormal(0.005), samples(0.1))
    assert [what for what, met in found.items() if not met] == ["process 20"]


def test_what_grows_only_while_settling_is_not_held_against_it():
    grown = tuple(
        Sample(sample.t, {"10": 60.0, "20": 100.0 if sample.t < SECONDS / 10 else 200.0}, {}) for sample in samples()
    )
    assert set(verdicts(lognormal(0.005), grown).values()) == {True}


def test_a_worker_that_was_replaced_is_found():
    found = verdicts(lognormal(0.005), samples(restarted_at=150))
    assert [what for what, met in found.items() if not met] == ["processes of the service that came or went"]


def test_latency_that_creeps_up_is_found():
    creeping = lognormal(0.005)

    def slower(random, due):  # noqa: ANN001
        seconds, error = creeping(random, due)
        return seconds * (1.4 if due > 2 * SECONDS / 3 else 1.0), error

    assert [what for what, met in verdicts(slower).items() if not met] == [P99, USUAL_P99]


def test_a_stall_is_told_from_what_drifts():
    steady = lognormal(0.005)

    def stalling(random, due):  # noqa: ANN001
        seconds, error = steady(random, due)
        return seconds + (0.2 if 250 < due < 265 else 0.0), error

    assert [what for what, met in verdicts(stalling).items() if not met] == [P99]


def test_a_machine_that_gets_slower_is_told_by_what_the_models_take():
    def sampled(last: float) -> tuple[Sample, ...]:
        """100 rows a second, at 1 ms each, and at another pace in the last third; one model is never asked."""
        found, seconds = [], 0.0
        for second in range(0, SECONDS + 1, 5):
            totals = {"sextant_compute_seconds_sum": {"mnist_mlp": seconds, "imdb_gru": 0.0}}
            totals["sextant_batch_rows_sum"] = {"mnist_mlp": 100.0 * second, "imdb_gru": 0.0}
            for name in ("compute_seconds", "batch_rows"):  # ten rows a batch
                totals[f"sextant_{name}_count"] = {"mnist_mlp": 10.0 * second, "imdb_gru": 0.0}
            found += [Sample(second, {}, totals), Sample(second + 1, {}, {})]
            seconds += 5 * 100 * 0.001 * (last if second >= 2 * SECONDS / 3 else 1.0)
        return tuple(found)

    stages = [(50.0, SECONDS)]
    slower, steady = (run({"digit-raw": lognormal(0.005)}, stages, server=sampled(last)) for last in (1.5, 1.0))
    assert pace(slower) == "The models themselves took 1.5 × as long a row (mnist_mlp 1.5)."
    assert pace(steady) == "The models themselves took 1 × as long a row (mnist_mlp 1)."
    assert pace(run({"digit-raw": lognormal(0.005)}, stages, server=samples())) == ""


def test_one_error_in_a_soak_is_one_too_many():
    def failing(_: object, due: float) -> tuple[float, str | None]:
        return 0.005, "500" if due == 100 else None

    assert [what for what, met in verdicts(failing).items() if not met] == ["requests that failed"]


def test_the_command_soaks_a_server_and_tells_what_it_held(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    slo = tmp_path / "slo.toml"
    slo.write_text("[all]\np99_ms = 14000\n", "utf-8")
    asked = ["--host", server.url, "--minutes", "0.2", "--rate", "40", "--slo", str(slo)]
    status = soak.main([*asked, "--folder", str(tmp_path / "run")])
    told = capsys.readouterr().out
    print(told)
    assert status in {options.MET, options.BROKEN, options.INVALID}  # the machine's say
    assert "| requests that failed | ≤ 0 requests | 0 requests | met |" in told
    assert "The models themselves took " in told
    assert (tmp_path / "run" / "report.html").is_file()


def test_bad_use_is_one_line_and_status_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(options, "interruptible", lambda main, arguments: main(arguments))
    for arguments, said in (
        (["--rate", "0"], "rate: expected a number above 0"),
        (["--minutes", "0"], "takes at least 1 s"),
    ):
        assert options.run("soak", soak.main, arguments) == options.BAD_USE
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("soak: ")
        assert said in line
