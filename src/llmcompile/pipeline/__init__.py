"""The whole way of a build: locate, plan, stream, validate, build the engine, record, publish."""

from __future__ import annotations

from llmcompile.pipeline.checking import verify, verify_numbers
from llmcompile.pipeline.from_checkpoint import Start, build_from, open_start
from llmcompile.pipeline.job import BUDGET_BYTES, Job, Report, Resources, View, begin, prepare, refuse
from llmcompile.pipeline.making import build

__all__ = [
    "BUDGET_BYTES",
    "Job",
    "Report",
    "Resources",
    "Start",
    "View",
    "begin",
    "build",
    "build_from",
    "open_start",
    "prepare",
    "refuse",
    "verify",
    "verify_numbers",
]
