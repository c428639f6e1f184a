"""The build context: recipe, pins, wheels and the Bento's files, in one folder from which the image is built offline.

The wheels are fetched here and not in the build: pip has its index, proxy and certificates on this machine already, and
nothing of them can stay in the image.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from deploy.container.steps import StepError, run

ROOT: Final = Path(__file__).resolve().parents[2]
RECIPE: Final = Path(__file__).resolve().parent / "Containerfile"
HEALTHCHECK: Final = Path(__file__).resolve().parent / "healthcheck.py"
PINS: Final = {"cpu": "serve.txt", "gpu": "gpu.txt"}
"""Of each variant, in requirements/."""
_PYTHON: Final = "3.11"
_GLIBC: Final = 36
"""Minor version of the GNU C library in Debian 12, which decides whose wheels run there."""
_MACHINES: Final = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755

Variant = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Wheels:
    """The wheels in a context.

    Args:
        count: of the files.
        size: of all, in bytes.
    """

    count: int
    size: int


def build_bento(context: Path) -> str:
    """Build the Bento, in a store of its own, and put its files into ``context``/service.

    Returns:
        Its tag.

    Raises:
        StepError: BentoML does not build it.
    """
    with tempfile.TemporaryDirectory(prefix="image-bento-") as home:
        # The settings of whoever builds are none of the image's.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SEXTANT_", "BENTOML_"))}
        environment = {**inherited, "BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True"}
        run([sys.executable, "-m", "bentoml", "build", "--output", "tag"], folder=ROOT, environment=environment)
        (bento,) = (path.parent for path in Path(home).glob("bentos/sextant/*/bento.yaml"))
        service = context / "service"
        shutil.rmtree(service, ignore_errors=True)
        for name in ("serving", "exported_models"):
            shutil.copytree(bento / "src" / name, service / name, ignore=shutil.ignore_patterns("__pycache__"))
        tag = f"sextant:{bento.name}"
    shutil.copy(HEALTHCHECK, service / HEALTHCHECK.name)
    # Whatever the umask was, another user than root has to read all, and to change nothing.
    for path in (service, *service.rglob("*")):
        path.chmod(_FOLDER_MODE if path.is_dir() else _FILE_MODE)
    return tag


def copy_recipe(context: Path, variant: Variant) -> None:
    """Put the recipe and the pins into ``context``."""
    context.mkdir(parents=True, exist_ok=True)
    shutil.copy(RECIPE, context / RECIPE.name)
    shutil.copy(ROOT / "requirements" / PINS[variant], context / "requirements.txt")


def fetch_wheels(context: Path) -> Wheels:
    """Fetch the wheels of ``context``/requirements.txt into ``context``/wheels, unless they are of the same pins.

    Their hashes are checked here, and once more when they are installed.

    Raises:
        StepError: pip does not find one, or it is another file than the one that was pinned.
    """
    pins, wheels, fetched = context / "requirements.txt", context / "wheels", context / "fetched.txt"
    wheels.mkdir(parents=True, exist_ok=True)
    if not fetched.is_file() or fetched.read_bytes() != pins.read_bytes():
        remove_unpinned(wheels, pins.read_text(encoding="utf-8"))
        _download(pins, wheels)
        shutil.copy(pins, fetched)
    sizes = [path.stat().st_size for path in wheels.glob("*.whl")]
    return Wheels(len(sizes), sum(sizes))


def _download(pins: Path, wheels: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "download"]
    command += ["--require-hashes", "--no-deps", "--only-binary=:all:", f"--python-version={_PYTHON}"]
    command += [f"--platform={tag}" for tag in platforms(platform.machine())]
    run([*command, f"--requirement={pins}", f"--dest={wheels}"])


def remove_unpinned(wheels: Path, pins: str) -> None:
    """Remove the wheels of earlier pins, so that a context that is used again does not grow.

    Args:
        wheels: the folder.
        pins: the text of the requirements, with hashes.
    """
    pinned = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", pins))
    for path in wheels.glob("*.whl"):
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() not in pinned:
                path.unlink()


def platforms(machine: str) -> Iterator[str]:
    """Platform tags of the wheels that run in the image (PEP 600), which is Linux whatever this machine runs.

    Args:
        machine: as `platform.machine` calls it; engines build for the machine's own processor.

    Raises:
        StepError: there are no wheels for it.
    """
    processor = _MACHINES.get(machine.lower())
    if processor is None:
        raise StepError(f"expected a processor of {', '.join(sorted(set(_MACHINES.values())))}, received {machine!r}")
    yield from (f"manylinux_2_{minor}_{processor}" for minor in range(_GLIBC, 4, -1))
    yield from (f"manylinux{name}_{processor}" for name in ("2014", "2010", "1"))
