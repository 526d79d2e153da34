"""NVIDIA FasterTransformer's runtimes in plain torch: what they compute from the bytes of an artifact.

Independent of the code that writes artifacts: the file tables and the arithmetic here follow the vendor's loaders and
kernels, so a wrong split, transpose, bias or config.ini value shows as wrong numbers or as a MismatchError.
"""

from __future__ import annotations

from llmcompile.validation.fastertransformer.model import Inputs
from llmcompile.validation.fastertransformer.runtime import (
    check_files,
    check_int8,
    embedding_blocks,
    execute,
    execute_int8,
    files,
)

__all__ = ["Inputs", "check_files", "check_int8", "embedding_blocks", "execute", "execute_int8", "files"]
