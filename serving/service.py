"""The composition root: settings → request line → BentoML service. Only here is the environment read.

bentoml serve serving.service:Sextant
"""

from __future__ import annotations

import logging
import os
from typing import Any

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # no usage reports to BentoML's makers

import bentoml
import uvicorn
import uvicorn.config

from serving.http.drain import Drain
from serving.http.front import App, Front
from serving.http.line import RequestLine
from serving.http.openapi import complete
from serving.http.protocol import protocol
from serving.http.server import Server
from serving.http.typed import api_method
from serving.settings import SettingsError, load_settings
from serving.supervisor import watch_closely
from serving.tasks import discover

logging.getLogger("sextant").setLevel(logging.INFO)

try:
    SETTINGS = load_settings(os.environ)
except SettingsError as error:
    raise SystemExit(f"Wrong settings: {error}") from None
ENDPOINTS = discover()
LINE = RequestLine(SETTINGS, os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
DRAIN = Drain(SETTINGS.drain_seconds, SETTINGS.grace_seconds)
DESCRIPTION = (
    "# Sextant\n\n"
    "Six classic Keras architectures over HTTP: read digits, images and reviews, draw digits, tell what is strange. "
    "`GET /v1/models` says what is served and how good it is."
)


class LeanService(bentoml.Service[Any]):  # type: ignore[misc]  # BentoML's internals are untyped
    """A BentoML service whose prediction routes do not pass through BentoML's request stack."""

    def to_asgi(self, is_main: bool = True) -> App:  # noqa: FBT001, FBT002 (BentoML's signature)
        """Put the lean front before BentoML's application."""
        # Without handlers, uvicorn does not prepare an access log line for every request that nobody reads.
        logging.getLogger("uvicorn.access").propagate = False
        application: App = super().to_asgi(is_main)
        if SETTINGS.front == "bentoml":
            return application
        front = Front(LINE, ENDPOINTS, application, DRAIN)
        # BentoML makes uvicorn's server and has it choose its HTTP protocol; this is where they look.
        uvicorn.Server = Server  # type: ignore[misc]
        uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol(front.admission, DRAIN, SETTINGS.keep_alive_seconds)  # type: ignore[assignment]
        return front

    @property
    def doc(self) -> str:
        """What the OpenAPI page says of the service."""
        return DESCRIPTION

    @property
    def openapi_spec(self) -> Any:  # noqa: ANN401 (BentoML's internals are untyped)
        """Describe the routes in full."""
        spec = super().openapi_spec
        complete(spec.paths, ENDPOINTS)
        return spec


class _Lifecycle:
    """What BentoML calls besides the API methods."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    def supervise() -> None:
        """Prepare the supervisor, in its process."""
        watch_closely(SETTINGS.grace_seconds)

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Begin to load the models, and to wait for the end."""
        LINE.start(endpoint.path for endpoint in ENDPOINTS)
        DRAIN.watch()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Let the models go."""
        await LINE.stop()

    async def __is_ready__(self) -> bool:
        """Tell BentoML's own readiness probe."""
        return LINE.ready and not DRAIN.begun


_MEMBERS = {
    "__doc__": DESCRIPTION,
    **{endpoint.name: api_method(endpoint, LINE) for endpoint in ENDPOINTS},
}

Sextant: LeanService = bentoml.service(
    name="sextant",
    service_class=LeanService,
    workers=SETTINGS.workers,
    traffic={"timeout": SETTINGS.deadline_seconds + 5},
    http={"host": SETTINGS.host, "port": SETTINGS.port},
    logging={"access": {"enabled": False}},
)(type("Sextant", (_Lifecycle,), _MEMBERS))
