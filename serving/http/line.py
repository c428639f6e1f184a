"""The request line: what happens to a request between the socket and the model, and back."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar

from serving.errors import PROBLEM_JSON, DeadlineError, InternalError, OverloadedError, Problem, UnavailableError
from serving.http.messages import Reply, Request
from serving.http.receive import ClientGoneError
from serving.metrics import Metrics
from serving.predictor import Predictor
from serving.repository import Repository, load_repository
from serving.session import usable_cores
from serving.settings import Settings
from serving.tasks import Endpoint, Limits, Query
from serving.tracing import Tracer, current_trace

logger = logging.getLogger("sextant.http")

Gone: TypeAlias = Callable[[], Awaitable[None]]
"""Returns when the client has closed the connection."""
T = TypeVar("T")

_FLUSH_SECONDS = 1.0
"""How old the figures of the other workers are, at most, when one is asked for ``/metrics``."""
_WATCH_AFTER_SECONDS = 0.05
"""After which it is worth a task to notice that a client has gone: the task costs 20 µs, and most answers take less
than that."""
_INLINE_BYTES = 8 * 1024
"""A body up to this is read on the event loop: less than a millisecond, even for a PNG that is nothing but
compressed white. A larger one is read in a thread, so that the others need not wait for it."""
_LEAST_THREADS = 2
"""That read and encode what is large. Each may hold a decoded picture of the largest size and its copies, 100 MB, so
more than there are cores would cost memory and gain nothing; one alone would have all wait for the largest."""
_INLINE_OUTPUT_BYTES = 64 * 1024
"""Outputs up to this are encoded on the event loop; more are pictures, a PNG file each at 0.05 ms or more."""


class RequestLine:
    """Answers requests with the models of a repository, which it loads in the background.

    Args:
        settings: of the server.
        metrics_folder: in which ``prometheus_client`` keeps the metrics of all workers; None for one alone.

    Attributes:
        tracer: sends spans; None unless that is set.
    """

    def __init__(self, settings: Settings, metrics_folder: str | None = None) -> None:
        self.settings = settings
        self._metrics_folder = metrics_folder
        self.tracer: Tracer | None = None
        self._limits = Limits(settings.max_image_pixels, settings.max_rows, settings.max_samples)
        self._metrics: Metrics | None = None
        self._repository: Repository | None = None
        self._loading: asyncio.Task[None] | None = None
        threads = max(_LEAST_THREADS, usable_cores() // settings.workers)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="codec")

    def start(self, routes: Iterable[str] = ()) -> asyncio.Task[None]:
        """Begin to load the models; until they are, everything is answered 503.

        Args:
            routes: whose troubles are to be seen in the metrics from the first one on.

        Returns:
            What ends when loading is over, whatever came of it.
        """
        loop = asyncio.get_running_loop()
        if usable_cores() // self.settings.workers <= 1:
            _take_turns()
        if self.settings.metrics:
            self._metrics = Metrics(folder=self._metrics_folder)
            for route in routes:
                self._metrics.expect(route)
            loop.call_later(_FLUSH_SECONDS, self._flush_again)
        if self.settings.otlp_endpoint:
            self.tracer = Tracer(self.settings.otlp_endpoint)
        self._loading = loop.create_task(self._load())
        return self._loading

    async def _load(self) -> None:
        try:
            self._repository = await asyncio.to_thread(load_repository, self.settings, self._metrics)
        except Exception:
            logger.exception("the models cannot be loaded")
        # What is alive now stays: the collector of cyclic garbage need not walk it again, which would hold up
        # whoever asks meanwhile by 80 ms.
        gc.collect()
        gc.freeze()

    def refused(self, route: str) -> None:
        """Count a request that was refused before it came this far."""
        if self._metrics is not None:
            self._metrics.refused(route, "requests")
            self._metrics.answered(route, HTTPStatus.TOO_MANY_REQUESTS)

    def flush_metrics(self) -> None:
        """Make what was counted so far visible to ``/metrics``."""
        if self._metrics is not None:
            self._metrics.flush()

    def _flush_again(self) -> None:
        self.flush_metrics()
        asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._flush_again)

    async def stop(self) -> None:
        """Answer what waits with 503 and let the models go."""
        if self._loading is not None:
            await self._loading
        if self._repository is not None:
            self._repository.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)
        self._threads.shutdown(wait=False)
        self.flush_metrics()

    @property
    def alive(self) -> bool:
        """Whether nothing has died that only a new process could bring back."""
        return self._repository is None or self._repository.alive

    @property
    def ready(self) -> bool:
        """Whether every model that can be served has reproduced its golden answers, and there is one."""
        return self._repository is not None and self._repository.ready

    @property
    def repository(self) -> Repository:
        """The models.

        Raises:
            UnavailableError: they are still being loaded.
        """
        if self._repository is None:
            raise UnavailableError("The models are being loaded.")
        return self._repository

    async def answer(
        self, endpoint: Endpoint[Any], request: Request, deadline: float, gone: Gone | None = None
    ) -> Reply:
        """Answer one request: decode → preprocess → batch → run → postprocess.

        Args:
            endpoint: the route.
            request: received whole.
            deadline: when, on the monotonic clock, the answer is of no use any more.
            gone: watched while a dear model runs; the request is dropped when the client goes.

        Raises:
            Problem: what the client shall be told instead.
            ClientGoneError: there is nobody to tell.
        """
        started = time.perf_counter()
        repository, limits = self.repository, self._limits

        def read() -> tuple[Query, tuple[Predictor, ...], Any]:
            query = endpoint.decode(request, limits)
            models = endpoint.select(repository, query)
            return query, models, endpoint.preprocess(query, models, limits)

        query, models, inputs = (
            read() if len(request.body) <= _INLINE_BYTES else await self._in_thread(_in_time(read, deadline))
        )
        decoded = time.perf_counter()
        running = endpoint.run(inputs, models, deadline)
        if gone is None or all(model.inline for model in models):
            outputs = await running
        else:
            outputs = await _unless_gone(running, gone)
        computed = time.perf_counter()
        reply = (
            endpoint.postprocess(request, query, inputs, outputs, models)
            if sum(output.nbytes for output in outputs.values()) <= _INLINE_OUTPUT_BYTES
            else await self._in_thread(lambda: endpoint.postprocess(request, query, inputs, outputs, models))
        )

        encoded = time.perf_counter()
        if self._metrics is not None:
            self._metrics.decoded_and_encoded(endpoint.path, decoded - started, encoded - computed)
        if (trace := current_trace.get()) is not None:
            trace.stage("decode", started, decoded)
            trace.stage("encode", computed, encoded)
        return reply

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def reply(self, route: str, answering: Awaitable[Reply]) -> Reply:
        """Wait for an answer; whatever goes wrong becomes a problem reply. Timed, and counted by route and status."""
        started = time.perf_counter()
        try:
            reply = await answering
        except Problem as problem:
            if self._metrics is not None and isinstance(problem, OverloadedError):
                self._metrics.refused(route, problem.reason)
            reply = problem_reply(problem)
        except ClientGoneError:
            raise
        except Exception:
            id_ = uuid.uuid4().hex
            logger.exception("error %s answering %s", id_, route)
            reply = problem_reply(InternalError(id_))
        if self._metrics is not None:
            self._metrics.answered(route, reply.status, time.perf_counter() - started)
        return reply


def problem_reply(problem: Problem) -> Reply:
    """Render a problem as a reply."""
    return Reply(problem.body(), PROBLEM_JSON, problem.status.value, problem.headers)


def _take_turns() -> None:
    """Let a thread of this process that wakes up wait until the one that computes has had its turn.

    On a single core every request that comes would else take the core from the model, and its caches with it. At
    three times the capacity, with three of four requests refused, this raised what was answered from 0.77 to 1.06
    times the capacity. Threads that are started later inherit it.
    """
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _in_time(work: Callable[[], T], deadline: float) -> Callable[[], T]:
    """``work``, unless the deadline passes before its turn comes."""

    def work_in_time() -> T:
        if time.monotonic() > deadline:
            raise DeadlineError("The deadline passed before there was time to read the request.")
        return work()

    return work_in_time


async def _unless_gone(running: Coroutine[Any, Any, T], gone: Gone) -> T:
    """Wait for ``running``, but give it up when the client goes away."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    watch: asyncio.Future[None] | None = None

    def give_up(watch: asyncio.Future[None]) -> None:
        if not watch.cancelled() and task is not None:
            task.cancel()

    def begin() -> None:
        nonlocal watch
        watch = asyncio.ensure_future(gone())
        watch.add_done_callback(give_up)

    timer = loop.call_later(_WATCH_AFTER_SECONDS, begin)
    try:
        return await running
    except asyncio.CancelledError:
        if watch is not None and watch.done() and task is not None and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        timer.cancel()
        if watch is not None:
            watch.cancel()
