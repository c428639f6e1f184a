"""Exit 0 if the service in this container is ready, 1 if not: the image's HEALTHCHECK.

The standard library alone, since it runs every few seconds: the image has no curl, and needs none.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping

_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (asked at, not listened on)
_SECONDS = 4


def problem(variables: Mapping[str, str]) -> str:
    """Why the service does not count as ready; empty if it is.

    Args:
        variables: the environment; ``SEXTANT_HOST`` and ``SEXTANT_PORT`` tell where the service listens.
    """
    host = variables.get("SEXTANT_HOST", "")
    port = int(variables.get("SEXTANT_PORT") or 3000)
    connection = http.client.HTTPConnection(_EVERYWHERE.get(host, host), port, timeout=_SECONDS)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error}"
    finally:
        connection.close()
    return "" if status == http.client.OK else f"/readyz answers {status}"


if __name__ == "__main__":
    sys.exit(problem(os.environ) or 0)  # with a text: printed, and status 1
