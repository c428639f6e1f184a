"""An SLO file is read or refused, and a run is judged by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests import payloads
from loadtests.record import Recording
from loadtests.runfile import Run, Stage
from loadtests.slo import ALL, DEFAULT, FIGURES, ROUTES, Objective, Slo, SloError, checks, judge, knee, load
from tests.loadtests.recordings import Draw, run


def slo(**objectives: Objective) -> Slo:
    return Slo({route.replace("_", "-"): objective for route, objective in objectives.items()})


def waits(*milliseconds: float, error: str | None = None) -> Draw:
    """The same times over and over."""
    turn = 0

    def draw(_random: object, _due: float) -> tuple[float, str | None]:
        nonlocal turn
        turn += 1
        return milliseconds[turn % len(milliseconds)] / 1000, error

    return draw


def test_the_routes_are_those_that_are_sent():
    assert ROUTES == payloads.ROUTES


@pytest.mark.parametrize("name", ["slo.toml", "slo-ci.toml"])
def test_the_files_of_the_repository_promise_something_for_every_route(name: str):
    objectives = load(DEFAULT.with_name(name)).objectives
    assert set(objectives) == {ALL, *ROUTES}
    for objective in objectives.values():
        assert objective.limits.keys() >= {"error_share"}
        limits = [objective.limits[name] for name in FIGURES[:3] if name in objective.limits]
        assert limits
        assert limits == sorted(limits)


def test_the_file_for_ci_is_more_lenient_in_every_figure():
    strict, lenient = load(DEFAULT).objectives, load(DEFAULT.with_name("slo-ci.toml")).objectives
    for route, objective in lenient.items():
        for figure, limit in objective.limits.items():
            own = strict[route].limits.get(figure)
            if own is not None:
                assert limit <= own if figure == "least_rate" else limit >= own


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[digit-rwa]\np50_ms = 5", 'unknown route "digit-rwa"; known are all, digit-raw'),
        ("[image]\np90_ms = 5", r'\[image\] unknown key "p90_ms"; known are p50_ms'),
        ("[image]\np50_ms = '5'", r"\[image\] p50_ms: expected a number, received '5'"),
        ("[image]\np50_ms = true", "expected a number, received True"),
        ("[image]\np50_ms = -1", "at least 0, received -1"),
        ("[image]\np50_ms = nan", "finite number"),
        ("[image]\nleast_rate = inf", "finite number"),
        ("[image]\nerror_share = 5", "share from 0 to 1, received 5"),
        ("image = 5", r"expected a section \[image\], received image = 5"),
        ("[image", "not TOML"),
        ("", "no objective in it"),
        ("[image]", "no objective in it"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str | None, said: str):
    path = tmp_path / "own.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SloError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_kept_promises_give_no_breach():
    kept = Objective(p50_ms=30, p95_ms=31, p99_ms=31, error_share=0, least_rate=99)
    assert judge(slo(all=kept, image=kept), run({"image": waits(30, 20, 10)})) == []


def test_each_broken_promise_is_one_line_with_route_figure_and_limit():
    broken = Objective(p50_ms=19, p95_ms=25, p99_ms=29.5, error_share=0.25, least_rate=90)
    found = judge(slo(image=broken), run({"image": lambda _r, due: (0.03, "429" if due % 1 < 0.295 else None)}))
    assert [str(breach) for breach in found] == [
        "image: p50 of 30.2 ms; at most 19 ms",
        "image: p95 of 30.2 ms; at most 25 ms",
        "image: p99 of 30.2 ms; at most 29.5 ms",
        "image: 30 % errors (429: 300); at most 25 %",
        "image: 70/s answered well; at least 90/s",
    ]


def test_percentiles_count_from_when_a_request_was_due():
    recording = Recording()
    for second in range(10):
        recording.add("image", second, second + 0.5, second + 0.51, None)  # sent late: the server took 10 ms only
    late = Run({"seconds": 10, "loop": "open"}, "", (), recording)
    assert [breach.figure for breach in judge(slo(image=Objective(p50_ms=100)), late)] == ["p50_ms"]


def test_values_that_round_alike_are_told_apart():
    (breach,) = judge(slo(image=Objective(least_rate=200.01)), run({"image": waits(1)}, [(200, 10)], loop="closed"))
    assert str(breach) == "image: 200/s answered well; at least 200.01/s"


def test_every_route_is_judged_by_its_own_times_and_all_by_those_of_all():
    mixed = run({"image": waits(5), "vae": waits(50)})
    limit = Objective(p50_ms=10)
    assert [breach.route for breach in judge(slo(image=limit, vae=limit), mixed)] == ["vae"]
    assert judge(slo(all=limit), mixed) == []
    assert [breach.route for breach in judge(slo(all=Objective(p95_ms=10)), mixed)] == ["all"]


def test_a_rate_that_was_not_asked_for_is_not_missed_in_the_open_loop():
    asked_less = run({"image": waits(5)}, [(20, 10)])
    assert judge(slo(image=Objective(least_rate=500)), asked_less) == []
    refused = run({"image": waits(5, error="429")}, [(20, 10)])
    (breach,) = judge(slo(image=Objective(least_rate=500)), refused)
    assert str(breach) == "image: 0/s answered well (asked for 20/s); at least 19/s"


def test_in_the_closed_loop_a_low_rate_is_the_servers():
    closed = run({"image": waits(5)}, [(20, 10)], loop="closed")
    assert [str(breach) for breach in judge(slo(image=Objective(least_rate=500)), closed)] == [
        "image: 20/s answered well; at least 500/s"
    ]


def test_a_route_that_was_asked_for_and_never_recorded_breaks_its_promises():
    nothing = run({"image": waits(5)}, weights={"image": 1, "vae": 1})
    limit = Objective(p99_ms=100, error_share=0.1)
    assert [str(breach) for breach in judge(slo(image=limit, vae=limit), nothing)] == [
        "vae: no answer to take the p99 of; at most 100 ms",
        "vae: no answer to take the error share of; at most 10 %",
    ]


def test_an_slo_that_promises_nothing_for_the_run_is_an_error_and_no_pass():
    with pytest.raises(SloError, match="promises nothing for image"):
        judge(slo(vae=Objective(p50_ms=10)), run({"image": waits(5)}))


STEPS = [(50.0, 4.0), (100.0, 4.0), (150.0, 4.0), (200.0, 4.0)]


def rising(break_at: float, error: str | None = None) -> Draw:
    """5 ms, and from a second on 500 ms or failing."""

    def draw(_random: object, due: float) -> tuple[float, str | None]:
        return (0.005, None) if due < break_at else (0.005, error) if error else (0.5, None)

    return draw


@pytest.mark.parametrize("break_at", [4.0, 8.0, 12.0])
def test_the_knee_is_the_last_stage_within_the_limits(break_at: float):
    found = knee(slo(image=Objective(p99_ms=50)), run({"image": rising(break_at)}, STEPS))
    assert found is not None
    assert found.end == break_at


def test_a_stage_of_fast_refusals_is_beyond_the_knee():
    found = knee(slo(image=Objective(p99_ms=50)), run({"image": rising(8, "429")}, STEPS))
    assert found == Stage(4.0, 8.0, 100.0, None)


def test_one_bad_stage_between_good_ones_is_not_the_knee():
    def hiccup(_random: object, due: float) -> tuple[float, str | None]:
        return (0.5 if 4 <= due < 8 else 0.005), None

    found = knee(slo(image=Objective(p99_ms=50)), run({"image": hiccup}, STEPS))
    assert found is not None
    assert found.rate == 200


def test_without_a_stage_within_the_limits_there_is_no_knee():
    assert knee(slo(image=Objective(p99_ms=50)), run({"image": rising(0)}, STEPS)) is None


def test_steps_are_judged_at_their_knee_and_so_by_the_rate_that_it_reaches():
    steps = run({"image": rising(8)}, STEPS, shape="steps")
    assert judge(slo(image=Objective(p99_ms=50, least_rate=90)), steps) == []
    (breach,) = judge(slo(image=Objective(p99_ms=50, least_rate=120)), steps)
    assert str(breach) == "image: 100/s answered well; at least 120/s"
    # the same requests in another shape are held to the limits as a whole
    as_one = run({"image": rising(8)}, STEPS)
    assert [breach.figure for breach in judge(slo(image=Objective(p99_ms=50, least_rate=90)), as_one)] == ["p99_ms"]


def test_steps_that_never_hold_are_judged_in_their_first_stage():
    steps = run({"image": rising(0)}, STEPS, shape="steps")
    assert [str(breach) for breach in judge(slo(image=Objective(p99_ms=50)), steps)] == [
        "image: p99 of 500 ms; at most 50 ms"
    ]


def test_a_rare_route_that_misses_the_knees_seconds_is_not_judged_there():
    steps = run({"image": rising(8)}, STEPS, shape="steps")
    steps.recording.add("vae", 0, 0, 0.005, None)
    limit = Objective(p99_ms=50)
    assert [check.route for check in checks(slo(image=limit, vae=limit), steps)] == ["image"]


def test_the_check_that_used_most_of_its_limit_can_be_told():
    found = checks(slo(image=Objective(p50_ms=40, p99_ms=25, least_rate=50)), run({"image": waits(20)}))
    assert [round(check.used, 2) for check in found] == [0.51, 0.81, 0.5]
