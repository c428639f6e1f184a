"""The bill of materials of an image: what `inventory` found in it, as CycloneDX 1.6 (ECMA-424)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from serving.manifest import ONNX_FILE

_LICENSES = LicenseFactory()


def bill(inventory: Mapping[str, Any], name: str, version: str, labels: Mapping[str, str]) -> str:
    """Write the bill of materials.

    Args:
        inventory: what `deploy.container.inventory` tells.
        name: of the image.
        version: of Sextant.
        labels: of the image, told as its properties.

    Returns:
        JSON that conforms to the schema.
    """
    image = Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=version,
        licenses=[_LICENSES.make_from_string("Apache-2.0")],
        bom_ref="image",
        properties=[Property(name=key, value=value) for key, value in labels.items()],
    )
    bom = Bom(components=[*_python(inventory), *_debian(inventory), *_models(inventory)])
    bom.metadata.component = image
    bom.register_dependency(image, bom.components)
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert wrong is None, wrong  # noqa: S101 (the library wrote what the library reads)
    return text + "\n"


def _python(inventory: Mapping[str, Any]) -> Iterator[Component]:
    python = inventory["system"]["python"]
    yield _package(ComponentType.PLATFORM, PackageURL("generic", None, "python", python))
    for one in inventory["python"]:
        # As the Package URL specification writes names of PyPI.
        name = one["name"].lower().replace("_", "-")
        yield _package(ComponentType.LIBRARY, PackageURL("pypi", None, name, one["version"]), one["license"])


def _debian(inventory: Mapping[str, Any]) -> Iterator[Component]:
    system = inventory["system"]
    for one in inventory["debian"]:
        where = {"arch": one["architecture"], "distro": system["release"]}
        url = PackageURL("deb", system["distribution"], one["name"], one["version"], where)
        yield _package(ComponentType.LIBRARY, url)


def _models(inventory: Mapping[str, Any]) -> Iterator[Component]:
    for one in inventory["models"]:
        yield Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            name=one["model"],
            version=str(one["version"]),
            description=f"task {one['task']}",
            bom_ref=f"model/{one['model']}/{one['version']}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one["files"][ONNX_FILE])],
            properties=[Property(name=f"sha256 of {file}", value=digest) for file, digest in one["files"].items()],
        )


def _package(kind: ComponentType, url: PackageURL, license_text: str = "") -> Component:
    licenses = [_LICENSES.make_from_string(license_text)] if license_text else []
    reference = url.to_string()
    return Component(type=kind, name=url.name, version=url.version, purl=url, bom_ref=reference, licenses=licenses)
