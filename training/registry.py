"""The architectures by name: registered by decorator, found by walking ``training.architectures``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import training.architectures
from training.architecture import Architecture

_registered: dict[str, type[Architecture]] = {}


def register(name: str) -> Callable[[type[Architecture]], type[Architecture]]:
    """Register an architecture class under ``name``.

    Raises:
        ValueError: the name is taken.
    """

    def add(cls: type[Architecture]) -> type[Architecture]:
        if name in _registered:
            message = f"architecture {name!r} is registered twice: {_registered[name].__module__}, {cls.__module__}"
            raise ValueError(message)
        cls.name = name
        _registered[name] = cls
        return cls

    return add


def architectures() -> dict[str, type[Architecture]]:
    """Every registered architecture, those that need another one published after the others."""
    for module in pkgutil.iter_modules(training.architectures.__path__):
        importlib.import_module(f"training.architectures.{module.name}")
    return dict(sorted(_registered.items(), key=lambda item: (bool(item[1].needs), item[0])))
