"""Routes are asked by their shares, and the requests of a pool one after another."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from loadtests.mix import GROUPS, WEIGHTS, in_turn, weights
from loadtests.payloads import ROUTES, Payload

POOLS = {route: [Payload(route, f"/{number}", "", b"") for number in range(5)] for route in ROUTES}


def test_the_mix_has_every_route_and_its_weights_are_of_a_hundred():
    assert set(WEIGHTS) == set(ROUTES)
    assert sum(WEIGHTS.values()) == 100
    assert weights("all") == {route: WEIGHTS[route] for route in ROUTES}


def test_a_group_is_its_routes_in_their_proportion():
    assert weights("digit") == {"digit-raw": 15, "digit-png": 25, "digit-json": 10}
    assert list(weights("digit-raw")) == ["digit-raw"]
    assert {route for group in GROUPS.values() for route in group} == set(ROUTES)


def test_an_unknown_group_is_refused():
    with pytest.raises(ValueError, match="unknown route 'digits'; expected one of all, digit, digit-raw"):
        weights("digits")


def test_routes_come_by_their_shares():
    counts = Counter(payload.name for payload in islice(in_turn(POOLS, WEIGHTS, 1), 10_000))
    for route, weight in WEIGHTS.items():
        # A thousand are drawn and gone through again and again: five standard deviations of that draw.
        allowed = 5 * (weight / 100 * (1 - weight / 100) / 1000) ** 0.5
        assert counts[route] / 10_000 == pytest.approx(weight / 100, abs=allowed)


def test_the_requests_of_a_route_come_in_turn_from_a_place_of_its_own():
    paths = [payload.path for payload in islice(in_turn(POOLS, {"image": 1}, 1), 12)]
    start = int(paths[0][1:])
    assert paths == [f"/{(start + step) % 5}" for step in range(12)]
    assert len({next(in_turn(POOLS, {"image": 1}, seed)).path for seed in range(30)}) == 5


def test_a_seed_gives_the_same_order_again():
    one, two, other = (list(islice(in_turn(POOLS, WEIGHTS, seed), 50)) for seed in (1, 1, 2))
    assert one == two != other
