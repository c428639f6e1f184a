"""The server under load: found where it was said to be, or started for the purpose, and sampled meanwhile.

A service of our own has one core and the load generator the others, so that neither takes from the other, and it is
ours to look into: the resident memory of its processes is sampled beside what it tells of itself at ``/metrics``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
import psutil

from loadtests.peers import Request
from loadtests.processes import Server, cores, free_port

PORT: Final = 3000
"""Of ``make serve``."""
_WANTED: Final = tuple(
    f"sextant_{name}" for name in ("batch_rows", "compute_seconds", "queue_seconds", "requests", "refusals")
)
_SAMPLE: Final = re.compile(r"(\w+?)(_sum|_count|_total)(?:\{(.*)\})? (\S+)")
_LABEL: Final = re.compile(r'\w+="((?:[^"\\]|\\.)*)"')
_READY: Final = Request("GET", "/readyz", "", b"")
_PERIOD: Final = 1.0
METRICS_EVERY: Final = 5
"""Samples: gathering ``/metrics`` keeps a worker's event loop for some 20 ms, in which requests wait. Once in 5 s that
is less than the 1 % that a p99 leaves out; once a second it would be what the p99 measures."""
_PATIENCE: Final = 5.0

Metrics = Mapping[str, Mapping[str, float]]


class NoServerError(RuntimeError):
    """Nobody answers where a server was said to be, or somebody else does, or there is no such place."""


@dataclass(frozen=True)
class Service:
    """A service that answers.

    Args:
        url: of it.
        processes: gives those that it consists of; None when it is not ours.
        generator: cores for the load generator; all for None.
    """

    url: str
    processes: Callable[[], Sequence[psutil.Process]] | None = None
    generator: set[int] | None = None

    @property
    def note(self) -> str:
        """Where it is, in words."""
        if self.processes is not None:
            return f"{self.url} (started for this{', on a core of its own' if self.generator else ''})"
        return f"{self.url}{'' if is_here(self.url) else ' (NOT this machine)'}"


def url_of(host: str, port: int = PORT) -> str:
    """The URL of a server that was named by its host, by host and port, or by its URL.

    Raises:
        NoServerError: it is none of these.
    """
    url = host if "://" in host else f"http://{host}"
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if "://" not in host and parts.port is None:
            parts = urlsplit(f"http://{parts.netloc}:{port}")
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return parts.geturl().rstrip("/")
    raise NoServerError(
        f"expected a host such as 10.0.0.5, 10.0.0.5:{PORT} or http://10.0.0.5:{PORT}, "
        f"received {host!r} and the port {port}"
    )


def is_here(url: str) -> bool:
    """Whether a URL names this machine by an address that no other can have."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(url: str) -> None:
    """Make sure that Sextant answers at a URL and is ready.

    Raises:
        NoServerError: it does not, or is not.
    """
    with _client(url) as client:
        try:
            ready, models = client.get("/readyz").status_code, client.get("/v1/models")
        except httpx.HTTPError as error:
            raise NoServerError(f"no server at {url}: {str(error) or type(error).__name__}") from None
    try:
        known = "models" in models.json()
    except (ValueError, TypeError):
        known = False
    if not known:
        raise NoServerError(f"the server at {url} is not Sextant: it answers /v1/models {models.status_code}")
    if ready != 200:
        raise NoServerError(f"the service at {url} is not ready: it answers /readyz {ready}")


def _answers(url: str) -> bool:
    try:
        check(url)
    except NoServerError:
        return False
    return True


@contextlib.contextmanager
def service(host: str | None = None, port: int = PORT, *, start: bool = False) -> Iterator[Service]:
    """The service to put under load, until the block ends.

    Args:
        host: where it is, see `url_of`. None for 127.0.0.1, where one is started on a free port if none answers.
        port: of the host.
        start: one of our own even if another answers, unless ``host`` is given.

    Raises:
        NoServerError: none answers at ``host``, or that is none.
        loadtests.processes.ServerError: the one that was started does not come up.
    """
    if host is not None:
        url = url_of(host, port)
        check(url)
        yield Service(url)
        return
    if not start:
        url = url_of("127.0.0.1", port)
        if _answers(url):
            yield Service(url)
            return
    with _started() as own:
        yield own


@contextlib.contextmanager
def _started() -> Iterator[Service]:
    """A service of our own, with what ``SEXTANT_*`` says: one worker on one core, several on all."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("SEXTANT_")}
    own, _ = cores() if settings.get("SEXTANT_WORKERS", "1") == "1" else (None, None)
    others = os.sched_getaffinity(0) - own if own else None
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:Sextant"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="loadtest-server-") as home,
        Server(command, port, Path(home), settings, own) as server,
    ):
        server.wait_until_ready(_READY)
        yield Service(f"http://127.0.0.1:{port}", server.processes, others)


class Sampler:
    """Looks at a service once a second, from a thread, while the block runs; every `METRICS_EVERY` times asks it too.

    Args:
        service: to look at.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._samples: list[tuple[float, dict[str, float], Metrics]] = []
        self._over = threading.Event()
        # A daemon: whoever is interrupted while it starts has no block yet in which to end it.
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def since(self, start: float) -> list[dict[str, Any]]:
        """The samples of a run as ``run.json`` holds them.

        The totals before it, when nothing was asked yet, are told as those at its start.

        Args:
            start: second 0 of the run by the wall clock, in seconds since 1970.
        """
        before = [(start, resident, metrics) for at, resident, metrics in self._samples if at <= start and metrics]
        within = [sample for sample in self._samples if sample[0] > start]
        return [
            {"t": round(at - start, 3), "resident_mb": resident, "metrics": metrics}
            for at, resident, metrics in (*before[-1:], *within)
        ]

    def _watch(self) -> None:
        with _client(self._service.url) as client:
            due = time.monotonic()
            for number in itertools.count():
                over = self._over.wait(max(0.0, due - time.monotonic()))
                self._sample(client if over or number % METRICS_EVERY == 0 else None)
                if over:
                    break
                due += _PERIOD

    def _sample(self, client: httpx.Client | None) -> None:
        metrics: Metrics = {}
        if client is not None:
            with contextlib.suppress(httpx.HTTPError):  # an overloaded server may not answer this either
                metrics = totals(client.get("/metrics").text)
        ours = self._service.processes
        self._samples.append((time.time(), resident_mb(ours()) if ours else {}, metrics))


def totals(exposition: str) -> dict[str, dict[str, float]]:
    """The sums and counts that reports are made from, of Prometheus' text format.

    Returns:
        By name and, within, by the values of the labels joined by spaces.
    """
    found: dict[str, dict[str, float]] = {}
    for line in exposition.splitlines():
        if line.startswith(_WANTED) and (match := _SAMPLE.fullmatch(line)):
            name, ending, labels, value = match.groups()
            if name in _WANTED:
                found.setdefault(name + ending, {})[" ".join(_LABEL.findall(labels or ""))] = float(value)
    return found


def resident_mb(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Resident memory of each process by its id, in MB of 10⁶ bytes."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[str(process.pid)] = round(process.memory_info().rss / 1e6, 2)
    return found


def _client(url: str) -> httpx.Client:
    """Certificates are not verified, as by the load generator, and no proxy stands in between."""
    return httpx.Client(base_url=url, timeout=_PATIENCE, verify=False, trust_env=False)  # noqa: S501
