"""A run of one process or of many: what each shall send, when it begins and ends, and what all found together.

One process conducts (the only one, or Locust's master), those that generate do their parts. At the start the
conductor says when second 0 is, by the wall clock, and gives each part its number; parts report what they recorded
every few seconds with Locust's own reports, and once more when all their requests are over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

import gevent  # type: ignore[import-untyped]
from locust.env import Environment
from locust.rpc import Message
from locust.runners import STATE_INIT, MasterRunner, WorkerRunner

from loadtests.clock import Arrivals
from loadtests.connection import TIMEOUT_SECONDS
from loadtests.payloads import Payload
from loadtests.record import Recording
from loadtests.shapes import Stage, past_the_knee, users

LATE_SECONDS: Final = 0.005
"""How late the latest 1 % of requests may be sent for a run of the open loop to count."""
_LEAD_SECONDS, _DISTRIBUTED_LEAD_SECONDS = 0.2, 1.5
"""From the start to second 0: time to tell all processes."""
_GRACE_SECONDS: Final = TIMEOUT_SECONDS + 1.0
_POLL_SECONDS: Final = 0.05
_BEGIN, _END, _FINISHED = "loadtest-begin", "loadtest-end", "loadtest-finished"
_REPORT: Final = "loadtest"
_PACKAGES: Final = ("locust", "gevent", "geventhttpclient", "numpy")


@dataclass(frozen=True)
class Plan:
    """What a run shall be.

    Attributes:
        host: URL of the server.
        loop: whether requests follow the clock or the answers.
        shape: of `loadtests.shapes.SHAPES`.
        course: its stages.
        rate: requests a second of the open loop at a factor of 1.
        users: of the closed loop at a factor of 1.
        weights: how often each route is asked, relative to the others.
        arrivals: of the open loop.
        seed: of all that is drawn.
    """

    host: str
    loop: Literal["open", "closed"]
    shape: str
    course: tuple[Stage, ...]
    rate: float
    users: int
    weights: Mapping[str, int]
    arrivals: Arrivals
    seed: int

    @property
    def seconds(self) -> float:
        """Length of the run."""
        return self.course[-1].end

    @property
    def asked_rate(self) -> float | None:
        """Requests a second at a factor of 1; None in the closed loop, which takes what it gets."""
        return self.rate if self.loop == "open" else None

    def until(self, second: float) -> Plan:
        """The same, ended at ``second``."""
        course = tuple(
            dataclasses.replace(stage, end=min(stage.end, second)) for stage in self.course if stage.start < second
        )
        return dataclasses.replace(self, course=course)


class Part:
    """What one process does of a run.

    Args:
        plan: of the whole run.
        start: second 0 on ``time.perf_counter``'s clock.
        index: of this process, from 0.
        count: of processes.

    Attributes:
        under_way: requests without an answer yet, and 1 more as long as arrivals are left.
        unsent: requests that this process could not send, by reason.
    """

    def __init__(self, plan: Plan, start: float, index: int, count: int) -> None:
        self.plan, self.start, self.index, self.count = plan, start, index, count
        self.end = plan.seconds
        self.recording = Recording()
        self.under_way = 0
        self.unsent: Counter[str] = Counter()
        self._busy_since: tuple[float, float] | None = None

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        return perf_counter() - self.start

    def take(self) -> dict[str, Any]:
        """What was recorded since the last time."""
        told, self.recording = self.recording.to_json(), Recording()
        return told

    def wait_for_start(self) -> None:
        """Sleep until second 0."""
        gevent.sleep(max(0.0, -self.now))

    def wait_for_end(self) -> float:
        """Sleep until no request is due or under way any more.

        Returns:
            The share of a core that this process took while requests were due.
        """
        self.wait_for_start()
        cpu, wall = process_time(), perf_counter()
        while self.now < self.end:
            gevent.sleep(min(_POLL_SECONDS, self.end - self.now + 0.001))
        busy = (process_time() - cpu) / max(perf_counter() - wall, 1e-9)
        while self.under_way and self.now < self.end + _GRACE_SECONDS:
            gevent.sleep(_POLL_SECONDS)
        return busy


class Collection:
    """What all processes found.

    Args:
        plan: of the run.
        started: second 0 by the wall clock, in seconds since 1970.
        processes: that were told to take part.
    """

    def __init__(self, plan: Plan, started: float, processes: int) -> None:
        self.plan, self.started, self.processes = plan, started, processes
        self.recording = Recording()
        self._finished: dict[int, Mapping[str, Any]] = {}
        self._unsent: Counter[str] = Counter()

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        return time.time() - self.started

    @property
    def finished(self) -> int:
        """How many processes have made their last report."""
        return len(self._finished)

    @property
    def complete(self) -> bool:
        """Whether all have."""
        return self.finished >= self.processes

    @property
    def overdue(self) -> bool:
        """Whether waiting for them makes no sense any more."""
        return self.now > self.plan.seconds + _GRACE_SECONDS + 5.0

    def finish(self, told: Mapping[str, Any]) -> None:
        """Take the last report of a process."""
        self.recording.merge(Recording.from_json(told["recording"]))
        self._unsent.update(told["unsent"])
        self._finished[told["index"]] = told

    @property
    def invalid(self) -> str:
        """Why the figures do not count; empty when they do."""
        total = self.recording.total()
        late = total.late.percentile(99)
        if not self.complete:
            if self.now < self.plan.seconds:
                return f"it was ended after {max(self.now, 0.0):.0f} of {self.plan.seconds:g} s"
            return f"{self.processes - self.finished} of {self.processes} processes did not report at the end"
        if not total.count:
            return "no request was sent"
        reasons = []
        if self._unsent:
            why = ", ".join(f"{count} × {reason}" for reason, count in self._unsent.most_common())
            reasons.append(f"{self._unsent.total()} of {total.count} requests could not be sent ({why})")
        if self.plan.loop == "open" and late > LATE_SECONDS:
            reasons.append(
                f"the generator did not keep up: p99 of sent − due is {1000 * late:.1f} ms; "
                f"at most {1000 * LATE_SECONDS:g} ms"
            )
        return "; ".join(reasons)

    def document(self) -> dict[str, Any]:
        """The content of ``run.json``, without what only the server knows."""
        plan = self.plan
        is_open = plan.loop == "open"
        asked = [
            {
                "start": stage.start,
                "end": stage.end,
                "rate": plan.rate * stage.factor if is_open else None,
                "users": None if is_open else users(plan.course, stage.start, plan.users),
            }
            for stage in plan.course
        ]
        about = {
            "shape": plan.shape,
            "loop": plan.loop,
            "arrivals": plan.arrivals if is_open else None,
            "rate": plan.rate if is_open else None,
            "users": None if is_open else plan.users,
            "seconds": plan.seconds,
            "host": plan.host,
            "started": datetime.fromtimestamp(self.started).astimezone().isoformat(timespec="milliseconds"),
            "machine": machine(),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "seed": plan.seed,
            "processes": self.processes,
            "weights": dict(plan.weights),
            "generator_busy": [round(told["busy"], 3) for _, told in sorted(self._finished.items())],
        }
        invalid = self.invalid
        recording = self.recording.to_json()
        return {"about": about, "valid": not invalid, "invalid": invalid, "stages": asked, "recording": recording}

    def line(self) -> str:
        """The figures that matter, in one line."""
        total = self.recording.total()
        response, service = (
            " / ".join(f"{1000 * times.percentile(q):.3g}" for q in (50, 99, 99.9))
            for times in (total.response, total.service)
        )
        invalid = f"; INVALID: {self.invalid}" if self.invalid else ""
        late = f", sent late p99 {1000 * total.late.percentile(99):.3g} ms" if self.plan.loop == "open" else ""
        return (
            f"{total.ok / self.plan.seconds:.4g} requests/s, {total.failed} of {total.count} failed; "
            f"ms p50 / p99 / p99.9 from due {response}, from sent {service}{late}{invalid}"
        )


class Session:
    """Runs of one Locust process, one after another.

    Args:
        environment: of Locust, with its runner.
        read_plan: gives the plan of a run that starts; asked anew each time, because Locust's page changes options.
        pool: requests of each route; empty in a process that only conducts.
        record: file to write what was found to; None for none.

    Attributes:
        part: of the run that is on, in a process that generates.
        collection: of the run that is on, in the process that conducts.
    """

    def __init__(
        self,
        environment: Environment,
        read_plan: Callable[[], Plan],
        pool: Mapping[str, Sequence[Payload]],
        record: Path | None,
    ) -> None:
        self._environment, self._read_plan, self._record = environment, read_plan, record
        self.pool = pool
        self._begin: Mapping[str, Any] = {}
        self.part: Part | None = None
        self.collection: Collection | None = None
        _sessions[environment] = self
        events: Any = environment.events  # Locust's hooks have no types
        runner = self._runner
        events.test_start.add_listener(self._start)
        if isinstance(runner, WorkerRunner):
            events.report_to_master.add_listener(self._report)
        else:
            events.test_stop.add_listener(self._stop)
            runner.register_message(_FINISHED, self._take_finish)
        if isinstance(runner, MasterRunner):
            events.worker_report.add_listener(self._take_report)
        else:
            runner.register_message(_BEGIN, self._take_begin)
            runner.register_message(_END, self._take_end)

    def tick(self) -> tuple[Plan, int, int] | None:
        """What there shall be now: the plan, the users of the closed loop, and the processes; None when all is over.

        Raises:
            ValueError: the options make no plan.
        """
        collection = None if self._runner.state == STATE_INIT else self.collection  # that of the run before
        processes = self._runner.worker_count
        plan, second = (self._read_plan(), 0.0) if collection is None else (collection.plan, collection.now)
        if collection is not None:
            # Those that were lost are not waited for.
            if collection.finished >= min(collection.processes, processes) or collection.overdue:
                return None
            self._end_steps(collection)
        last = math.nextafter(plan.seconds, 0.0)  # users stay until their last answers have come
        return plan, users(plan.course, min(max(second, 0.0), last), plan.users), processes

    def _end_steps(self, collection: Collection) -> None:
        """Tell all processes to send no more, once the service does not follow any more."""
        plan, second = collection.plan, collection.now
        if plan.shape != "steps" or not past_the_knee(collection.recording, plan.course, second, plan.asked_rate):
            return
        end = second + 0.5
        if end < plan.seconds:
            collection.plan = plan.until(end)
            self._runner.send_message(_END, {"second": end})

    @property
    def _runner(self) -> Any:  # noqa: ANN401 - the kinds of runners share no interface for what is used of them
        return self._environment.runner

    def _start(self, **_: object) -> None:
        if not isinstance(self._runner, WorkerRunner):
            self._conduct()
        if not isinstance(self._runner, MasterRunner) and self._begin:
            begin = self._begin
            start = perf_counter() + begin["started"] - time.time()
            self.part = Part(self._read_plan(), start, begin["index"], begin["count"])
            gevent.spawn(self._watch, self.part, begin["started"])

    def _conduct(self) -> None:
        """Agree on second 0 with all processes that generate."""
        runner = self._runner
        distributed = isinstance(runner, MasterRunner)
        clients = [*runner.clients.ready, *runner.clients.running] if distributed else [None]
        started = time.time() + (_DISTRIBUTED_LEAD_SECONDS if distributed else _LEAD_SECONDS)
        self.collection = Collection(self._read_plan(), started, len(clients))
        for index, client in enumerate(clients):
            told = {"started": started, "index": index, "count": len(clients)}
            runner.send_message(_BEGIN, told, client_id=client and client.id)

    def _watch(self, part: Part, started: float) -> None:
        busy = part.wait_for_end()
        told = {"started": started, "index": part.index, "busy": busy, "unsent": dict(part.unsent)}
        self._runner.send_message(_FINISHED, {**told, "recording": part.take()})

    def _stop(self, **_: object) -> None:
        collection = self.collection
        if collection is None:
            return
        if self.part is not None:
            self.part.end = min(self.part.end, self.part.now)
            if not collection.complete:
                collection.recording.merge(self.part.recording)
        print(collection.line(), flush=True)
        if self._record is not None:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            self._record.write_text(json.dumps(collection.document()), "utf-8")

    def _report(self, data: dict[str, Any], **_: object) -> None:
        if self.part is not None:
            data[_REPORT] = {"started": self._begin["started"], "recording": self.part.take()}

    def _take_report(self, data: Mapping[str, Any], **_: object) -> None:
        told = data.get(_REPORT)
        if told and self.collection is not None and told["started"] == self.collection.started:
            self.collection.recording.merge(Recording.from_json(told["recording"]))

    def _take_finish(self, msg: Message, **_: object) -> None:
        if self.collection is not None and msg.data["started"] == self.collection.started:
            self.collection.finish(msg.data)

    def _take_begin(self, msg: Message, **_: object) -> None:
        self._begin = msg.data

    def _take_end(self, msg: Message, **_: object) -> None:
        if self.part is not None:
            self.part.end = min(self.part.end, msg.data["second"])


def session_of(environment: Environment) -> Session | None:
    """The session of a Locust process; None if it was started from another locustfile."""
    return _sessions.get(environment)


_sessions: WeakKeyDictionary[Environment, Session] = WeakKeyDictionary()


def machine() -> dict[str, Any]:
    """What the figures hold for: processor, cores, system, Python, and how busy it was before."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
