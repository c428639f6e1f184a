"""Where the microseconds of a request go, layer by layer: `make budget`.

Every layer is timed by itself on one core, the fastest of several goes:

* decode, preprocess, encode: the task's own functions, called with one request;
* model: one row of a batch of the size that the load-time profile chose;
* line: the front, the request line and the batcher with 16 requests at once and no server around them, less the above;
* HTTP: CPU time of a running server, a request, under 16 connections, less all of the above: uvicorn, its loop and
  the system's calls.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from tqdm import tqdm

from loadtests.generator import closed_loop
from loadtests.payloads import Payload, payloads
from loadtests.peers import PEERS
from loadtests.processes import ROOT, Server, cores, free_port, pinned
from loadtests.wire import Address, encode
from serving.http.drain import Drain
from serving.http.front import Front
from serving.http.line import RequestLine
from serving.http.messages import Request
from serving.http.receive import Message, Scope
from serving.predictor import Predictor
from serving.session import Session
from serving.settings import Settings, load_settings
from serving.tasks import Limits, discover

CASES = ("digit-raw", "digit-json", "digit-png", "image-png", "sentiment-230")
_AT_ONCE = 16
_GOES = 7
_SECONDS = 0.15


@dataclass(frozen=True)
class Budget:
    """Microseconds of one request."""

    http: float
    line: float
    decode: float
    preprocess: float
    model: float
    encode: float

    @property
    def total(self) -> float:
        """Of all layers."""
        return math.fsum(astuple(self))


def measure(names: Sequence[str], seconds: float = 1.0) -> dict[str, Budget]:
    """Time every layer of each kind of request.

    Args:
        names: of the payloads.
        seconds: each of several goes against the running server takes.
    """
    known = payloads()
    server_core, generator_core = cores()
    with pinned(server_core):
        inside = asyncio.run(_inside([known[name] for name in names]))
    outside = _outside(names, seconds, server_core, generator_core)
    return {
        name: Budget(outside[name] - passed, passed - sum(stages), *stages)
        for name, (passed, *stages) in inside.items()
    }


def table(budgets: dict[str, Budget]) -> str:
    """Markdown: a row a layer, a column a kind of request."""
    rows = [
        ("HTTP: uvicorn, loop, system calls", "http"),
        ("line: front, request line, batcher", "line"),
        ("decode", "decode"),
        ("preprocess", "preprocess"),
        ("model, one row of a batch", "model"),
        ("encode", "encode"),
        ("**together**", "total"),
    ]
    lines = [f"| µs of a core | {' | '.join(budgets)} |", f"| --- |{' ---: |' * len(budgets)}"]
    lines += [
        f"| {title} | {' | '.join(f'{getattr(budget, layer):.0f}' for budget in budgets.values())} |"
        for title, layer in rows
    ]
    return "\n".join(lines)


async def _inside(asked: Sequence[Payload]) -> dict[str, tuple[float, ...]]:
    """Microseconds by payload: of all that passes through the front; of decode, preprocess, model and encode."""
    line = RequestLine(load_settings({}))
    await line.start()
    endpoints = {endpoint.path: endpoint for endpoint in discover()}
    front = Front(line, endpoints.values(), _nothing, Drain(0, 1))
    limits = Limits(line.settings.max_image_pixels, line.settings.max_rows, line.settings.max_samples)
    found: dict[str, tuple[float, ...]] = {}
    for payload in tqdm(asked, desc="in process", leave=False):
        path, _, _ = payload.path.partition("?")
        endpoint = endpoints[path]
        request = Request("POST", path, media_type=payload.media_type, body=payload.body)
        query = endpoint.decode(request, limits)
        models = endpoint.select(line.repository, query)
        inputs = endpoint.preprocess(query, models, limits)
        outputs = await endpoint.run(inputs, models, time.monotonic() + 60)
        answer = functools.partial(endpoint.postprocess, request, query, inputs, outputs, models)
        found[payload.name] = (
            await _through(front, payload),
            _microseconds(functools.partial(endpoint.decode, request, limits)),
            _microseconds(functools.partial(endpoint.preprocess, query, models, limits)),
            _model(models[0], line.settings, inputs),
            _microseconds(answer),
        )
    await line.stop()
    return found


def _model(predictor: Predictor, settings: Settings, inputs: Any) -> float:  # noqa: ANN401 (rows, or texts)
    """Of one row at the profile's batch size."""
    manifest, profile = predictor.manifest, predictor.profile
    folder = settings.models_dir[0] / manifest.model / str(manifest.version)
    session = Session(folder, manifest, device=settings.device, threads=profile.threads)
    name = manifest.inputs[0].name
    row = inputs[name] if isinstance(inputs, dict) else inputs[0].ids[None]
    batch = {name: np.repeat(row, profile.batch_size, axis=0)}
    return _microseconds(lambda: session.run(batch)) / profile.batch_size


async def _through(front: Front, payload: Payload) -> float:
    """CPU time of the front and all behind it, a request, `_AT_ONCE` at a time."""
    path, _, query = payload.path.partition("?")
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), (b"content-type", payload.media_type.encode())],
    }
    body: Message = {"type": "http.request", "body": payload.body, "more_body": False}

    async def receive() -> Message:
        return body

    async def send(message: Message) -> None:
        if message.get("status", 200) != 200:
            raise RuntimeError(f"{payload.name} was answered {message['status']}")

    async def turn(requests: int) -> None:
        for _ in range(requests):
            await front(dict(scope), receive, send)

    best = float("inf")
    requests = 20
    for _ in range(_GOES):
        started = time.process_time()
        await asyncio.gather(*(turn(requests) for _ in range(_AT_ONCE)))
        spent = time.process_time() - started
        best = min(best, spent / requests / _AT_ONCE)
        requests = max(1, int(_SECONDS / best / _AT_ONCE))
    return best * 1e6


def _outside(
    names: Sequence[str], seconds: float, server_core: set[int] | None, generator_core: set[int] | None
) -> dict[str, float]:
    """CPU microseconds of a running server a request, by payload."""
    sextant = next(peer for peer in PEERS if peer.name == "sextant")
    port = free_port()
    address = Address("127.0.0.1", port)
    found: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as home,
        Server(sextant.command(sys.executable, port), port, Path(home), sextant.variables, server_core) as server,
        pinned(generator_core),
    ):
        for name in tqdm(names, desc="over HTTP", leave=False):
            request = sextant.requests[name]
            server.wait_until_ready(request)
            messages = [encode(address, request.method, request.path, request.body, request.media_type)]
            closed_loop(address, messages, connections=_AT_ONCE, seconds=seconds)
            spent: list[float] = []
            for _ in range(_GOES):
                before = server.usage().cpu_seconds
                result = closed_loop(address, messages, connections=_AT_ONCE, seconds=seconds)
                spent.append((server.usage().cpu_seconds - before) / len(result.done))
            found[name] = min(spent) * 1e6
    return found


def _microseconds(work: Callable[[], object]) -> float:
    """Of one call, the fastest of several goes."""
    best, calls = float("inf"), 1
    for _ in range(_GOES):
        started = time.perf_counter()
        for _ in itertools.repeat(None, calls):
            work()
        best = min(best, (time.perf_counter() - started) / calls)
        calls = max(1, int(_SECONDS / best))
    return best * 1e6


async def _nothing(*_: object) -> None:
    """Nothing is behind the front."""


def main(arguments: Sequence[str]) -> int:
    """Print the table for the kinds of request named, all by default."""
    unknown = set(arguments) - set(CASES)
    if unknown:
        print(f"loadtests.budget: {', '.join(sorted(unknown))} unknown; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    gc.freeze()
    logging.disable(logging.INFO)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    print(table(measure(arguments or CASES)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
