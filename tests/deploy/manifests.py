"""The Kubernetes manifests as a cluster gets them, and what Kubernetes makes of them."""

from __future__ import annotations

import functools
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
RENDERERS = (("kubectl", "kustomize"), ("kustomize", "build"))
Manifest = Mapping[str, Any]


def render(folder: Path) -> list[Manifest]:
    """What ``kubectl apply -k`` would send; the test is skipped where nothing can render it."""
    for program, verb in RENDERERS:
        if shutil.which(program):
            done = subprocess.run([program, verb, str(folder)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return read(done.stdout)
    pytest.skip("neither kubectl nor kustomize is installed")


@functools.cache
def overlay(name: str) -> list[Manifest]:
    """The rendered folder of that name below ``deploy/kubernetes``."""
    return render(KUBERNETES / name)


def read(text: str) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def name_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """The labels and the specification of the pods that each Deployment or InferenceService starts."""
    for deployment in of_kind(manifests, "Deployment"):
        template = deployment["spec"]["template"]
        yield template["metadata"]["labels"], template["spec"]
    for service in of_kind(manifests, "InferenceService"):
        predictor = service["spec"]["predictor"]
        own = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "labels"}
        yield predictor["labels"], {key: value for key, value in predictor.items() if key not in own}


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels are among those selected; a selector that asks for nothing selects everything."""
    return selector.items() <= labels.items()


def environment(container: Manifest) -> dict[str, str]:
    """The variables as the kubelet sets them."""
    values = {}
    for variable in container["env"]:
        value = variable.get("value")
        if value is None:
            field = variable["valueFrom"]["resourceFieldRef"]
            assert field["resource"] == "limits.cpu"
            value = str(math.ceil(cores(container["resources"]["limits"]["cpu"]) / cores(field["divisor"])))
        values[variable["name"]] = value
    return values


def cores(quantity: str) -> float:
    """Cores of a quantity such as "2" or "1500m"."""
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def bytes_of(quantity: str) -> int:
    """Bytes of a quantity such as "512Mi"."""
    powers = {"Ki": 1, "Mi": 2, "Gi": 3}
    return int(quantity[:-2]) * 1024 ** powers[quantity[-2:]]


def customized(folder: Path, text: str) -> list[Manifest]:
    """Render a kustomization of a user's own; ``@`` in it is ``deploy/kubernetes``."""
    (folder / "kustomization.yaml").write_text(text.replace("@", os.path.relpath(KUBERNETES, folder)))
    return render(folder)
