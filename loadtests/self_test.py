"""``python -m loadtests.self_test``: what the generator itself can do, measured on this machine in about a minute.

The server is as little of one as can be, on a core of its own where there are two, and answers every request with the
same digit; so what is slow or late is the generator. Printed are the highest rate of raw digits that one process keeps
up with, and how late it sends at half of the rate it must reach. ``--stall`` shows instead what each loop tells of
a server that stalls once, for a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import uvloop

from loadtests.peers import Request
from loadtests.processes import ROOT, Server, ServerError, cores, free_port, interruptible, pinned
from loadtests.record import Cell, Recording, upper_edges

LEAST_RATE: Final = 3000.0
"""Requests a second that one process must keep up with."""
LATE_MS: Final = 5.0
"""The most that p99 of sent − due may be at half of `LEAST_RATE`."""
STALL_RATE, STALL_SECONDS, STALL_LEAST_MS = 200.0, 1.0, 700.0
_GROWTH: Final = 1.25
BODY: Final = (
    b'{"model":"none","version":1,"predictions":[{"label":"7","index":7,"confidence":0.91,'
    b'"probabilities":[0.01,0.01,0.01,0.01,0.01,0.01,0.01,0.91,0.01,0.01]}]}'
)
ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


class Trivial(asyncio.Protocol):
    """A connection of the trivial server: reads whole requests, parses nothing of them but their length.

    Args:
        before_each: called before each answer.
    """

    def __init__(self, before_each: Callable[[], None]) -> None:
        self._before_each = before_each
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            _, found, rest = head.partition(b"\r\ncontent-length:")
            whole = end + 4 + (int(rest.partition(b"\r\n")[0]) if found else 0)
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            self._before_each()
            if self._transport is not None:
                self._transport.write(ANSWER)


def stall(after: float, seconds: float) -> Callable[[], None]:
    """Block once for ``seconds``, ``after`` seconds from the first call; the whole server, as a long pause does."""
    when: list[float] = []

    def perhaps() -> None:
        now = time.monotonic()
        if not when:
            when.append(now + after)
        elif now >= when[0]:
            when[0] = float("inf")
            time.sleep(seconds)

    return perhaps


async def serve(port: int, before_each: Callable[[], None]) -> None:
    """Answer on 127.0.0.1 until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Trivial(before_each), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


@contextmanager
def trivial_server(stall_after: float = 0.0) -> Iterator[str]:
    """Run the trivial server in a process of its own; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "loadtests.self_test", "--serve", str(port), "--stall-after", str(stall_after)]
    with (
        tempfile.TemporaryDirectory(prefix="trivial-") as home,
        Server(command, port, Path(home), {}, cores()[0]) as server,
    ):
        server.wait_until_ready(Request("GET", "/", "", b""))
        yield f"http://127.0.0.1:{port}"


def generate(url: str, *options: str) -> dict[str, Any]:
    """Run Locust with raw digits and these options; returns what it recorded.

    Raises:
        ServerError: it recorded nothing.
    """
    with tempfile.TemporaryDirectory(prefix="self-test-") as folder, pinned(cores()[1]):
        file = Path(folder) / "run.json"
        command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary"]
        told = ["--loglevel", "ERROR", "--host", url, "--route", "digit-raw", "--record", str(file), *options]
        done = subprocess.run([*command, *told], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
        if not file.is_file():
            raise ServerError(f"Locust recorded nothing and ended with {done.returncode}:\n{done.stderr.strip()}")
        recorded: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return recorded


def total(recorded: dict[str, Any]) -> Cell:
    """All requests of a run."""
    return Recording.from_json(recorded["recording"]).total()


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def measure(seconds: float) -> bool:
    """Print the generator's two figures; whether both are as good as they must be."""
    steady = ("--shape", "steady", "--minutes", str(seconds / 60))
    with trivial_server() as url:
        half = generate(url, *steady, "--rate", str(LEAST_RATE / 2))
        late = total(half).late.percentile(99)
        told = f"p99 of sent − due {_milliseconds(late)}; at most {LATE_MS:g} ms"
        print(f"late at {LEAST_RATE / 2:g}/s: {told}", flush=True)
        reached, rate = 0.0, LEAST_RATE
        while True:
            run = generate(url, *steady, "--rate", str(rate))
            found, busy = total(run), run["about"]["generator_busy"][0]
            kept_up = run["valid"] and not found.failed
            told = run["invalid"] or (f"{found.failed} failed" if found.failed else "kept up")
            late_there = _milliseconds(found.late.percentile(99))
            print(f"  {rate:.0f}/s: {told}; a core {busy:.0%} busy, late p99 {late_there}", flush=True)
            if not kept_up:
                break
            reached, rate = rate, rate * _GROWTH
    print(f"rate of one process: {reached:.0f} requests/s with raw digits; at least {LEAST_RATE:g}")
    return reached >= LEAST_RATE and 1000 * late <= LATE_MS


def show_stall(seconds: float) -> bool:
    """Print what each loop tells of a server that stalls; whether ours shows it."""
    print(f"a server that stalls once for {STALL_SECONDS:g} s in {seconds:g} s:")
    shape = ("--shape", "steady", "--minutes", str(seconds / 60))
    runs = {
        f"open loop, {STALL_RATE:g} requests/s": ("--rate", str(STALL_RATE)),
        "closed loop, 16 users": ("--loop", "closed", "--clients", "16"),
    }
    shown = []
    for name, options in runs.items():
        with trivial_server(stall_after=seconds / 2) as url:
            found = total(generate(url, *shape, *options)).response
        slow = int(found.counts[upper_edges() > 0.5].sum())
        times = ", ".join(f"p{q:g} {_milliseconds(found.percentile(q))}" for q in (50, 99, 99.9, 100))
        print(f"  {name:28} {found.count} requests, {slow} of them above 0.5 s; {times}", flush=True)
        shown.append(1000 * found.percentile(99.9))
    return shown[0] >= STALL_LEAST_MS


def main(arguments: Sequence[str]) -> int:
    """0 when the generator is as good as it must be, 1 when not, 2 for bad use."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.self_test", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, help="of each run (5; with --stall 20)")
    parser.add_argument("--stall", action="store_true", help="show what each loop tells of a server that stalls")
    parser.add_argument("--serve", type=int, metavar="PORT", help="be the trivial server")
    parser.add_argument("--stall-after", type=float, default=0.0, metavar="S", help="of the trivial server (0: never)")
    options = parser.parse_args(arguments)
    if options.seconds is not None and not 1 <= options.seconds < 3600:
        parser.error(f"--seconds: expected 1 to 3600, received {options.seconds:g}")
    if options.serve:
        before_each = stall(options.stall_after, STALL_SECONDS) if options.stall_after else (lambda: None)
        uvloop.run(serve(options.serve, before_each))
        return 0
    seconds = options.seconds or (20.0 if options.stall else 5.0)
    try:
        return 0 if (show_stall(seconds) if options.stall else measure(seconds)) else 1
    except ServerError as error:
        print(f"self_test: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(interruptible(main, sys.argv[1:]))
