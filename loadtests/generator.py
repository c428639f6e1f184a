"""A load generator for HTTP/1.1 on this machine: closed loop, or open loop by the clock.

python -m loadtests.generator http://127.0.0.1:3000/v1/digit --body-file seven.png --media-type image/png

The closed loop keeps a number of connections busy, each sending when its last answer has come: it finds what a
server can do, but a server that stalls is sent nothing meanwhile, so the stall costs a handful of answers. In the open
loop requests are due by the clock whatever the answers do, as users' are, and a response counts from when its request
was due (Tene, "How NOT to Measure Latency"; wrk2). One process, one core, uvloop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import resource
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from loadtests.clock import arrival_times
from loadtests.loops import ClosedLoop, OpenLoop
from loadtests.result import Result
from loadtests.wire import Address, AddressError, encode, local_address

GRACE_SECONDS = 10.0
MAX_CONNECTIONS = 8192


def closed_loop(
    address: Address,
    messages: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    warm_up: float = 0.0,
    grace: float = GRACE_SECONDS,
    required: Mapping[int, bytes] | None = None,
) -> Result:
    """Keep ``connections`` busy for ``warm_up`` and then ``seconds``.

    Args:
        messages: encoded requests, sent in turn.
        grace: seconds that answers may take after the end.
        required: header that answers of a status must have, by status; lower case.
    """
    loop = ClosedLoop(address, messages, required or {}, connections)
    return _run(loop.run((warm_up, warm_up + seconds), grace))


def open_loop(
    address: Address,
    messages: Sequence[bytes],
    due: NDArray[np.float64],
    *,
    seconds: float | None = None,
    warm_up: float = 0.0,
    grace: float = GRACE_SECONDS,
    required: Mapping[int, bytes] | None = None,
    max_connections: int = MAX_CONNECTIONS,
) -> Result:
    """Send a request at each of the times ``due``, whatever the answers do.

    Args:
        messages: encoded requests, sent in turn.
        due: (requests,) ascending seconds from the start, see ``arrival_times``.
        seconds: length of the window after ``warm_up``; by default a mean interval beyond the last request.
        grace: seconds that answers may take after the end.
        required: header that answers of a status must have, by status; lower case.
        max_connections: each request takes a free connection or opens another, up to so many; then it waits, and its
            delay shows in ``Result.late``.
    """
    end = float(due[-1] + (due[-1] - due[0]) / max(len(due) - 1, 1) + 1e-3) if seconds is None else warm_up + seconds
    loop = OpenLoop(address, messages, required or {}, due, max_connections)
    return _run(loop.run((warm_up, end), grace))


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run on uvloop, with as many open files as allowed and without collections, whose pauses would be measured."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with _no_collections(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _number(kind: Callable[[str], float], least: float, *, above: bool = False) -> Callable[[str], Any]:
    """A parser of numbers from ``least`` on, or ``above`` it."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least < value < 1e9 or (value == least and not above):
                return value
        what = "whole number" if kind is int else "number"
        bound = f"above {least:g}" if above else f"of at least {least:g}"
        raise argparse.ArgumentTypeError(f"expected a {what} {bound}, received {text!r}")

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.generator", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="http://127.0.0.1:PORT/PATH; addresses of this machine only")
    parser.add_argument("--connections", type=_number(int, 1), default=16, help="of the closed loop (%(default)s)")
    parser.add_argument("--seconds", type=_number(float, 0, above=True), default=5.0, help="measured (%(default)s)")
    parser.add_argument("--warm-up", type=_number(float, 0), default=1.0, help="seconds before that (%(default)s)")
    parser.add_argument("--rate", type=_number(float, 0, above=True), help="open loop: requests a second, by the clock")
    parser.add_argument("--arrivals", choices=["constant", "poisson"], default="constant", help="open loop")
    parser.add_argument("--body-file", type=Path, action="append", default=[], help="several are sent in turn")
    parser.add_argument("--media-type", default="application/octet-stream", help="of the bodies (%(default)s)")
    parser.add_argument("--method", help="POST with a body, GET without")
    parser.add_argument("--json", action="store_true", help="every figure, in place of the line")
    return parser


def main(arguments: list[str]) -> int:
    """0 when there were answers, 1 when there was none, 2 for bad use."""
    options = _parser().parse_args(arguments)
    try:
        address, path = local_address(options.url)
        socket.create_connection((address.host, address.port), timeout=5).close()
        bodies = [file.read_bytes() for file in options.body_file]
    except AddressError as error:
        return _bad_use(str(error))
    except OSError as error:
        what = error.filename or f"no server at {options.url}"
        return _bad_use(f"{what}: {error.strerror or error}")
    method = options.method or ("POST" if bodies else "GET")
    media_type = options.media_type if bodies else ""
    messages = [encode(address, method, path, body, media_type) for body in bodies or [b""]]
    if options.rate is None:
        result = closed_loop(
            address, messages, connections=options.connections, seconds=options.seconds, warm_up=options.warm_up
        )
    else:
        due = arrival_times(options.rate, options.warm_up + options.seconds, options.arrivals)
        result = open_loop(address, messages, due, seconds=options.seconds, warm_up=options.warm_up)
    print(json.dumps(result.summary(), indent=2) if options.json else result.line())
    return 0 if result.by_status else 1


def _bad_use(message: str) -> int:
    print(f"loadtests.generator: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
