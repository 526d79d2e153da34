"""What every runtime module gives: the files it opens, and a function from inputs to outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from llmcompile.validation.fastertransformer.rank_files import Artifact, Row


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What one request brings; every sequence has full length, there is no padding.

    Args:
        tokens: Shape (batch, sequence), int64; for T5 the encoder's; not read for BERT.
        decoder_tokens: Shape (batch, decoder_sequence), int64, start token included; T5 only.
        hidden: Shape (batch, sequence, hidden), float32: the embedding output; BERT only, whose runtime holds no
            embedding.
    """

    tokens: Tensor
    decoder_tokens: Tensor | None = None
    hidden: Tensor | None = None


Outputs = dict[str, Tensor]
Run = Callable[[Artifact, Inputs], Outputs]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A runtime, resolved against one config.ini.

    Args:
        rows: Files the runtime opens.
        run: Computes the outputs from those files.
        dead: Files that may be present and that no runtime opens.
    """

    rows: tuple[Row, ...]
    run: Run
    dead: tuple[Row, ...] = ()
