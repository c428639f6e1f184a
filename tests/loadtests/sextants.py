"""A server that answers as Sextant does to raw digits, at a pace that is known."""

from __future__ import annotations

import asyncio
import json

from tests.loadtests.servers import Handler, request


def one_at_a_time(seconds: float) -> Handler:
    """Takes ``seconds`` for each digit, one after another, however many ask: its capacity is known beforehand."""
    turn = asyncio.Semaphore(1)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await request(reader)
            if head.startswith(b"POST /v1/digit"):
                async with turn:
                    await asyncio.sleep(seconds)
            writer.write(_reply({"models": []} if b"/v1/models" in head else DIGIT))

    return handle


DIGIT = {
    "model": "mnist_mlp",
    "version": 1,
    "predictions": [{"label": "7", "index": 7, "confidence": 1.0, "probabilities": [0, 0, 0, 0, 0, 0, 0, 1.0, 0, 0]}],
}


def _reply(content: object) -> bytes:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
