"""What BentoML's OpenAPI page cannot know of our routes: other media types, GET, the models, problems."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

import attrs

from serving import errors
from serving.http.media import MULTIPART
from serving.http.messages import JSON
from serving.tasks import Endpoint

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_FILE = {"type": "string", "format": "binary"}
_PROBLEMS = sorted(
    {
        problem.status
        for problem in vars(errors).values()
        if isinstance(problem, type) and issubclass(problem, errors.Problem)
    },
)


def complete(paths: MutableMapping[str, Any], endpoints: Iterable[Endpoint[Any]]) -> None:
    """Add to the path items that BentoML made of the typed API.

    Args:
        paths: path items by route, attrs objects with ``get`` and ``post``; changed in place.
        endpoints: the routes.
    """
    item_type = None
    for endpoint in endpoints:
        item = paths[endpoint.path]
        item_type = type(item)
        responses = {"200": item.post["responses"][HTTPStatus.OK.value], **_problems()}
        if endpoint.answer is None:
            responses["200"] = _response("A PNG image, or JSON if that is asked for", "image/png", _FILE)
        content = item.post["requestBody"]["content"]
        content.update({name: {"schema": _body(name)} for name in endpoint.takes if name != JSON})
        post = {**item.post, "responses": responses, "summary": endpoint.__doc__}
        get = {
            "tags": item.post["tags"],
            "summary": endpoint.__doc__,
            "operationId": f"get_{endpoint.name}",
            "parameters": _parameters(endpoint),
            "responses": responses,
        }
        paths[endpoint.path] = attrs.evolve(item, post=post, get=get if "GET" in endpoint.methods else None)
    if item_type is not None:
        for path, summary in (
            ("/v1/models", "Every model that was found, with its state and its facts."),
            ("/v1/models/{model}", "One model, in the shape of TensorFlow Serving's status."),
        ):
            get = {"summary": summary, "responses": {"200": _response(summary, JSON, {"type": "object"})}}
            if "{model}" in path:
                name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
                get["parameters"] = [name]
            paths[path] = item_type(get=get)


def _parameters(endpoint: Endpoint[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "schema": {"type": "string"}, "description": field.description or name}
        for name, field in endpoint.body.model_fields.items()
    ]


def _body(media_type: str) -> dict[str, Any]:
    if media_type == MULTIPART:
        return {"type": "object", "properties": {"file": _FILE}}
    return {"type": "string"} if media_type.startswith("text/") else _FILE


def _problems() -> dict[str, Any]:
    return {str(status.value): _response(status.phrase, errors.PROBLEM_JSON, _PROBLEM) for status in _PROBLEMS}


def _response(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}
