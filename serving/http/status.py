"""``/v1/models``: what is served, what is not, and why."""

from __future__ import annotations

from typing import Any

from serving.http.messages import Reply, json_reply
from serving.manifest import Manifest
from serving.repository import AVAILABLE, Record, Repository

_FACTS = {
    "task",
    "architecture",
    "inputs",
    "outputs",
    "preprocessing",
    "labels",
    "parameters",
    "metrics",
    "parity",
    "golden_tolerance",
    "data",
}


def models_reply(repository: Repository) -> Reply:
    """Every version that was found."""
    return json_reply({"models": [describe(repository, record) for record in repository.records]})


def model_reply(repository: Repository, model: str) -> Reply:
    """One model in the shape of TensorFlow Serving's model status, with what we know of it beside.

    Raises:
        NotFoundError: there is no such model.
    """
    versions = repository.versions(model)
    return json_reply(
        {
            "model_version_status": [_tensorflow_status(record) for record in versions],
            "models": [describe(repository, record) for record in versions],
        }
    )


def describe(repository: Repository, record: Record) -> dict[str, Any]:
    """Say all that a client may know of a model version."""
    facts: dict[str, Any] = {"model": record.model, "version": record.version, "state": record.state}
    if record.state != AVAILABLE:
        facts["reason"] = record.reason
    if record.manifest is not None:
        facts |= _manifest_facts(record.manifest)
    predictor = repository.predictors.get(record.model)
    if predictor is not None and record.state == AVAILABLE:
        profile = predictor.profile
        facts["batching"] = {
            "batch_size": profile.batch_size,
            "inline": profile.inline,
            "threads": profile.threads,
            "milliseconds": {str(size): value for size, value in profile.milliseconds.items()},
            "reason": profile.reason,
        }
    return facts


def _manifest_facts(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", include=_FACTS)


def _tensorflow_status(record: Record) -> dict[str, Any]:
    """`ModelVersionStatus` of TensorFlow Serving, whose states have END for what is not served any more."""
    if record.state == AVAILABLE:
        return _status(record, AVAILABLE, "OK", "")
    return _status(record, "END", "FAILED_PRECONDITION", record.reason)


def _status(record: Record, state: str, code: str, message: str) -> dict[str, Any]:
    return {
        "version": str(record.version),
        "state": state,
        "status": {"error_code": code, "error_message": message},
    }
