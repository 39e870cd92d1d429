"""onnxruntime, told to do as little as possible.

No graph optimization: the graph is written as it shall run, and folding constants would unfold the
quantized weights. No packed copies of weights. So the frozen weights stay in their file, mapped
into memory, and every intermediate result is freed after its last use.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import ExtraMissing, ModelMissing
from ffm_common.tensors import Array
from learning.onnx import outside

_NO_MEMORY = re.compile(
    r"bad_alloc|(failed|unable) to allocate|(out of|enough) memory", re.IGNORECASE
)


class Session:
    """An open graph.

    Parameters
    ----------
    path
        The graph; its weights lie beside it.
    threads
        Threads to compute with.
    fuse
        Let the runtime rewrite the graph and pack its weights: for one that it was not written for.

    Raises
    ------
    ModelMissing
        The graph cannot be read or run, or wants files that do not lie beside it.
    """

    def __init__(self, path: Path, threads: int, *, fuse: bool = False) -> None:
        outside.check(path)
        runtime = import_runtime()
        options = session_options(threads, fuse=fuse)
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # what the runtime raises depends on its version
            raise out_of_memory(error) or ModelMissing(f"{path} cannot be run: {error}") from error

    @property
    def inputs(self) -> list[str]:
        """The names of the graph's inputs."""
        return [each.name for each in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, Array]) -> None:
        """Run the graph on `inputs` and write into `outputs`, by name.

        Raises
        ------
        MemoryError
            The runtime did not get the memory it wants.
        """
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, array in outputs.items():
            address = array.ctypes.data
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, address)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            known = out_of_memory(error)
            if known is None:
                raise
            raise known from error


def session_options(threads: int, *, fuse: bool = False) -> Any:
    """Give the options under which a graph runs as it was written, or as the runtime likes it."""
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # An idle thread that spins takes the core from the owner's work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if fuse:
        return options
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # In the order of the file, which was chosen so that little lives at a time.
    options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
    # Planned reuse holds a buffer until its last reader; the arena takes it back at once.
    options.enable_mem_reuse = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def import_runtime() -> Any:
    """Import onnxruntime, and not torch with it.

    The onnxruntime-training package imports torch, if that is installed, to offer what is not used
    here (1.5 s and 240 MB); without torch it works, and so it is made to believe that.
    """
    part = "onnxruntime.training"
    if "onnxruntime" in sys.modules:
        import onnxruntime

        return onnxruntime
    sys.modules[part] = None  # type: ignore[assignment]
    try:
        import onnxruntime
    finally:
        del sys.modules[part]
    return onnxruntime


def open_training_part() -> None:
    """Make the submodules of ``onnxruntime.training`` importable without torch.

    Raises
    ------
    ExtraMissing
        This runtime cannot train.
    """
    runtime = import_runtime()
    from onnxruntime.capi import _pybind_state

    part = "onnxruntime.training"
    if not hasattr(_pybind_state, "CheckpointState"):
        raise ExtraMissing(
            "this onnxruntime has no training part",
            remedy="train with `step.onnx`, or install onnxruntime-training (x86_64 Linux, Python"
            " 3.11 or older) in place of onnxruntime",
        )
    if part not in sys.modules:
        # Its own __init__ wants torch, for parts that are not used here.
        package = ModuleType(part)
        package.__path__ = [str(Path(runtime.__file__).parent / "training")]
        sys.modules[part] = package


def threads_here() -> int:
    """Give the number of threads that the environment allows, or of cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else len(os.sched_getaffinity(0))


def out_of_memory(error: Exception) -> MemoryError | None:
    """Give the runtime's complaint about memory as Python's own."""
    return MemoryError(str(error)) if _NO_MEMORY.search(str(error)) else None
