"""``manifest.json``: the contract between training and serving, one beside every published model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST_FILE = "manifest.json"
ONNX_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
VOCABULARY_FILE = "vocabulary.txt"


class ManifestError(ValueError):
    """The manifest cannot be read, or does not have the shape described here."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Tensor(_Record):
    """One graph input or output; ``None`` in ``shape`` is an axis of any length, the first is the batch."""

    name: str
    dtype: Literal["uint8", "int32", "float32"]
    shape: tuple[int | None, ...] = Field(min_length=1)


class Preprocessing(_Record):
    """What stands between a client's data and the graph's inputs.

    ``kind`` names the preprocessing (``digit``, ``image``, ``text``, or ``none`` for latent inputs), and
    ``parameters`` are its arguments: image ``height``, ``width``; text ``max_tokens``, ``vocabulary_size``.
    """

    kind: Literal["digit", "image", "text", "none"]
    parameters: dict[str, Any] = {}


class Metric(_Record):
    """One figure of the evaluation, with the data it was measured on."""

    value: float
    data: str


class Parity(_Record):
    """Largest absolute differences from Keras' answers, over every output, batch size and length tried."""

    tolerance: float
    batch_sizes: tuple[int, ...]
    saved_model: float
    onnx: float


class DataSource(_Record):
    """The training data: its name and the sha256 of the arrays (or of the file) it came from."""

    name: str
    sha256: str


class Manifest(_Record):
    """Everything serving needs to know of a model, and everything a reader needs to make it again."""

    schema_version: Literal[1] = 1
    model: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    version: int = Field(ge=1)
    task: str
    architecture: str
    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    """What the task needs beside the graph: an anomaly ``threshold``, a ``latent`` size."""
    metrics: dict[str, Metric]
    parity: Parity
    golden_tolerance: float = Field(gt=0)
    """Largest absolute difference allowed when ``golden.npz`` is replayed on the serving machine."""
    data: DataSource
    seed: int
    recipe: dict[str, Any]
    duration_seconds: float
    toolchain: dict[str, str]
    files: dict[str, str]
    """sha256 of every other file of the version folder, by its path relative to it, with ``/``."""


def read_manifest(folder: Path) -> Manifest:
    """Read ``folder/manifest.json``.

    Raises:
        ManifestError: the file is missing, is not JSON, or a field is missing, of the wrong type or unknown.
    """
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"{MANIFEST_FILE} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'document'}: {item['msg']}" for item in error.errors())
        raise ManifestError(f"{MANIFEST_FILE} has the wrong shape: {found}") from error


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``folder/manifest.json``, readable and with a stable order of fields."""
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def file_digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below ``folder`` but the manifest, by relative POSIX path, sorted."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_FILE
    }
