"""onnxruntime, told to do as little as possible.

No graph optimization: the graph is written as it shall run, and folding constants would unfold the
quantized weights. No packed copies of weights. So the frozen weights stay in their file, mapped
into memory, and every intermediate result is freed after its last use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import ModelMissing
from ffm_common.tensors import Array


class Session:
    """An open graph.

    Parameters
    ----------
    path
        The graph; its weights lie beside it.
    threads
        Threads to compute with.

    Raises
    ------
    ModelMissing
        The graph cannot be read or run.
    """

    def __init__(self, path: Path, threads: int) -> None:
        runtime = import_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # In the order of the file, which was chosen so that little lives at a time.
        options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
        # Planned reuse holds a buffer until its last reader; the arena takes it back at once.
        options.enable_mem_reuse = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        # An idle thread that spins takes the core from the owner's work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # what the runtime raises depends on its version
            raise _known(error) or ModelMissing(f"{path} cannot be run: {error}") from error

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
            known = _known(error)
            if known is None:
                raise
            raise known from error


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


def threads_here() -> int:
    """Give the number of threads that the environment allows, or of cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else len(os.sched_getaffinity(0))


def _known(error: Exception) -> MemoryError | None:
    """Give the runtime's complaint about memory as Python's own."""
    said = str(error).lower()
    return MemoryError(str(error)) if "alloc" in said or "memory" in said else None
