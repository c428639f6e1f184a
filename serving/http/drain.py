"""How a worker ends: it lets go of its clients before they notice.

Uvicorn stops listening as soon as SIGTERM comes. Whoever balances load between replicas learns of it later, from a
health check or from Kubernetes' endpoints, and until then sends requests that nobody accepts.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading

logger = logging.getLogger("sextant.http")


class Drain:
    """Between SIGTERM and the end.

    From the signal on the worker is not ready, and closes each connection with its next answer; for a while it still
    accepts new ones. Then uvicorn stops listening, closes what is idle and waits for what is in flight.

    Args:
        drain_seconds: from the signal until uvicorn stops listening.
        grace_seconds: from the signal until what is still unanswered is given up.

    Attributes:
        begun: whether the signal has come.
    """

    def __init__(self, drain_seconds: float, grace_seconds: float) -> None:
        self.begun = False
        self._drain_seconds = drain_seconds
        self._grace_seconds = grace_seconds

    def watch(self) -> None:
        """Take SIGTERM from uvicorn; call it in the event loop of the main thread, when uvicorn serves there."""
        exit_ = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(exit_):
            return  # another server, which has its own way to end
        loop = asyncio.get_running_loop()

        def stop_listening() -> None:
            exit_(signal.SIGTERM, None)

        def give_up() -> None:
            logger.warning("%g s after SIGTERM not everything is answered; it is given up", self._grace_seconds)
            exit_(signal.SIGINT, None)  # to uvicorn, the second signal that comes from a keyboard means now

        def begin() -> None:
            if self.begun:  # asked twice: whoever asks is in a hurry
                stop_listening()
                return
            self.begun = True
            logger.info("SIGTERM: not ready any more, no new connections in %g s", self._drain_seconds)
            loop.call_later(self._drain_seconds, stop_listening)
            loop.call_later(self._grace_seconds, give_up)

        loop.add_signal_handler(signal.SIGTERM, begin)
