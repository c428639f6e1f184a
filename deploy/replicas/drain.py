"""SIGTERM with a full queue: a replica that has seconds of work before it, and is asked to end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from deploy.replicas.findings import told
from deploy.replicas.pool import Replica, ports
from loadtests.bars import Bar
from loadtests.generator import open_loop
from loadtests.payloads import review
from loadtests.peers import Request
from loadtests.processes import ServerError, ask
from loadtests.wire import Address, encode

TITLE: Final = "SIGTERM with a full queue"
REQUESTS: Final = 200
"""Sent at once: fewer than a replica takes on a route, 256 unless set otherwise."""
TEXTS: Final = 5
"""In each: 1 000 reviews together, nearly as many as may wait for a model, 1 024 unless set otherwise."""
WORDS: Final = 500
"""In each of them, the most that is read."""
DEADLINE_SECONDS: Final = 60
"""Of the replica, so that nothing is refused because its turn would come too late."""
DRAIN_SECONDS: Final = 0.5
"""Of the replica: shorter than the work that it has, so that answers are due when it has stopped listening."""
GRACE_SECONDS: Final = 30
LEAST_WAITING: Final = REQUESTS // 2
"""Requests without an answer when SIGTERM comes, for that to be a full queue."""
_HEAD_START_SECONDS: Final = 0.3
"""For all requests to be sent."""


@dataclass(frozen=True)
class Drained:
    """What became of the requests.

    Args:
        answers: how many, by status.
        errors: requests without an answer because of the connection, by reason.
        unanswered: requests without one for another reason.
        waiting: without an answer when SIGTERM came, whatever became of them.
        exit_status: of the replica.
        seconds: from SIGTERM to the exit.
        last_seconds: from SIGTERM to the last answer.
    """

    answers: Mapping[int, int]
    errors: Mapping[str, int]
    unanswered: int
    waiting: int
    exit_status: int
    seconds: float
    last_seconds: float

    @property
    def invalid(self) -> str:
        """Why this says nothing; empty when it does."""
        if self.waiting < LEAST_WAITING:
            return f"only {self.waiting} of {REQUESTS} requests were without an answer when SIGTERM came"
        return ""

    def bars(self) -> list[Bar]:
        """What is asked."""
        accepted = REQUESTS - self.answers.get(429, 0)
        lost = accepted - self.answers.get(200, 0)
        what = f"{TITLE}: not answered 200, of {accepted} accepted ({self.waiting} waiting at SIGTERM)"
        return [
            Bar(what, "≤", 0, [lost], "requests"),
            Bar(f"{TITLE}: exit status", "≤", 0, [abs(self.exit_status)], ""),
            Bar(f"{TITLE}: ended after", "≤", GRACE_SECONDS, [self.seconds], "s"),
        ]

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"title": TITLE, "invalid": self.invalid, **asdict(self), "bars": told(self.bars())}


def request(words: int = WORDS, texts: int = TEXTS) -> Request:
    """One with ``texts`` reviews of so many words, each different."""
    body = {"texts": [review(words, seed) for seed in range(texts)]}
    return Request("POST", "/v1/sentiment", "application/json", json.dumps(body).encode())


def drain(home: Path, variables: Mapping[str, str]) -> Drained:
    """Start a replica, fill its queue, send SIGTERM, and wait for answers and the end.

    Args:
        home: folder for its log.
        variables: ``SEXTANT_*`` for it.

    Raises:
        loadtests.processes.ServerError: it does not come up, or does not judge reviews.
    """
    own = {
        "SEXTANT_DEADLINE_SECONDS": str(DEADLINE_SECONDS),
        "SEXTANT_DRAIN_SECONDS": str(DRAIN_SECONDS),
        "SEXTANT_GRACE_SECONDS": str(GRACE_SECONDS),
    }
    (port,) = ports(1)
    replica = Replica("drained", port, home, {**variables, **own})
    asked = request()
    replica.start()
    try:
        replica.wait_until_ready()
        if (answer := ask(port, asked)) != "200":
            raise ServerError(f"drain: asked for the sentiment of reviews, expected 200, received {answer}")
        return _fill_and_end(replica, asked)
    finally:
        replica.close()


def _fill_and_end(replica: Replica, asked: Request) -> Drained:
    address = Address("127.0.0.1", replica.port)
    message = encode(address, asked.method, asked.path, asked.body, asked.media_type)
    begun = threading.Event()

    def ask_all() -> tuple[float, Any]:
        began = time.perf_counter()
        begun.set()
        grace = float(DEADLINE_SECONDS + GRACE_SECONDS)
        return began, open_loop(address, [message], np.zeros(REQUESTS), seconds=_HEAD_START_SECONDS, grace=grace)

    with ThreadPoolExecutor(1) as beside:
        asking = beside.submit(ask_all)
        begun.wait()
        time.sleep(_HEAD_START_SECONDS)
        signalled = time.perf_counter()
        status, seconds = replica.end()
        began, result = asking.result()
    done = began + result.done
    return Drained(
        answers={
            int(one): int(count) for one, count in zip(*np.unique(result.status, return_counts=True), strict=True)
        },
        errors=dict(result.errors),
        unanswered=result.unanswered,
        waiting=int(REQUESTS - np.sum(done <= signalled)),
        exit_status=status,
        seconds=seconds,
        last_seconds=float(np.max(done, initial=signalled)) - signalled,
    )


def line(found: Drained) -> str:
    """The figures in one line."""
    answers = ", ".join(f"{count} × {status}" for status, count in found.answers.items()) or "no answer"
    return (
        f"{REQUESTS} requests of {TEXTS} long reviews at once, {found.waiting} waiting at SIGTERM: {answers}"
        f"{_counted(found.errors.items())}; the last after {found.last_seconds:.1f} s, "
        f"exit {found.exit_status} after {found.seconds:.1f} s"
    )


def _counted(errors: Iterable[tuple[str, int]]) -> str:
    return "".join(f", {count} × {reason}" for reason, count in errors)
