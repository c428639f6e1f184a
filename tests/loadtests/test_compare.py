"""Two runs side by side: chance is called noise, and a change is called a change."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtests import compare as comparison
from loadtests.compare import FIGURES, Row, compare, conclusion, differing_conditions, main, tally
from loadtests.noise import between_repeats, resampled, student_quantile
from loadtests.record import Histogram
from loadtests.runfile import Run
from tests.loadtests.recordings import Draw, lognormal, run, told

STAGES = [(100.0, 15.0)]


def row(rows: list[Row], figure: str, route: str = "image") -> Row:
    return next(one for one in rows if (one.route, one.figure.name) == (route, figure))


def runs(draw: Draw, seeds: range, **about: object) -> list[Run]:
    return [run({"image": draw}, STAGES, seed=seed, **about) for seed in seeds]


@pytest.mark.parametrize(
    ("share", "freedom", "value"),
    # from the tables of any textbook
    [(0.995, 1, 63.657), (0.995, 2, 9.925), (0.995, 4, 4.604), (0.975, 10, 2.228), (0.995, 1e9, 2.576), (0.5, 3, 0)],
)
def test_students_quantiles_are_those_of_the_tables(share: float, freedom: float, value: float):
    assert student_quantile(share, freedom) == pytest.approx(value, rel=1e-3, abs=1e-9)


def test_an_interval_between_repeats_is_students():
    # By hand: means 2 and 7; variances 1 and 7, pooled 4; so the error is √(4 × 2/3), with 4 degrees of freedom.
    found = between_repeats([1, 2, 3], [4.354249, 7, 9.645751])
    assert found.estimate == pytest.approx(5)
    assert found.high - found.estimate == found.estimate - found.low == pytest.approx(4.604 * 1.633, rel=1e-3)


def test_seconds_are_drawn_again_in_blocks_each_as_likely_as_the_other():
    counts = resampled(27, 4000, np.random.default_rng(1))
    assert counts.shape == (4000, 27)
    assert (counts.sum(axis=1) == 27).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(27), abs=0.1)
    # neighbours come together: blocks of three share two of their three seconds with the next ones
    assert np.corrcoef(counts[:, 10], counts[:, 11])[0, 1] > 0.5
    assert abs(np.corrcoef(counts[:, 10], counts[:, 20])[0, 1]) < 0.2


def test_figures_are_those_of_the_histograms():
    one = run({"image": lognormal(0.02, errors=0.1)}, STAGES)
    cell, counted = one.recording.total("image"), tally(one, "image", 0, np.random.default_rng())
    values = {figure.name: float(figure.measure(counted)[0]) for figure in FIGURES}
    for q in (50, 95, 99, 99.9):
        assert values[f"p{q:g}"] == pytest.approx(1000 * cell.response.percentile(q), rel=0.01)
    assert values["service p99"] == pytest.approx(1000 * cell.service.percentile(99))
    assert values["good answers"] == pytest.approx(cell.ok / 15)
    assert values["errors"] == pytest.approx(100 * cell.failed / cell.count)


def test_single_runs_of_the_same_service_differ_by_noise_only():
    verdicts = [
        one.verdict
        for seed in range(0, 20, 2)
        for one in compare(*(runs(lognormal(0.02, 0.5, 0.02), range(s, s + 1)) for s in (seed, seed + 1)))
    ]
    judged = [verdict for verdict in verdicts if verdict != "too few answers"]
    assert len(judged) == 70  # p99.9 of 1500 answers is not judged
    assert judged.count("within noise") >= 68  # 99 % intervals


def test_repeats_of_the_same_service_differ_by_noise_only():
    verdicts = [
        one.verdict
        for seed in range(0, 60, 6)
        for one in compare(*(runs(lognormal(0.02, 0.5, 0.02), range(s, s + 3)) for s in (seed, seed + 3)))
    ]
    judged = [verdict for verdict in verdicts if verdict != "too few answers"]
    assert len(judged) == 70
    assert judged.count("within noise") >= 68


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_real_shift_is_told_with_its_ratio(repeats: int):
    rows = compare(runs(lognormal(0.02), range(repeats)), runs(lognormal(0.03), range(10, 10 + repeats)))
    for figure in ("p50", "p95", "service p50"):
        found = row(rows, figure)
        assert found.verdict == "worse"
        assert math.exp(found.change.low) < 1.5 < math.exp(found.change.high)
    assert row(rows, "good answers").verdict == row(rows, "errors").verdict == "within noise"
    back = compare(runs(lognormal(0.03), range(repeats)), runs(lognormal(0.02), range(10, 10 + repeats)))
    assert row(back, "p50").verdict == "better"


@pytest.mark.parametrize("repeats", [1, 3])
def test_more_errors_and_fewer_good_answers_are_told(repeats: int):
    rows = compare(runs(lognormal(0.02), range(repeats)), runs(lognormal(0.02, errors=0.2), range(10, 10 + repeats)))
    assert row(rows, "errors").verdict == row(rows, "good answers").verdict == "worse"
    assert row(rows, "errors").change.estimate == pytest.approx(20, abs=4)
    assert row(rows, "p50").verdict == "within noise"


def test_repeats_that_differ_among_themselves_hide_what_single_runs_would_call_a_change():
    def drifting(factor: float) -> list[Run]:
        return [
            run({"image": lognormal(0.02 * factor * drift)}, STAGES, seed=n) for n, drift in enumerate((1, 1.3, 1.6))
        ]

    a, b = drifting(1.0), drifting(1.15)
    assert row(compare(a[:1], b[:1]), "p50").verdict == "worse"
    assert row(compare(a, b), "p50").verdict == "within noise"


def test_a_run_is_the_same_as_itself():
    same = runs(lognormal(0.02, 0.5, 0.02), range(1))
    rows = compare(same, same)
    assert {one.change.estimate for one in rows} == {0.0}
    assert {one.verdict for one in rows} == {"within noise", "too few answers"}
    assert conclusion(rows) == "B to A: all 7 figures within noise"


def test_a_less_than_one_percent_ratio_is_never_a_difference():
    # Constant times in neighbouring buckets: no spread at all, and yet nothing to tell.
    edge = next(x for x in np.arange(0.02, 0.0203, 1e-6) if bucket(x) != bucket(x + 2e-6))
    for repeats in (1, 2):
        a, b = (runs(lambda _r, _d, wait=wait: (wait, None), range(repeats)) for wait in (edge, edge + 2e-6))
        assert row(compare(a, b), "service p50").verdict == "within noise"


def bucket(seconds: float) -> int:
    histogram = Histogram()
    histogram.add(seconds)
    return int(histogram.counts.argmax())


def test_a_stage_is_drawn_again_from_its_own_seconds():
    rising = run({"image": lognormal(0.02)}, [(20, 10), (200, 10)])
    counted = tally(rising, "image", 200, np.random.default_rng(1))
    # Drawn from all seconds alike, the number of requests would vary by some hundreds.
    assert set(counted.ok.tolist()) == {2200.0}


def test_all_routes_together_come_first_when_there_are_several():
    mixed = [run({"image": lognormal(0.02), "vae": lognormal(0.01)}, STAGES, seed=n) for n in (1, 2)]
    rows = compare(mixed[:1], mixed[1:])
    assert list(dict.fromkeys(one.route for one in rows)) == ["all", "image", "vae"]


def test_conditions_that_differ_are_told():
    a, b = (
        runs(lognormal(0.02), range(1), machine={"cores": 2, "load": 0.1}),
        runs(lognormal(0.02), range(1), machine={"cores": 4, "load": 0.7}, arrivals="poisson"),
    )
    busier = runs(lognormal(0.02), range(1), machine={"cores": 2, "load": 0.7})
    assert [line.split(" differs")[0] for line in differing_conditions(a, b)] == ["arrivals", "machine"]
    assert differing_conditions(a, a) == differing_conditions(a, busier) == []
    bad = [run({"image": lognormal(0.02)}, STAGES, machine={"cores": 2}, invalid="sent 9 ms late")]
    assert differing_conditions(a, bad) == ["a run of B is invalid: sent 9 ms late"]


@pytest.fixture
def saved(tmp_path: Path) -> list[str]:
    paths = []
    for number, median in enumerate((0.02, 0.04, 0.0202, 0.041)):
        path = tmp_path / f"{number}" / "run.json"
        path.parent.mkdir()
        path.write_text(json.dumps(told(run({"image": lognormal(median)}, STAGES, seed=number))))
        paths.append(str(path))
    return paths


def test_the_command_prints_a_table_and_draws(saved: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([saved[0], str(Path(saved[1]).parent), "--png", str(tmp_path / "new" / "ratios.png")]) == 0
    printed = capsys.readouterr().out
    assert "the spread within each run alone" in printed
    line = next(line for line in printed.splitlines() if " p50 " in line)
    assert "worse" in line
    assert "×1.9" in line or "×2" in line
    assert printed.splitlines()[-2].startswith("B to A: ")
    with Image.open(tmp_path / "new" / "ratios.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn


def test_runs_in_turn_are_the_same_as_repeats_by_side(saved: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(saved) == 0
    in_turn = capsys.readouterr().out
    assert main(["--a", saved[0], saved[2], "--b", saved[1], saved[3]]) == 0
    assert capsys.readouterr().out == in_turn
    assert "the spread of 2 and 2 repeats" in in_turn


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected runs in pairs"),
        (["{0}"], "expected runs in pairs"),
        (["{0}", "{1}", "--a", "{2}"], "expected runs in pairs"),
        (["--a", "{0}", "--b", "{1}", "{2}"], "received 1 and 2"),
        (["{0}", "none.json"], "none.json: No such file"),
    ],
)
def test_bad_use_is_one_line_and_exit_2(
    saved: list[str], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        main([argument.format(*saved) for argument in arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_runs_without_a_common_route_cannot_be_compared():
    with pytest.raises(ValueError, match="no route in common"):
        comparison.compare([run({"image": lognormal(0.02)})], [run({"vae": lognormal(0.02)})])
