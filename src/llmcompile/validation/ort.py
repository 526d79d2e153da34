"""ONNX Runtime on CPU: runs the very files an engine is built of. The one file that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from llmcompile import onnx_model
from llmcompile.errors import MismatchError

_FATAL_ONLY = 4
"""Severity of what ONNX Runtime prints; its errors come as exceptions too."""
_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where tensors of a graph lie that is not read from a file. Source: microsoft/onnxruntime@v1.20:
include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h."""


class Session:
    """A graph, ready to run.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
    """

    def __init__(self, path: Path, *, wide: bool = False, rounding: Collection[str] = ()) -> None:
        """Load a graph.

        Args:
            path: The file; its weights lie beside it.
            wide: Compute in float32, whatever the graph's own type is.
            rounding: Values that are rounded to the graph's own type as they are computed; with `wide` alone.

        Raises:
            MismatchError: It is no graph that ONNX Runtime takes.
        """
        self._name = path.name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.use_deterministic_compute = True
        # Rewritten graphs could round less often than the file says.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        model = onnx_model.load(path)
        self.inputs, self.outputs = onnx_model.inputs(model), onnx_model.outputs(model)
        source: str | bytes = str(path)
        if wide:
            options.add_session_config_entry(_FOLDER, str(path.parent.absolute()))
            source = onnx_model.in_float32(model, rounding=rounding).SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own exceptions have no common base
            text = str(error).strip().splitlines()[0]
            raise MismatchError(path.name, f"ONNX Runtime does not take it: {text}", "a graph that runs") from error

    def run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the graph gives; 16-bit values as float32.

        Args:
            given: Every input; float32 ones are cast to the type the graph takes.
        """
        kinds = {each.name: each.type for each in self._session.get_inputs()}
        feed = {name: _array(given[name], kind) for name, kind in kinds.items()}
        try:
            found = self._session.run(None, feed)
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in feed.items())
            text = str(error).strip().splitlines()[0]
            raise MismatchError(self._name, f"does not run for {shapes}: {text}", "a graph for all shapes") from error
        names = [each.name for each in self._session.get_outputs()]
        return {name: torch.from_numpy(np.array(values)).float() for name, values in zip(names, found, strict=True)}


def _array(values: Tensor, kind: str) -> onnx_model.Array:
    return values.to(torch.float16 if kind == "tensor(float16)" else values.dtype).numpy()
