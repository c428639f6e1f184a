"""Tasks: what each route takes, asks of a model and answers.

A module here adds its routes by decorating an `Endpoint` with `endpoint`; `discover` imports every module of
the package. Adding a task is adding a file.

An endpoint is the part of a request line that differs between routes. Its steps are pure, but for ``run``,
which waits for models:

    select → decode → preprocess → run → postprocess
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

if TYPE_CHECKING:
    from serving.batching import Rows
    from serving.http.messages import Reply, Request
    from serving.manifest import Manifest
    from serving.predictor import Predictor
    from serving.repository import Repository


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for (see the settings of the same names)."""

    max_image_pixels: int
    max_rows: int
    max_samples: int


class Query(NamedTuple):
    """What a request asks, read but not yet fitted to a model.

    Attributes:
        items: what is to be predicted, one a row: images, texts; empty for sampling.
        options: everything else, from the query string and the JSON body; absent when null.
    """

    items: Sequence[Any] = ()
    options: Mapping[str, Any] = MappingProxyType({})


InputsT = TypeVar("InputsT")


class Endpoint(ABC, Generic[InputsT]):
    """One route of a task; ``InputsT`` is what its model is asked, `Rows` unless rows do not stack."""

    name: ClassVar[str]
    """Of the typed API method, unique."""
    path: ClassVar[str]
    methods: ClassVar[tuple[str, ...]] = ("POST",)
    task: ClassVar[str]
    """Whose default model answers when the request names none."""
    takes: ClassVar[tuple[str, ...]]
    """Media types, for the OpenAPI page."""
    body: ClassVar[type[BaseModel]]
    """The JSON body, for the OpenAPI page and BentoML's clients."""
    answer: ClassVar[type[BaseModel] | None]
    """The JSON answer; None when it is an image unless JSON is asked for."""

    @abstractmethod
    def serves(self, manifest: Manifest) -> bool:
        """Whether a model can answer this route."""

    def select(self, repository: Repository, query: Query) -> tuple[Predictor, ...]:
        """Choose the models that answer; the first is the one that the answer names."""
        return (repository.choose(self.task, self.serves, _model_name(query)),)

    @abstractmethod
    def decode(self, request: Request, limits: Limits) -> Query:
        """Read the request, whatever form it came in."""

    @abstractmethod
    def preprocess(self, query: Query, models: tuple[Predictor, ...], limits: Limits) -> InputsT:
        """Fit what was read to the model's inputs."""

    @abstractmethod
    def run(self, inputs: InputsT, models: tuple[Predictor, ...], deadline: float) -> Coroutine[Any, Any, Rows]:
        """Have the models answer, by ``deadline`` on the monotonic clock."""

    @abstractmethod
    def postprocess(
        self, request: Request, query: Query, inputs: InputsT, outputs: Rows, models: tuple[Predictor, ...]
    ) -> Reply:
        """Say what the outputs mean."""


def _model_name(query: Query) -> str | None:
    name = query.options.get("model")
    return None if name is None else str(name)


_ENDPOINTS: dict[str, Endpoint[Any]] = {}

EndpointT = TypeVar("EndpointT", bound=type[Endpoint[Any]])


class DuplicateEndpointError(ValueError):
    """Two endpoints have the same name or path."""


def endpoint(class_: EndpointT) -> EndpointT:
    """Register a route.

    Raises:
        DuplicateEndpointError: another has its name or its path.
    """
    for other in _ENDPOINTS.values():
        if class_.name == other.name or class_.path == other.path:
            raise DuplicateEndpointError(f"{class_.__name__} has the name or path of {type(other).__name__}")
    _ENDPOINTS[class_.name] = class_()
    return class_


def discover() -> tuple[Endpoint[Any], ...]:
    """Import every module of this package and return what they registered."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return tuple(_ENDPOINTS.values())
