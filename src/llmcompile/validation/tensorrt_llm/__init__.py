"""TensorRT-LLM's networks in plain torch: what they compute from the bytes of a checkpoint.

Independent of the code that writes checkpoints: tensor names, shapes and arithmetic here follow the vendor's network
definitions and loader, so a wrong split, transpose, bias or config.json value shows as wrong numbers, or as a
MismatchError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.errors import MismatchError, Problem
from llmcompile.validation.tensorrt_llm.decoder import (
    POSITIONS,
    TOKENS,
    ExpertMatrix,
    expert_matrices,
    open_checkpoint,
    run_decoder,
    table_blocks,
)
from llmcompile.validation.tensorrt_llm.encdec import (
    check_encoder_decoder,
    execute_encoder_decoder,
    relative_tables,
    stack_table,
)
from llmcompile.validation.tensorrt_llm.rank_files import RankFile, finite_problems

__all__ = [
    "ExpertMatrix",
    "Inputs",
    "check_checkpoint",
    "embedding_table",
    "execute",
    "experts",
    "position_table",
    "relative_tables",
    "stack_table",
]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What one request brings; every sequence has full length, there is no padding.

    Args:
        tokens: Shape (batch, sequence), int64; for an encoder-decoder model the encoder's.
        decoder_tokens: Shape (batch, decoder_sequence), int64, start token included; encoder-decoder models only.
    """

    tokens: Tensor
    decoder_tokens: Tensor | None = None


@torch.inference_mode()
def execute(folder: Path, inputs: Inputs, *, activations: bool = False, quantize: bool = False) -> dict[str, Tensor]:
    """Compute, in float32, what an engine built from a checkpoint computes; all ranks run here, one after the other.

    Args:
        folder: The checkpoint: config.json and the rank files, or the folders encoder and decoder.
        inputs: One request.
        activations: Whether activations, keys and values are rounded as the recipe's kernels round them.
        quantize: Whether the weights that the builder will quantize on loading (W8A16, W4A16) are quantized.

    Returns:
        "logits", shape (batch, sequence, vocabulary); for an encoder-decoder model with the decoder's sequence, and
        "encoder_hidden_states", shape (batch, sequence, hidden).

    Raises:
        MismatchError: config.json is unreadable or inconsistent, or a tensor is missing, misshapen or unknown; carries
            every such tensor.
        UnsupportedError: The network, or a variant config.json asks for, is not executed here.
        ValueError: `inputs` do not fit the model.
    """
    if _is_encoder_decoder(folder):
        return execute_encoder_decoder(folder, inputs, activations=activations, quantize=quantize)
    checkpoint = open_checkpoint(folder, activations=activations, quantize=quantize)
    return {"logits": run_decoder(checkpoint, inputs.tokens)}


def check_checkpoint(folder: Path, *, finite: bool = False) -> list[Problem]:
    """Everything that is wrong with a checkpoint without running it.

    Args:
        folder: The checkpoint.
        finite: Whether every value is read and must be finite; otherwise only config.json and headers are read.

    Returns:
        Problems, none if config.json describes a network and the rank files are exactly its tensors.

    Raises:
        UnsupportedError: The network, or a variant config.json asks for, is not executed here.
    """
    problems = check_encoder_decoder(folder) if _is_encoder_decoder(folder) else _check_decoder(folder)
    if problems != [] or not finite:
        return problems
    files = sorted(folder.glob("**/rank*.safetensors"))
    return [problem for path in files for problem in finite_problems(RankFile(path))]


def _check_decoder(folder: Path) -> list[Problem]:
    try:
        open_checkpoint(folder)
    except MismatchError as error:
        return list(error.problems)
    return []


def embedding_table(folder: Path) -> Iterator[Tensor]:
    """The whole token table of a decoder-only checkpoint in blocks of rows, in order, float32, without padding.

    Raises:
        MismatchError: As `execute`; also where ranks that each hold the whole table do not hold the same.
        UnsupportedError: As `execute`.
    """
    return table_blocks(open_checkpoint(folder), TOKENS)


def experts(folder: Path) -> Iterator[ExpertMatrix]:
    """Every matrix of every expert of a decoder-only checkpoint, put together from the ranks.

    Raises:
        MismatchError: As `execute`.
        UnsupportedError: As `execute`.
    """
    return expert_matrices(open_checkpoint(folder))


def position_table(folder: Path) -> Iterator[Tensor]:
    """As `embedding_table`, for learned positions; no block for a model without them."""
    return table_blocks(open_checkpoint(folder), POSITIONS)


def _is_encoder_decoder(folder: Path) -> bool:
    return (folder / "encoder" / "config.json").exists()
