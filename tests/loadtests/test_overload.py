"""The overload test against small servers that cope, and that do not."""

from __future__ import annotations

import asyncio
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from loadtests import overload
from loadtests.bars import Bar
from loadtests.overload import Overload, measure, phases
from loadtests.result import Result
from loadtests.wire import encode, local_address
from tests.loadtests.servers import OK, Handler, listening, request

REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
RESPONSE = 0.004


def one_at_a_time(*, refusal: bytes = REFUSED, most: int = 20) -> Handler:
    """A server that takes 4 ms for a request, lets ``most`` wait, and refuses the others."""
    turn = asyncio.Semaphore(1)
    waiting = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        while True:
            await request(reader)
            if waiting >= most:
                writer.write(refusal)
                continue
            waiting += 1
            async with turn:
                await asyncio.sleep(RESPONSE)
            waiting -= 1
            writer.write(OK)

    return handle


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(overload, "QUIET_SECONDS", 1.5)


def run(handler: Handler, deadline: float = 5.0) -> Overload:
    with listening(handler) as url:
        address, path = local_address(url)
        return measure(
            address,
            encode(address, "GET", path),
            os.getpid(),
            factor=3,
            seconds=1.5,
            capacity_seconds=1.0,
            deadline=deadline,
        )


def bar(run: Overload, words: str) -> Bar:
    (one,) = [bar for bar in run.bars() if words in bar.what]
    return one


def test_a_server_that_refuses_in_time_is_told_from_its_counts(tmp_path: Path):
    found = run(one_at_a_time())
    told = found.summary()
    assert told["offered"] == pytest.approx(3 * told["capacity"], rel=0.02)
    assert told["answers"].keys() == {"200", "429"}
    assert sum(told["answers"].values()) == pytest.approx(3 * 1.5 * told["capacity"], rel=0.02)
    assert told["errors"] == {}
    assert told["unanswered"] == told["without_retry_after"] == 0
    assert told["worker_mb"]["before"] > 10
    for words in ("without Retry-After", "other than 200", "without an answer"):
        assert bar(found, words).met is True, words
    overload.write(found, "route", tmp_path)
    assert (tmp_path / "overload-route.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "overload-route.json").read_text())["answers"] == told["answers"]
    assert "| goodput over capacity | ≥ 0.9 × |" in (tmp_path / "overload-route.md").read_text("utf-8")


def test_a_refusal_without_retry_after_is_held_against_the_server():
    found = run(one_at_a_time(refusal=REFUSED.replace(b"Retry-After", b"Retry-Never")))
    assert bar(found, "without Retry-After").measured == np.sum(found.result.status == 429) > 0
    assert bar(found, "without Retry-After").met is False


def test_a_refusal_of_another_status_is_held_against_the_server():
    found = run(one_at_a_time(refusal=REFUSED.replace(b"429", b"503")))
    assert bar(found, "other than 200").measured == found.summary()["answers"]["503"] > 0
    assert bar(found, "other than 200").met is False
    assert bar(found, "refusals (429)").met is None


def test_a_server_that_forgets_requests_is_found_out():
    found = run(one_at_a_time(refusal=b""), deadline=-4.0)  # which leaves a second of grace
    assert bar(found, "without an answer").measured == found.summary()["unanswered"] > 0
    assert bar(found, "without an answer").met is False


def test_phases_follow_one_another_at_their_rates():
    due = phases([(100, 1), (300, 2), (100, 1)])
    assert len(due) == 800
    assert np.all(np.diff(due) >= 0)
    assert [int(np.sum((due >= start) & (due < start + 1))) for start in range(4)] == [100, 300, 300, 100]


@pytest.mark.parametrize(("slow_until", "recovery"), [(2.0, 0.0), (2.4, 0.5), (3.2, 1.25), (9.0, math.inf)])
def test_recovery_is_the_first_of_several_normal_windows(slow_until: float, recovery: float):
    """Quiet for a second, overload for one, and then slow until some time; 100 requests a second."""
    due = np.arange(0, 5, 0.01)
    response = np.where((due >= 1) & (due < slow_until), 0.5, 0.01)
    response[(due >= 3.5) & (due < 3.6)] = 0.02  # less than half of a window
    none = np.empty(0)
    result = Result("open", (0, 5), due, due, due + response, np.full(500, 200, np.int16), none, {}, 0, 0, 0, 1, 0.1)
    found = Overload(100, result, 1, 2, none, none, 10)
    assert found.unloaded_p50 == pytest.approx(0.01)
    assert found.recovery_seconds == recovery
    assert found.summary()["recovery_seconds"] == (None if recovery == math.inf else recovery)
    json.dumps(found.summary(), allow_nan=False)


def test_bad_use_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]):
    for arguments, told in (
        (["nothing"], "invalid choice: 'nothing'"),
        (["gan-1", "--factor", "0"], "factor above 0"),
        (["gan-1", "--seconds", "0"], "at least 1 s"),
    ):
        with pytest.raises(SystemExit) as stopped:
            overload.main(arguments)
        assert stopped.value.code == 2
        assert told in capsys.readouterr().err.splitlines()[-1]
