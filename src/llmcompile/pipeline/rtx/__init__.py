"""The whole way to an engine of TensorRT for RTX: plan, export, check, validate, build, record, publish."""

from __future__ import annotations

from llmcompile.pipeline.rtx.checking import verify_numbers
from llmcompile.pipeline.rtx.making import make
from llmcompile.pipeline.rtx.planning import Build, prepare_build, refuse_build

__all__ = ["Build", "make", "prepare_build", "refuse_build", "verify_numbers"]
