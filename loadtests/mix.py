"""What is asked how often: routes, what stands for several of them, and payloads in turn by their shares."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from loadtests.payloads import ROUTES, Payload

WEIGHTS: Final[Mapping[str, int]] = {
    "digit-png": 25,
    "digit-raw": 15,
    "digit-json": 10,
    "image": 20,
    "sentiment": 15,
    "gan": 8,
    "vae": 7,
}
"""Requests of each route among a hundred. There is no log of real traffic to take them from; they follow three
thoughts. Reading comes before drawing: people classify more than they generate. Pictures come as files, which is what
browsers and scripts have at hand, more than as raw pixels or nested numbers. And no route may drown the others: with
what they take of a core here (ms: digit-raw 0.4, digit-json 0.6, image 0.9, digit-png 2, vae 3, sentiment 3.4, gan 5),
the largest shares are a quarter of the time each, for digit-png and for sentiment."""
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "all": ROUTES,
    "digit": ("digit-raw", "digit-png", "digit-json"),
    **{route: (route,) for route in ROUTES},
}
"""What can be asked for by one word, and the routes it stands for."""
_CYCLE: Final = 1000


def weights(group: str) -> dict[str, int]:
    """How often each route of a group is asked, relative to the others.

    Raises:
        ValueError: there is no such group.
    """
    if group not in GROUPS:
        raise ValueError(f"unknown route {group!r}; expected one of {', '.join(GROUPS)}")
    return {route: WEIGHTS[route] for route in GROUPS[group]}


def in_turn(pool: Mapping[str, Sequence[Payload]], shares: Mapping[str, int], seed: int | str) -> Iterator[Payload]:
    """Payloads without end: routes at random by their shares, the requests of each one after another."""
    rng = random.Random(seed)  # noqa: S311 - what users ask
    requests = {}
    for route in shares:
        start = rng.randrange(len(pool[route]))
        requests[route] = itertools.cycle([*pool[route][start:], *pool[route][:start]])
    drawn = rng.choices(list(shares), list(shares.values()), k=_CYCLE)
    return (next(requests[route]) for route in itertools.cycle(drawn))
