"""What the image is made from and told by; the image itself is built and run in test_image_build.py."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.container import healthcheck, inventory
from deploy.container.context import PINS, copy_recipe, platforms, remove_unpinned
from deploy.container.engines import TOOLS, Docker, engine
from deploy.container.sbom import bill
from deploy.container.steps import StepError, run
from deploy.image import main, own_labels
from serving.manifest import Manifest, read_manifest
from tests.conftest import ROOT, Server, free_port

MODELS = ROOT / "exported_models"


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    """What an inventory tells: this environment's packages, the committed models, and a Debian package."""
    return {
        "system": {"distribution": "debian", "release": "bookworm", "python": "3.11.2"},
        "python": inventory.python_packages(),
        "debian": [{"name": "libc6", "version": "2.36-9+deb12u10", "architecture": "amd64"}],
        "models": list(inventory.models(MODELS)),
    }


# --- healthcheck ------------------------------------------------------------------------------------------


def test_the_healthcheck_ends_with_0_when_the_service_is_ready(server: Server):
    done = _healthcheck(SEXTANT_HOST="0.0.0.0", SEXTANT_PORT=server.url.rpartition(":")[2])  # noqa: S104
    assert (done.returncode, done.stderr) == (0, "")


def test_the_healthcheck_ends_with_1_and_says_so_when_the_service_is_not_ready(unready: int):
    done = _healthcheck(SEXTANT_PORT=str(unready))
    assert (done.returncode, done.stderr) == (1, "/readyz answers 503\n")


def test_the_healthcheck_ends_with_1_when_nobody_answers():
    done = _healthcheck(SEXTANT_PORT=str(free_port()))
    assert done.returncode == 1
    assert done.stderr.startswith("no answer: ")


def test_the_healthcheck_asks_where_the_service_was_told_to_listen():
    with socket.create_server(("127.0.0.2", 0)) as elsewhere:
        threading.Thread(target=_answer_once, args=(elsewhere,), daemon=True).start()
        port = str(elsewhere.getsockname()[1])
        assert healthcheck.problem({"SEXTANT_HOST": "127.0.0.2", "SEXTANT_PORT": port}) == ""


@pytest.fixture
def unready() -> Iterator[int]:
    """The port of a server that answers 503."""

    class Unready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Unready) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening.server_port
        listening.shutdown()


def _answer_once(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def _healthcheck(**variables: str) -> subprocess.CompletedProcess[str]:
    """As the image runs it: without site packages."""
    command = [sys.executable, "-IS", str(Path(healthcheck.__file__))]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=False)


# --- inventory and bill of materials ----------------------------------------------------------------------


def test_the_inventory_runs_as_text_without_any_package():
    script = Path(inventory.__file__).read_text(encoding="utf-8").partition('if __name__ == "__main__"')[0]
    script += "print(json.dumps([python_packages(), system()]))"
    done = subprocess.run([sys.executable, "-Ic", script], capture_output=True, text=True, timeout=60, check=True)
    packages, system = json.loads(done.stdout)
    assert "numpy" in {one["name"] for one in packages}
    assert system["python"].startswith("3.")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (("MIT", "The MIT License", []), "MIT"),
        ((None, "BSD", ["License :: OSI Approved :: BSD License"]), "BSD"),
        ((None, "Copyright …\n\nPermission …", ["License :: OSI Approved :: MIT License"]), "MIT License"),
        ((None, None, ["Topic :: Software Development"]), ""),
    ],
)
def test_a_licence_is_told_in_one_line(told: tuple[str | None, str | None, list[str]], expected: str):
    assert inventory.license_of(*told) == expected


def test_the_inventory_takes_only_the_installed_of_dpkg(tmp_path: Path):
    status = tmp_path / "status"
    status.write_text(
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\nDescription: C\n more\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n"
    )
    assert list(inventory.system_packages(status)) == [{"name": "libc6", "version": "2.36-9", "architecture": "amd64"}]
    assert list(inventory.system_packages(tmp_path / "missing")) == []


def test_the_inventory_counts_the_bytes_of_files_and_names_of_links(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to("in/file")
    assert inventory.unpacked_bytes(str(tmp_path)) == 1000 + len("in/file")


def test_the_bill_names_every_package_by_its_url_and_every_model_by_its_hash(found: dict[str, object]):
    told = json.loads(bill(found, "sextant", "0.1.0", {"org.opencontainers.image.revision": "abc"}))
    urls = {component.get("purl") for component in told["components"]}
    assert "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=bookworm" in urls
    assert f"pkg:pypi/numpy@{_version(found, 'numpy')}" in urls
    models = {one["name"]: one for one in told["components"] if one["type"] == "machine-learning-model"}
    committed: list[Manifest] = [read_manifest(path.parent) for path in sorted(MODELS.glob("*/1/manifest.json"))]
    assert {one.model: one.files["model.onnx"] for one in committed} == {
        name: one["hashes"][0]["content"] for name, one in models.items()
    }
    assert told["metadata"]["component"]["properties"] == [
        {"name": "org.opencontainers.image.revision", "value": "abc"}
    ]


def test_the_bill_tells_that_the_image_holds_all_of_it(found: dict[str, object]):
    told = json.loads(bill(found, "sextant", "0.1.0", {}))
    (image,) = (one for one in told["dependencies"] if one["ref"] == "image")
    assert set(image["dependsOn"]) == {component["bom-ref"] for component in told["components"]}


def _version(found: dict[str, object], name: str) -> str:
    (version,) = (one["version"] for one in found["python"] if one["name"] == name)  # type: ignore[attr-defined]
    return str(version)


# --- context ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_each_variant_has_the_same_recipe_and_its_own_pins(variant: str, tmp_path: Path):
    copy_recipe(tmp_path / "context", variant)  # type: ignore[arg-type]
    assert (tmp_path / "context" / "requirements.txt").read_text() == (
        ROOT / "requirements" / PINS[variant]
    ).read_text()
    assert (tmp_path / "context" / "Containerfile").is_file()


def test_wheels_of_earlier_pins_are_removed(tmp_path: Path):
    for name in ("kept", "old"):
        (tmp_path / f"{name}-1-py3-none-any.whl").write_bytes(name.encode())
    remove_unpinned(tmp_path, f"kept==1 \\\n    --hash=sha256:{hashlib.sha256(b'kept').hexdigest()}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["kept-1-py3-none-any.whl"]


def test_wheels_are_those_for_linux_whatever_the_machine():
    assert list(platforms("arm64"))[0] == "manylinux_2_36_aarch64"  # noqa: RUF015
    assert "manylinux2014_x86_64" in list(platforms("AMD64"))
    with pytest.raises(StepError, match="expected a processor of aarch64, x86_64, received 'riscv64'"):
        list(platforms("riscv64"))


def test_the_labels_tell_version_time_and_revision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    labels = own_labels("0.1.0")
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["org.opencontainers.image.created"] == "1970-01-02T00:00:00+00:00"
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40


# --- tools ------------------------------------------------------------------------------------------------


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put tools that do nothing on a search path of their own, each ending with a status."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(**statuses: int) -> None:
        for name, status in statuses.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n[ {status} = 0 ] || echo 'no engine answers' >&2\nexit {status}\n")
            path.chmod(0o755)

    return put


def test_a_tool_whose_engine_does_not_answer_is_passed_over(install: Callable[..., None]):
    install(docker=1, podman=0, buildah=0)
    chosen = engine(None)
    assert isinstance(chosen, Docker)
    assert chosen.name == "podman"


def test_without_a_tool_each_is_named_with_its_reason(install: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    install(docker=1)
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "docker does not work: no engine answers" in said
    assert all(f"{name} is not installed" in said for name in TOOLS if name != "docker")


def test_a_tool_that_was_asked_for_is_not_replaced(install: Callable[..., None]):
    install(docker=0)
    with pytest.raises(StepError, match=r"^podman is not installed$"):
        engine("podman")


def test_a_command_that_fails_tells_its_last_words():
    with pytest.raises(StepError, match=r"ended with status 3\n    no space left"):
        run([sys.executable, "-c", "import sys; print('no space left'); sys.exit(3)"], environment=dict(os.environ))
