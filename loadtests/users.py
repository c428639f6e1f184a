"""The users of the closed loop: each asks, waits for the answer, and asks again.

A slow server slows them down, as it does the users of a batch job; those of a website it does not, which is what the
open loop is for (`loadtests.open_loop`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

from geventhttpclient.response import HTTPParseError
from locust import FastHttpUser, task
from locust.exception import StopUser

from loadtests.checks import check
from loadtests.connection import TIMEOUT_SECONDS, Failure, failure
from loadtests.mix import in_turn, weights
from loadtests.payloads import Payload, pools
from loadtests.session import session_of

shared_pools = cache(pools)
"""The pools of a process: drawn once, whoever asks."""


class Client(FastHttpUser):
    """A user of the closed loop; derived classes say what it asks."""

    abstract = True
    shares: ClassVar[Mapping[str, int]]
    """Routes and how often each is asked, relative to the others."""
    connection_timeout = network_timeout = TIMEOUT_SECONDS

    def __init__(self, environment: Any) -> None:  # noqa: ANN401 - as in Locust
        super().__init__(environment)
        session = session_of(environment)
        self._part = session.part if session is not None else None
        shares, seed = self.shares, 0
        if self._part is not None:
            plan = self._part.plan
            seed = plan.seed
            shares = {route: share for route, share in shares.items() if route in plan.weights}
        pool = session.pool if session is not None else shared_pools()
        self._payloads = in_turn(pool, shares, f"{seed} {next(_numbers)}")

    def on_start(self) -> None:
        """Begin with all the others."""
        if self._part is not None:
            self._part.wait_for_start()

    @task
    def ask(self) -> None:
        """Send a request, wait for the answer, and hold it against what was asked."""
        part = self._part
        if part is None:
            self._ask(next(self._payloads))
            return
        if part.now >= part.end:
            raise StopUser
        payload = next(self._payloads)
        part.under_way += 1
        sent = part.now
        try:
            failed = self._ask(payload)
            reason = failed.reason if failed else None
            part.recording.add(payload.name, sent, sent, part.now, reason, waited=not failed or failed.waited)
        finally:
            part.under_way -= 1

    def _ask(self, payload: Payload) -> Failure | None:
        headers = {"Content-Type": payload.media_type} if payload.media_type else {}
        headers |= {"Accept": payload.accept} if payload.accept else {}
        with self.client.request(
            payload.method,
            payload.path,
            name=payload.name,
            data=payload.body,  # type: ignore[arg-type]  # bytes are what it takes best
            headers=headers,
            catch_response=True,
            allow_redirects=False,
        ) as answer:
            failed = _judge(payload, answer)
            if failed is None:
                answer.success()
            else:
                answer.failure(failed.reason)
        return failed


def _judge(payload: Payload, answer: Any) -> Failure | None:  # noqa: ANN401 - as in Locust
    """What is wrong with an answer of Locust's client."""
    if not answer.status_code:
        return failure(answer.error)
    try:
        content = answer.content or b""
    except (OSError, HTTPParseError) as error:
        return failure(error)
    reason = check(payload.name, payload, answer.status_code, answer.headers, content)
    return None if reason is None else Failure(reason, waited=True)


class Digit(Client):
    """Has digits read: raw, as PNG files, as JSON."""

    shares = weights("digit")


class Image(Client):
    """Has pictures named."""

    shares = weights("image")


class Sentiment(Client):
    """Has reviews judged, short to long."""

    shares = weights("sentiment")


class Gan(Client):
    """Has digits drawn by the GAN."""

    shares = weights("gan")


class Vae(Client):
    """Has digits drawn and redrawn by the autoencoder, and asks how strange they are."""

    shares = weights("vae")


class Mixed(Client):
    """Asks everything, by `loadtests.mix.WEIGHTS`."""

    shares = weights("all")


def client_for(shares: Mapping[str, int]) -> type[Client]:
    """The class of the users that ask these routes, and among the others it may ask as few as there are."""
    fitting = [kind for kind in (Digit, Image, Sentiment, Gan, Vae, Mixed) if shares.keys() <= kind.shares.keys()]
    return fitting[0]


_numbers = itertools.count()
