"""Batching: requests that arrive together run together.

One bounded queue a model, in the worker's own event loop. Work-conserving: as soon as the execution slot is
free, what is queued runs, up to the batch size that the load-time profile found best. Requests that the loop
read in the same turn are gathered by putting the release at the end of that turn, which costs no time.

A batch that is quick runs on the loop itself; a dear one in a thread, one at a time, so that the loop keeps
reading while it computes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.errors import DeadlineError, OverloadedError, UnavailableError
from serving.preprocessing import text
from serving.tracing import current_trace

Rows: TypeAlias = Mapping[str, NDArray[Any]]
"""Named arrays with one first axis, the rows."""
Run: TypeAlias = Callable[[Rows], Rows]

INLINE_SECONDS = 0.002
"""A batch that takes longer would hold up the loop, so it runs in a thread; the hop costs about 0.1 ms."""
_BATCH_SECONDS = 2e-5
"""What a batch costs beside the model: it is put together, released, divided and counted."""
_NEARLY_BEST = 1.1
_TRIES, _ROUNDS = 3, 5
_GAIN = 0.95
"""Of the best cost per row so far, for a larger batch to be a gain; after two that are none, no more are tried."""
_SIMILAR_LENGTH = 1.5
"""Rows share a batch when padding makes the shorter at most this many times as long."""

_LOOK_AHEAD = 64
"""Jobs among which rows of one length are sought."""


@dataclass(frozen=True)
class Profile:
    """What a model costs here, measured when it was loaded.

    Attributes:
        milliseconds: time of one batch, by its size.
        batch_size: the most rows worth running at once.
        threads: that a batch runs in.
        inline: whether batches of the chosen size run on the event loop.
        reason: why, in words.
    """

    milliseconds: Mapping[int, float]
    batch_size: int
    threads: int
    inline: bool
    reason: str

    @property
    def inline_rows(self) -> int:
        """The most rows that run on the event loop."""
        return int(INLINE_SECONDS / self.seconds_per_row) if self.inline else 0

    @property
    def seconds_per_row(self) -> float:
        """Cost of a row at the chosen batch size."""
        return self.milliseconds[self.batch_size] / 1000 / self.batch_size


def measure(run: Run, sample: Rows, *, largest: int, threads: int = 1, budget_seconds: float) -> Profile:
    """Time ``run`` at batch 1, 2, 4, … and choose the batch size.

    The smallest size within 10 % of the best cost per row is chosen: what is not gained in throughput should
    not be paid in latency. The sizes are timed in rounds and the fastest run of each counts, so that a busy moment
    of the machine falls on all of them. Sizes stop at ``largest``, when twice as many rows and four times as many
    cost as much a row, or when the next size would not fit into ``budget_seconds``.

    Args:
        run: the model.
        sample: at least one row; repeated to make the batches.
        largest: the most rows to try.
        threads: that ``run`` uses, to be said of it.
        budget_seconds: the most time to spend, about.
    """
    ends = time.perf_counter() + budget_seconds
    batches: dict[int, Rows] = {}
    times: dict[int, float] = {}
    size, useful = 1, 1
    stop = f"{largest} rows is the limit set"
    while size <= largest:
        batches[size] = {name: np.resize(array, (size, *array.shape[1:])) for name, array in sample.items()}
        times[size] = min(_timed(run, batches[size]) for _ in range(_TRIES))  # the first run of a shape allocates
        if _cost(times, size) <= _GAIN * _cost(times, useful):
            useful = size
        if size >= 4 * useful:
            stop = f"larger ones gain nothing ({_cost(times, size) * 1000:.3g} ms at {size})"
            break
        if time.perf_counter() + _ROUNDS * 2 * times[size] > ends:
            stop = f"larger ones take too long to try ({times[size] * 1000:.0f} ms at {size})"
            break
        size *= 2
    for _ in range(_ROUNDS):
        for size, batch in batches.items():
            if size <= 2 * useful and time.perf_counter() + times[size] < ends:
                times[size] = min(times[size], _timed(run, batch))
    best = min(_cost(times, size) for size in times)
    chosen = next(size for size in times if _cost(times, size) <= best * _NEARLY_BEST)
    inline = times[chosen] <= INLINE_SECONDS
    where = "on the event loop" if inline else f"in {threads} threads" if threads > 1 else "in a thread"
    return Profile(
        milliseconds={size: round(seconds * 1000, 4) for size, seconds in times.items()},
        batch_size=chosen,
        threads=threads,
        inline=inline,
        reason=(
            f"{times[chosen] / chosen * 1000:.3g} ms a row at {chosen}, within 10 % of the best; {stop}. "
            f"A batch takes {times[chosen] * 1000:.3g} ms and runs {where}."
        ),
    )


def _cost(times: Mapping[int, float], size: int) -> float:
    """Seconds a row in batches of ``size``."""
    return (times[size] + _BATCH_SECONDS) / size


def _timed(run: Run, batch: Rows) -> float:
    started = time.perf_counter()
    run(batch)
    return time.perf_counter() - started


class BatchObserver:
    """What a batcher reports, for the metrics; this one takes note of nothing."""

    def waiting(self, rows: int) -> None:
        """Take note of the rows waiting now."""

    def released(self, reason: str, rows: int, queued: Sequence[float]) -> None:
        """Take note of a batch: why it was let go, its rows, the seconds each request had waited."""

    def computed(self, seconds: float) -> None:
        """Take note of the time a batch ran."""


@dataclass(slots=True, eq=False)
class _Job:
    """Rows that run together, and who waits for them; times are on the monotonic clock."""

    inputs: Rows
    rows: int
    length: int
    alone: bool
    deadline: float
    result: asyncio.Future[Rows]
    arrived: float
    started: float = 0.0
    finished: float = 0.0
    batch: int = 0


class Batcher:
    """Runs what is submitted, in batches.

    Args:
        run: the model; called with at most ``batch_size`` rows, never twice at a time.
        observer: told of every batch.
        profile: what it costs: the most rows run at once, and which batches run on the event loop. The cost of a
            row is a first guess; what is measured replaces it.
        queue_rows: most rows waiting; more are refused.
        executor: a single thread to run dear batches in; None runs all on the event loop.
        ragged: the input whose rows differ in length, padded at the end with zeros when they share a batch.
        delay: seconds to wait for a batch to fill. 0 is right unless a batch costs hardly more than a row,
            as on a GPU.
    """

    def __init__(
        self,
        run: Run,
        observer: BatchObserver,
        profile: Profile,
        *,
        queue_rows: int,
        executor: Executor | None = None,
        ragged: str | None = None,
        delay: float = 0.0,
    ) -> None:
        self._run = run
        self._observer = observer
        self.batch_size = profile.batch_size
        self._queue_rows = queue_rows
        self._seconds_per_row = profile.seconds_per_row
        self._executor = executor
        self._inline_rows = math.inf if executor is None else profile.inline_rows
        self._ragged = ragged
        self._delay = delay
        # Enough to fill a batch, or to find rows of one length; all, and a long queue would cost more the longer.
        self._look_ahead = self.batch_size if ragged is None else max(self.batch_size, _LOOK_AHEAD)
        self._queue: deque[_Job] = deque()  # in order of arrival
        self._waiting = 0  # rows in the queue
        self._running = 0  # rows in the execution slot
        self._release: asyncio.Handle | None = None
        self._dead = ""

    @property
    def dead(self) -> str:
        """Why nothing can run any more; empty while all is well."""
        return self._dead

    async def submit(self, pieces: Sequence[Rows], deadline: float, *, alone: bool = False) -> list[Rows]:
        """Run every piece and return the outputs in the same order.

        Args:
            pieces: each of at most ``batch_size`` rows. Accepted or refused as a whole.
            deadline: when, on the monotonic clock, the answer is of no use any more.
            alone: share no batch with others, so that the answer depends on nothing but the piece.

        Raises:
            OverloadedError: the queue is full, or what is ahead in it takes longer than the deadline allows.
            DeadlineError: the deadline passed.
            UnavailableError: the batcher is closed.
        """
        jobs = self._accept(pieces, deadline, alone=alone)
        try:
            if all(job.rows <= self._inline_rows for job in jobs):  # soon done: no need for a timer
                outputs = [await job.result for job in jobs]
            else:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    outputs = [await job.result for job in jobs]
        except TimeoutError:
            raise DeadlineError("The deadline passed before the model had answered.") from None
        else:
            if (trace := current_trace.get()) is not None:
                # Its clock is another by name only.
                for job in jobs:
                    trace.stage("queue", job.arrived, job.started, rows=job.rows)
                    trace.stage("compute", job.started, job.finished, rows=job.batch)
            return outputs
        finally:
            for job in jobs:
                if not job.result.cancel() and not job.result.cancelled():
                    job.result.exception()  # seen: one failure of a request is enough

    def close(self, reason: str) -> None:
        """Answer everything that waits with 503, and accept nothing more."""
        self._dead = self._dead or reason
        if self._release is not None:
            self._release.cancel()
        jobs, self._queue, self._waiting = self._queue, deque(), 0
        for job in jobs:
            _fail(job, UnavailableError(f"The model cannot answer: {reason}."))

    def _accept(self, pieces: Sequence[Rows], deadline: float, *, alone: bool) -> list[_Job]:
        if self._dead:
            raise UnavailableError(f"The model cannot answer: {self._dead}.")
        counts = [_count(piece) for piece in pieces]
        wait = (self._waiting + self._running) * self._seconds_per_row
        retry_after = math.ceil(wait)
        if self._waiting and self._waiting + sum(counts) > self._queue_rows:
            raise OverloadedError(
                f"{self._waiting} rows are waiting for this model; at most {self._queue_rows} may.",
                retry_after,
                "queue",
            )
        now = time.monotonic()
        if now + wait + sum(counts) * self._seconds_per_row > deadline and self._waiting + self._running:
            raise OverloadedError(
                "What is already waiting for this model takes longer than the deadline allows.",
                retry_after,
                "deadline",
            )
        loop = asyncio.get_running_loop()
        jobs = [
            _Job(piece, count, self._length(piece), alone, deadline, loop.create_future(), now)
            for piece, count in zip(pieces, counts, strict=True)
        ]
        self._queue.extend(jobs)
        self._waiting += sum(counts)
        self._schedule()
        return jobs

    def _schedule(self) -> None:
        """If the slot is free, release a batch at the end of this turn of the loop, or after the delay."""
        if self._running or not self._queue:
            return
        if self._delay and self._waiting < self.batch_size:
            if self._release is None:
                left = self._queue[0].arrived + self._delay - time.monotonic()
                self._release = asyncio.get_running_loop().call_later(max(0.0, left), self._start)
            return
        if isinstance(self._release, asyncio.TimerHandle):
            self._release.cancel()
            self._release = None
        if self._release is None:
            self._release = asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._release = None
        batch, reason = self._take()
        self._observer.waiting(self._waiting)
        if not batch:
            self._schedule()
            return
        self._running = sum(job.rows for job in batch)
        now = time.monotonic()
        for job in batch:
            job.started, job.batch = now, self._running
        self._observer.released(reason, self._running, [now - job.arrived for job in batch])
        if self._running <= self._inline_rows:
            self._finish(batch, *self._execute(batch))
            return
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, self._execute, batch)
        except RuntimeError:  # the executor was shut down, or no thread can be started
            self._lose(batch)
            return
        future.add_done_callback(lambda done: self._finished(batch, done))

    def _take(self) -> tuple[list[_Job], str]:
        """Take the oldest job, and of those behind it the ones most like it in length, up to the batch size."""
        jobs = self._oldest()
        if not jobs:
            return [], ""
        batch, left = self._choose(jobs)
        self._queue.extendleft(reversed(left))
        rows = sum(job.rows for job in batch)
        self._waiting += sum(job.rows for job in left)
        if batch[0].alone:
            return batch, "alone"
        return batch, "full" if rows >= self.batch_size else "delay" if self._delay else "idle"

    def _oldest(self) -> list[_Job]:
        """Take the first few jobs out of the queue, but for those whom an answer would not reach any more."""
        jobs: list[_Job] = []
        now = time.monotonic()
        while self._queue and len(jobs) < self._look_ahead:
            job = self._queue.popleft()
            self._waiting -= job.rows
            if job.result.done():
                continue
            if job.deadline < now:
                _fail(job, DeadlineError("The deadline passed before the model was free."))
            else:
                jobs.append(job)
        return jobs

    def _choose(self, jobs: list[_Job]) -> tuple[list[_Job], list[_Job]]:
        """Divide jobs into those that run with the first one, and the others in their order."""
        first = jobs[0]
        if first.alone:
            return [first], jobs[1:]
        # The sort is stable: of the same length, who came first goes first.
        like_first = sorted(jobs, key=lambda job: abs(job.length - first.length)) if first.length else jobs
        batch: list[_Job] = []
        rows = 0
        for job in like_first:
            similar = max(job.length, first.length) <= _SIMILAR_LENGTH * min(job.length, first.length)
            if similar and not job.alone and rows + job.rows <= self.batch_size:
                batch.append(job)
                rows += job.rows
        taken = set(map(id, batch))
        return batch, [job for job in jobs if id(job) not in taken]

    def _execute(self, batch: list[_Job]) -> tuple[list[Rows | Exception], float]:
        """Run a batch; if it fails, run each job by itself, so that one bad row fails alone."""
        started = time.perf_counter()
        try:
            outputs = self._run(self._join([job.inputs for job in batch]))
        except Exception as error:  # noqa: BLE001 (whatever a runtime raises, the waiting must learn of it)
            if len(batch) == 1:
                return [error], time.perf_counter() - started
            results: list[Rows | Exception] = []
            for job in batch:
                results += self._execute([job])[0]
            return results, time.perf_counter() - started
        return _split(outputs, [job.rows for job in batch]), time.perf_counter() - started

    def _length(self, piece: Rows) -> int:
        """Length of ragged rows; 0 when all rows have one shape."""
        return 0 if self._ragged is None else piece[self._ragged].shape[1]

    def _join(self, pieces: Sequence[Rows]) -> Rows:
        if len(pieces) == 1:
            return pieces[0]
        return {
            name: text.pad([row for piece in pieces for row in piece[name]])
            if name == self._ragged
            else np.concatenate([piece[name] for piece in pieces])
            for name in pieces[0]
        }

    def _finished(self, batch: list[_Job], done: asyncio.Future[tuple[list[Rows | Exception], float]]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._lose(batch)
        else:
            self._finish(batch, *done.result())

    def _finish(self, batch: list[_Job], results: list[Rows | Exception], seconds: float) -> None:
        self._observer.computed(seconds)
        # Half old, half new: follows a machine that gets busier, and forgives one slow batch.
        self._seconds_per_row = (self._seconds_per_row + seconds / self._running) / 2
        self._running = 0
        now = time.monotonic()
        for job, result in zip(batch, results, strict=True):
            job.finished = now
            if isinstance(result, Exception):
                _fail(job, result)
            elif not job.result.done():
                job.result.set_result(result)
        self._schedule()

    def _lose(self, batch: list[_Job]) -> None:
        """The executor is gone: leave nobody waiting."""
        self._running = 0
        self.close("its worker thread has died")
        for job in batch:
            _fail(job, UnavailableError(f"The model cannot answer: {self._dead}."))


def _fail(job: _Job, error: Exception) -> None:
    if not job.result.done():
        job.result.set_exception(error)


def _count(piece: Rows) -> int:
    return len(next(iter(piece.values())))


def _split(outputs: Rows, counts: Sequence[int]) -> list[Rows | Exception]:
    if len(counts) == 1:
        return [outputs]
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for count, end in zip(counts, accumulate(counts), strict=True)
    ]
