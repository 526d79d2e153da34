"""FasterTransformer as one of the backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompile.exporters.ft.layout import make_layout
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.spec import Layout
from llmcompile.writing import hash_file

__all__ = ["make_layout", "recorded"]


def recorded(options: FtOptions, layout: Layout) -> Mapping[str, Any]:
    """The options that decide the artifact's bytes; a file of scales by its hash."""
    return {
        "tp": options.tp,
        "pp": options.pp,
        "dtype": layout.dtype.name,
        "encoder_only": options.encoder_only,
        "act_scales": None if options.act_scales is None else hash_file(options.act_scales).sha256,
        "model_name": options.model_name,
    }
