"""Tell, as JSON, what an image holds: run inside of it, by its own Python, for the bill of materials and the size.

It is handed to the image's interpreter as text (``python -c``), so it imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

MODELS = Path("/app/exported_models")
DPKG = Path("/var/lib/dpkg/status")


def python_packages() -> list[dict[str, str]]:
    """Installed distributions: those of the environment that is served from, and those of the base's own Python."""
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    folders = {sysconfig.get_path(name, vars=places) for name in ("purelib", "platlib") for places in (None, base)}
    found = {}
    for one in distributions(path=sorted(folders)):
        words = one.metadata
        found[words["Name"], one.version] = {
            "name": words["Name"],
            "version": one.version,
            "license": license_of(words["License-Expression"], words["License"], words.get_all("Classifier", [])),
        }
    return [found[key] for key in sorted(found)]


def license_of(expression: str | None, text: str | None, classifiers: list[str]) -> str:
    """The licence in one line: as SPDX expression (PEP 639), or as it was told before there was that; else empty.

    Args:
        expression: field License-Expression of the metadata.
        text: field License: a name, or the whole text of the licence, or nothing of use.
        classifiers: of which some name licences.
    """
    if expression:
        return expression
    if text and "\n" not in text and text != "UNKNOWN":
        return text
    named = (one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License :: "))
    return ", ".join(named)


def system_packages(status: Path) -> Iterator[dict[str, str]]:
    """Debian packages, of dpkg's status file; none where there is no such file."""
    text = status.read_text(encoding="utf-8") if status.is_file() else ""
    for block in text.split("\n\n"):
        words = HeaderParser().parsestr(block)
        if words.get("Status", "").endswith(" installed"):
            yield {"name": words["Package"], "version": words["Version"], "architecture": words["Architecture"]}


def models(folder: Path) -> Iterator[dict[str, Any]]:
    """The models of a repository, by their manifests."""
    for path in sorted(folder.glob("*/*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {name: digest for name, digest in manifest["files"].items() if (path.parent / name).is_file()}
        yield {key: manifest[key] for key in ("model", "version", "task")} | {"files": files}


def unpacked_bytes(folder: str) -> int:
    """Bytes of all files below a folder, without those of other file systems mounted there."""
    device = os.lstat(folder).st_dev
    total = 0
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if os.lstat(os.path.join(path, name)).st_dev == device]  # noqa: PTH118
        total += sum(os.lstat(os.path.join(path, name)).st_size for name in files)  # noqa: PTH118
    return total


def system() -> dict[str, str]:
    """Distribution and interpreter."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {"ID": "linux"}
    return {
        "distribution": release["ID"],
        "release": release.get("VERSION_CODENAME", ""),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sizes = {place: unpacked_bytes(place) for place in ("/", "/app", "/app/venv", str(MODELS)) if Path(place).is_dir()}
    told = {
        "system": system(),
        "python": python_packages(),
        "debian": list(system_packages(DPKG)),
        "models": list(models(MODELS)),
        "bytes": sizes,
    }
    json.dump(told, sys.stdout)
