"""The servers that ours is measured beside, each a short file as its own documentation teaches.

`PEERS` run in the project's own environment, `EXTRA_PEERS` each in one of its own. They answer the same questions
with the same models, decoding and preprocessing (`loadtests.peers.models`), on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadtests.peers.registry import EXTRA_PEERS, PEERS

__all__ = ["EXTRA_PEERS", "PEERS", "Peer", "Request"]


@dataclass(frozen=True)
class Request:
    """One HTTP request as a peer takes it; `media_type` is empty if there is no body."""

    method: str
    path: str
    media_type: str
    body: bytes


@dataclass(frozen=True)
class Peer:
    """A server to measure, run in the repository root; ready when it answers its first request 200.

    Attributes:
        name: of the peer, and of what files it has.
        title: what tables call it; the version belongs after it.
        package: the distribution whose version that is.
        command: the arguments that start it on 127.0.0.1, from the interpreter's path and a port.
        requests: by the payload's name, how it is sent here; what is missing is not served.
        environment: empty for the project's own, else the name of ``requirements/peers/<name>.txt``.
        variables: of the environment, over the inherited ones.
    """

    name: str
    title: str
    package: str
    command: Callable[[str, int], list[str]]
    requests: Mapping[str, Request]
    environment: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    """Import the registry when it is asked for: the servers import this package and shall not hold the payloads."""
    if name in ("PEERS", "EXTRA_PEERS"):
        from loadtests.peers import registry  # noqa: PLC0415

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
