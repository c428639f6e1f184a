"""What happens to the replicas while clients ask, one after another in the order of time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.replicas.pool import Pool, Replica
from deploy.replicas.proxy import Stats
from loadtests.load import Load, generate

HANG_SECONDS: Final = 20.0
_BETWEEN_SECONDS: Final = 2.0
"""From when a replica is in service again to the end of the next one, as long as HAProxy's slowstart."""
_AWAY_SECONDS: Final = 3.0
"""From the death of a replica to its new start."""
_FIRST_REQUEST_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Event:
    """Something that was done to a replica, or that it did.

    Args:
        second: of the run.
        what: in a few words.
    """

    second: float
    what: str


@dataclass(frozen=True)
class Course:
    """What the replicas did, in the order in which it was done to them. All times in seconds.

    Args:
        exits: statuses after SIGTERM.
        end_seconds: from SIGTERM to the exit.
        ready_seconds: from a new start to ready.
        served_seconds: from ready until HAProxy gives requests to it.
        back_seconds: from a death to the first answer.
        in_flight: requests that a replica had not answered when it was killed or stopped.
    """

    exits: tuple[int, ...] = ()
    end_seconds: tuple[float, ...] = ()
    ready_seconds: tuple[float, ...] = ()
    served_seconds: tuple[float, ...] = ()
    back_seconds: tuple[float, ...] = ()
    in_flight: tuple[int, ...] = ()


class Journal:
    """Notes events by the seconds of the run, and tells them.

    Args:
        start: second 0, on ``time.monotonic``'s clock.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self.events: list[Event] = []

    def __call__(self, what: str) -> None:
        """Note that it happens now."""
        self.events.append(Event(round(time.monotonic() - self._start, 2), what))
        print(f"  {self.events[-1].second:7.1f} s  {what}", flush=True)

    def wait_until(self, second: float) -> None:
        """Do nothing until then."""
        time.sleep(max(0.0, self._start + second - time.monotonic()))


Act = Callable[[Pool, Journal], Course]


@dataclass(frozen=True)
class Scenario:
    """One.

    Args:
        title: as tables and pictures name it.
        seconds: that it takes where all is well, of the number of replicas and the seconds that one takes to start.
        act: does it to a pool under load.
    """

    title: str
    seconds: Callable[[int, float], float]
    act: Act


@dataclass(frozen=True)
class Record:
    """What a scenario left.

    Args:
        document: the content of ``run.json``, see `loadtests.runfile`.
        outlasted: whether it went on when the load was over already.
        retries: requests that HAProxy gave to another replica after all.
    """

    course: Course
    events: tuple[Event, ...]
    document: dict[str, Any]
    outlasted: bool
    retries: int


def perform(scenario: Scenario, pool: Pool, load: Load, quiet_seconds: float, log: Path) -> Record:
    """Put a load on a pool, leave it alone for a while, then act.

    Args:
        load: that lasts longer than the scenario.
        quiet_seconds: before it begins.
        log: file for what Locust says.

    Raises:
        loadtests.load.GeneratorError: Locust recorded nothing.
        loadtests.processes.ServerError: a replica does not come back, or HAProxy does not notice.
    """
    over = threading.Event()

    def tick(_: float) -> None:
        if over.is_set():
            raise _AbandonedError

    before = pool.proxy.stats()
    with ThreadPoolExecutor(1) as beside:
        try:
            loading = beside.submit(generate, load, pool.url, log, None, tick)
            journal = Journal(_first_request(pool, loading))
            journal.wait_until(quiet_seconds)
            course = scenario.act(pool, journal)
            outlasted = loading.done()
            document = loading.result()
        finally:
            over.set()
    retries = _total(pool.proxy.stats(), "wredis") - _total(before, "wredis")
    return Record(course, tuple(journal.events), document | {"server": []}, outlasted, retries)


class _AbandonedError(Exception):
    """Nobody waits for the load any more."""


def _first_request(pool: Pool, loading: Future[dict[str, Any]]) -> float:
    """Wait for the first request of a load, which is second 0 of its recording; by ``time.monotonic``."""
    asked = _total(pool.proxy.stats(), "stot")

    def begun(stats: Stats) -> bool:
        return _total(stats, "stot") > asked or loading.done()

    pool.proxy.wait_until(begun, "a request has come", _FIRST_REQUEST_SECONDS)
    if loading.done():
        loading.result()  # says why
    return time.monotonic()


def _total(stats: Stats, column: str) -> int:
    return int(stats["BACKEND"][column] or 0)


# --- scenarios -----------------------------------------------------------------------------------------------


def rolling(pool: Pool, tell: Journal, replicas: Sequence[Replica] = ()) -> Course:
    """End replicas (all, unless some are named) and start them anew, each when the one before is in service again."""
    exits: list[int] = []
    ends: list[float] = []
    ready: list[float] = []
    served: list[float] = []
    for number, replica in enumerate(replicas or pool.replicas):
        if number:
            time.sleep(_BETWEEN_SECONDS)
        tell(f"{replica.name}: SIGTERM")
        status, seconds = replica.end()
        exits.append(status)
        ends.append(seconds)
        tell(f"{replica.name}: exit {status}, new start")
        started, noticed = _start(pool, replica, tell)
        ready.append(started)
        served.append(noticed)
    return Course(tuple(exits), tuple(ends), tuple(ready), tuple(served))


def kill_replica(pool: Pool, tell: Journal) -> Course:
    """Kill a replica, supervisor and workers, and start it anew a little later."""
    replica = pool.replicas[0]
    in_flight = pool.in_flight(replica)
    tell(f"{replica.name}: kill -9")
    replica.kill()
    time.sleep(_AWAY_SECONDS)
    tell(f"{replica.name}: new start")
    ready, served = _start(pool, replica, tell)
    return Course(ready_seconds=(ready,), served_seconds=(served,), in_flight=(in_flight,))


def kill_worker(pool: Pool, tell: Journal) -> Course:
    """Kill the worker of a replica, which its supervisor replaces."""
    replica = pool.replicas[0]
    in_flight = pool.in_flight(replica)
    tell(f"{replica.name}: kill -9 of its worker")
    began = time.monotonic()
    replica.kill_worker()
    replica.wait_until_answering()
    back = time.monotonic() - began
    tell(f"{replica.name}: answers")
    served = pool.wait_until_served(replica)
    tell(f"{replica.name}: in service")
    return Course(back_seconds=(back,), served_seconds=(served,), in_flight=(in_flight,))


def hang(pool: Pool, tell: Journal) -> Course:
    """Stop all processes of a replica where they are, and let them go on after `HANG_SECONDS`."""
    replica = pool.replicas[0]
    in_flight = pool.in_flight(replica)
    tell(f"{replica.name}: SIGSTOP")
    replica.pause()
    time.sleep(HANG_SECONDS)
    tell(f"{replica.name}: SIGCONT")
    replica.resume()
    back = replica.wait_until_answering()
    served = pool.wait_until_served(replica)
    tell(f"{replica.name}: in service")
    return Course(back_seconds=(back,), served_seconds=(served,), in_flight=(in_flight,))


def _start(pool: Pool, replica: Replica, tell: Journal) -> tuple[float, float]:
    """Start a replica that is gone; seconds to ready, and from there until it is in service."""
    replica.start()
    ready = replica.wait_until_ready()
    tell(f"{replica.name}: ready")
    served = pool.wait_until_served(replica)
    tell(f"{replica.name}: in service")
    return ready, served


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "rolling": Scenario("rolling restart", lambda replicas, start: replicas * (1.5 * start + 6.0), rolling),
    "kill-replica": Scenario("kill -9 of a replica", lambda _, start: _AWAY_SECONDS + 1.5 * start + 5.0, kill_replica),
    "kill-worker": Scenario("kill -9 of a worker", lambda _, start: 1.5 * start + 5.0, kill_worker),
    "hang": Scenario(f"hang of {HANG_SECONDS:g} s", lambda _, start: HANG_SECONDS + start + 5.0, hang),
}
"""By the names that the command knows them by."""
