"""An onnxruntime session held to its manifest."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.manifest import GOLDEN_FILE, ONNX_FILE, Manifest, Tensor

_DTYPES = {"tensor(uint8)": "uint8", "tensor(int32)": "int32", "tensor(float)": "float32"}
_CUDA = "CUDAExecutionProvider"
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": (_CUDA, "CPUExecutionProvider"),
}


class SessionError(ValueError):
    """The graph cannot be loaded, is not what the manifest says, or does not give its golden answers."""


class Session:
    """One loaded graph.

    Args:
        folder: the version folder, with ``model.onnx``.
        manifest: what the graph takes and gives.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: threads of one run.

    Raises:
        SessionError: the graph cannot be loaded, or its inputs and outputs are not the manifest's.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, device: str, threads: int) -> None:
        # Imported here: the supervisor imports the service too, but runs no model.
        import onnxruntime  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between runs would take the cores from the event loop and from other models. So each
        # session has its own threads: in a pool shared by all they spin, and Python has no say in that.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        _share_arena(onnxruntime)
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.log_severity_level = 3
        providers = _providers(device, onnxruntime.get_available_providers())
        if _CUDA in providers:
            _load_cuda_libraries(onnxruntime)
        try:
            self._session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), options, providers=providers)
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise SessionError(f"{ONNX_FILE} cannot be loaded: {str(error).splitlines()[0]}") from error
        if device == "cuda" and _CUDA not in self._session.get_providers():
            raise SessionError(
                "device cuda was asked for, but onnxruntime cannot use it: is there a GPU, and a driver?"
            )
        _compare("inputs", manifest.inputs, self._session.get_inputs())
        _compare("outputs", manifest.outputs, self._session.get_outputs())
        self._outputs = [tensor.name for tensor in manifest.outputs]
        self._trimming = onnxruntime.RunOptions()
        self._trimming.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on named inputs of the manifest's dtypes; the first axis is the batch."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def trim(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Run once, and give the memory back that earlier, larger runs of any session have left unused."""
        self._session.run(self._outputs, inputs, self._trimming)


@functools.cache
def _share_arena(onnxruntime: ModuleType) -> None:
    """Give all sessions of the process one arena, which grows by what is asked for and not by powers of two.

    It has no cap: at one, onnxruntime fails the run. What bounds it is that no batch is larger than its model's
    profile says.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    as_requested = {"arena_extend_strategy": 1}
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(as_requested))


def load_golden(folder: Path, manifest: Manifest) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Read ``golden.npz``: the inputs and the outputs by name, at least one row.

    Raises:
        SessionError: it cannot be read, or does not hold the manifest's inputs and outputs.
    """
    try:
        with (folder / GOLDEN_FILE).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, numpy and zlib each raise their own
        raise SessionError(f"{GOLDEN_FILE} cannot be read: {error}") from error
    inputs = {tensor.name: arrays.get(f"inputs/{tensor.name}") for tensor in manifest.inputs}
    outputs = {tensor.name: arrays.get(f"outputs/{tensor.name}") for tensor in manifest.outputs}
    missing = [f"inputs/{name}" for name, array in inputs.items() if array is None]
    missing += [f"outputs/{name}" for name, array in outputs.items() if array is None]
    if missing:
        raise SessionError(f"{GOLDEN_FILE} lacks {', '.join(missing)}")
    for tensor in manifest.inputs:
        _check_array(tensor, arrays[f"inputs/{tensor.name}"])
    return {name: arrays[f"inputs/{name}"] for name in inputs}, {name: arrays[f"outputs/{name}"] for name in outputs}


def replay(
    session: Session,
    inputs: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    tolerance: float,
) -> None:
    """Run the golden inputs and compare with the golden outputs.

    Raises:
        SessionError: the graph fails on them, or an answer differs by more than ``tolerance``.
    """
    try:
        outputs = session.run(inputs)
    except Exception as error:
        raise SessionError(f"the golden inputs cannot be run: {str(error).splitlines()[0]}") from error
    for name, golden in expected.items():
        output = outputs[name]
        if output.shape != golden.shape:
            raise SessionError(f"golden output {name} has shape {golden.shape}; the graph gave {output.shape}")
        worst = float(np.max(np.abs(output.astype(np.float64) - golden), initial=0.0))
        if not worst <= tolerance:  # a NaN is no answer either
            raise SessionError(
                f"golden answers are not reproduced: {name} differs by {worst:.3g}; allowed: {tolerance:.3g}"
            )


def usable_cores() -> int:
    """Cores this process may use: those it is bound to, within its control group's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no control groups (version 2), or no quota ("max")
        return bound


@functools.cache
def _load_cuda_libraries(onnxruntime: ModuleType) -> None:
    """Load CUDA and cuDNN from the wheels beside onnxruntime-gpu's, where the system's loader does not look."""
    onnxruntime.preload_dlls()


def _providers(device: str, available: Sequence[str]) -> list[str]:
    if device == "auto":
        device = "cuda" if _CUDA in available else "cpu"
    missing = set(_PROVIDERS[device]) - set(available)
    if missing:
        raise SessionError(f"device {device} was asked for, but this onnxruntime has only {', '.join(available)}")
    return list(_PROVIDERS[device])


def _compare(kind: str, declared: tuple[Tensor, ...], found: list[Any]) -> None:
    """Check that the graph has exactly the declared tensors, with their dtypes and fixed axes."""
    by_name = {node.name: node for node in found}
    if set(by_name) != {tensor.name for tensor in declared}:
        raise SessionError(
            f"the manifest's {kind} are {', '.join(tensor.name for tensor in declared)}; "
            f"the graph's are {', '.join(by_name)}"
        )
    for tensor in declared:
        node = by_name[tensor.name]
        if _DTYPES.get(node.type) != tensor.dtype:
            raise SessionError(f"{tensor.name} is {tensor.dtype} in the manifest and {node.type} in the graph")
        shape = tuple(axis if isinstance(axis, int) else None for axis in node.shape)
        if len(shape) != len(tensor.shape) or any(
            None not in axes and axes[0] != axes[1] for axes in zip(shape, tensor.shape, strict=True)
        ):
            raise SessionError(f"{tensor.name} is {tensor.shape} in the manifest and {shape} in the graph")
        if shape[0] is not None:
            raise SessionError(f"{tensor.name} has a fixed batch axis of {shape[0]} in the graph")


def _check_array(tensor: Tensor, array: NDArray[Any]) -> None:
    shape_fits = array.ndim == len(tensor.shape) and all(
        axis in (None, size) for axis, size in zip(tensor.shape, array.shape, strict=True)
    )
    if array.dtype != tensor.dtype or not shape_fits or not len(array):
        raise SessionError(
            f"{GOLDEN_FILE} holds {tensor.name} as {array.dtype} {array.shape}; "
            f"expected {tensor.dtype} {tensor.shape}, at least one row"
        )
