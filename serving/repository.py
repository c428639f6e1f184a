"""The model repository: finds versions on disk, checks them, and loads the ones to serve.

Of every model the highest valid version is served. A version that fails is never ready: it is recorded with
its reason, and the next lower one gets its turn.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from serving.batching import BatchObserver, Profile, measure
from serving.errors import NotFoundError, UnavailableError
from serving.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    VOCABULARY_FILE,
    Manifest,
    ManifestError,
    read_manifest,
)
from serving.metrics import Metrics
from serving.predictor import Predictor
from serving.preprocessing.text import Encoder, load_vocabulary
from serving.session import Session, SessionError, load_golden, replay, usable_cores
from serving.settings import Settings

logger = logging.getLogger("sextant.repository")

_WORTH_MORE_THREADS = 1.25
"""How many times faster a model has to be with all threads: they serve one batch, or the other models."""
_PROFILE_SECONDS, _TRIAL_SECONDS = 0.15, 0.1
"""The most to spend, about, on the profile of a model, and on whether it is so much faster with all threads. Most of
what loading takes is this, and others may be serving on the same cores."""

AVAILABLE, UNAVAILABLE = "AVAILABLE", "UNAVAILABLE"


class InvalidModelError(ValueError):
    """A version folder cannot be served; the message says why."""


@dataclass(frozen=True)
class Record:
    """One model version that was found, served or not.

    Attributes:
        model: name of the folder.
        version: number of the version folder; 0 when the model has none.
        reason: why it is not served; empty when it is.
        manifest: what it says of itself, when that can be read.
    """

    model: str
    version: int
    reason: str = ""
    manifest: Manifest | None = None

    @property
    def state(self) -> str:
        """``AVAILABLE`` or ``UNAVAILABLE``."""
        return UNAVAILABLE if self.reason else AVAILABLE


class Repository:
    """The models that were found and the predictors of those that are served.

    Args:
        records: every version looked at, best first within a model.
        predictors: the served ones by name.
        defaults: the preferred model of a task.
    """

    def __init__(
        self,
        records: Sequence[Record],
        predictors: Mapping[str, Predictor],
        defaults: Mapping[str, str],
    ) -> None:
        self.records = tuple(records)
        self.predictors = dict(sorted(predictors.items()))
        self._defaults = defaults

    @property
    def alive(self) -> bool:
        """Whether none of the predictors has died."""
        return not any(predictor.dead for predictor in self.predictors.values())

    @property
    def ready(self) -> bool:
        """Whether something is served, and nothing that is served has died."""
        return bool(self.predictors) and self.alive

    def choose(self, task: str, serves: Callable[[Manifest], bool], name: str | None = None) -> Predictor:
        """Find the model that answers.

        Args:
            task: whose default model is meant when ``name`` is None.
            serves: tells whether a model can answer the request at all.
            name: the model that was asked for.

        Raises:
            NotFoundError: there is no such model; those there are, are named.
            UnavailableError: the model was found, but cannot be served; or no model can answer.
        """
        preferred = self.predictors.get(self._defaults.get(task, "") if name is None else name)
        if preferred is not None and serves(preferred.manifest):
            return preferred
        able = (predictor for predictor in self.predictors.values() if serves(predictor.manifest))
        if name is None:
            if (first := next(able, None)) is None:
                raise UnavailableError("No model that could answer this is served; GET /v1/models lists those found.")
            return first
        if name not in self.predictors and any(record.model == name for record in self.records):
            raise UnavailableError(f"Model {name} is not available; GET /v1/models/{name} says why.")
        names = ", ".join(predictor.manifest.model for predictor in able) or "none"
        raise NotFoundError(f"There is no model {name[:100]!r} for this; there are: {names}.")

    def versions(self, model: str) -> list[Record]:
        """Return every version of ``model`` that was looked at.

        Raises:
            NotFoundError: there is no such model.
        """
        found = [record for record in self.records if record.model == model]
        if not found:
            names = sorted({record.model for record in self.records})
            raise NotFoundError(f"There is no model {model[:100]!r}; there are: {', '.join(names) or 'none'}.")
        return found

    def close(self) -> None:
        """Let every predictor go."""
        for predictor in self.predictors.values():
            predictor.close()


def load_repository(settings: Settings, metrics: Metrics | None) -> Repository:
    """Find, check and load every enabled model. Slow: files are hashed and models run. None stops the others."""
    threads = max(1, usable_cores() // settings.workers)
    records: list[Record] = []
    predictors: dict[str, Predictor] = {}
    for model, folder in _enabled(settings):
        for record, predictor in _load_model(settings, folder, metrics, threads):
            records.append(record)
            if metrics is not None:
                metrics.model_state(record.model, str(record.version), record.state)
            if predictor is not None:
                predictors[model] = predictor
                logger.info("serving %s version %d: %s", model, record.version, predictor.profile.reason)
            else:
                logger.error("not serving %s version %d: %s", model, record.version, record.reason)
    if not predictors:
        logger.error("no model can be served from %s", ", ".join(map(str, settings.models_dir)))
    return Repository(records, predictors, settings.default_models)


def _enabled(settings: Settings) -> list[tuple[str, Path]]:
    """Name and folder of every model to be served, whether there is one or not."""
    found: dict[str, Path] = {}
    for root in settings.models_dir:
        try:
            folders = [path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._"]
        except OSError as error:
            # A place for models that may be mounted need not be, as long as there are others.
            if not isinstance(error, FileNotFoundError) or not any(other.is_dir() for other in settings.models_dir):
                logger.error("models_dir %s cannot be read: %s", root, error.strerror)  # noqa: TRY400
            continue
        found = {path.name: path for path in folders} | found
    names = sorted(set(settings.models or found))
    return [(name, found.get(name, settings.models_dir[0] / name)) for name in names]


def _load_model(
    settings: Settings, model_folder: Path, metrics: Metrics | None, threads: int
) -> list[tuple[Record, Predictor | None]]:
    """Try the versions from the highest down, until one can be served."""
    model = model_folder.name
    tried: list[tuple[Record, Predictor | None]] = []
    for version in _versions(model_folder):
        folder = model_folder / str(version)
        manifest: Manifest | None = None
        try:
            manifest = read_manifest(folder)
            check_files(folder, manifest)
            predictor = _load_version(folder, manifest, settings, metrics, threads)
        except (InvalidModelError, ManifestError, SessionError) as error:
            tried.append((Record(model, version, str(error), manifest), None))
        except Exception as error:  # one model, whatever is wrong with it, must not keep the others down
            logger.exception("loading %s version %d", model, version)
            tried.append((Record(model, version, f"cannot be loaded: {type(error).__name__}", manifest), None))
        else:
            return [*tried, (Record(model, version, manifest=manifest), predictor)]
    return tried or [(Record(model, 0, "there is no folder with a version number"), None)]


def _versions(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and name[0] != "0")[::-1]


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that the folder is what the manifest describes.

    Serving needs the graph, the golden answers and, for text, the vocabulary. The other files that the
    manifest lists (the SavedModel, the report) may be left out, but those that are there must be as listed.

    Raises:
        InvalidModelError: a file is missing, unlisted, changed or outside the folder, or the manifest is
            another model's.
    """
    named = (manifest.model, str(manifest.version))
    if named != (folder.parent.name, folder.name):
        raise InvalidModelError(f"{MANIFEST_FILE} is that of {named[0]} version {named[1]}")
    needed = {ONNX_FILE, GOLDEN_FILE}
    if manifest.preprocessing.kind == "text":
        needed.add(VOCABULARY_FILE)
    for name in sorted(needed - set(manifest.files)):
        raise InvalidModelError(f"{MANIFEST_FILE} has no checksum of {name}")
    root = folder.resolve()
    for name, digest in manifest.files.items():
        path = folder / name
        if PurePosixPath(name).is_absolute() or not path.resolve().is_relative_to(root):
            raise InvalidModelError(f"{name} lies outside the version folder")
        if not path.is_file():
            if name in needed:
                raise InvalidModelError(f"{name} is missing")
            continue
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InvalidModelError(f"{name} cannot be read: {error.strerror}") from error
        if found != digest:
            raise InvalidModelError(f"{name} has sha256 {found[:12]}…; {MANIFEST_FILE} says {digest[:12]}…")


def _load_version(
    folder: Path, manifest: Manifest, settings: Settings, metrics: Metrics | None, threads: int
) -> Predictor:
    session, profile = _open(folder, manifest, settings, threads=1)
    if threads > 1 and not profile.inline:
        # Waking other threads takes longer than a cheap batch; a dear one has to be tried.
        other, faster = _open(folder, manifest, settings, threads=threads, budget_seconds=_TRIAL_SECONDS)
        if faster.seconds_per_row * _WORTH_MORE_THREADS < profile.seconds_per_row:
            session, profile = other, faster
    observer = BatchObserver() if metrics is None else metrics.batches(manifest.model)
    return Predictor(manifest, session, profile, _encoder(folder, manifest), observer, settings)


def _open(
    folder: Path, manifest: Manifest, settings: Settings, *, threads: int, budget_seconds: float = _PROFILE_SECONDS
) -> tuple[Session, Profile]:
    session = Session(folder, manifest, device=settings.device, threads=threads)
    inputs, outputs = load_golden(folder, manifest)
    replay(session, inputs, outputs, manifest.golden_tolerance)
    profile = measure(
        session.run, inputs, largest=settings.max_batch_size, threads=threads, budget_seconds=budget_seconds
    )
    session.trim({name: array[:1] for name, array in inputs.items()})
    return session, profile


def _encoder(folder: Path, manifest: Manifest) -> Encoder | None:
    if manifest.preprocessing.kind != "text":
        return None
    try:
        words = load_vocabulary((folder / VOCABULARY_FILE).read_bytes())
        return Encoder(
            words,
            vocabulary_size=int(manifest.preprocessing.parameters["vocabulary_size"]),
            max_tokens=int(manifest.preprocessing.parameters["max_tokens"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelError(f"the text preprocessing is not usable: {error!r}") from error
