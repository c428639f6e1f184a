"""The two ways in which requests follow one another: after the last answer, or by the clock."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from array import array
from collections import Counter, deque
from collections.abc import Coroutine, Mapping, Sequence
from itertools import cycle
from time import perf_counter, process_time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loadtests.clock import Alarm
from loadtests.result import Result
from loadtests.wire import Address, Connection, Traffic

_RECONNECT_SECONDS = 0.02


class Loop(ABC):
    """What both loops do: connect, take notes, and make a result of them."""

    kind: Literal["closed", "open"]

    def __init__(self, address: Address, messages: Sequence[bytes], required: Mapping[int, bytes]) -> None:
        self._address = address
        self._messages = cycle(messages)
        self._traffic = Traffic(required)
        self._start = 0.0
        self._due, self._sent, self._done, self._late = (array("d") for _ in range(4))
        self._status = array("h")
        self._errors: Counter[str] = Counter()
        self._connections: set[Connection] = set()
        self._most = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, window: tuple[float, float], grace: float) -> Result:
        """Send until the window's end, in seconds from now, and wait for answers for at most ``grace`` seconds."""
        self._start = perf_counter()
        await self._begin()
        await self._sleep_until(window[0])
        cpu, wall = process_time(), perf_counter()
        await self._sleep_until(window[1])
        busy = (process_time() - cpu) / (perf_counter() - wall)
        self._end()
        # An event in place of asking would have to be looked after at every answer.
        while self._waiting and perf_counter() < self._start + window[1] + grace:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        unanswered = self._waiting
        for task in self._tasks:
            task.cancel()
        for connection in self._connections:
            connection.close()
        await asyncio.sleep(0)  # let them go
        due, sent, done = (np.array(times) - self._start for times in (self._due, self._sent, self._done))
        return Result(
            loop=self.kind,
            window=window,
            due=due,
            sent=sent,
            done=done,
            status=np.array(self._status, np.int16),
            late=np.array(self._late),
            errors=dict(self._errors),
            unanswered=unanswered,
            missing_headers=self._traffic.missing_headers,
            received_bytes=self._traffic.received_bytes,
            connections=self._most,
            busy=busy,
        )

    def answered(self, connection: Connection, status: int) -> None:
        """Take note of an answer and go on."""
        self._due.append(connection.due)
        self._sent.append(connection.sent)
        self._done.append(perf_counter())
        self._status.append(status)
        if not connection.reusable:
            self._connections.discard(connection)
        self._next(connection)

    def lost(self, connection: Connection, reason: str) -> None:
        """Take note of an error and go on."""
        self._connections.discard(connection)
        self._errors[reason] += 1
        self._next(connection)

    @property
    @abstractmethod
    def _waiting(self) -> int:
        """Requests under way or due, still without an answer."""

    @abstractmethod
    async def _begin(self) -> None:
        """Send the first requests, or see to it that they are."""

    @abstractmethod
    def _end(self) -> None:
        """Send no more."""

    @abstractmethod
    def _next(self, connection: Connection) -> None:
        """Go on after an answer or an error; the connection may be of no more use."""

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> Connection | None:
        """Open another connection; None, and an error noted, when that does not succeed."""
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self, self._traffic), self._address.host, self._address.port
            )
        except OSError as error:
            self._errors["refused" if isinstance(error, ConnectionRefusedError) else "not connected"] += 1
            return None
        self._connections.add(connection)
        self._most = max(self._most, len(self._connections))
        return connection

    async def _sleep_until(self, time: float) -> None:
        while (left := self._start + time - perf_counter()) > 0:  # noqa: ASYNC110 (a sleep may end a little early)
            await asyncio.sleep(left)


class ClosedLoop(Loop):
    """Connections that each send when their last request was answered."""

    kind = "closed"

    def __init__(
        self, address: Address, messages: Sequence[bytes], required: Mapping[int, bytes], connections: int
    ) -> None:
        super().__init__(address, messages, required)
        self._wanted = connections
        self._running = True

    @property
    def _waiting(self) -> int:
        return sum(connection.busy for connection in self._connections)

    async def _begin(self) -> None:
        for _ in range(self._wanted):
            self._spawn(self._open())

    def _end(self) -> None:
        self._running = False

    def _next(self, connection: Connection) -> None:
        if not self._running:
            return
        if connection.reusable:
            connection.send(next(self._messages))
        else:
            self._spawn(self._open())

    async def _open(self) -> None:
        while self._running:
            if (connection := await self._connect()) is not None:
                self._next(connection)
                return
            await asyncio.sleep(_RECONNECT_SECONDS)  # a server that is not there is not asked in a tight loop


class OpenLoop(Loop):
    """Requests that are sent when they are due, on a free connection or another one."""

    kind = "open"

    def __init__(
        self,
        address: Address,
        messages: Sequence[bytes],
        required: Mapping[int, bytes],
        due: NDArray[np.float64],
        max_connections: int,
    ) -> None:
        super().__init__(address, messages, required)
        self._times: deque[float] = deque(due.tolist())
        self._requests = len(due)
        self._free: list[Connection] = []
        self._queue: deque[float] = deque()  # due, but no connection may be opened for them
        self._opening = 0
        self._max_connections = max_connections
        self._alarm: Alarm | None = None

    @property
    def _waiting(self) -> int:
        return self._requests - len(self._times) - len(self._done) - sum(self._errors.values())

    async def _begin(self) -> None:
        self._alarm = Alarm(asyncio.get_running_loop(), self._arrivals)
        self._arrivals()

    def _end(self) -> None:
        assert self._alarm is not None  # noqa: S101 (set when the run begins)
        self._arrivals()  # what became due since the alarm was last heard
        self._alarm.close()

    def _arrivals(self) -> None:
        """Send what is due, and wake up for the next."""
        times, start = self._times, self._start
        while times:
            due = start + times[0]
            if due > perf_counter():
                assert self._alarm is not None  # noqa: S101 (set when the run begins)
                self._alarm.set(due)
                return
            times.popleft()
            self._arrive(due)

    def _arrive(self, due: float) -> None:
        while self._free:
            connection = self._free.pop()
            if connection.reusable:  # the server may have closed it meanwhile
                connection.send(next(self._messages), due)
                self._late.append(connection.sent - due)
                return
            self._connections.discard(connection)
        if len(self._connections) + self._opening < self._max_connections:
            self._opening += 1
            # From here on it is the server that takes its time to accept, not the generator.
            self._late.append(perf_counter() - due)
            self._spawn(self._open(due))
        else:
            self._queue.append(due)

    def _next(self, connection: Connection) -> None:
        if connection.reusable:
            self._free.append(connection)
        if self._queue:
            self._arrive(self._queue.popleft())

    async def _open(self, due: float) -> None:
        try:
            connection = await self._connect()
        finally:
            self._opening -= 1
        if connection is not None:
            connection.send(next(self._messages), due)
        elif self._queue:
            self._arrive(self._queue.popleft())
