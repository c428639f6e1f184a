"""BentoML's typed API over the same request line: what its OpenAPI page lists and its clients call.

A method declares the JSON form of its route. Served by BentoML itself (``SEXTANT_FRONT=bentoml``), it takes
every other form too: it hands on the request as it came instead of BentoML's reading of it. So both ways give
the same answers and the same problems.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import bentoml
from _bentoml_sdk.io_models import IODescriptor  # type: ignore[import-untyped]
from _bentoml_sdk.method import APIMethod  # type: ignore[import-untyped]
from pydantic import BaseModel, create_model
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response

from serving.http.line import RequestLine
from serving.http.messages import Reply
from serving.http.receive import receive_request
from serving.tasks import Endpoint


class _Unread(IODescriptor):  # type: ignore[misc]  # BentoML's internals are untyped
    """Declares the input for clients, and leaves a request's body to the request line."""

    @classmethod
    async def from_http_request(cls, request: StarletteRequest, serde: object) -> IODescriptor:  # noqa: ARG003
        return cls.model_construct(**dict.fromkeys(cls.model_fields))


def api_method(endpoint: Endpoint[Any], line: RequestLine) -> APIMethod:
    """Make the BentoML API method of a route."""

    async def method(self: object, ctx: bentoml.Context, **_: object) -> Response:  # noqa: ARG001
        sent: StarletteRequest = ctx.request
        reply = await line.reply(endpoint.path, _answer(endpoint, line, sent))
        ctx.response.status_code = reply.status
        return _response(reply)

    method.__name__ = endpoint.name
    method.__doc__ = type(endpoint).__doc__
    return bentoml.api(
        route=endpoint.path,
        input_spec=create_model(f"{type(endpoint).__name__}Input", __base__=_Unread, **_fields(endpoint)),
        output_spec=_output(endpoint),
    )(method)


async def _answer(endpoint: Endpoint[Any], line: RequestLine, sent: StarletteRequest) -> Reply:
    deadline = time.monotonic() + line.settings.deadline_seconds
    request = await receive_request(
        sent.scope, sent.receive, max_body_bytes=line.settings.max_body_bytes, deadline=deadline
    )
    return await line.answer(endpoint, request, deadline)


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, dict(reply.headers), reply.media_type)


def _fields(endpoint: Endpoint[Any]) -> Mapping[str, Any]:
    return {name: (field.annotation, field) for name, field in endpoint.body.model_fields.items()}


def _output(endpoint: Endpoint[Any]) -> type[BaseModel]:
    if endpoint.answer is None:
        return cast("type[BaseModel]", IODescriptor.from_output(_image))
    return endpoint.answer


def _image() -> Annotated[Path, bentoml.validators.ContentType("image/png")]:
    """Stand for a method that answers with an image."""
    raise NotImplementedError
