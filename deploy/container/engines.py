"""Tools that build images and run them: docker, podman, buildah. Of each only what is needed here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploy.container.containers import ConfinedContainer, Container, DockerContainer
from deploy.container.steps import StepError, run

TOOLS: Final = ("docker", "podman", "buildah")
"""In the order in which they are looked for."""


class Engine(ABC):
    """A tool that builds and runs images.

    Args:
        name: of the program.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def build(self, context: Path, tag: str, base: str, labels: Mapping[str, str]) -> None:
        """Build ``context``/Containerfile.

        Args:
            context: folder of the recipe and all that it copies.
            tag: name of the image.
            base: name of the image that it stands on.
            labels: over those in the recipe.

        Raises:
            StepError: it cannot be built.
        """

    @abstractmethod
    def config(self, image: str) -> dict[str, Any]:
        """What an image says of itself: ``User``, ``Env``, ``Entrypoint``, ``Healthcheck``, ``Labels`` and others."""

    @abstractmethod
    def read(self, image: str, command: Sequence[str]) -> str:
        """Run a command in an image, as root and without a network; returns what it printed."""

    @abstractmethod
    def container(
        self, image: str, port: int, variables: Mapping[str, str], volume: Path | None, log: Path
    ) -> contextlib.AbstractContextManager[Container]:
        """Run the service of an image, locked down, until the block ends.

        Args:
            image: its name.
            port: of 127.0.0.1 to serve at.
            variables: of the environment, over the image's.
            volume: folder for /models, if any.
            log: file for what it prints, if the tool keeps no log of its own.
        """

    def _build_options(self, context: Path, tag: str, base: str, labels: Mapping[str, str]) -> list[str]:
        told = [f"--label={name}={value}" for name, value in labels.items()]
        return [f"--file={context / 'Containerfile'}", f"--tag={tag}", f"--build-arg=BASE={base}", *told]


class Docker(Engine):
    """docker and podman, which take the same commands."""

    def build(self, context: Path, tag: str, base: str, labels: Mapping[str, str]) -> None:
        """Without a network for the recipe's commands: everything is in the context."""
        form = ["--format=docker"] if self.name == "podman" else []  # OCI's own format has no HEALTHCHECK
        options = [*form, "--network=none", *self._build_options(context, tag, base, labels)]
        run([self.name, "build", *options, str(context)], environment={**os.environ, "DOCKER_BUILDKIT": "1"})

    def config(self, image: str) -> dict[str, Any]:
        """By ``image inspect``."""
        (told,) = json.loads(run([self.name, "image", "inspect", image]))
        beside = {name: told[name] for name in ("Healthcheck",) if name in told}  # where podman has it
        return {**told["Config"], **beside}

    def read(self, image: str, command: Sequence[str]) -> str:
        """By ``run``."""
        options = ["--rm", "--network=none", "--user=0", f"--entrypoint={command[0]}"]
        return run([self.name, "run", *options, image, *command[1:]])

    def container(
        self, image: str, port: int, variables: Mapping[str, str], volume: Path | None, log: Path
    ) -> contextlib.AbstractContextManager[Container]:
        """By ``run --detach``."""
        del log
        return DockerContainer(self.name, image, port, variables, volume)


class Buildah(Engine):
    """buildah, which needs no engine in the background, nor one that isolates: chroot does for our own recipe.

    Args:
        storage: folder for the images instead of buildah's own. The driver is the first that works there: overlay, or
            else vfs, which copies the whole image for every layer and every container.
    """

    def __init__(self, storage: Path | None = None) -> None:
        super().__init__("buildah")
        self._command = ["buildah"]
        if storage is not None:
            self._command += [f"--root={storage / 'images'}", f"--runroot={storage / 'run'}"]

    def build(self, context: Path, tag: str, base: str, labels: Mapping[str, str]) -> None:
        """By ``build``, in Docker's format: OCI's own has no HEALTHCHECK."""
        options = ["--isolation=chroot", "--format=docker", *self._build_options(context, tag, base, labels)]
        run([*self._command, "build", *options, str(context)])

    def config(self, image: str) -> dict[str, Any]:
        """By ``inspect``."""
        config: dict[str, Any] = json.loads(run([*self._command, "inspect", "--type=image", image]))["Docker"]["config"]
        return config

    def read(self, image: str, command: Sequence[str]) -> str:
        """By ``run``, in a working container of its own."""
        with self._working(image) as name:
            return run([*self._command, "run", "--isolation=chroot", "--user=0:0", name, "--", *command])

    @contextlib.contextmanager
    def container(
        self, image: str, port: int, variables: Mapping[str, str], volume: Path | None, log: Path
    ) -> Iterator[Container]:
        """In a mounted working container; buildah itself makes no root read-only."""
        config = self.config(image)
        with self._working(image) as name:
            root = Path(run([*self._command, "mount", name]).strip())
            with ConfinedContainer(root, config, port, variables, volume, log) as started:
                yield started

    def import_root(self, root: Path, tag: str) -> None:
        """Make an image of a root file system."""
        name = run([*self._command, "from", "scratch"]).strip()
        try:
            mounted = run([*self._command, "mount", name]).strip()
            run(["cp", "--archive", "--one-file-system", f"{root}/.", mounted])
            run([*self._command, "commit", "--quiet", name, tag])
        finally:
            run([*self._command, "rm", name])

    @contextlib.contextmanager
    def _working(self, image: str) -> Iterator[str]:
        name = run([*self._command, "from", "--pull-never", image]).strip()
        try:
            yield name
        finally:
            run([*self._command, "rm", name])


def engine(name: str | None, storage: Path | None = None) -> Engine:
    """The tool of that name, or the first that is there.

    Args:
        name: of `TOOLS`; None for any that works.
        storage: for buildah, see there.

    Raises:
        StepError: it does not work, or none does.
    """
    for tool in TOOLS if name is None else (name,):
        reason = unusable(tool)
        if not reason:
            return Buildah(storage) if tool == "buildah" else Docker(tool)
        if name is not None:
            raise StepError(reason)
    raise StepError(f"docker, podman or buildah is needed: {'; '.join(map(unusable, TOOLS))}")


def unusable(tool: str) -> str:
    """Why a tool cannot be used; empty if it can."""
    if shutil.which(tool) is None:
        return f"{tool} is not installed"
    try:
        run([tool, "version"])  # docker's answers well only if its engine does
    except StepError as error:
        return f"{tool} does not work: {str(error).splitlines()[-1].strip()}"
    return ""
