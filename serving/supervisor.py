"""BentoML's supervisor, made to notice at once that a worker died, and to end one that hangs."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from bentoml._internal.utils import circus

_CHECK_SECONDS = 0.25
"""Between looks at the workers; BentoML looks every ten seconds."""
_LAST_SECONDS = 5.0
"""For a worker to end after the time it has to answer what is in flight."""


def watch_closely(grace_seconds: float) -> None:
    """Have the supervisor of this process, which BentoML makes next, see to its workers; call it on deployment.

    Args:
        grace_seconds: that a worker has from SIGTERM to its end; BentoML gives it a day.
    """

    class Supervisor(circus.Arbiter):
        def __init__(self, watchers: list[Any], **options: Any) -> None:  # noqa: ANN401 (passed on as it comes)
            super().__init__(watchers, **options | {"check_delay": _CHECK_SECONDS})
            for watcher in watchers:
                watcher.graceful_timeout = grace_seconds + _LAST_SECONDS
            quit_ = signal.getsignal(signal.SIGINT)

            def from_keyboard(number: int, frame: FrameType | None) -> None:
                """Whoever presses Ctrl-C waits for no load balancer: workers are told so, too."""
                for watcher in watchers:
                    watcher.stop_signal = signal.SIGINT
                if callable(quit_):
                    quit_(number, frame)

            signal.signal(signal.SIGINT, from_keyboard)

    circus.Arbiter = Supervisor  # type: ignore[misc]  # looked up there when BentoML has started its hooks
