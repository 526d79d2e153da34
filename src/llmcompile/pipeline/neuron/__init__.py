"""The whole way of a Neuron export: plan, lower, check, validate, compile, lay out, record, publish."""

from __future__ import annotations

from llmcompile.pipeline.neuron.checking import verify_numbers
from llmcompile.pipeline.neuron.from_lowered import Lowering, finish, open_lowered, refuse_lowered
from llmcompile.pipeline.neuron.making import export
from llmcompile.pipeline.neuron.planning import Export, list_tasks, prepare_export, refuse_export

__all__ = [
    "Export",
    "Lowering",
    "export",
    "finish",
    "list_tasks",
    "open_lowered",
    "prepare_export",
    "refuse_export",
    "refuse_lowered",
    "verify_numbers",
]
