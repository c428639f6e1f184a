"""The image, built on Debian's packages and run locked down, where this machine has the tools for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from deploy.container.engines import Buildah, unusable
from deploy.image_test import missing
from tests.conftest import ROOT

_SECONDS = 900
_REASON = unusable("buildah") or missing(Buildah(), None)


@pytest.mark.skipif(bool(_REASON), reason=_REASON or "it can")
@pytest.mark.timeout(_SECONDS + 60)  # Debian's packages are fetched, and all of the service's
def test_the_image_runs_locked_down_within_its_bars():
    command = [sys.executable, "-m", "deploy.image_test", "--tool", "buildah"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the group is its own session
    print(said)
    assert process.returncode == 0, said
    assert "| met |" in said
    assert not (ROOT / "runs" / "image" / "storage").exists()
