"""T5, FLAN-T5, mT5, BART and mBART: the folders encoder/ and decoder/, each a checkpoint of its own.

One network with switches: kind and position of the norms, gating, biases, learned or relative positions. Every rank
has its own copy of what is not split (norms, row biases, embeddings), so every rank's residual stream is computed from
its own file, and a wrong copy on any rank shows in the logits.

Shape suffixes: B batch, S query positions, T key positions, N heads of one rank, D head size, H hidden, K buckets.

Source: NVIDIA/TensorRT-LLM@04a2cacbfd3b:tensorrt_llm/models/enc_dec/model.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from llmcompile.errors import MismatchError, Problem, UnsupportedError, collected
from llmcompile.validation.tensorrt_llm.blocks import (
    ACTIVATIONS,
    Activation,
    all_reduce,
    layer_norm,
    rms_norm,
    split_heads,
)
from llmcompile.validation.tensorrt_llm.config import Fields
from llmcompile.validation.tensorrt_llm.linears import (
    WEIGHT_ONLY_BITS,
    Linear,
    Quantization,
    is_quantized,
    linear_tensors,
    load_linear,
    read_quantization,
)
from llmcompile.validation.tensorrt_llm.rank_files import (
    RankFile,
    joined_blocks,
    rank_path,
    surplus_files,
    tensor_problems,
)

_GROUPWISE = ("W4A16_AWQ", "W4A8_AWQ")
"""Recipes whose row biases are inside the product of each rank; the loader zeroes them on all ranks but the first.

Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/quantization/layers.py (WeightOnlyGroupwiseQuantRowLinear.forward),
models/modeling_utils.py (preprocess_weights: names that end in attention.dense.bias or mlp.proj.bias)
"""
_RECIPES = (None, "W8A16", "W4A16", "FP8", "W8A8_SQ_PER_CHANNEL", *_GROUPWISE)
"""Recipes that replace linears one by one; but for the group-wise ones, row biases follow the all-reduce."""

_FP16_LIMIT = 64000.0
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
)
_MAPPING_KEYS = frozenset(
    {"world_size", "tp_size", "pp_size", "cp_size", "moe_tp_size", "moe_ep_size", "gpus_per_node"}
)
_TABLE = "rel_attn_table"
_TOKENS = "embedding.vocab_embedding.weight"
_POSITIONS = "embedding.position_embedding.weight"

_READ = frozenset(
    {
        "architecture",
        "dtype",
        "embedding_sharding_dim",
        "encoder_head_size",
        "encoder_hidden_size",
        "encoder_num_heads",
        "has_attention_qkvo_bias",
        "has_embedding_layernorm",
        "has_embedding_scale",
        "has_lm_head_bias",
        "has_mlp_bias",
        "has_model_final_layernorm",
        "has_position_embedding",
        "head_size",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layernorm_position",
        "layernorm_type",
        "mapping",
        "max_distance",
        "max_position_embeddings",
        "mlp_type",
        "model_type",
        "norm_epsilon",
        "num_attention_heads",
        "num_buckets",
        "num_hidden_layers",
        "num_key_value_heads",
        "q_scaling",
        "quantization",
        "relative_attention",
        "rescale_before_lm_head",
        "residual_scaling",
        "use_implicit_relative_attention",
        "use_parallel_embedding",
        "vocab_size",
    }
)
_UNREAD = frozenset(
    {
        "bos_token_id",
        "decoder_start_token_id",
        "encoder_num_kv_heads",
        "eos_token_id",
        "gated_act",
        "logits_dtype",
        "pad_token_id",
        "position_embedding_type",
        "producer",
        "runtime_defaults",
        "skip_cross_qkv",
    }
)
"""Fields without effect on what is computed; the network asks for `skip_cross_kv`, the converter writes `_qkv`."""

_INERT: Mapping[str, object] = MappingProxyType(
    {"qk_layernorm": False, "share_embedding_table": False, "skip_cross_kv": False, "type_vocab_size": None}
)
"""Fields that change the network in ways that are not executed here, with the value that does not."""


class Inputs(Protocol):
    """What one request brings; every sequence has full length, there is no padding."""

    @property
    def tokens(self) -> Tensor:
        """The encoder's, shape (batch, sequence), int64."""

    @property
    def decoder_tokens(self) -> Tensor | None:
        """Start token included, shape (batch, decoder sequence), int64."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What the network takes from one config.json.

    Args:
        folder: Where that is.
        decoder: Whether it is the decoder: causal, with cross attention and a head.
        dtype: Element type of everything unquantized.
        tensor: Tensor-parallel ranks of one stage.
        stages: Pipeline stages.
        vocabulary: Rows of the token table, before padding.
        hidden: Width of the residual stream.
        layers: Layers of all stages.
        heads: Attention heads of all ranks; keys and values have as many.
        head_size: Width of a head.
        inner: Inner size of all ranks.
        gated: Whether the activation of `mlp.fc` multiplies `mlp.gate`.
        activation: Of the inner layer.
        rms: Whether norms are RMSNorm, without bias; else LayerNorm.
        pre_norm: Whether a norm precedes its sublayer; else it follows the sum.
        eps: Of all norms.
        attention_bias: Whether qkv and dense have biases.
        inner_bias: Whether fc, gate and proj have biases.
        head_bias: Whether lm_head has a bias.
        positions: Rows of the position table; None for none.
        embedding_norm: Whether a norm follows the embedding.
        embedding_scale: Factor of the token embedding.
        final_norm: Whether a norm follows the last layer.
        score_scale: Factor of the attention scores.
        buckets: Relative positions told apart; None without relative attention.
        max_distance: Distance from which relative positions share the last bucket.
        implicit: Whether the decoder's layers read a relative table each; else all read the one at the top.
        logit_scale: Factor of the hidden state before the head.
        residual_scale: Factor of the residual stream in each sum.
        clamped: Whether sums are kept within the range of fp16.
        sharded: Axis the embedding tables are split on; None where every rank has them whole.
        quantization: The recipe.
    """

    folder: Path
    decoder: bool
    dtype: torch.dtype
    tensor: int
    stages: int
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    head_size: int
    inner: int
    gated: bool
    activation: Activation
    rms: bool
    pre_norm: bool
    eps: float
    attention_bias: bool
    inner_bias: bool
    head_bias: bool
    positions: int | None
    embedding_norm: bool
    embedding_scale: float
    final_norm: bool
    score_scale: float
    buckets: int | None
    max_distance: int
    implicit: bool
    logit_scale: float
    residual_scale: float
    clamped: bool
    sharded: int | None
    quantization: Quantization

    @property
    def ranks(self) -> int:
        """All ranks, one file each: rank = stage * tensor + tensor rank."""
        return self.tensor * self.stages

    @property
    def stage_layers(self) -> int:
        """Layers of one stage, numbered from 0 in its files."""
        return self.layers // self.stages

    @property
    def attentions(self) -> tuple[str, ...]:
        """Attention modules of one layer, in order; each has a norm of its name plus "_layernorm"."""
        return ("self_attention", "cross_attention") if self.decoder else ("attention",)

    def layer(self, local: int) -> str:
        """Start of the names of one layer of a stage."""
        return f"{'decoder' if self.decoder else 'encoder'}_layers.{local}."


def execute_encoder_decoder(folder: Path, inputs: Inputs, *, activations: bool, quantize: bool) -> dict[str, Tensor]:
    """Compute, in float32, what TensorRT-LLM computes from an encoder-decoder checkpoint.

    Args:
        folder: Holds encoder/ and decoder/.
        inputs: One request.
        activations: Whether quantized linears quantize their input as the runtime does.
        quantize: Whether deferred W8A16 and W4A16 weights are quantized, as the builder will.

    Returns:
        "encoder_hidden_states", shape (batch, sequence, hidden), of rank 0, and "logits", shape (batch, decoder
        sequence, vocabulary).

    Raises:
        MismatchError: A config.json or a rank file is not what the network loads, or the two do not belong together.
        UnsupportedError: A variant that is not executed here.
        ValueError: `inputs` do not fit the model.
    """
    encoder, decoder = _read_stacks(folder)
    if inputs.decoder_tokens is None:
        raise ValueError("decoder_tokens must have shape (batch, decoder_sequence), got None")
    with torch.no_grad():
        encoded = _forward(_open(encoder, activations, quantize), inputs.tokens, None)
        decoding = _open(decoder, activations, quantize)
        decoded = _forward(decoding, inputs.decoder_tokens, encoded)
        return {"encoder_hidden_states": encoded[0], "logits": _logits(decoding, decoded)}


def check_encoder_decoder(folder: Path) -> list[Problem]:
    """Everything wrong with the configs and the headers of the rank files; no tensor is read.

    Raises:
        UnsupportedError: A variant that is not executed here.
    """
    try:
        stacks = _read_stacks(folder)
    except MismatchError as error:
        return list(error.problems)
    return [problem for stack in stacks for problem in _file_problems(stack)]


def stack_table(folder: Path, kind: str, *, decoder: bool) -> Iterator[Tensor]:
    """The whole table of "tokens" or "positions" of one stack in blocks of rows; no block where it has none.

    Raises:
        MismatchError: As `execute_encoder_decoder`; also where ranks that each hold the whole table differ.
    """
    stack = _read_stacks(folder)[int(decoder)]
    rows = stack.vocabulary if kind == "tokens" else stack.positions
    if rows is None:
        return
    name = _TOKENS if kind == "tokens" else _POSITIONS
    yield from joined_blocks(_open(stack, False, False).files[: stack.tensor], name, rows=rows, axis=stack.sharded)


def relative_tables(folder: Path, *, decoder: bool) -> Iterator[tuple[str, Tensor]]:
    """Each stored relative table of one stack: where it is, and shape (heads, buckets) of all ranks, float32."""
    stack = _read_stacks(folder)[int(decoder)]
    files = _open(stack, False, False).files[: stack.tensor]
    for name in sorted(name for name in files[0].names if name.endswith(_TABLE)):
        yield f"{stack.folder.name}: {name}", torch.cat([file.read(name).float() for file in files])


def opened_stacks(folder: Path) -> tuple[tuple[Stack, tuple[RankFile, ...]], ...]:
    """The encoder and the decoder, and the files of each by rank.

    Raises:
        MismatchError, UnsupportedError: As `execute_encoder_decoder`.
    """
    return tuple((stack, _open(stack, False, False).files) for stack in _read_stacks(folder))


def _file_problems(stack: Stack) -> Iterator[Problem]:
    yield from surplus_files(stack.folder, stack.ranks)
    for rank in range(stack.ranks):
        try:
            file = RankFile(rank_path(stack.folder, rank))
        except MismatchError as error:
            yield from error.problems
        else:
            yield from tensor_problems(file, _required(stack, rank // stack.tensor, file))


def _read_stacks(folder: Path) -> tuple[Stack, Stack]:
    """Both configs, which must agree on what flows between them and on the ranks."""
    encoder, decoder = _read_stack(folder / "encoder", decoder=False), _read_stack(folder / "decoder", decoder=True)
    subject = f"{decoder.folder / 'config.json'}"
    for key, found, expected in (
        ("hidden_size", decoder.hidden, encoder.hidden),
        ("mapping", (decoder.tensor, decoder.stages), (encoder.tensor, encoder.stages)),
        ("dtype", decoder.dtype, encoder.dtype),
    ):
        if found != expected:
            raise MismatchError(f"{subject}: {key}", str(found), f"{expected}, as in encoder/config.json")
    return encoder, decoder


def _read_stack(folder: Path, *, decoder: bool) -> Stack:
    fields = _fields(folder / "config.json")
    architecture = fields.text("architecture")
    expected = "DecoderModel" if decoder else "EncoderModel"
    if architecture != expected:
        raise UnsupportedError(f"{fields.subject}: architecture", architecture, expected)
    fields.refuse_others(_READ | _UNREAD | _INERT.keys())
    for key, inert in _INERT.items():
        if fields.values.get(key, inert) != inert:
            raise UnsupportedError(f"{fields.subject}: {key}", repr(fields.values[key]), repr(inert))
    stack = _stack(fields, folder, decoder=decoder)
    _check_stack(fields, stack)
    return stack


def _fields(path: Path) -> Fields:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise MismatchError(str(path), f"unreadable: {error}", "a JSON object", "build the checkpoint again") from error
    if not isinstance(values, dict):
        raise MismatchError(str(path), type(values).__name__, "a JSON object", "build the checkpoint again")
    return Fields(str(path), values)


def _stack(fields: Fields, folder: Path, *, decoder: bool) -> Stack:
    """Defaults are those of the network, for a key that is absent.

    Source: NVIDIA/TensorRT-LLM@04a2cacbfd3b:tensorrt_llm/models/enc_dec/model.py (EncoderModel.check_config,
    DecoderModel.check_config)
    """
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    head_size = fields.integer("head_size", max(1, hidden // heads))
    tensor, stages = _ranks(fields)
    relative = fields.boolean("relative_attention", False)
    learned = fields.boolean("has_position_embedding", False)
    dtype = _DTYPES[fields.choice("dtype", tuple(_DTYPES))]
    clamped_types = ("t5", "pix2struct") if decoder else ("t5",)
    return Stack(
        folder=folder,
        decoder=decoder,
        dtype=dtype,
        tensor=tensor,
        stages=stages,
        vocabulary=fields.integer("vocab_size"),
        hidden=hidden,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        head_size=head_size,
        inner=fields.integer("intermediate_size", 4 * hidden),
        gated=_switch(fields, "mlp_type", "0 (MLP) or 1 (gated): 2 (fused) is not executed"),
        activation=ACTIVATIONS[fields.choice("hidden_act", tuple(ACTIVATIONS), "gelu")],
        rms=_switch(fields, "layernorm_type", "0 (LayerNorm) or 1 (RMSNorm): others are not executed"),
        pre_norm=not _switch(fields, "layernorm_position", "0 (before) or 1 (after the sum)"),
        eps=fields.real("norm_epsilon", 1e-5),
        attention_bias=fields.boolean("has_attention_qkvo_bias", False),
        inner_bias=fields.boolean("has_mlp_bias", False),
        head_bias=decoder and fields.boolean("has_lm_head_bias", False),
        positions=fields.integer("max_position_embeddings") if learned else None,
        embedding_norm=fields.boolean("has_embedding_layernorm", False),
        embedding_scale=math.sqrt(hidden) if fields.boolean("has_embedding_scale", False) else 1.0,
        final_norm=fields.boolean("has_model_final_layernorm", False),
        score_scale=1.0 / (math.sqrt(head_size) * fields.real("q_scaling")),
        buckets=fields.integer("num_buckets", least=4) if relative else None,
        max_distance=fields.integer("max_distance") if relative else 0,
        implicit=decoder and fields.boolean("use_implicit_relative_attention", False),
        logit_scale=hidden**-0.5 if fields.boolean("rescale_before_lm_head", False) else 1.0,
        residual_scale=fields.real("residual_scaling", 1.0),
        clamped=dtype == torch.float16 and fields.text("model_type", "t5") in clamped_types,
        sharded=_sharded(fields, tensor),
        quantization=read_quantization(fields.values),
    )


def _switch(fields: Fields, key: str, expected: str) -> bool:
    """0 or 1; 0 where absent."""
    value = fields.integer(key, 0, least=0)
    if value > 1:
        raise UnsupportedError(f"{fields.subject}: {key}", str(value), expected)
    return value == 1


def _ranks(fields: Fields) -> tuple[int, int]:
    """Tensor-parallel ranks and pipeline stages."""
    mapping = fields.inside("mapping")
    mapping.refuse_others(_MAPPING_KEYS)
    tensor, stages, context = (mapping.integer(key, 1) for key in ("tp_size", "pp_size", "cp_size"))
    if context != 1:
        raise UnsupportedError(f"{mapping.subject}: cp_size", str(context), "1: context parallelism is not executed")
    if mapping.integer("world_size", 1) != tensor * stages:
        raise mapping.error("world_size", f"tp_size * pp_size = {tensor} * {stages} = {tensor * stages}")
    return tensor, stages


def _sharded(fields: Fields, tensor: int) -> int | None:
    axis = fields.integer("embedding_sharding_dim", 0, least=0)
    if axis > 1:
        raise fields.error("embedding_sharding_dim", "0 or 1")
    return axis if fields.boolean("use_parallel_embedding", False) and tensor > 1 else None


def _check_stack(fields: Fields, stack: Stack) -> None:
    """What ranks share must divide, and a decoder's idea of its encoder must be that of the fused cross attention."""
    tensor = stack.tensor
    if fields.integer("num_key_value_heads", stack.heads) != stack.heads:
        raise fields.error("num_key_value_heads", f"{stack.heads}, all heads: others are not executed")
    if stack.layers % stack.stages != 0:
        raise fields.error(
            "num_hidden_layers", f"a multiple of pp_size {stack.stages}: versions differ in what they do"
        )
    for key, size in (("num_attention_heads", stack.heads), ("intermediate_size", stack.inner)):
        if size % tensor != 0:
            raise fields.error(key, f"a multiple of tp_size {tensor}")
    if stack.sharded == 1 and stack.hidden % tensor != 0:
        raise fields.error("hidden_size", f"a multiple of tp_size {tensor}")
    if stack.buckets is not None and stack.max_distance <= stack.buckets // 2:
        raise fields.error("max_distance", f"more than num_buckets / 2 = {stack.buckets // 2}")
    quantization = stack.quantization
    if quantization.algo not in _RECIPES:
        expected = f"one of {', '.join(str(recipe) for recipe in _RECIPES)} for an encoder-decoder"
        raise UnsupportedError(f"{fields.subject}: quantization.quant_algo", str(quantization.algo), expected)
    if quantization.kv_cache_algo is not None:
        subject = f"{fields.subject}: quantization.kv_cache_quant_algo"
        raise UnsupportedError(subject, quantization.kv_cache_algo, "null: an encoder-decoder's cache is not quantized")
    for name in ("embedding.vocab_embedding", "embedding.position_embedding"):
        if quantization.algo in WEIGHT_ONLY_BITS and is_quantized(name, quantization):
            subject = f"{fields.subject}: quantization.exclude_modules"
            raise UnsupportedError(subject, f"does not exclude {name}", "null: a quantized embedding is not executed")
    if not stack.decoder:
        return
    if stack.vocabulary % tensor != 0:
        # not padded here, unlike in decoder-only networks: the head has vocab_size / tp_size rows, rounded down
        raise fields.error("vocab_size", f"a multiple of tp_size {tensor}", "pad it, and the rows of both tables")
    for key, own, default in (
        ("encoder_hidden_size", stack.hidden, None),
        ("encoder_num_heads", stack.heads, None),
        ("encoder_head_size", stack.head_size, stack.hidden // stack.heads),
    ):
        if fields.integer(key, default) != own:
            raise fields.error(key, f"{own}: cross attention projects both sides with one matrix")


def _required(stack: Stack, stage: int, file: RankFile) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Every tensor a rank of `stage` loads: name -> element type and shape.

    Of a decoder's relative tables the network reads those of the layers or the one at the top; earlier versions read
    the others, so those may be there.

    Source: NVIDIA/TensorRT-LLM@04a2cacbfd3b:tensorrt_llm/models/enc_dec/model.py (DecoderModel.__init__,
    precompute_relative_attention_bias)
    """
    names: dict[str, tuple[int, ...]] = {}
    if stage == 0:
        names |= _embedding_shapes(stack)
    linears: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for local in range(stack.stage_layers):
        prefix = stack.layer(local)
        for norm in (*stack.attentions, "mlp"):
            names |= _norm_shapes(stack, f"{prefix}{norm}_layernorm")
        for name, (out, inp, bias) in _sizes(stack).items():
            linears |= _linear_tensors(stack, prefix + name, out, inp, bias, file)
        table = f"{prefix}{stack.attentions[0]}.{_TABLE}"
        if stack.buckets is not None and (not stack.decoder or stack.implicit or file.has(table)):
            names[table] = (stack.heads // stack.tensor, stack.buckets)
    if stack.decoder and stack.buckets is not None and (not stack.implicit or file.has(_TABLE)):
        names[_TABLE] = (stack.heads // stack.tensor, stack.buckets)
    if stage == stack.stages - 1:
        if stack.final_norm:
            names |= _norm_shapes(stack, "final_layernorm")
        if stack.decoder:
            rows = stack.vocabulary // stack.tensor
            linears |= _linear_tensors(stack, "lm_head", rows, stack.hidden, stack.head_bias, file)
    return {name: (stack.dtype, shape) for name, shape in names.items()} | linears


def _embedding_shapes(stack: Stack) -> dict[str, tuple[int, ...]]:
    shapes = {_TOKENS: _table_shape(stack, stack.vocabulary)}
    if stack.positions is not None:
        shapes[_POSITIONS] = _table_shape(stack, stack.positions)
    return shapes | (_norm_shapes(stack, "embedding.embedding_layernorm") if stack.embedding_norm else {})


def _table_shape(stack: Stack, rows: int) -> tuple[int, ...]:
    """One rank's part of an embedding table; the last rank's rows are padded."""
    if stack.sharded == 0:
        return -(-rows // stack.tensor), stack.hidden
    return rows, stack.hidden // stack.tensor if stack.sharded == 1 else stack.hidden


def _norm_shapes(stack: Stack, name: str) -> dict[str, tuple[int, ...]]:
    parts = ("weight",) if stack.rms else ("weight", "bias")
    return {f"{name}.{part}": (stack.hidden,) for part in parts}


def _sizes(stack: Stack) -> dict[str, tuple[int, int, bool]]:
    """Linears of one layer on one rank: name -> output rows, input columns, whether it has a bias."""
    local, inner = stack.heads // stack.tensor * stack.head_size, stack.inner // stack.tensor
    sizes = {}
    for attention in stack.attentions:
        sizes[f"{attention}.qkv"] = (3 * local, stack.hidden, stack.attention_bias)
        sizes[f"{attention}.dense"] = (stack.hidden, local, stack.attention_bias)
    for name in ("mlp.fc", "mlp.gate") if stack.gated else ("mlp.fc",):
        sizes[name] = (inner, stack.hidden, stack.inner_bias)
    return sizes | {"mlp.proj": (stack.hidden, inner, stack.inner_bias)}


def _linear_tensors(
    stack: Stack, name: str, out: int, inp: int, bias: bool, file: RankFile
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return linear_tensors(
        name, out=out, inp=inp, dtype=stack.dtype, quantization=stack.quantization, bias=bias, file=file
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """An opened stack, whose files hold what `_required` says.

    Args:
        stack: The network.
        files: One per rank.
        activations: Whether linears quantize their input.
        quantize: Whether deferred weights are quantized.
    """

    stack: Stack
    files: tuple[RankFile, ...]
    activations: bool
    quantize: bool

    def read(self, stage: int, rank: int, name: str) -> Tensor:
        """A tensor of one tensor-parallel rank of a stage, as float32."""
        return self.files[stage * self.stack.tensor + rank].read(name).float()

    def linear(self, stage: int, rank: int, name: str, size: tuple[int, int, bool]) -> Linear:
        """A linear of one tensor-parallel rank of a stage."""
        out, inp, bias = size
        return load_linear(
            self.files[stage * self.stack.tensor + rank],
            name,
            out=out,
            inp=inp,
            dtype=self.stack.dtype,
            quantization=self.stack.quantization,
            bias=bias,
            activations=self.activations,
            quantize=self.quantize,
        )


_Partial = Callable[[int, Tensor], tuple[Tensor, Tensor | None]]
"""Tensor rank and its normalised stream -> its part of a sublayer's output, and the bias that follows the sum."""


def _open(stack: Stack, activations: bool, quantize: bool) -> _Run:
    files = tuple(RankFile(rank_path(stack.folder, rank)) for rank in range(stack.ranks))
    problems = list(surplus_files(stack.folder, stack.ranks))
    for rank, file in enumerate(files):
        problems += tensor_problems(file, _required(stack, rank // stack.tensor, file))
        problems += _table_problems(stack, file)
    if problems != []:
        raise collected(MismatchError, problems)
    return _Run(stack=stack, files=files, activations=activations, quantize=quantize)


def _table_problems(stack: Stack, file: RankFile) -> Iterator[Problem]:
    """Relative tables of a decoder that differ in one file: which of them counts depends on the version."""
    if not stack.decoder or stack.implicit or stack.buckets is None or not file.has(_TABLE):
        return
    top = file.read(_TABLE)
    for local in range(stack.stage_layers):
        name = f"{stack.layer(local)}{stack.attentions[0]}.{_TABLE}"
        if file.has(name) and not torch.equal(file.read(name), top):
            yield Problem(f"{file.path}: {name}", f"differs from {_TABLE}", "the same table in every layer")


def _forward(run: _Run, tokens: Tensor, encoded: Sequence[Tensor] | None) -> list[Tensor]:
    """The residual stream of every tensor-parallel rank after the final norm, each of shape (B, S, H)."""
    stack = run.stack
    streams = _embed(run, tokens)
    for stage in range(stack.stages):
        for local in range(stack.stage_layers):
            streams = _layer(run, stage, local, streams, encoded)
    if not stack.final_norm:
        return streams
    return [_norm(run, stack.stages - 1, rank, "final_layernorm", x) for rank, x in enumerate(streams)]


def _embed(run: _Run, tokens: Tensor) -> list[Tensor]:
    stack = run.stack
    streams = [x * stack.embedding_scale for x in _lookup(run, _TOKENS, stack.vocabulary, tokens, "tokens")]
    if stack.positions is not None:
        positions = torch.arange(tokens.shape[1])
        rows = _lookup(run, _POSITIONS, stack.positions, positions, "positions")
        streams = [x + row for x, row in zip(streams, rows, strict=True)]
    if not stack.embedding_norm:
        return streams
    return [_norm(run, 0, rank, "embedding.embedding_layernorm", x) for rank, x in enumerate(streams)]


def _lookup(run: _Run, name: str, rows: int, indices: Tensor, what: str) -> list[Tensor]:
    """Rows of an embedding table for every tensor-parallel rank; of a split one all ranks get the same.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py (embedding)
    """
    if int(indices.min()) < 0 or int(indices.max()) >= rows:
        raise ValueError(f"{what} must be in 0..{rows - 1}, got {int(indices.min())}..{int(indices.max())}")
    stack = run.stack
    tables = (run.files[rank].read(name) for rank in range(stack.tensor))
    if stack.sharded is None:
        return [table[indices].float() for table in tables]
    if stack.sharded == 1:
        joined = torch.cat([table[indices].float() for table in tables], -1)
        return [joined] * stack.tensor
    parts = []
    for rank, table in enumerate(tables):
        local = indices - rank * table.shape[0]
        inside = (local >= 0) & (local < table.shape[0])
        parts.append(table[local.where(inside, 0)].float() * inside[..., None])
    return [all_reduce(parts)] * stack.tensor


def _norm(run: _Run, stage: int, rank: int, name: str, x: Tensor) -> Tensor:
    weight = run.read(stage, rank, f"{name}.weight")
    if run.stack.rms:
        return rms_norm(x, weight, run.stack.eps)
    return layer_norm(x, weight, run.read(stage, rank, f"{name}.bias"), run.stack.eps)


def _layer(run: _Run, stage: int, local: int, streams: list[Tensor], encoded: Sequence[Tensor] | None) -> list[Tensor]:
    prefix = run.stack.layer(local)
    for attention in run.stack.attentions:
        name = prefix + attention
        sources = encoded if attention == "cross_attention" else None
        streams = _sublayer(run, stage, name, streams, _attention(run, stage, prefix, attention, sources))
    return _sublayer(run, stage, f"{prefix}mlp", streams, _inner(run, stage, prefix))


def _sublayer(run: _Run, stage: int, name: str, streams: list[Tensor], partial: _Partial) -> list[Tensor]:
    """Residual + all-reduced sublayer + bias, clamped to fp16's range for T5, with the norm before or after."""
    stack, norm = run.stack, f"{name}_layernorm"
    ranks = range(stack.tensor)
    inputs = [_norm(run, stage, rank, norm, streams[rank]) for rank in ranks] if stack.pre_norm else streams
    parts = [partial(rank, inputs[rank]) for rank in ranks]
    total = all_reduce([part for part, _ in parts])
    sums = []
    first = parts[0][1]
    for rank, (_, own) in enumerate(parts):
        bias = first if stack.quantization.algo in _GROUPWISE else own
        x = streams[rank] * stack.residual_scale + (total if bias is None else total + bias)
        sums.append(x.clamp(-_FP16_LIMIT, _FP16_LIMIT) if stack.clamped else x)
    return sums if stack.pre_norm else [_norm(run, stage, rank, norm, x) for rank, x in enumerate(sums)]


def _attention(run: _Run, stage: int, prefix: str, attention: str, encoded: Sequence[Tensor] | None) -> _Partial:
    """Self attention, or cross attention where `encoded` is given: keys and values then come from there."""
    stack, name = run.stack, prefix + attention
    sizes = _sizes(stack)
    causal = stack.decoder and encoded is None

    def partial(rank: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        qkv = run.linear(stage, rank, f"{name}.qkv", sizes[f"{attention}.qkv"])
        dense = run.linear(stage, rank, f"{name}.dense", sizes[f"{attention}.dense"])
        projected = _biased(qkv, x)
        q, k, v = projected.chunk(3, -1)
        if encoded is not None:
            _, k, v = _biased(qkv, encoded[rank]).chunk(3, -1)
        bias = _relative_bias(run, stage, rank, name, x.shape[1]) if encoded is None else None
        q, k, v = (split_heads(part, stack.head_size) for part in (q, k, v))
        return dense(_attend(q, k, v, scale=stack.score_scale, bias_NST=bias, causal=causal)), dense.bias

    return partial


def _inner(run: _Run, stage: int, prefix: str) -> _Partial:
    stack = run.stack
    sizes = _sizes(stack)

    def partial(rank: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        inner = stack.activation(_biased(run.linear(stage, rank, f"{prefix}mlp.fc", sizes["mlp.fc"]), x))
        if stack.gated:
            inner = inner * _biased(run.linear(stage, rank, f"{prefix}mlp.gate", sizes["mlp.gate"]), x)
        proj = run.linear(stage, rank, f"{prefix}mlp.proj", sizes["mlp.proj"])
        return proj(inner), proj.bias

    return partial


def _biased(linear: Linear, x: Tensor) -> Tensor:
    return linear(x) if linear.bias is None else linear(x) + linear.bias


def _attend(
    q_BNSD: Tensor, k_BNTD: Tensor, v_BNTD: Tensor, *, scale: float, bias_NST: Tensor | None, causal: bool
) -> Tensor:
    """Softmax attention, shape (B, S, N * D); the relative bias is added to the scaled scores.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/attention.py (BertAttention.forward, Attention.forward)
    """
    scores = torch.matmul(q_BNSD, k_BNTD.transpose(-1, -2)) * scale
    if bias_NST is not None:
        scores = scores + bias_NST
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return torch.matmul(torch.softmax(scores, -1), v_BNTD).transpose(1, 2).flatten(2)


def _relative_bias(run: _Run, stage: int, rank: int, name: str, length: int) -> Tensor | None:
    """Shape (N, length, length), from the rank's own table; None without relative attention.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/attention.py (compute_relative_bias)
    """
    stack = run.stack
    if stack.buckets is None:
        return None
    top = stack.decoder and not stack.implicit
    table_NK = run.read(stage, rank, _TABLE if top else f"{name}.{_TABLE}")
    return table_NK[:, _buckets(length, stack.buckets, stack.max_distance, bidirectional=not stack.decoder)]


def _buckets(length: int, buckets: int, max_distance: int, *, bidirectional: bool) -> Tensor:
    """Bucket of each query and key position, shape (length, length), int64.

    The first half of the buckets is for distances 0, 1, 2...; the second grows logarithmically up to `max_distance`.
    In an encoder each direction has half of all buckets; in a decoder keys after the query count as distance 0.
    """
    positions = torch.arange(length)
    ahead = positions[None, :] - positions[:, None]
    offset = torch.zeros_like(ahead)
    if bidirectional:
        buckets //= 2
        offset = (ahead > 0) * buckets
        distance = ahead.abs()
    else:
        distance = (-ahead).clamp(min=0)
    exact = buckets // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def _logits(run: _Run, streams: Sequence[Tensor]) -> Tensor:
    """Every rank projects its own stream to its block of the vocabulary."""
    stack = run.stack
    size = (stack.vocabulary // stack.tensor, stack.hidden, stack.head_bias)
    stage = stack.stages - 1
    heads = (run.linear(stage, rank, "lm_head", size) for rank in range(stack.tensor))
    return torch.cat([_biased(head, x * stack.logit_scale) for head, x in zip(heads, streams, strict=True)], -1)
