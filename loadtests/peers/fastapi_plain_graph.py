"""What exporting the LSTM as it is gives: the plain tf2onnx graph, with its ``Loop``, behind FastAPI.

Given the bare tokens, not padded to 500, which would take longer still.
"""

from __future__ import annotations

import orjson
from fastapi import FastAPI, Request, Response

from loadtests.peers.models import SentimentModel
from loadtests.peers.plain_graph import plain_graph

app = FastAPI()
sentiments = SentimentModel(plain_graph())


@app.post("/v1/sentiment")
async def sentiment(request: Request) -> Response:
    """Judge a review in plain text."""
    answer = sentiments.answer((await request.body()).decode())
    return Response(orjson.dumps(answer), media_type="application/json")
