"""Build the image, run it locked down, ask every route, end it: what is asked of it, held against what was seen.

python -m deploy.image_test [--gpu] [--base IMAGE | --debian FOLDER] [--tool docker|podman|buildah] [--keep]

With buildah and no --base, the base is made from Debian's packages: no registry is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from deploy.container.containers import Container, ContainerError
from deploy.container.context import ROOT, Variant
from deploy.container.engines import Buildah, Engine, engine
from deploy.container.steps import StepError
from deploy.image import BASE, FOLDER, Image, Parser, build, debian_base
from loadtests.bars import Bar
from loadtests.checks import check
from loadtests.payloads import Payload, pools
from loadtests.processes import free_port, interruptible
from loadtests.tables import bar_lines
from serving.manifest import MANIFEST_FILE

LARGEST_BYTES: Final = 450e6
"""Unpacked, above the base."""
SLOWEST_START: Final = 8.0
"""Seconds from the start of the container until it is ready."""
MODELS: Final = ROOT / "exported_models"
_NEEDED: Final = ("debootstrap", "unshare", "nsenter", "setpriv")
_TELLING: Final = ("/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/mnist_mlp")
_MET, _MISSED, _CANNOT = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Run the test; 0 if all is as asked, 1 if something is not, 2 if it cannot run here."""
    parser = Parser("image-test", __doc__)
    parser.add_argument("--keep", action="store_true", help="the images that buildah made, in runs/image/storage")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        tool = engine(options.tool, FOLDER / "storage")
        if reason := missing(tool, options.base):
            print(f"image-test: {reason}", file=sys.stderr)
            return _CANNOT
        with _storage(keep=options.keep):
            made = isinstance(tool, Buildah) and not options.base
            base = debian_base(tool, options.debian or FOLDER / "base") if made else options.base or BASE
            image = build(tool, options.variant, base)
            bars = [*_size(image, options.variant), *_serve_all(tool, image), *_serve_volume(tool, image)]
    except (StepError, ContainerError) as error:
        print(f"image-test: {error}", file=sys.stderr)
        return _MISSED
    print(f"\n{bar_lines(bars)}\n{time.monotonic() - began:.0f} s in all")
    return _MET if all(bar.met for bar in bars) else _MISSED


def missing(tool: Engine, base: str | None) -> str:
    """What the test needs and this machine lacks, in words; empty if nothing."""
    if not isinstance(tool, Buildah):
        return ""
    if os.geteuid() != 0:
        return "with buildah, only root can make a base and mount an image; docker or podman would do without"
    lacking = [name for name in _NEEDED if shutil.which(name) is None and not (base and name == "debootstrap")]
    return f"with buildah, {', '.join(lacking)} must be installed" if lacking else ""


@contextlib.contextmanager
def _storage(*, keep: bool) -> Iterator[None]:
    """Room for buildah's images; they are large, so nothing of them stays."""
    storage = FOLDER / "storage"
    try:
        yield
    finally:
        if not keep:
            shutil.rmtree(storage, ignore_errors=True)


def _size(image: Image, variant: Variant) -> Iterator[Bar]:
    if variant == "cpu":  # CUDA's libraries alone are larger
        yield Bar("image above its base, unpacked", "≤", LARGEST_BYTES / 1e6, [image.added / 1e6], "MB")
    strangers = [one["name"] for one in image.inventory["python"] if one["name"] in ("tensorflow", "keras", "torch")]
    yield Bar("packages of training in it", "≤", 0, [len(strangers)], "packages")


def _serve_all(tool: Engine, image: Image) -> Iterator[Bar]:
    """As it comes: every model, every route."""
    with tool.container(image.tag, free_port(), {}, None, FOLDER / "log.txt") as container:
        ready = container.wait_until_ready()
        yield Bar("start to ready, all models", "≤", SLOWEST_START, [ready], "s")
        found = _told(_loose(container), "not locked down")
        yield Bar("what is not locked down", "≤", 0, [len(found)], "things")
        wrong = _told(_ask_all(container), "not as it should be")
        yield Bar(f"wrong answers, of {len(_requests()) + len(_TELLING)}", "≤", 0, [len(wrong)], "answers")
        unhealthy = _told(_unhealthy(tool, image.tag, container), "healthcheck")
        yield Bar("healthchecks that fail", "≤", 0, [len(unhealthy)], "checks")
        yield from _end(container, "all models")


def _serve_volume(tool: Engine, image: Image) -> Iterator[Bar]:
    """Only some models; one of them in a later version, and one more, from a volume."""
    with tempfile.TemporaryDirectory(prefix="image-test-") as folder:
        volume = Path(folder)
        volume.chmod(0o755)  # another user reads it
        _publish(volume, "mnist_mlp", 2)
        _publish(volume, "mnist_more", 1)
        variables = {"SEXTANT_MODELS": "mnist_mlp,mnist_more,imdb_gru"}
        expected = {"mnist_mlp": 2, "mnist_more": 1, "imdb_gru": 1}
        with tool.container(image.tag, free_port(), variables, volume, FOLDER / "log-volume.txt") as container:
            container.wait_until_ready()
            rows = httpx.get(f"{container.url}/v1/models", timeout=30).json()["models"]
            found = {row["model"]: row["version"] for row in rows if row["state"] == "AVAILABLE"}
            differing = sorted(f"{model} {version}" for model, version in found.items() ^ expected.items())
            wrong = _told(differing, "served or not served, against what was asked")
            yield Bar("models other than SEXTANT_MODELS and the volume say", "≤", 0, [len(wrong)], "models")
            yield from _end(container, "with a volume")


def _publish(volume: Path, model: str, version: int) -> None:
    """The committed digit model, under another name or version."""
    source, target = MODELS / "mnist_mlp" / "1", volume / model / str(version)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("report", "variables", "*.pb"))
    manifest = json.loads((source / MANIFEST_FILE).read_text(encoding="utf-8"))
    told = json.dumps(manifest | {"model": model, "version": version})
    (target / MANIFEST_FILE).write_text(told, encoding="utf-8")


def _requests() -> list[Payload]:
    """One request of each route and media type."""
    chosen = {(one.path.partition("?")[0], one.media_type): one for pool in pools().values() for one in pool}
    return list(chosen.values())


def _ask_all(container: Container) -> Iterator[str]:
    """What was not answered as it should be."""
    with httpx.Client(base_url=container.url, timeout=30, trust_env=False) as client:
        for one in _requests():
            told = {"content-type": one.media_type, "accept": one.accept}
            headers = {name: value for name, value in told.items() if value}
            answer = client.request(one.method, one.path, content=one.body, headers=headers)
            if reason := check(one.name, one, answer.status_code, answer.headers, answer.content):
                yield f"{one.method} {one.path}: {reason}"
        for path in _TELLING:
            status = client.get(path).status_code
            if status != httpx.codes.OK:
                yield f"GET {path}: {status}"


def _unhealthy(tool: Engine, image: str, container: Container) -> Iterator[str]:
    """Run the image's own HEALTHCHECK."""
    kind, *command = tool.config(image)["Healthcheck"]["Test"]
    if kind != "CMD":
        yield f"expected a command without a shell, received {kind}"
    try:
        container.execute(command)
    except StepError as error:
        yield str(error)


_CONFINEMENT: Final = """
import json, pathlib
processes = [
    dict(line.partition(":\\t")[::2] for line in path.read_text().splitlines())
    for path in pathlib.Path("/proc").glob("[0-9]*/status")
]
mounts = [line.split() for line in pathlib.Path("/proc/1/mountinfo").read_text().splitlines()]
writable = [(words[4], words[words.index("-") + 1]) for words in mounts if words[5].split(",")[0] == "rw"]
first = pathlib.Path("/proc/1/cmdline").read_text().split("\\0")
print(json.dumps({"processes": processes, "writable": writable, "first": first}))
"""
_IN_MEMORY: Final = {"tmpfs", "devtmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"}
_OF_THE_ENGINE: Final = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}


def _loose(container: Container) -> Iterator[str]:
    """What a locked-down container must not have: writable places, rights, another process 1 than the service."""
    found: dict[str, Any] = json.loads(container.execute(["python3", "-c", _CONFINEMENT]))
    if "bentoml" not in found["first"]:
        yield f"process 1 is {' '.join(found['first'])}"
    for place, kind in found["writable"]:
        if kind not in _IN_MEMORY and place not in _OF_THE_ENGINE:
            yield f"{place} ({kind}) is writable"
    for process in found["processes"]:
        yield from (f"{process['Name']}: {right}" for right in _rights(process))


def _rights(process: Mapping[str, str]) -> Iterator[str]:
    """What ``/proc/PID/status`` (proc(5)) tells of a process that it should not have."""
    for name, least in {"Uid": 4, "Gid": 4, "Groups": 0}.items():
        numbers = process[name].split()
        if set(numbers) - {"10001"} or len(numbers) < least:
            yield f"{name} {' '.join(numbers)}"
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        if int(process[name], 16):
            yield f"{name} {process[name].strip()}"
    if process["NoNewPrivs"].strip() != "1":
        yield "may gain privileges"


def _end(container: Container, what: str) -> Iterator[Bar]:
    status, seconds = container.stop()
    print(f"SIGTERM, {what}: ended with status {status} after {seconds:.1f} s", flush=True)
    yield Bar(f"status after SIGTERM, {what}", "≤", 0, [abs(status)], "")


def _told(found: Iterator[str] | Sequence[str], what: str) -> list[str]:
    """Print each."""
    listed = list(found)
    for one in listed:
        print(f"{what}: {one}", flush=True)
    return listed


if __name__ == "__main__":
    sys.exit(interruptible(main, sys.argv[1:]))
