"""What exporting the LSTM as it is gives: the plain tf2onnx graph, with its ``Loop``, behind FastAPI.

``app`` pads every review to 500 ids, as the training of this kind of model does and most who serve one. ``bare`` is
given the ids alone, which the graph takes as well: the best that can be had without building the node anew.
"""

from __future__ import annotations

import orjson
from fastapi import FastAPI, Request, Response

from loadtests.peers.models import SentimentModel
from loadtests.peers.plain_graph import plain_graph


def application(*, padded: bool) -> FastAPI:
    """Make the service."""
    service = FastAPI()
    sentiments = SentimentModel(plain_graph(), padded=padded)

    @service.post("/v1/sentiment")
    async def sentiment(request: Request) -> Response:
        """Judge a review in plain text."""
        answer = sentiments.answer((await request.body()).decode())
        return Response(orjson.dumps(answer), media_type="application/json")

    return service


def app() -> FastAPI:
    """Pad."""
    return application(padded=True)


def bare() -> FastAPI:
    """Do not pad."""
    return application(padded=False)
