"""Command lines of load tests: bad use gets one clear line, and status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from loadtests.load import GeneratorError, LoadError
from loadtests.processes import ServerError, interruptible
from loadtests.server import PORT, NoServerError
from loadtests.slo import DEFAULT, SloError

MET, BROKEN, BAD_USE, INVALID = 0, 1, 2, 3
"""Statuses: what was asked for was found; not so; the command cannot be meant; the figures do not count."""


class Parser(argparse.ArgumentParser):
    """A parser that tells an error without repeating the usage.

    Args:
        name: of the command, before what it has to say.
        module: that it is run as.
        doc: of the module; its first line describes the command.
    """

    def __init__(self, name: str, module: str, doc: str | None) -> None:
        super().__init__(prog=f"python -m {module}", description=(doc or "").partition("\n")[0], allow_abbrev=False)
        self._name = name

    def error(self, message: str) -> NoReturn:
        """Say it in one line, and end with status 2."""
        self.exit(BAD_USE, f"{self._name}: {message}\n")


def parser(name: str, module: str, doc: str | None) -> Parser:
    """A parser with the options that all commands have."""
    made = Parser(name, module, doc)
    made.add_argument("--host", help="another server: HOST, HOST:PORT or a URL; by default one on this machine")
    made.add_argument("--port", type=int, default=PORT, help="of the host (%(default)s)")
    made.add_argument("--processes", type=int, default=1, metavar="N", help="that generate the load (%(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of payloads and their order (%(default)s)")
    made.add_argument("--slo", type=Path, default=DEFAULT, metavar="FILE", help="(loadtests/slo.toml)")
    return made


def run(name: str, command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a command; what it raises becomes a line on the error output, and a status."""

    def told(words: Sequence[str]) -> int:
        try:
            return command(words)
        except (LoadError, SloError, NoServerError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return BAD_USE
        except (GeneratorError, ServerError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return INVALID

    return interruptible(told, arguments)
