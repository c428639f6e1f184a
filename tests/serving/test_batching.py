import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from serving.batching import Batcher, Profile, Rows, measure
from serving.errors import DeadlineError, OverloadedError, UnavailableError

FOREVER = float("inf")


class Observer:
    """Keeps what a batcher reports."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []

    def waiting(self, rows: int) -> None:
        pass

    def released(self, reason: str, rows: int, queued: Sequence[float]) -> None:
        assert all(seconds >= 0 for seconds in queued)
        self.batches.append((reason, rows))

    def computed(self, seconds: float) -> None:
        assert seconds >= 0


def double(inputs: Rows) -> Rows:
    return {"y": inputs["x"] * 2}


def rows(*values: float) -> Rows:
    return {"x": np.array(values, np.float32)}


def make(
    run: Callable[[Rows], Rows] = double, *, batch_size: int = 4, seconds_per_row: float = 0.0, **options: object
) -> tuple[Batcher, Observer]:
    observer = Observer()
    profile = Profile({batch_size: seconds_per_row * 1000 * batch_size}, batch_size, threads=1, inline=False, reason="")
    return Batcher(run, observer, profile, **{"queue_rows": 100, **options}), observer  # type: ignore[arg-type]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


class Gate:
    """A model that computes only when it is let."""

    def __init__(self) -> None:
        self.started, self.open = threading.Event(), threading.Event()
        self.seen: list[list[float]] = []

    def __call__(self, inputs: Rows) -> Rows:
        self.seen.append(inputs["x"].tolist())
        self.started.set()
        assert self.open.wait(20)
        return double(inputs)

    async def running(self) -> None:
        await asyncio.to_thread(self.started.wait, 20)


def test_requests_of_the_same_turn_share_a_batch_and_get_their_own_answers():
    async def main() -> None:
        batcher, observer = make(batch_size=8)
        answers = await asyncio.gather(*(batcher.submit([rows(i, i + 0.5)], FOREVER) for i in range(3)))
        assert [answer[0]["y"].tolist() for answer in answers] == [[0, 1], [2, 3], [4, 5]]
        assert observer.batches == [("idle", 6)]

    run(main)


def test_a_single_request_does_not_wait_for_company():
    async def main() -> None:
        batcher, observer = make()
        assert (await batcher.submit([rows(1)], FOREVER))[0]["y"].tolist() == [2]
        assert observer.batches == [("idle", 1)]

    run(main)


def test_no_batch_is_larger_than_the_batch_size():
    async def main() -> None:
        batcher, observer = make(batch_size=4)
        await asyncio.gather(*(batcher.submit([rows(i)], FOREVER) for i in range(10)))
        assert observer.batches == [("full", 4), ("full", 4), ("idle", 2)]

    run(main)


def test_the_pieces_of_one_request_come_back_in_order():
    async def main() -> None:
        batcher, _ = make(batch_size=2)
        outputs = await batcher.submit([rows(1, 2), rows(3, 4), rows(5)], FOREVER)
        assert [output["y"].tolist() for output in outputs] == [[2, 4], [6, 8], [10]]

    run(main)


def test_with_a_delay_a_batch_waits_to_fill():
    async def main() -> None:
        batcher, observer = make(batch_size=2, delay=0.05)
        first = asyncio.ensure_future(batcher.submit([rows(1)], FOREVER))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert observer.batches == []
        await batcher.submit([rows(2)], FOREVER)
        await first
        assert observer.batches == [("full", 2)]
        await batcher.submit([rows(3)], FOREVER)
        assert observer.batches[1:] == [("delay", 1)]

    run(main)


def test_a_piece_that_must_be_alone_shares_no_batch():
    async def main() -> None:
        batcher, observer = make(batch_size=8)
        await asyncio.gather(
            batcher.submit([rows(1)], FOREVER),
            batcher.submit([rows(2)], FOREVER, alone=True),
            batcher.submit([rows(3)], FOREVER),
        )
        assert sorted(observer.batches) == [("alone", 1), ("idle", 2)]

    run(main)


def test_of_a_failing_batch_only_the_bad_row_fails():
    def fail_on_nan(inputs: Rows) -> Rows:
        if np.isnan(inputs["x"]).any():
            raise ValueError("bad row")
        return double(inputs)

    async def main() -> None:
        batcher, _ = make(fail_on_nan)
        results = await asyncio.gather(
            *(batcher.submit([rows(value)], FOREVER) for value in (1, float("nan"), 3)),
            return_exceptions=True,
        )
        assert isinstance(results[1], ValueError)
        assert [results[index][0]["y"].tolist() for index in (0, 2)] == [[2], [6]]
        assert (await batcher.submit([rows(4)], FOREVER))[0]["y"].tolist() == [8]

    run(main)


def test_while_a_batch_runs_in_a_thread_the_next_one_gathers():
    async def main() -> None:
        gate = Gate()
        with ThreadPoolExecutor(1) as executor:
            batcher, observer = make(gate, executor=executor)
            first = asyncio.ensure_future(batcher.submit([rows(0)], FOREVER))
            await gate.running()
            others = [asyncio.ensure_future(batcher.submit([rows(i)], FOREVER)) for i in (1, 2, 3)]
            await asyncio.sleep(0)
            gate.open.set()
            await asyncio.gather(first, *others)
        assert gate.seen == [[0], [1, 2, 3]]
        assert [count for _, count in observer.batches] == [1, 3]

    run(main)


def test_a_full_queue_refuses_at_once_with_the_time_to_come_back():
    async def main() -> None:
        gate = Gate()
        with ThreadPoolExecutor(1) as executor:
            batcher, _ = make(gate, executor=executor, queue_rows=2, seconds_per_row=3.0)
            running = asyncio.ensure_future(batcher.submit([rows(0)], FOREVER))
            await gate.running()
            waiting = asyncio.ensure_future(batcher.submit([rows(1, 2)], FOREVER))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError) as refusal:
                await batcher.submit([rows(3)], FOREVER)
            assert refusal.value.reason == "queue"
            assert dict(refusal.value.headers)["retry-after"] == "9"  # three rows ahead, 3 s each
            gate.open.set()
            await asyncio.gather(running, waiting)
            assert (await batcher.submit([rows(4)], FOREVER))[0]["y"].tolist() == [8]

    run(main)


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    async def main() -> None:
        gate = Gate()
        with ThreadPoolExecutor(1) as executor:
            batcher, _ = make(gate, executor=executor, seconds_per_row=100.0)
            running = asyncio.ensure_future(batcher.submit([rows(0)], FOREVER))
            await gate.running()
            with pytest.raises(OverloadedError) as refusal:
                await batcher.submit([rows(1)], time.monotonic() + 50)
            assert refusal.value.reason == "deadline"
            gate.open.set()
            await running

    run(main)


def test_a_deadline_that_passes_while_waiting_is_told_and_the_row_is_not_run():
    async def main() -> None:
        gate = Gate()
        with ThreadPoolExecutor(1) as executor:
            batcher, _ = make(gate, executor=executor)
            running = asyncio.ensure_future(batcher.submit([rows(0)], FOREVER))
            await gate.running()
            with pytest.raises(DeadlineError):
                await batcher.submit([rows(1)], time.monotonic() + 0.05)
            gate.open.set()
            await running
            await batcher.submit([rows(2)], FOREVER)
        assert gate.seen == [[0], [2]]

    run(main)


def test_a_cancelled_request_is_not_run():
    async def main() -> None:
        gate = Gate()
        with ThreadPoolExecutor(1) as executor:
            batcher, _ = make(gate, executor=executor)
            running = asyncio.ensure_future(batcher.submit([rows(0)], FOREVER))
            await gate.running()
            gone = asyncio.ensure_future(batcher.submit([rows(1)], FOREVER))
            stays = asyncio.ensure_future(batcher.submit([rows(2)], FOREVER))
            await asyncio.sleep(0)
            gone.cancel()
            gate.open.set()
            await asyncio.gather(running, stays)
        assert gate.seen == [[0], [2]]

    run(main)


def test_when_the_thread_is_gone_everyone_is_answered_and_the_batcher_says_so():
    async def main() -> None:
        executor = ThreadPoolExecutor(1)
        batcher, _ = make(executor=executor)
        executor.shutdown()
        results = await asyncio.gather(*(batcher.submit([rows(i)], FOREVER) for i in range(6)), return_exceptions=True)
        assert all(isinstance(result, UnavailableError) for result in results)
        assert batcher.dead
        with pytest.raises(UnavailableError):
            await batcher.submit([rows(1)], FOREVER)

    run(main)


def test_closing_answers_what_waits():
    async def main() -> None:
        batcher, _ = make(delay=1.0)
        waiting = asyncio.ensure_future(batcher.submit([rows(1)], FOREVER))
        await asyncio.sleep(0)
        batcher.close("the server is shutting down")
        with pytest.raises(UnavailableError, match="shutting down"):
            await waiting

    run(main)


def test_texts_of_similar_length_share_a_batch_and_are_padded():
    shapes = []

    def lengths(inputs: Rows) -> Rows:
        shapes.append(inputs["tokens"].shape)
        return {"y": (inputs["tokens"] > 0).sum(axis=1)}

    async def main() -> None:
        batcher, _ = make(lengths, ragged="tokens")
        texts = [{"tokens": np.ones((1, length), np.int32)} for length in (100, 10, 90, 12)]
        answers = await asyncio.gather(*(batcher.submit([text], FOREVER) for text in texts))
        assert [int(answer[0]["y"][0]) for answer in answers] == [100, 10, 90, 12]
        assert shapes == [(2, 100), (2, 12)]

    run(main)


class Clock:
    """Passes only when a model computes, so that a profile is the same on every machine.

    Args:
        seconds: that a batch takes, by its rows.
    """

    def __init__(self, seconds: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seconds = 0.0, seconds
        self.tried: list[int] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def run(self, inputs: Rows) -> Rows:
        self.tried.append(len(inputs["x"]))
        self.now += self.seconds(self.tried[-1])
        return inputs


def test_the_profile_keeps_the_smallest_batch_that_is_nearly_the_cheapest_a_row(monkeypatch: pytest.MonkeyPatch):
    costs_a_start_and_little_a_row = Clock(lambda rows: 0.004 + 0.0001 * rows, monkeypatch)
    together = measure(costs_a_start_and_little_a_row.run, rows(1), largest=16, budget_seconds=5)
    assert together.batch_size == 16
    assert together.milliseconds[16] == 5.6
    assert not together.inline
    costs_the_same_a_row = Clock(lambda rows: 0.01 * rows, monkeypatch)
    apart = measure(costs_the_same_a_row.run, rows(1), largest=16, budget_seconds=5)
    assert apart.batch_size == 1
    cheap = Clock(lambda rows: 0.0001 * rows, monkeypatch)
    assert measure(cheap.run, rows(1), largest=4, budget_seconds=5).inline


def test_batches_that_gain_nothing_are_not_tried(monkeypatch: pytest.MonkeyPatch):
    gains_up_to_four_rows = Clock(lambda rows: 0.002 * max(4, rows), monkeypatch)
    profile = measure(gains_up_to_four_rows.run, rows(1), largest=64, budget_seconds=5)
    assert list(profile.milliseconds) == [1, 2, 4, 8, 16]
    tried = gains_up_to_four_rows.tried
    assert tried.count(16) < tried.count(8) == tried.count(1)
    assert profile.batch_size == 4
    assert "larger ones gain nothing (2 ms at 16)" in profile.reason


def test_a_profile_keeps_to_its_budget(monkeypatch: pytest.MonkeyPatch):
    gains_for_ever = Clock(lambda rows: 0.01 * rows**0.5, monkeypatch)
    profile = measure(gains_for_ever.run, rows(1), largest=4096, budget_seconds=1)
    assert profile.batch_size == max(profile.milliseconds) < 4096
    assert gains_for_ever.now <= 1
    assert "larger ones take too long to try" in profile.reason


def test_what_fits_into_two_milliseconds_runs_on_the_loop_and_more_in_the_thread():
    async def main() -> None:
        threads: list[str] = []

        def noting(inputs: Rows) -> Rows:
            threads.append(threading.current_thread().name)
            return double(inputs)

        profile = Profile({4: 1.0}, 4, threads=1, inline=True, reason="")
        assert profile.inline_rows == 8
        with ThreadPoolExecutor(1, "elsewhere") as executor:
            batcher = Batcher(noting, Observer(), profile, queue_rows=100, executor=executor)
            await batcher.submit([rows(*range(8))], FOREVER, alone=True)
            await batcher.submit([rows(*range(9))], FOREVER, alone=True)
        assert threads == [threading.current_thread().name, "elsewhere_0"]

    run(main)


def test_a_long_queue_is_served_in_order_with_like_lengths_together():
    async def main() -> None:
        gate = Gate()
        with ThreadPoolExecutor(1) as executor:
            batcher, observer = make(gate, batch_size=2, executor=executor, ragged="x", queue_rows=1000)
            first = asyncio.ensure_future(batcher.submit([ragged(1)], FOREVER))
            await gate.running()
            lengths = [10, 100] * 100
            waiting = [asyncio.ensure_future(batcher.submit([ragged(length)], FOREVER)) for length in lengths]
            await asyncio.sleep(0)
            gate.open.set()
            answers = await asyncio.gather(first, *waiting)
        assert [answer[0]["y"].shape[1] for answer in answers[1:]] == lengths
        assert observer.batches == [("idle", 1), *[("full", 2)] * 100]

    run(main)


def ragged(length: int) -> Rows:
    return {"x": np.ones((1, length), np.int32)}
