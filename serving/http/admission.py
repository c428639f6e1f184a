"""How many requests may be in progress, and what the others are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from serving.errors import PROBLEM_JSON, OverloadedError


class Admission:
    """Counts the requests in progress, each route by itself: an overloaded one leaves the others alone.

    Args:
        paths: the routes.
        limit: most requests in progress on a route.
        refused: told the route of every request that `refuse` refuses.
        early: whether `refuse` ever does; not where each request shall leave a line in the log.
    """

    def __init__(self, paths: Iterable[str], limit: int, refused: Callable[[str], None], *, early: bool) -> None:
        self._in_progress = dict.fromkeys(paths, 0)
        self._limit = limit
        self._refused = refused
        self._early = early
        self._full: dict[bytes, str] = {}
        self._head, self._body = _encode(self._problem())

    def enter(self, path: str) -> None:
        """Let a request in; it has to `leave`.

        Raises:
            OverloadedError: there are too many.
        """
        count = self._in_progress[path] + 1
        if count > self._limit:
            raise self._problem()
        self._in_progress[path] = count
        if count == self._limit and self._early:
            self._full[path.encode()] = path

    def leave(self, path: str) -> None:
        """Let a request out that was let in."""
        self._in_progress[path] -= 1
        if self._full:
            self._full.pop(path.encode(), None)

    def refuse(self, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """Return the whole response to a request for ``target`` if it would be refused anyway.

        Args:
            target: path and query.
            headers: the server's own (``Date``).
        """
        if not self._full:
            return None
        path = self._full.get(target.partition(b"?")[0])
        if path is None:
            return None
        self._refused(path)
        return b"".join((self._head, *(b"%b: %b\r\n" % header for header in headers), b"\r\n", self._body))

    def _problem(self) -> OverloadedError:
        return OverloadedError(f"{self._limit} requests are in progress on this route; try again.", 1, "requests")


def _encode(problem: OverloadedError) -> tuple[bytes, bytes]:
    """Status line and headers, and the body."""
    body = problem.body()
    lines = [
        f"HTTP/1.1 {problem.status.value} {problem.status.phrase}",
        f"content-type: {PROBLEM_JSON}",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in problem.headers),
        "",
    ]
    return "\r\n".join(lines).encode("latin-1"), body
