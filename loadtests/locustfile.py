"""Load tests of the service inside Locust: ``locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:3000``.

Run from the repository's root. ``--loop open`` (the default) sends by the clock, ``--loop closed`` has users who wait;
``--shape`` says how the load goes up and down, ``--route`` what is asked, ``--record`` where what was found goes.
``--processes N``, or ``--master`` and ``--worker`` on several machines, share the load. Without ``--headless`` Locust's
own page does the same.

Every process draws its payloads with ``--seed``; with ``SEXTANT_DATA_DIR`` set, real test samples are sent instead.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
from pathlib import Path
from typing import Any, Final

import locust
from locust import LoadTestShape, User
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from loadtests.connection import AddressError, Target
from loadtests.mix import GROUPS, weights
from loadtests.open_loop import Arrivals
from loadtests.session import Plan, Session, session_of
from loadtests.shapes import SHAPES, stages
from loadtests.users import Digit, Gan, Image, Mixed, Sentiment, Vae, client_for, shared_pools
from training.datasets import DATA_DIR_VARIABLE, DatasetError

__all__ = ["Arrivals", "Course", "Digit", "Gan", "Image", "Mixed", "Sentiment", "Vae"]

HOST: Final = "http://127.0.0.1:3000"
"""Where ``make serve`` serves; load goes elsewhere only when ``--host`` says so."""
_MOST_USERS_A_SECOND: Final = 100


def read_plan(options: argparse.Namespace) -> Plan:
    """The plan that the options make.

    Raises:
        ValueError: they make none; the message says what was received and what was expected.
    """
    for name, value in (("rate", options.rate), ("clients", options.clients), ("minutes", options.minutes or 1)):
        if not 0 < value < math.inf:
            raise ValueError(f"--{name}: expected a number above 0, received {value:g}")
    try:
        Target(options.host or HOST)
    except AddressError as error:
        raise ValueError(f"--host: {error}") from None
    return Plan(
        host=options.host or HOST,
        loop=options.loop,
        shape=options.shape,
        course=stages(options.shape, options.minutes * 60 if options.minutes else None),
        rate=options.rate,
        users=options.clients,
        weights=weights(options.route),
        arrivals=options.arrivals,
        seed=options.seed,
    )


def add_options(parser: LocustArgumentParser) -> None:
    """Add what a load test of ours is told beside Locust's own options."""
    add = parser.add_argument_group("Load test").add_argument
    courses = "; ".join(f"{name}: {shape.what}" for name, shape in SHAPES.items())
    add("--loop", choices=["open", "closed"], default="open", help="Requests follow the clock, or the answers")
    add("--shape", choices=list(SHAPES), default="smoke", help=courses)
    add("--route", choices=list(GROUPS), default="all", help="What is asked")
    add("--rate", type=float, default=50.0, metavar="R", help="Requests a second, open loop (%(default)g)")
    add("--clients", type=int, default=16, metavar="N", help="Users who wait, closed loop (%(default)s)")
    add("--minutes", type=float, default=0.0, metavar="M", help="Length of the run (0: the shape's own)")
    add("--arrivals", choices=["constant", "poisson"], default="constant", help="Of the open loop")
    add("--seed", type=int, default=0, help="Of payloads, their order, and Poisson arrivals (%(default)s)")
    add("--record", default="", metavar="FILE", help="Write what was found to this file, JSON")


def prepare(environment: Environment, runner: Any, **_: object) -> None:  # noqa: ANN401 - as in Locust
    """Check the options, draw the payloads, and make ready to record."""
    options = environment.parsed_options
    if options is None:
        return
    environment.host = environment.host or HOST
    conducts = not isinstance(runner, WorkerRunner)
    pool = {}
    try:
        if conducts:
            read_plan(options)  # a worker's plan comes from its master
        if not isinstance(runner, MasterRunner):
            pool = shared_pools(options.seed, real=bool(os.environ.get(DATA_DIR_VARIABLE)))
    except (DatasetError, ValueError) as error:
        print(f"locustfile: {error}", file=sys.stderr)
        sys.exit(2)
    # What lives as long as the process need not be looked through for garbage while requests are due.
    gc.collect()
    gc.freeze()
    Session(
        environment, lambda: read_plan(_with_host(environment)), pool, Path(options.record) if options.record else None
    )


def _with_host(environment: Environment) -> argparse.Namespace:
    """The options as they are now: Locust's page changes them, and the host in a place of its own."""
    return argparse.Namespace(**{**vars(environment.parsed_options), "host": environment.host})


class Course(LoadTestShape):
    """Starts and ends the run, and the closed loop's users in between."""

    def tick(self) -> tuple[int, float, list[type[User]] | None] | None:
        """How many users there shall be now; in the open loop one a process, who sends by the clock."""
        assert self.runner is not None  # noqa: S101 - Locust sets it
        session = session_of(self.runner.environment)
        assert session is not None  # noqa: S101 - made by `prepare`
        try:
            now = session.tick()
        except ValueError as error:
            raise StopTest(str(error)) from None
        if now is None:
            return None
        plan, users, processes = now
        if plan.loop == "open":
            return processes, processes, [Arrivals]
        return users, min(users, _MOST_USERS_A_SECOND * processes), [client_for(plan.weights)]


_events: Any = locust.events  # Locust's hooks have no types
_events.init_command_line_parser.add_listener(add_options)
_events.init.add_listener(prepare)
