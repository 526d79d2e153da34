"""T5, v1.1, FLAN-T5, UL2 and mT5: sections [encoder], [decoder], [structure].

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/triton_backend/t5/T5TritonModel.cc:108-170 (keys),
models/t5/T5EncoderWeight.cc, T5EncoderLayerWeight.cc, T5DecodingWeight.cc, T5DecoderLayerWeight.cc (files),
T5Encoder.cc, T5Decoder.cc, T5Decoding.cc (wiring).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.validation.fastertransformer.blocks import (
    ACTIVATIONS,
    Activation,
    all_reduce,
    attend,
    project_fused,
    project_to_vocabulary,
    relative_bias,
    rms_norm,
    split_heads,
)
from llmcompile.validation.fastertransformer.ini import Ini
from llmcompile.validation.fastertransformer.model import Inputs, Model, Outputs
from llmcompile.validation.fastertransformer.rank_files import (
    Artifact,
    Dtype,
    Entry,
    Row,
    Stored,
    declared_dtype,
    split_evenly,
    table,
)

ENCODER = "encoder"
_DECODER = "decoder"
_STRUCTURE = "structure"
_EMBEDDING = "shared.weight_T"
_HEAD = "lm_head.weight"
_EPS = 1e-6
"""Hard-coded.

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/t5/T5Encoder.h:57, T5Decoding.h:63
"""

_MAX_DISTANCE = 128
"""Hard-coded.

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/triton_backend/t5/T5TritonModel.cc:166
"""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What the runtime takes from [encoder] or [decoder]."""

    section: str
    ranks: int
    heads: int
    head_dim: int
    width: int
    inter: int
    layers: int
    vocabulary: int
    buckets: int
    scale: float
    activation: Activation
    second_projection: bool
    dtype: Dtype

    @property
    def local_heads(self) -> int:
        """Heads of one rank."""
        return self.heads // self.ranks

    @property
    def block(self) -> str:
        """Start of the names of a layer's files."""
        return f"{self.section}.block.{{layer}}."

    @property
    def bias_table(self) -> str:
        """Name of the relative position biases, which block 0 holds for all."""
        return f"{self.section}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Both stacks; `decoder` is None for an encoder-only artifact, whose [decoder] section is empty."""

    encoder: Stack
    decoder: Stack | None
    tied: bool


def resolve(ini: Ini, ranks: int, folder: Path) -> Model:
    """The runtime for this config.ini.

    Raises:
        MismatchError: A required key is absent or unusable, a structure no Hugging Face T5 has is asked for, or heads
            or inner size do not divide by `ranks`.
    """
    config = _read_config(ini, ranks)
    rows = _encoder_rows(config.encoder)
    if config.decoder is not None:
        rows += _decoder_rows(config.decoder, folder)
    return Model(rows=rows, dead=_dead_rows(config.encoder), run=partial(_run, config))


def _read_config(ini: Ini, ranks: int) -> Config:
    ini.text(ENCODER, "_name_or_path")
    _refuse_other_structures(ini)
    encoder = _read_stack(ini, ENCODER, ranks)
    if not ini.has_section(_DECODER):
        return Config(encoder=encoder, decoder=None, tied=False)
    for key in ("decoder_start_token_id", "eos_token_id"):
        ini.integer(_DECODER, key)
    decoder = _read_stack(ini, _DECODER, ranks)
    if decoder.width != encoder.width:
        raise ini.error(_DECODER, "d_model", str(decoder.width), f"{encoder.width}, as in [encoder]")
    return Config(encoder=encoder, decoder=decoder, tied=ini.boolean_or(_DECODER, "tie_word_embeddings", True))


def _refuse_other_structures(ini: Ini) -> None:
    if ini.boolean_or(_STRUCTURE, "t5_with_bias", False):
        raise ini.error(_STRUCTURE, "t5_with_bias", "true", "false: the Megatron structure is not executed here")
    if ini.text_or(_STRUCTURE, "position_embedding_type", "relative") != "relative":
        raise ini.error(_STRUCTURE, "position_embedding_type", "absolute", "relative")
    extras = ((ENCODER, "adapter_inter_size"), (_DECODER, "adapter_inter_size"), (_STRUCTURE, "ia3_num_tasks"))
    for section, key in extras:
        if ini.integer_or(section, key, 0) != 0:
            raise ini.error(section, key, ini.text(section, key), "0: not executed here")


def _read_stack(ini: Ini, section: str, ranks: int) -> Stack:
    """One stack; activation, gating and score scale of both come from [encoder] and [structure].

    The score scale is 1 / (sqrt(d_kv) * q_scaling), with q_scaling = 1 / sqrt(d_kv of the encoder).

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/triton_backend/t5/T5TritonModel.cc:156-166
    """
    heads, inter = ini.size(section, "num_heads"), ini.size(section, "d_ff")
    split_evenly(ini, section, "num_heads", heads, ranks)
    split_evenly(ini, section, "d_ff", inter, ranks)
    activation = ini.text(ENCODER, "feed_forward_proj")
    if activation not in ACTIVATIONS:
        raise ini.error(ENCODER, "feed_forward_proj", activation, "one of " + ", ".join(ACTIVATIONS))
    head_dim = ini.size(section, "d_kv")
    return Stack(
        section=section,
        ranks=ranks,
        heads=heads,
        head_dim=head_dim,
        width=ini.size(section, "d_model"),
        inter=inter,
        layers=ini.size(section, "num_layers"),
        vocabulary=ini.size(section, "vocab_size"),
        buckets=ini.size(section, "relative_attention_num_buckets_or_max_pos_seq_len"),
        scale=(ini.size(ENCODER, "d_kv") / head_dim) ** 0.5,
        activation=ACTIVATIONS[activation],
        second_projection=ini.boolean_or(_STRUCTURE, "use_gated_activation", False),
        dtype=declared_dtype(ini, section),
    )


def _encoder_rows(stack: Stack) -> tuple[Row, ...]:
    local = stack.local_heads * stack.head_dim
    layer: list[Entry] = [
        *((f"layer.0.SelfAttention.{part}.weight", (stack.width, local), Stored.PER_RANK) for part in "qkv"),
        ("layer.0.SelfAttention.o.weight", (local, stack.width), Stored.PER_RANK),
        ("layer.0.layer_norm.weight", (stack.width,), Stored.ONCE),
        *_ffn_entries(stack, "layer.1"),
    ]
    return _outer_rows(stack) + table(stack.block, stack.dtype, layer, layers=stack.layers)


def _decoder_rows(stack: Stack, folder: Path) -> tuple[Row, ...]:
    """Decoder files; without an lm_head file the runtime reads the embedding in its place."""
    local = stack.local_heads * stack.head_dim
    layer: list[Entry] = [
        ("layer.0.layer_norm.weight", (stack.width,), Stored.ONCE),
        ("layer.0.SelfAttention.qkv.weight", (stack.width, 3, local), Stored.PER_RANK),
        ("layer.0.SelfAttention.o.weight", (local, stack.width), Stored.PER_RANK),
        ("layer.1.layer_norm.weight", (stack.width,), Stored.ONCE),
        *((f"layer.1.EncDecAttention.{part}.weight", (stack.width, local), Stored.PER_RANK) for part in "qkv"),
        ("layer.1.EncDecAttention.o.weight", (local, stack.width), Stored.PER_RANK),
        *_ffn_entries(stack, "layer.2"),
    ]
    head: list[Entry] = []
    if (folder / f"{_HEAD}.bin").exists():
        head = [(_HEAD, (stack.vocabulary, stack.width), Stored.ONCE)]
    layers = table(stack.block, stack.dtype, layer, layers=stack.layers)
    return _outer_rows(stack) + table("", stack.dtype, head) + layers


def _outer_rows(stack: Stack) -> tuple[Row, ...]:
    entries = (
        (_EMBEDDING, (stack.vocabulary, stack.width), Stored.ONCE),
        (f"{stack.section}.final_layer_norm.weight", (stack.width,), Stored.ONCE),
        (stack.bias_table, (stack.local_heads, stack.buckets), Stored.PER_RANK),
    )
    return table("", stack.dtype, entries)


def _ffn_entries(stack: Stack, layer: str) -> list[Entry]:
    inner = stack.inter // stack.ranks
    projections = ("wi", "wi2") if stack.second_projection else ("wi",)
    return [
        *((f"{layer}.DenseReluDense.{name}.weight", (stack.width, inner), Stored.PER_RANK) for name in projections),
        (f"{layer}.DenseReluDense.wo.weight", (inner, stack.width), Stored.PER_RANK),
        (f"{layer}.layer_norm.weight", (stack.width,), Stored.ONCE),
    ]


def _dead_rows(stack: Stack) -> tuple[Row, ...]:
    """The transposed embedding, which the converter writes and no runtime opens."""
    return table("", stack.dtype, (("shared.weight", (stack.width, stack.vocabulary), Stored.ONCE),))


def _run(config: Config, artifact: Artifact, inputs: Inputs) -> Outputs:
    encoded = _encode(config.encoder, artifact, inputs.tokens)
    if config.decoder is None:
        return {"encoder_hidden_states": encoded}
    if inputs.decoder_tokens is None:
        raise ValueError("decoder_tokens must have shape (batch, decoder_sequence), got None")
    decoded = _decode(config.decoder, artifact, inputs.decoder_tokens, encoded)
    logits = _logits(config, config.decoder, artifact, decoded)
    return {"encoder_hidden_states": encoded, "logits": logits}


def _encode(stack: Stack, artifact: Artifact, tokens: Tensor) -> Tensor:
    """Pre-norm layers, one relative bias for all of them, a final norm.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/t5/T5Encoder.cc:525-533,776-1005
    """
    x = artifact.lookup(_EMBEDDING, tokens)
    biases = _position_biases(stack, artifact, tokens.shape[1], bidirectional=True)
    for layer in range(stack.layers):
        normed = _normalise(stack, artifact, "layer.0", layer, x)
        x = x + all_reduce(
            _encoder_attention(stack, artifact, layer, rank, normed, biases[rank]) for rank in range(stack.ranks)
        )
        x = _ffn_block(stack, artifact, "layer.1", layer, x)
    return rms_norm(x, artifact.read(f"{stack.section}.final_layer_norm.weight"), _EPS)


def _decode(stack: Stack, artifact: Artifact, tokens: Tensor, encoded: Tensor) -> Tensor:
    """Pre-norm layers with cross attention, a final norm.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/t5/T5Decoder.cc:403-615
    """
    x = artifact.lookup(_EMBEDDING, tokens)
    biases = _position_biases(stack, artifact, tokens.shape[1], bidirectional=False)
    for layer in range(stack.layers):
        normed = _normalise(stack, artifact, "layer.0", layer, x)
        x = x + all_reduce(
            _decoder_attention(stack, artifact, layer, rank, normed, biases[rank]) for rank in range(stack.ranks)
        )
        normed = _normalise(stack, artifact, "layer.1", layer, x)
        x = x + all_reduce(
            _cross_attention(stack, artifact, layer, rank, normed, encoded) for rank in range(stack.ranks)
        )
        x = _ffn_block(stack, artifact, "layer.2", layer, x)
    return rms_norm(x, artifact.read(f"{stack.section}.final_layer_norm.weight"), _EPS)


def _logits(config: Config, stack: Stack, artifact: Artifact, x: Tensor) -> Tensor:
    """`tie_word_embeddings` alone decides the factor d_model ** -0.5, whether or not an lm_head file is read.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/t5/T5Decoding.cc:827,872
    """
    head = _HEAD if _HEAD in artifact.rows else _EMBEDDING
    return project_to_vocabulary(artifact, head, x, scale=stack.width**-0.5 if config.tied else 1.0)


def _position_biases(stack: Stack, artifact: Artifact, length: int, *, bidirectional: bool) -> list[Tensor]:
    """Per rank, shape (local heads, length, length), from the rank's own table."""
    tables = (artifact.read(stack.bias_table, rank=rank) for rank in range(stack.ranks))
    return [relative_bias(one, length, bidirectional=bidirectional, max_distance=_MAX_DISTANCE) for one in tables]


def _normalise(stack: Stack, artifact: Artifact, sublayer: str, layer: int, x: Tensor) -> Tensor:
    return rms_norm(x, artifact.read(f"{stack.block}{sublayer}.layer_norm.weight", layer=layer), _EPS)


def _encoder_attention(stack: Stack, artifact: Artifact, layer: int, rank: int, x: Tensor, bias_NST: Tensor) -> Tensor:
    name = f"{stack.block}layer.0.SelfAttention"
    q, k, v = (_project_heads(stack, artifact, f"{name}.{part}", layer, rank, x) for part in "qkv")
    context = attend(q, k, v, scale=stack.scale, causal=False, bias_NST=bias_NST)
    return torch.matmul(context, artifact.read(f"{name}.o.weight", layer=layer, rank=rank))


def _decoder_attention(stack: Stack, artifact: Artifact, layer: int, rank: int, x: Tensor, bias_NST: Tensor) -> Tensor:
    name = f"{stack.block}layer.0.SelfAttention"
    weight = artifact.read(f"{name}.qkv.weight", layer=layer, rank=rank)
    q, k, v = (split_heads(part, stack.local_heads) for part in project_fused(x, weight).unbind(2))
    context = attend(q, k, v, scale=stack.scale, causal=True, bias_NST=bias_NST)
    return torch.matmul(context, artifact.read(f"{name}.o.weight", layer=layer, rank=rank))


def _cross_attention(stack: Stack, artifact: Artifact, layer: int, rank: int, x: Tensor, encoded: Tensor) -> Tensor:
    name = f"{stack.block}layer.1.EncDecAttention"
    sources = (("q", x), ("k", encoded), ("v", encoded))
    q, k, v = (_project_heads(stack, artifact, f"{name}.{part}", layer, rank, source) for part, source in sources)
    context = attend(q, k, v, scale=stack.scale, causal=False)
    return torch.matmul(context, artifact.read(f"{name}.o.weight", layer=layer, rank=rank))


def _project_heads(stack: Stack, artifact: Artifact, name: str, layer: int, rank: int, x: Tensor) -> Tensor:
    weight = artifact.read(f"{name}.weight", layer=layer, rank=rank)
    return split_heads(torch.matmul(x, weight), stack.local_heads)


def _ffn_block(stack: Stack, artifact: Artifact, sublayer: str, layer: int, x: Tensor) -> Tensor:
    normed = _normalise(stack, artifact, sublayer, layer, x)
    return x + all_reduce(_ffn(stack, artifact, sublayer, layer, rank, normed) for rank in range(stack.ranks))


def _ffn(stack: Stack, artifact: Artifact, sublayer: str, layer: int, rank: int, x: Tensor) -> Tensor:
    """The activation of `wi` times `wi2`, where the activation is gated and `wi2` was loaded; else without `wi2`.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/layers/FfnLayer.cc:84
    """
    name = f"{stack.block}{sublayer}.DenseReluDense"
    inner = stack.activation.apply(torch.matmul(x, artifact.read(f"{name}.wi.weight", layer=layer, rank=rank)))
    if stack.activation.gated and stack.second_projection:
        inner = inner * torch.matmul(x, artifact.read(f"{name}.wi2.weight", layer=layer, rank=rank))
    return torch.matmul(inner, artifact.read(f"{name}.wo.weight", layer=layer, rank=rank))
