import asyncio

import pytest

from serving.errors import UnavailableError
from serving.http.line import RequestLine, _unless_gone
from serving.http.messages import Reply
from serving.http.receive import ClientGoneError
from serving.settings import Settings


def test_when_the_client_goes_its_work_is_cancelled():
    async def main() -> None:
        cancelled = asyncio.Event()
        gone = asyncio.Event()

        async def work() -> None:
            try:
                gone.set()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async def leaves() -> None:
            await gone.wait()

        with pytest.raises(ClientGoneError):
            await _unless_gone(work(), leaves)
        await asyncio.wait_for(cancelled.wait(), 10)

    asyncio.run(main())


def test_while_the_client_stays_it_gets_the_result_or_the_error():
    async def main() -> None:
        async def stays() -> None:
            await asyncio.sleep(60)

        async def answer() -> int:
            return 42

        async def fail() -> int:
            raise UnavailableError("no")

        assert await _unless_gone(answer(), stays) == 42
        with pytest.raises(UnavailableError):
            await _unless_gone(fail(), stays)

    asyncio.run(main())


def test_an_unexpected_error_is_answered_with_an_id_that_the_log_holds(caplog: pytest.LogCaptureFixture):
    async def fail() -> Reply:
        raise KeyError("/secret/path")

    reply = asyncio.run(RequestLine(Settings()).reply("/v1/digit", fail()))
    assert reply.status == 500
    assert b"secret" not in reply.body
    (record,) = caplog.records
    id_ = str(record.args[0])  # type: ignore[index]
    assert id_.encode() in reply.body
    assert "/secret/path" in caplog.text


def test_before_the_models_are_loaded_nothing_is_ready():
    line = RequestLine(Settings())
    assert not line.ready
    with pytest.raises(UnavailableError, match="being loaded"):
        _ = line.repository
