"""Requests that are sent when they are due, whatever the answers do: the open loop inside Locust.

Users of a website do not know of each other: while the server stalls for a second, those of that second come all the
same, and wait. A closed loop sends nothing meanwhile, and so the stall costs it one answer a connection ("coordinated
omission": Tene, "How NOT to Measure Latency"). Here a response counts from when its request was due, and Locust's own
statistics and page are told that figure too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import gevent  # type: ignore[import-untyped]
from locust import User, task
from locust.exception import CatchResponseError, StopUser

from loadtests.checks import check
from loadtests.clock import Alarm
from loadtests.connection import TIMEOUT_SECONDS, Connection, Failure, Target
from loadtests.mix import in_turn
from loadtests.payloads import Payload
from loadtests.session import Part, session_of
from loadtests.shapes import arrivals

if TYPE_CHECKING:
    import asyncio

MAX_CONNECTIONS: Final = 8000
"""Of one process; Locust raises the limit of open files to 10 000."""
IDLE_SECONDS: Final = 4.0
"""After which a connection is let go, as clients do before servers would: Apache, Node.js and uvicorn after 5 s. A
request that is sent just as the server closes is lost, and says nothing of how it serves."""
_NO_CONNECTION: Final = f"not sent: {MAX_CONNECTIONS} connections in use"
_SWEEP_SECONDS: Final = 0.5

Report = Callable[[Payload, float, int, str | None], None]
"""Told of each request: what it was, seconds from when it was due, bytes of the answer, why it failed."""


class OpenLoop:
    """Sends one process's part of a run.

    Args:
        part: of the run; what happens is recorded there.
        target: the server.
        due: seconds from the start of the run, ascending.
        payloads: without end, sent in turn.
        report: told of every request too.
    """

    def __init__(
        self, part: Part, target: Target, due: Iterator[float], payloads: Iterator[Payload], report: Report
    ) -> None:
        self._part, self._target, self._times, self._payloads, self._report = part, target, due, payloads, report
        self._messages: dict[int, bytes] = {}
        self._free: deque[Connection] = deque()  # the one that was used last at the end
        self._busy: set[Connection] = set()
        self._next: float | None = None
        self._failure: Exception | None = None
        # The alarm asks nothing of an event loop but to call back, which gevent's does as well as asyncio's.
        self._alarm = Alarm(cast("asyncio.AbstractEventLoop", GeventLoop()), self._ring)

    def run(self) -> None:
        """Send all that becomes due, and wait for the answers.

        Raises:
            Exception: whatever went wrong here; what goes wrong with a request is recorded.
        """
        part = self._part
        self._next = next(self._times, None)
        part.under_way += 1  # the arrivals to come
        try:
            self._ring()
            while part.now < part.end or part.under_way:
                gevent.sleep(_SWEEP_SECONDS if part.now < part.end - _SWEEP_SECONDS else 0.02)
                if self._failure is not None:
                    raise self._failure
                self._sweep()
        finally:
            self.close()

    def close(self) -> None:
        """Send nothing more and let all connections go."""
        self._alarm.close()
        for connection in (*self._free, *self._busy):
            connection.close()

    def answered(self, connection: Connection, status: int, headers: Mapping[str, Any], body: bytes) -> None:
        """Record an answer and keep the connection for another request."""
        payload = connection.payload
        assert payload is not None  # noqa: S101 - it was sent
        done = self._part.now
        if connection.usable:
            self._free.append(connection)
        error = check(payload.name, payload, status, headers, body)
        self._over(connection, payload, done, len(body), error, waited=True)

    def failed(self, connection: Connection, failure: Failure) -> None:
        """Record that a request has no answer."""
        payload = connection.payload
        assert payload is not None  # noqa: S101 - it was sent
        if failure.unsent:
            self._part.unsent[failure.reason] += 1
        self._over(connection, payload, self._part.now, 0, failure.reason, waited=failure.waited)

    def _over(
        self, connection: Connection, payload: Payload, done: float, length: int, error: str | None, *, waited: bool
    ) -> None:
        part = self._part
        self._busy.discard(connection)
        part.under_way -= 1
        due, sent = connection.due - part.start, connection.sent - part.start
        part.recording.add(payload.name, due, sent, done, error, waited=waited)
        self._report(payload, done - due, length, error)

    def _ring(self) -> None:
        """Send what is due, and be called again for the next; called by the event loop, which swallows errors."""
        try:
            self._arrive()
        except Exception as error:  # noqa: BLE001 - raised where somebody waits for it
            self._failure = error

    def _arrive(self) -> None:
        part = self._part
        while self._next is not None and self._next < part.end:
            if self._next > part.now:
                self._alarm.set(part.start + self._next)
                return
            self._send(self._next)
            self._next = next(self._times, None)
        part.under_way -= 1  # nothing more will come

    def _send(self, due: float) -> None:
        """Send the next request on a free connection, or on another one."""
        part, payload = self._part, next(self._payloads)
        while self._free:
            connection = self._free.pop()
            if connection.usable:  # the server may have closed it meanwhile
                break
        else:
            if len(self._busy) >= MAX_CONNECTIONS:
                part.unsent[_NO_CONNECTION] += 1
                part.recording.add(payload.name, due, part.now, part.now, _NO_CONNECTION, waited=False)
                self._report(payload, part.now - due, 0, _NO_CONNECTION)
                return
            connection = Connection(self._target, self)
        self._busy.add(connection)
        part.under_way += 1
        connection.send(payload, self._message(payload), part.start + due)

    def _message(self, payload: Payload) -> bytes:
        # Payloads live in their pools as long as the run; hashing one means hashing its body.
        message = self._messages.get(id(payload))
        if message is None:
            message = self._messages[id(payload)] = self._target.encode(payload)
        return message

    def _sweep(self) -> None:
        """Give up what has waited too long, and let go of what was not needed for long."""
        now = self._part.start + self._part.now
        for connection in [one for one in self._busy if one.sent < now - TIMEOUT_SECONDS]:
            connection.give_up()
        while self._free and self._free[0].idle_since < now - IDLE_SECONDS:
            self._free.popleft().close()


class GeventLoop:
    """gevent's event loop with the few methods of asyncio's that `loadtests.clock.Alarm` calls."""

    def __init__(self) -> None:
        self._loop = gevent.get_hub().loop
        self._watchers: dict[int, Any] = {}

    def add_reader(self, number: int, callback: Callable[[], None]) -> None:
        """Call back when a file can be read."""
        self._watchers[number] = self._loop.io(number, 1)
        self._watchers[number].start(callback)

    def remove_reader(self, number: int) -> None:
        """Do so no more."""
        watcher = self._watchers.pop(number)
        watcher.stop()
        watcher.close()

    def call_later(self, delay: float, callback: Callable[[], None]) -> SimpleNamespace:
        """Call back after a time; ``cancel`` of what is returned takes that back."""
        timer = self._loop.timer(delay)
        timer.start(callback)
        return SimpleNamespace(cancel=timer.stop)


class Arrivals(User):
    """The one user of a process in the open loop: it stands for all who come by the clock."""

    @task
    def run_part(self) -> None:
        """Send this process's part of the run, once."""
        session = session_of(self.environment)
        if session is None or session.part is None:
            raise StopUser  # a process that has joined when the run was on
        part, plan = session.part, session.part.plan
        due = arrivals(plan.course, plan.rate, plan.arrivals, seed=plan.seed, index=part.index, count=part.count)
        payloads = in_turn(session.pool, plan.weights, f"{plan.seed} {part.index}")
        part.wait_for_start()
        OpenLoop(part, Target(plan.host), due, payloads, self._report).run()
        raise StopUser

    def _report(self, payload: Payload, seconds: float, length: int, error: str | None) -> None:
        """Tell Locust's own statistics."""
        self.environment.events.request.fire(
            request_type=payload.method,
            name=payload.name,
            response_time=1000 * seconds,
            response_length=length,
            exception=None if error is None else CatchResponseError(error),
            context={},
        )
