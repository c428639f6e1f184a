"""Shapes ask for what they say, and arrivals come at the rates they ask for, whoever sends them."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest

from loadtests.record import Recording
from loadtests.shapes import SHAPES, Stage, arrivals, factor, past_the_knee, stages, users


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seconds", [None, 20.0, 33.3])
def test_stages_follow_one_another_without_a_gap_to_the_end(shape: str, seconds: float | None):
    course = stages(shape, seconds)
    assert course[0].start == 0
    assert course[-1].end == (SHAPES[shape].seconds if seconds is None else seconds)
    assert all(one.end == other.start for one, other in itertools.pairwise(course))
    assert all(stage.start < stage.end and stage.factor > 0 for stage in course)


def test_smoke_lasts_20_s_and_soak_half_an_hour():
    assert stages("smoke") == (Stage(0, 20, 1),)
    assert stages("soak") == (Stage(0, 1800, 1),)
    assert stages("steady", 90) == (Stage(0, 90, 1),)


def test_a_spike_is_ten_times_as_much_for_5_s_in_the_middle():
    course = stages("spike", 45)
    assert [(second, factor(course, second)) for second in (0, 19.9, 20, 24.9, 25, 44.9)] == [
        (0, 1), (19.9, 1), (20, 10), (24.9, 10), (25, 1), (44.9, 1),
    ]  # fmt: skip


def test_steps_rise_by_a_fifth_every_10_s():
    course = stages("steps", 35)
    assert [(stage.start, stage.end) for stage in course] == [(0, 10), (10, 20), (20, 30), (30, 35)]
    assert [stage.factor for stage in course] == pytest.approx([1, 1.2, 1.44, 1.728])


def test_before_and_after_the_run_nothing_is_asked():
    course = stages("smoke")
    assert factor(course, -0.1) == factor(course, 20) == 0
    assert users(course, 20, 8) == 0


def test_users_follow_the_shape_and_there_is_always_one():
    course = stages("spike", 45)
    assert [users(course, second, 3) for second in (1, 22)] == [3, 30]
    assert users(stages("steps"), 15, 10) == 12
    assert users((Stage(0, 1, 0.01),), 0, 3) == 1


@pytest.mark.parametrize(
    ("shape", "seconds", "told"),
    [
        ("hill", None, "unknown shape 'hill'; expected one of smoke, steady, steps, spike, soak"),
        ("spike", 10, "shape spike takes at least 15 s; received 10 s"),
        ("steady", -1, "shape steady takes at least 1 s; received -1 s"),
        ("steady", float("inf"), "received inf s"),
        ("steady", float("nan"), "received nan s"),
    ],
)
def test_what_makes_no_shape_is_refused_in_words(shape: str, seconds: float | None, told: str):
    with pytest.raises(ValueError, match="s") as caught:
        stages(shape, seconds)
    assert told in str(caught.value)


def test_constant_arrivals_are_evenly_spaced():
    due = list(arrivals(stages("smoke"), 50))
    assert due == pytest.approx([step / 50 for step in range(1000)])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", ["spike", "steps"])
def test_processes_together_send_what_one_would_and_nearly_the_same_number_each(count: int, shape: str):
    course = stages(shape, 45)
    each = [list(arrivals(course, 33, index=index, count=count)) for index in range(count)]
    assert sorted(itertools.chain(*each)) == list(arrivals(course, 33))
    assert all(one == sorted(one) for one in each)
    assert max(map(len, each)) - min(map(len, each)) <= 1


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_each_stage_gets_its_rate(kind: str):
    course = stages("spike", 45)
    counts, _ = np.histogram(list(arrivals(course, 200, kind)), [0, 20, 25, 45])
    # Five standard deviations of a Poisson count; constant arrivals are exact.
    allowed = 5 * np.sqrt([4000, 10_000, 4000]) if kind == "poisson" else 0
    assert np.all(np.abs(counts - [4000, 10_000, 4000]) <= allowed)


def test_poisson_gaps_are_exponential():
    gaps = np.diff(list(arrivals(stages("steady", 100), 100, "poisson", seed=1)))
    assert statistics.fmean(gaps) == pytest.approx(0.01, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.1)  # of an exponential distribution equal to its mean


def test_poisson_processes_of_several_senders_differ_and_add_up():
    course = stages("steady", 100)
    each = [list(arrivals(course, 100, "poisson", index=index, count=2)) for index in (0, 1)]
    assert not set(each[0]) & set(each[1])
    assert sum(map(len, each)) == pytest.approx(10_000, abs=500)


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others():
    course = stages("smoke")
    assert list(arrivals(course, 10, "poisson", seed=3)) == list(arrivals(course, 10, "poisson", seed=3))
    assert list(arrivals(course, 10, "poisson", seed=3)) != list(arrivals(course, 10, "poisson", seed=4))


def served(*rates: float) -> Recording:
    """So many good answers a second in each step of 10 s, and as many refusals."""
    recording = Recording()
    for step, rate in enumerate(rates):
        for number in range(int(rate * 10)):
            due = step * 10 + number / rate
            recording.add("image", due, due, due + 0.001, None)
            recording.add("image", due, due, due + 0.001, "429")
    return recording


def test_steps_in_the_open_loop_end_when_a_step_is_not_answered():
    course = stages("steps", 60)
    assert not past_the_knee(served(100, 120, 120), course, 34, rate=100)  # 144 asked, 120 are more than 0.8 of it
    assert past_the_knee(served(100, 120, 110), course, 34, rate=100)
    assert not past_the_knee(served(100, 120, 110), course, 33, rate=100)  # not judged yet
    assert not past_the_knee(Recording(), course, 5, rate=100)


def test_steps_in_the_closed_loop_end_when_more_users_bring_no_more_answers():
    course = stages("steps", 60)
    assert not past_the_knee(served(100, 110, 108), course, 34, rate=None)
    assert past_the_knee(served(100, 110, 104), course, 34, rate=None)
    assert not past_the_knee(served(100, 90), course, 24, rate=None)
