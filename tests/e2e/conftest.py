"""The committed models behind a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, Server, serve

EXPORTED = ROOT / "exported_models"


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service as it ships."""
    with serve(EXPORTED, tmp_path_factory.mktemp("committed") / "server.log") as server:
        yield server
