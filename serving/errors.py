"""What can go wrong with a request, as the client is told: RFC 9457 problem details.

    Problem
    ├── MalformedError           400  cannot be read at all
    ├── NotFoundError            404  no such route or model
    ├── MethodNotAllowedError    405
    ├── TooLargeError            413  body or image over a cap
    ├── UnsupportedMediaError    415
    ├── UnusableError            422  can be read, but cannot be answered
    ├── OverloadedError          429  refused at once; carries Retry-After
    ├── InternalError            500  our fault; carries the id under which it was logged
    ├── UnavailableError         503  not ready, or the model is not served
    └── DeadlineError            504

``detail`` is written for the client: what was received, what was expected. Nothing here knows of HTTP
frameworks; the front turns a problem into an answer.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

import orjson

PROBLEM_JSON = "application/problem+json"


class Problem(Exception):  # noqa: N818 (the name RFC 9457 gives it)
    """An error that the client is told of.

    Args:
        detail: one sentence or two, for the person who sent the request.
        headers: further response headers.
    """

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(self, detail: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = headers

    def body(self) -> bytes:
        """Render the problem as ``application/problem+json``."""
        return orjson.dumps(
            {
                "type": "about:blank",  # RFC 9457, 4.2.1: the status says what kind it is
                "title": self.status.phrase,
                "status": self.status.value,
                "detail": self.detail,
            },
        )


class MalformedError(Problem):
    """The body is not what its media type says, or is empty."""

    status = HTTPStatus.BAD_REQUEST


class NotFoundError(Problem):
    """No such route or model."""

    status = HTTPStatus.NOT_FOUND


class MethodNotAllowedError(Problem):
    """The route exists, but not for this method."""

    status = HTTPStatus.METHOD_NOT_ALLOWED

    def __init__(self, method: str, path: str, allowed: tuple[str, ...]) -> None:
        super().__init__(
            f"{path} does not answer {method}; it answers {' and '.join(allowed)}.",
            (("allow", ", ".join(allowed)),),
        )


class TooLargeError(Problem):
    """The body, or an image in it, is over a cap."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedMediaError(Problem):
    """The route does not take this media type."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class UnusableError(Problem):
    """The request can be read, but not answered: a wrong size, a number out of range, an empty text."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY


class OverloadedError(Problem):
    """More is asked than can be answered in time.

    Args:
        detail: why it is refused.
        retry_after: seconds after which it is worth trying again, at least 1.
        reason: one word for the metrics: ``queue``, ``deadline`` or ``requests``.
    """

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, detail: str, retry_after: int, reason: str) -> None:
        super().__init__(detail, (("retry-after", str(max(1, retry_after))),))
        self.reason = reason


class InternalError(Problem):
    """Our fault. The log says more under ``id_``; the client learns nothing else."""

    def __init__(self, id_: str) -> None:
        super().__init__(f"An unexpected error; it was logged under id {id_}.")


class UnavailableError(Problem):
    """Not ready yet, shutting down, or the model that would answer is not served."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail, (("retry-after", str(retry_after)),))


class DeadlineError(Problem):
    """The answer would come after the deadline."""

    status = HTTPStatus.GATEWAY_TIMEOUT
