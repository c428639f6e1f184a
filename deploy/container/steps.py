"""Commands that a build consists of: run to their end, and what went wrong is told."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_LAST_LINES = 15


class StepError(RuntimeError):
    """A command failed; the message ends with its last words."""


def run(command: Sequence[str], *, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a command to its end.

    Args:
        command: program and arguments.
        folder: where it runs; by default where we are.
        environment: all of its variables; by default ours.

    Returns:
        What it printed.

    Raises:
        StepError: it is not there, or ended with another status than 0.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own commands
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise StepError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        words = f"{done.stdout}\n{done.stderr}".splitlines()
        last = "".join(f"\n    {line}" for line in [line for line in words if line.strip()][-_LAST_LINES:])
        raise StepError(f"{' '.join(command[:3])} … ended with status {done.returncode}{last}")
    return done.stdout
