"""The settings of a server: one frozen object, from ``SEXTANT_*`` variables and an optional file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

PREFIX = "SEXTANT_"
CONFIG_VARIABLE = "SEXTANT_CONFIG"
_PACKAGE_PARENT = Path(__file__).resolve().parent.parent


class SettingsError(ValueError):
    """A setting is wrong; the message names it, what was received and what was expected."""


def _names(value: object) -> object:
    """Split "a, b" into ("a", "b")."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _paths(value: object) -> object:
    """Split "first:second", as in ``PATH``, into ("first", "second")."""
    if isinstance(value, str | os.PathLike):
        return tuple(path for path in os.fspath(value).split(os.pathsep) if path)
    return value


def _pairs(value: object) -> object:
    """Split "task=model, task=model" into a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in _names(value)]  # type: ignore[attr-defined]
    if not all(task and separator and model for task, separator, model in pairs):
        raise ValueError("expected task=model pairs separated by commas")
    return {task.strip(): model.strip() for task, _, model in pairs}


class Settings(BaseModel):
    """Everything that can be set, with its default; ``SEXTANT_`` and the name in capitals sets it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Models to serve, separated by commas; none named serves all that are found."""
    models_dir: Annotated[tuple[Path, ...], BeforeValidator(_paths), Field(min_length=1)] = (
        _PACKAGE_PARENT / "exported_models",
    )
    """The model repository; of several, separated by colons, the first that has a model gives all its versions."""
    default_models: Annotated[dict[str, str], BeforeValidator(_pairs)] = {
        "image": "cifar10_cnn",
        "sentiment": "imdb_lstm",
    }
    """The model that answers a task when the request names none; if it is not served, the first by name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; ``auto`` takes CUDA when onnxruntime has it."""
    workers: int = Field(default=1, ge=1, le=256)
    """Server processes; each loads every model and gets cores / workers threads."""
    host: str = "127.0.0.1"
    """Address to listen on, unless ``bentoml serve --host`` says otherwise."""
    port: int = Field(default=3000, ge=1, le=65535)
    """Port to listen on, unless ``bentoml serve --port`` says otherwise."""
    max_batch_size: int = Field(default=64, ge=1, le=4096)
    """Most rows run at once; the load-time profile may choose fewer."""
    batch_delay_ms: float = Field(default=0.0, ge=0, le=1000)
    """Milliseconds to wait for a batch to fill; 0 runs what is there as soon as the slot is free."""
    max_queue_rows: int = Field(default=1024, ge=1)
    """Rows waiting for one model, above which requests are refused (429)."""
    max_requests: int = Field(default=256, ge=1)
    """Requests in progress on one route of a worker, above which more are refused (429)."""
    deadline_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Seconds from the first byte of a request after which it is answered 504."""
    keep_alive_seconds: float = Field(default=75.0, gt=0, le=3600)
    """Seconds after which an idle connection is closed; more than the proxy before the service keeps its own."""
    drain_seconds: float = Field(default=2.0, ge=0, le=600)
    """Seconds after SIGTERM for which new connections are still taken, while ``/readyz`` says 503."""
    grace_seconds: float = Field(default=30.0, gt=0, le=3600)
    """Seconds after SIGTERM after which what is not answered yet is given up."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Largest request body (413)."""
    max_image_pixels: int = Field(default=2**24, ge=1024)
    """Most pixels, width times height, of the images of one request together (413)."""
    max_rows: int = Field(default=64, ge=1)
    """Most images or texts in one request (422)."""
    max_samples: int = Field(default=256, ge=1)
    """Most samples drawn for one request (422)."""
    front: Literal["lean", "bentoml"] = "lean"
    """``bentoml`` answers through BentoML's own request stack: slower, to compare with."""
    metrics: bool = True
    """Whether requests and batches are counted for ``/metrics``; costs about 5 % of raw digits/s."""
    otlp_endpoint: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """OpenTelemetry collector (OTLP over HTTP) for requests with a sampled ``traceparent``; none by default."""
    access_log: bool = False
    """One JSON line a request on the log."""


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Make the settings from ``environment``, over those of the TOML file that ``SEXTANT_CONFIG`` names.

    Variables with the prefix but of another name are left alone: the training side and Kubernetes' service
    links (``SEXTANT_SERVICE_HOST``) use some.

    Raises:
        SettingsError: the file cannot be read, or a value is wrong.
    """
    values: dict[str, Any] = {}
    if path := environment.get(CONFIG_VARIABLE):
        values = _read_file(Path(path))
    for name in Settings.model_fields:
        if (value := environment.get(PREFIX + name.upper(), "")) != "":
            values[name] = value
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("; ".join(map(_explain, error.errors()))) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{CONFIG_VARIABLE}={path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{CONFIG_VARIABLE}={path} is not TOML: {error}") from None


def _explain(error: Mapping[str, Any]) -> str:
    name = str(error["loc"][0]) if error["loc"] else "settings"
    if error["type"] == "extra_forbidden":
        return f"{name} is not a setting; there are {', '.join(Settings.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{PREFIX}{name.upper()}: {message}; received {error['input']!r}"
