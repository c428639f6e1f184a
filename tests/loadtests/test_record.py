"""Recordings keep every request, and tell its times within 1 %."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pytest

from loadtests.record import BUCKETS, Cell, Histogram, Recording, upper_edges


def histogram(seconds: Iterable[float]) -> Histogram:
    found = Histogram()
    for value in seconds:
        found.add(float(value))
    return found


def known(route: str = "digit-raw", second: int = 0) -> Recording:
    recording = Recording()
    recording.add(route, second + 0.25, second + 0.26, second + 0.5, None)
    recording.add(route, second + 0.5, second + 0.5, second + 1.5, "429")
    recording.add(route, second + 0.75, second + 0.75, second + 0.7501, "connection refused", waited=False)
    return recording


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("q", ["0", "1", "50", "90", "99", "99.9", "100"])
def test_a_percentile_is_the_one_of_the_times_and_at_most_one_in_a_hundred_more(seed: int, q: str):
    times = np.sort(np.exp(np.random.default_rng(seed).normal(-5, 1, 5000)))
    exact = float(times[max(math.ceil(Fraction(q) / 100 * len(times)) - 1, 0)])
    assert exact <= histogram(times).percentile(float(q)) <= exact * 1.01 * (1 + 1e-9)


def test_the_99_9_percentile_of_a_thousand_times_leaves_out_one():
    assert histogram([0.001] * 999 + [1.0]).percentile(99.9) == pytest.approx(0.001, rel=0.011)
    assert histogram([0.001] * 998 + [1.0] * 2).percentile(99.9) == 1.0


def test_count_mean_and_maximum_are_exact():
    times = [0.0101, 0.5, 0.25]
    found = histogram(times)
    assert (found.count, found.mean, found.max) == (3, pytest.approx(sum(times) / 3), 0.5)
    assert found.percentile(100) == 0.5


def test_what_is_shorter_or_longer_than_the_buckets_is_counted_too():
    found = histogram([-0.001, 0.0, 1e-9, 5000.0])
    assert found.count == 4
    assert found.percentile(50) <= 1e-5
    assert found.percentile(100) == found.max == 5000.0
    assert (found.counts[0], found.counts[-1], found.counts.sum()) == (3, 1, 4)


def test_an_empty_histogram_has_no_figures():
    found = Histogram()
    assert found.count == 0
    assert all(math.isnan(figure) for figure in (found.mean, found.max, found.percentile(50)))


def test_each_time_lies_within_the_edges_of_its_bucket():
    edges = upper_edges()
    assert edges.shape == (BUCKETS,)
    for seconds in np.geomspace(1.1e-5, 990, 400):
        (bucket,) = np.flatnonzero(histogram([seconds]).counts)
        assert edges[bucket - 1] * (1 - 1e-9) <= seconds <= edges[bucket] * (1 + 1e-9)


@pytest.mark.parametrize("q", [-1, 100.1, math.nan])
def test_a_percentile_beyond_0_to_100_is_refused(q: float):
    with pytest.raises(ValueError, match="0 to 100"):
        histogram([1]).percentile(q)


def test_a_time_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="received nan"):
        Histogram().add(math.nan)


def test_merged_histograms_are_that_of_all_their_times():
    times = np.random.default_rng(1).exponential(0.01, 400)
    merged = histogram(times[:150])
    merged.merge(histogram(times[150:]))
    whole = histogram(times)
    assert np.array_equal(merged.counts, whole.counts)
    assert (merged.count, merged.max) == (whole.count, whole.max)
    assert merged.mean == pytest.approx(whole.mean)


def test_response_counts_from_when_a_request_was_due_and_service_from_when_it_was_sent():
    cell = known().total()
    assert cell.response.max == 1.0
    assert cell.response.percentile(50) == pytest.approx(0.25, rel=0.011)
    assert cell.service.percentile(50) == pytest.approx(0.24, rel=0.011)
    assert cell.late.max == pytest.approx(0.01)


def test_failures_are_counted_by_reason_and_their_times_only_when_somebody_waited():
    cell = known().total()
    assert (cell.ok, cell.failed, cell.count) == (1, 2, 3)
    assert cell.errors == {"429": 1, "connection refused": 1}
    assert (cell.response.count, cell.service.count, cell.late.count) == (2, 2, 3)


def test_a_total_takes_the_routes_and_seconds_asked_for():
    recording = known("digit-raw", 3)
    recording.merge(known("image", 3))
    recording.merge(known("image", 9))
    assert recording.routes() == ["digit-raw", "image"]
    assert recording.seconds() == range(3, 10)
    assert recording.total().count == 9
    assert recording.total("image").count == 6
    assert recording.total("image", 4).count == 3
    assert recording.total("image", 3, 4).count == 3
    assert recording.total("image", 4, 9).count == 0
    assert recording.total("image", 3.5, 9.5).count == 3
    assert recording.total("vae").count == 0


def test_a_total_is_a_copy():
    recording = known()
    recording.total().merge(known().total())
    assert recording.total().count == 3


def test_an_empty_recording_has_no_seconds():
    assert list(Recording().seconds()) == []
    assert Recording().routes() == []
    assert Recording().total().count == 0


def test_a_recording_comes_back_from_json_as_it_was():
    recording = known("digit-raw", 2)
    recording.merge(known("gan", 7))
    told = json.loads(json.dumps(recording.to_json()))
    again = Recording.from_json(told)
    assert again.to_json() == told
    assert again.seconds() == range(2, 8)
    assert again.total("gan").errors == {"429": 1, "connection refused": 1}
    for name in ("response", "service", "late"):
        ours, theirs = getattr(recording.total(), name), getattr(again.total(), name)
        assert np.array_equal(ours.counts, theirs.counts)
        assert (ours.count, ours.mean, ours.max) == (theirs.count, theirs.mean, theirs.max)


def test_merged_cells_add_up():
    cell = Cell()
    cell.merge(known().total())
    cell.merge(known().total())
    assert (cell.ok, cell.errors["429"], cell.response.count) == (2, 2, 4)


def test_good_answers_of_some_seconds_can_be_counted_alone():
    recording = known("digit-raw", 3)
    recording.merge(known("image", 9))
    assert recording.answered() == recording.total().ok == 2
    assert recording.answered(4, 9) == recording.total(None, 4, 9).ok == 0
    assert recording.answered(3, 4) == recording.total(None, 3, 4).ok == 1
