"""The request line: what happens to a request between the socket and the model, and back."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from serving.errors import PROBLEM_JSON, InternalError, OverloadedError, Problem, UnavailableError
from serving.http.messages import Reply, Request
from serving.http.receive import ClientGoneError
from serving.metrics import Metrics
from serving.repository import Repository, load_repository
from serving.settings import Settings
from serving.tasks import Endpoint, Limits

logger = logging.getLogger("sextant.http")

Gone: TypeAlias = Callable[[], Awaitable[None]]
"""Returns when the client has closed the connection."""
T = TypeVar("T")

_INLINE_BYTES = 8 * 1024
"""A body up to this is read on the event loop: less than a millisecond, even for a PNG that is nothing but
compressed white. A larger one is read in a thread, so that the others need not wait for it."""


class RequestLine:
    """Answers requests with the models of a repository, which it loads in the background.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._limits = Limits(settings.max_image_pixels, settings.max_rows, settings.max_samples)
        self._metrics: Metrics | None = None
        self._repository: Repository | None = None
        self._loading: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load the models; until they are, everything is answered 503."""
        self._metrics = Metrics()
        self._loading = asyncio.get_running_loop().create_task(self._load(self._metrics))

    async def _load(self, metrics: Metrics) -> None:
        try:
            self._repository = await asyncio.to_thread(load_repository, self.settings, metrics)
        except Exception:
            logger.exception("the models cannot be loaded")

    async def stop(self) -> None:
        """Answer what waits with 503 and let the models go."""
        if self._loading is not None:
            await self._loading
        if self._repository is not None:
            self._repository.close()

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
        inline = len(request.body) <= _INLINE_BYTES

        query = (
            endpoint.decode(request, limits) if inline else await asyncio.to_thread(endpoint.decode, request, limits)
        )
        models = endpoint.select(repository, query)
        inputs = (
            endpoint.preprocess(query, models, limits)
            if inline
            else await asyncio.to_thread(endpoint.preprocess, query, models, limits)
        )
        decoded = time.perf_counter()
        running = endpoint.run(inputs, models, deadline)
        if gone is None or all(model.inline for model in models):
            outputs = await running
        else:
            outputs = await _unless_gone(running, gone)
        computed = time.perf_counter()
        reply = endpoint.postprocess(request, query, inputs, outputs, models)

        if self._metrics is not None:
            self._metrics.decoded_and_encoded(endpoint.path, decoded - started, time.perf_counter() - computed)
        return reply

    async def reply(self, route: str, answering: Awaitable[Reply]) -> Reply:
        """Wait for an answer; whatever goes wrong becomes a problem reply. Counted by route and status."""
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
            self._metrics.answered(route, reply.status)
        return reply


def problem_reply(problem: Problem) -> Reply:
    """Render a problem as a reply."""
    return Reply(problem.body(), PROBLEM_JSON, problem.status.value, problem.headers)


async def _unless_gone(running: Coroutine[Any, Any, T], gone: Gone) -> T:
    """Wait for ``running``, but cancel it when the client goes away."""
    work = asyncio.ensure_future(running)
    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGoneError
        return work.result()
    finally:
        work.cancel()
        watch.cancel()
