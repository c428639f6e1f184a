"""The rules of the layout: who may import whom, and pins that install the same everywhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ("serve", "gpu", "image", "train", "dev", "load")
PEERS = ("peers/litserve", "peers/mlserver", "peers/ray")
TRAINING_ONLY = ("training", "tensorflow", "keras", "tf2onnx", "onnx", "matplotlib")

IMPORT_ALL = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"blocked: {{name}}")

sys.meta_path.insert(0, Blocked())
package = importlib.import_module({package!r})
names = [package.__name__]
if hasattr(package, "__path__"):
    names += [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print("\\n".join(names))
"""


def import_all(package: str, *, without: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Import ``package`` and every module in it, in a fresh interpreter that refuses ``without``."""
    code = IMPORT_ALL.format(package=package, blocked=set(without))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def imported_by(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every absolute module name that the modules below ``folder`` import, as deep as the source names it."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
                yield from ((path, f"{node.module}.{alias.name}") for alias in node.names)


def requirement_blocks(name: str) -> list[str]:
    """The entries of ``requirements/<name>.txt``, each a pin with its continuation lines."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    return [block for block in re.split(r"\n(?=\S)", text.strip()) if block]


def pins(name: str) -> dict[str, str]:
    """Package to version in ``requirements/<name>.txt``."""
    return {
        match["package"].lower(): match["version"]
        for block in requirement_blocks(name)
        if (match := re.match(r"(?P<package>[\w.-]+)(\[[\w,-]+\])?==(?P<version>[^\s;]+)", block))
    }


def test_serving_imports_where_training_and_its_libraries_cannot_be():
    result = import_all("serving", without=TRAINING_ONLY)
    assert result.returncode == 0, result.stderr
    assert "serving.service" in result.stdout.split()


def test_the_block_on_imports_blocks():
    result = import_all("serving.preprocessing", without=("numpy",))
    assert result.returncode != 0
    assert "blocked: numpy" in result.stderr


def test_training_can_use_the_sampling_task_without_a_server_or_a_runtime():
    result = import_all("serving.tasks.sample", without=("bentoml", "onnxruntime", "starlette", "uvicorn"))
    assert result.returncode == 0, result.stderr


def test_preprocessing_imports_numpy_pillow_and_the_standard_library_alone():
    allowed = {"numpy", "PIL", *sys.stdlib_module_names}
    strangers = {
        f"{path.relative_to(ROOT)}: {module}"
        for path, module in imported_by(ROOT / "serving" / "preprocessing")
        if module.partition(".")[0] not in allowed and not module.startswith("serving.preprocessing")
    }
    assert not strangers


def test_training_imports_of_serving_only_what_both_share():
    shared = ("serving.preprocessing", "serving.manifest", "serving.tasks")
    strangers = {
        f"{path.relative_to(ROOT)}: {module}"
        for path, module in imported_by(ROOT / "training")
        if module.partition(".")[0] == "serving" and not module.startswith(shared)
    }
    assert not strangers


@pytest.mark.parametrize("name", [*REQUIREMENTS, *PEERS])
def test_every_requirement_is_pinned_and_hashed(name: str):
    blocks = requirement_blocks(name)
    assert blocks
    for block in blocks:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", block), block.splitlines()[0]
        assert "--hash=sha256:" in block, block.splitlines()[0]


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").rglob("*.*")), ids=lambda path: path.name)
def test_requirements_name_no_index_and_no_host(path: Path):
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host|^-[if]\b|file:", text, re.MULTILINE)


def test_serving_training_development_and_load_tests_agree_on_every_version_they_share():
    versions = [pins(name) for name in ("serve", "train", "dev", "load")]
    assert all(versions)
    for package in set().union(*versions):
        assert len({pinned[package] for pinned in versions if package in pinned}) == 1, package


def test_the_gpu_pins_differ_from_the_cpu_pins_only_in_the_runtime():
    serve, gpu = pins("serve"), pins("gpu")
    assert {package for package in serve if gpu.get(package) != serve[package]} == {"onnxruntime"}
    assert gpu["onnxruntime-gpu"] == serve["onnxruntime"]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_runs_the_models_by_the_same_runtime(name: str):
    ours = pins("serve")
    assert {package: pins(name)[package] for package in ("onnxruntime", "pillow", "numpy")} == {
        package: ours[package] for package in ("onnxruntime", "pillow", "numpy")
    }


def test_serving_installs_nothing_of_training():
    assert not {"tensorflow", "keras", "tf2onnx", "onnx", "torch"} & pins("serve").keys()
