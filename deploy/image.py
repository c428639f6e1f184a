"""Build the image: Bento, wheels, recipe, and beside it the bill of materials.

python -m deploy.image [--gpu] [--base IMAGE | --debian] [--tag NAME] [--tool docker|podman|buildah]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from deploy.container import inventory
from deploy.container.base import debian
from deploy.container.context import ROOT, Variant, build_bento, copy_recipe, fetch_wheels
from deploy.container.engines import TOOLS, Buildah, Engine, engine
from deploy.container.sbom import bill
from deploy.container.steps import StepError

BASE: Final = "python:3.11-slim-bookworm"
"""The public Python image."""
FOLDER: Final = ROOT / "runs" / "image"
"""For build contexts, bills of materials, and the root file system of a base made from Debian's packages."""
_DEBIAN: Final = "sextant-debian"
_LABEL: Final = "org.opencontainers.image."

Result = TypeVar("Result")


@dataclass(frozen=True)
class Image:
    """An image that was built.

    Args:
        tag: its name.
        added: bytes above its base, unpacked.
        inventory: what it holds.
        bill: file of its bill of materials.
    """

    tag: str
    added: int
    inventory: dict[str, Any]
    bill: Path


def main(arguments: Sequence[str]) -> int:
    """Build the image that the command line asks for; 0 if it was built, 1 if not."""
    parser = Parser("image", __doc__)
    parser.add_argument("--tag", help="name of the image (sextant:VERSION, for CUDA sextant:VERSION-gpu)")
    options = parser.parse_args(arguments)
    try:
        tool = engine(options.tool)
        base = debian_base(tool, options.debian) if options.debian else options.base or BASE
        image = build(tool, options.variant, base, options.tag)
    except StepError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    print(f"\n{how_to_run(tool.name, image.tag, options.variant)}")
    return 0


class Parser(argparse.ArgumentParser):
    """A parser with the options that building and testing share; it tells an error in one line.

    Args:
        name: of the command, before what it has to say.
        doc: of its module; the first line describes it.
    """

    def __init__(self, name: str, doc: str | None) -> None:
        program = f"python -m deploy.{name.replace('-', '_')}"
        super().__init__(prog=program, description=(doc or "").partition("\n")[0], allow_abbrev=False)
        self._name = name
        self.add_argument(
            "--gpu",
            action="store_const",
            const="gpu",
            default="cpu",
            dest="variant",
            help="with CUDA's runtime (requirements/gpu.txt)",
        )
        base = self.add_mutually_exclusive_group()
        base.add_argument("--base", metavar="IMAGE", help=f"with Python 3.11 ({BASE})")
        base.add_argument(
            "--debian",
            type=Path,
            nargs="?",
            const=FOLDER / "base",
            metavar="FOLDER",
            help="make the base from Debian's packages, with buildah and as root; in FOLDER, if it is not there yet",
        )
        self.add_argument("--tool", choices=TOOLS, help="to build with (the first of these that works)")

    def error(self, message: str) -> NoReturn:
        """Say it, and end with status 2."""
        self.exit(2, f"{self._name}: {message}\n")


def debian_base(tool: Engine, folder: Path) -> str:
    """Make a base image from Debian's packages; returns its name.

    Args:
        tool: buildah.
        folder: of the root file system; made unless it is there.

    Raises:
        StepError: it cannot be made.
    """
    if not isinstance(tool, Buildah):
        raise StepError(f"a base of Debian's packages is made with buildah; {tool.name} takes --base IMAGE")
    _timed("base", lambda: tool.import_root(debian(folder), _DEBIAN), lambda _: f"Debian's packages, as {_DEBIAN}")
    return _DEBIAN


def build(tool: Engine, variant: Variant, base: str, tag: str | None = None) -> Image:
    """Build one variant, telling each step's time.

    Args:
        tool: to build with.
        variant: CPU or GPU.
        base: name of the image to stand on.
        tag: of the image; by default its version's.

    Raises:
        StepError: it cannot be built.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = str(project["version"])
    tag = tag or f"sextant:{version}{'-gpu' if variant == 'gpu' else ''}"
    context = FOLDER / f"context-{variant}"
    copy_recipe(context, variant)
    bento = _timed("Bento", lambda: build_bento(context), str)
    _timed("wheels", lambda: fetch_wheels(context), lambda found: f"{found.count}, {megabytes(found.size)}")
    labels = {**own_labels(version), _LABEL + "base.name": base, "bentoml.bento": bento}
    _timed("image", lambda: tool.build(context, tag, base, labels), lambda _: f"{tag} on {base}, by {tool.name}")
    found = _timed("inventory", lambda: _inventory(tool, tag), _held)
    added = found["bytes"]["/"] - _inventory(tool, base)["bytes"]["/"]
    file = FOLDER / f"{tag.rpartition('/')[2].replace(':', '-')}.cdx.json"
    file.write_text(bill(found, tag.rpartition(":")[0] or tag, version, labels), encoding="utf-8")
    print(f"{megabytes(added)} above its base, unpacked; bill of materials: {file.relative_to(ROOT)}")
    return Image(tag, added, found, file)


def own_labels(version: str) -> dict[str, str]:
    """Labels of this build: version, time, and the revision where there is one (with ``-dirty`` if files differ)."""
    now = int(os.environ.get("SOURCE_DATE_EPOCH", "0")) or time.time()
    told = {"version": version, "created": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")}
    if revision := _git("rev-parse", "HEAD"):
        told["revision"] = revision + ("-dirty" if _git("status", "--porcelain") else "")
    return {_LABEL + name: value for name, value in told.items()}


def how_to_run(tool: str, tag: str, variant: Variant) -> str:
    """The command line that runs an image locked down."""
    program = "podman" if tool == "buildah" else tool
    options = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges"
    return f"{program} run {'--gpus all ' if variant == 'gpu' else ''}{options} -p 3000:3000 {tag}"


def megabytes(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e6:.0f} MB"


def _inventory(tool: Engine, image: str) -> dict[str, Any]:
    """Have the image's own Python tell what it holds."""
    script = Path(inventory.__file__).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(tool.read(image, ["python3", "-c", script]))
    return found


def _held(found: dict[str, Any]) -> str:
    places = ", ".join(f"{megabytes(size)} in {place}" for place, size in found["bytes"].items() if place != "/")
    counts = (f"{len(found[kind])} {what}" for kind, what in _KINDS.items())
    return f"{', '.join(counts)}; {places}"


_KINDS: Final = {"python": "Python packages", "debian": "Debian packages", "models": "models"}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607 (the user's own)
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _timed(what: str, step: Callable[[], Result], words: Callable[[Result], str]) -> Result:
    began = time.monotonic()
    result = step()
    print(f"{what:<10} {time.monotonic() - began:6.1f} s  {words(result)}", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
