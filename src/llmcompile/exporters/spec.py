"""What a backend tells the pipeline about the artifact it wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmcompile.dtypes import DType
from llmcompile.errors import Problem
from llmcompile.plan import Row
from llmcompile.ranges import Measurement


@dataclass(frozen=True)
class Layout:
    """An artifact before it exists.

    Attributes:
        backend: Name of the backend.
        folder: Folder inside the artifact that `rows` and `texts` are relative to, with a final slash.
        rows: The files made of tensors.
        texts: The small text files: name -> content.
        unused: Prefixes of roles the vendor's runtime has no use for -> why.
        ranks: Ranks the split axes are divided over.
        dtype: Element type of the files.
        deviations: File name pattern (fnmatch) -> how and why it differs from the vendor converter's.
        refusals: Why this model cannot be represented; empty when it can.
        notes: Sentences worth knowing before deploying; the artifact is right all the same.
        pp: Pipeline stages the layers are dealt to.
        moe_ep: Ranks the experts are dealt to.
        measurement: What must be measured before the rows can be written; None where nothing depends on data.
        config: Text of the artifact's config.json, from the model's own; None where that is carried along as it is.
        shard_bytes: Largest file of tensors, where the rows' one file may be several; None where it may not.
    """

    backend: str
    folder: str
    rows: tuple[Row, ...]
    texts: Mapping[str, str]
    unused: Mapping[str, str]
    ranks: int
    dtype: DType
    deviations: Mapping[str, str]
    refusals: tuple[Problem, ...]
    notes: tuple[str, ...]
    pp: int = 1
    moe_ep: int = 1
    measurement: Measurement | None = None
    config: Callable[[Mapping[str, Any]], str] | None = None
    shard_bytes: int | None = None
