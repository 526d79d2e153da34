"""The list of backends: what each must offer, and the module that offers it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.dtypes import DType
from llmcompile.exporters.ft import backend as ft
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.neuron import layout as neuron
from llmcompile.exporters.neuron.options import NeuronOptions
from llmcompile.exporters.spec import Layout
from llmcompile.exporters.trtllm import backend as trtllm
from llmcompile.exporters.trtllm.options import TrtllmOptions

Options: TypeAlias = FtOptions | TrtllmOptions | NeuronOptions
"""The options of any backend; `backend` and `build` are common to all."""


class Backend(Protocol):
    """A module that says what one vendor's artifact looks like. `options` is the backend's own options dataclass."""

    def make_layout(
        self, architecture: Architecture, dims: Dims, options: Any, *, source_dtype: DType, model_label: str
    ) -> Layout:
        """The artifact of one model; its `refusals` say why there can be none."""

    def recorded(self, options: Any, layout: Layout) -> Mapping[str, Any]:
        """The options that decide the artifact's bytes, as resolved: JSON values for the manifest and the journal."""


BACKENDS: Mapping[str, Backend] = MappingProxyType({"ft": ft, "trtllm": trtllm, "neuron": neuron})
"""Name, as in the options' `backend` -> module."""
