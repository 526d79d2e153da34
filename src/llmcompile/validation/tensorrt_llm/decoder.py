"""A decoder-only checkpoint on CPU in float32: all ranks, with the collectives between them written out.

Every rank has a residual stream of its own, computed from its own copies of what is replicated: a norm, a router or a
bias that differs on one rank shows in the logits that this rank gathers. One linear of one rank is in memory at a time.

Shape suffixes: B batch, S sequence, H hidden, T tokens (batch * sequence).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.errors import MismatchError, Problem, collected
from llmcompile.validation.tensorrt_llm.blocks import (
    ACTIVATIONS,
    alibi_bias,
    alibi_slopes,
    all_reduce,
    attend,
    layer_norm,
    rms_norm,
    rotate,
    rotation,
    route,
    soft_cap,
    split_heads,
    swiglu,
)
from llmcompile.validation.tensorrt_llm.config import Config, Experts, Inner, Norm, RowBias, Wiring, read_config
from llmcompile.validation.tensorrt_llm.linears import Linear, linear_tensors, load_experts, load_linear
from llmcompile.validation.tensorrt_llm.rank_files import (
    RankFile,
    joined_blocks,
    rank_path,
    surplus_files,
    tensor_problems,
)

TOKENS = "transformer.vocab_embedding.weight"
POSITIONS = "transformer.position_embedding.weight"
_HEAD = "lm_head.weight"
_HEAD_BIAS = "lm_head.bias"
_EMBEDDING_NORM = "transformer.ln_embed"
_FINAL_NORM = "transformer.ln_f"
_FIRST_NORM = "input_layernorm"
_SHARED_EXPERT = "shared_expert"
_QK_EPS = 1e-5
"""Not norm_epsilon: the network passes none. Source: NVIDIA/TensorRT-LLM@v1.0.0:tensorrt_llm/models/qwen/model.py,
layers/attention.py (Attention)"""
_FP8_MAX, _INT8_MAX = 448.0, 127.0

Streams = list[Tensor]
"""One residual stream per tensor-parallel rank, each of shape (batch, sequence, hidden)."""
Required = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint and how to run it.

    Args:
        config: The network.
        files: One per rank, in order.
        activations: Whether activations, and keys and values, are rounded as the recipe's kernels round them.
        quantize: Whether weights that the builder will quantize are quantized.
    """

    config: Config
    files: tuple[RankFile, ...]
    activations: bool = False
    quantize: bool = False

    def file(self, stage: int, tensor_rank: int) -> RankFile:
        """The file of one rank.

        Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/mapping.py (Mapping)
        """
        return self.files[stage * self.config.parallel.tensor + tensor_rank]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One linear of one layer, as one rank holds it.

    Args:
        name: Module, relative to the layer.
        out: Output rows.
        inp: Input columns.
        bias: Whether it has one.
        experts: Experts of this rank for a 3-D linear, None for an ordinary one.
    """

    name: str
    out: int
    inp: int
    bias: bool = False
    experts: int | None = None


def open_checkpoint(folder: Path, *, activations: bool = False, quantize: bool = False) -> Checkpoint:
    """Open every rank of a checkpoint whose files are exactly what config.json asks for.

    Raises:
        MismatchError: config.json or a rank file is unreadable, or a tensor is missing, misshapen, of another element
            type, or not in the network; carries every such tensor.
        UnsupportedError: The network is not executed here.
    """
    config = read_config(folder)
    files = tuple(RankFile(rank_path(folder, rank)) for rank in range(config.parallel.ranks))
    config = _with_shared_expert_as_stored(config, files[0])
    checkpoint = Checkpoint(config=config, files=files, activations=activations, quantize=quantize)
    problems = structure_problems(folder, checkpoint)
    if problems != []:
        raise collected(MismatchError, problems)
    return checkpoint


def _with_shared_expert_as_stored(config: Config, file: RankFile) -> Config:
    """The expert that sees every token, where the file has it: beside `mlp`, or inside since 0.16, without a new field.

    Source: NVIDIA/TensorRT-LLM@v0.13.0, v1.0.0:tensorrt_llm/models/qwen/model.py (QWenDecoderLayer.__init__)
    """
    experts, inside = config.experts, f"mlp.{_SHARED_EXPERT}"
    if experts is None or experts.shared_inner == 0 or not file.has(f"{_prefix(0)}{inside}.fc.weight"):
        return config
    return replace(config, experts=replace(experts, shared_name=inside))


def structure_problems(folder: Path, checkpoint: Checkpoint) -> list[Problem]:
    """Every rank file and tensor that is not what config.json asks for; reads headers only."""
    problems = surplus_files(folder, checkpoint.config.parallel.ranks)
    for rank, file in enumerate(checkpoint.files):
        stage = rank // checkpoint.config.parallel.tensor
        problems += tensor_problems(file, required_tensors(checkpoint.config, stage, file))
    return problems


def required_tensors(config: Config, stage: int, file: RankFile) -> Required:
    """Tensors of every rank of `stage`: name -> element type and shape; `file` decides between forms of a recipe."""
    required = _outer_tensors(config, stage)
    for layer in range(len(config.stage_layers(stage))):
        required |= _layer_tensors(config, stage, layer, file)
    return required


def _outer_tensors(config: Config, stage: int) -> Required:
    dtype, hidden = config.dtype, config.hidden
    required: Required = {}
    if stage == 0:
        required[TOKENS] = (dtype, _table_shape(config, config.vocabulary))
        if config.positions is not None:
            required[POSITIONS] = (dtype, _table_shape(config, config.positions))
        if config.family.embedding_norm:
            required |= _norm_tensors(config, _EMBEDDING_NORM, hidden)
    if stage == config.parallel.stages - 1:
        if config.final_norm:
            required |= _norm_tensors(config, _FINAL_NORM, hidden)
        if not config.shared:
            required[_HEAD] = (dtype, (config.vocabulary_rows, hidden))
        if config.head_bias:
            required[_HEAD_BIAS] = (dtype, (config.vocabulary_rows,))
    return required


def _table_shape(config: Config, rows: int) -> tuple[int, int]:
    """Shape of a rank's part of an embedding table.

    Source: NVIDIA/TensorRT-LLM@97e36d0:tensorrt_llm/layers/embedding.py (Embedding)
    """
    if config.sharded == 0:
        return -(-rows // config.parallel.tensor), config.hidden
    return rows, config.hidden // config.parallel.tensor if config.sharded == 1 else config.hidden


def _norm_tensors(config: Config, name: str, size: int) -> Required:
    kinds = ("weight", "bias") if config.family.norm is Norm.LAYER else ("weight",)
    return {f"{name}.{kind}": (config.dtype, (size,)) for kind in kinds}


def _layer_tensors(config: Config, stage: int, layer: int, file: RankFile) -> Required:
    prefix, required = _prefix(layer), Required()
    for norm in _layer_norms(config):
        required |= _norm_tensors(config, prefix + norm, config.hidden)
    if config.qk_norm:
        for name in ("q_layernorm", "k_layernorm"):
            required[f"{prefix}attention.{name}.weight"] = (config.dtype, (config.head_size,))
    if config.quantization.kv_cache_algo is not None:
        required[f"{prefix}attention.kv_cache_scaling_factor"] = (torch.float32, (1,))
    if config.experts is not None:
        required[f"{prefix}mlp.router.weight"] = (torch.float32, (config.experts.experts, config.hidden))
    for part in _parts(config):
        required |= linear_tensors(
            prefix + part.name,
            out=part.out,
            inp=part.inp,
            dtype=config.dtype,
            quantization=config.quantization,
            bias=part.bias,
            experts=part.experts,
            edge_layer=_on_edge(config, stage, layer),
            file=file,
        )
    return required


def _prefix(layer: int) -> str:
    """`layer` counts from 0 on every stage."""
    return f"transformer.layers.{layer}."


def _on_edge(config: Config, stage: int, layer: int) -> bool:
    return config.stage_layers(stage)[layer] in (0, config.layers - 1)


def _layer_norms(config: Config) -> tuple[str, ...]:
    second = () if config.second_norm is None else (config.second_norm,)
    outputs = ("post_layernorm", "post_feedforward_layernorm") if config.wiring is Wiring.SANDWICH else ()
    return (_FIRST_NORM, *second, *outputs)


def _parts(config: Config) -> tuple[Part, ...]:
    width = config.local_heads * config.head_size
    key_width = config.local_key_heads * config.head_size
    attention = (
        Part(name="attention.qkv", out=width + 2 * key_width, inp=config.hidden, bias=config.qkv_bias),
        Part(name="attention.dense", out=config.hidden, inp=width, bias=config.dense_bias),
    )
    return attention + (_dense_parts(config) if config.experts is None else _expert_parts(config, config.experts))


def _dense_parts(config: Config) -> tuple[Part, ...]:
    """Inner layer without experts.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/mlp.py (MLP, GatedMLP)
    """
    inner, hidden, bias = config.inner // config.parallel.tensor, config.hidden, config.inner_bias
    rows = 2 * inner if config.family.inner is Inner.FUSED else inner
    gate = (Part(name="mlp.gate", out=rows, inp=hidden, bias=bias),) if config.family.inner is Inner.GATED else ()
    return (
        Part(name="mlp.fc", out=rows, inp=hidden, bias=bias),
        *gate,
        Part(name="mlp.proj", out=hidden, inp=inner, bias=bias),
    )


def _expert_parts(config: Config, experts: Experts) -> tuple[Part, ...]:
    """Inner layer of experts.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/moe.py (MOEWeightWrapper, MOE), models/qwen/model.py
    """
    inner, held = experts.inner // config.parallel.moe_tensor, experts.experts // config.parallel.moe_experts
    parts = (
        Part(name="mlp.fc", out=2 * inner, inp=config.hidden, experts=held),
        Part(name="mlp.proj", out=config.hidden, inp=inner, experts=held),
    )
    if experts.shared_inner == 0:
        return parts
    shared = experts.shared_inner // config.parallel.tensor
    return (
        *parts,
        Part(name=f"{experts.shared_name}.fc", out=2 * shared, inp=config.hidden),
        Part(name=f"{experts.shared_name}.proj", out=config.hidden, inp=shared),
        Part(name=f"{experts.shared_name}_gate", out=1, inp=config.hidden),
    )


def run_decoder(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """Logits of every position of every sequence.

    Args:
        checkpoint: An opened checkpoint.
        tokens: Shape (batch, sequence), int64.

    Returns:
        Shape (batch, sequence, vocabulary), float32.

    Raises:
        MismatchError: A tensor cannot be read, or contradicts its recipe.
        ValueError: A token is out of range, or the sequence is longer than the position tables.
    """
    config = checkpoint.config
    if tokens.numel() == 0 or not 0 <= int(tokens.min()) <= int(tokens.max()) < config.vocabulary:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} are not all in [0, {config.vocabulary})")
    if config.max_positions is not None and tokens.shape[1] > config.max_positions:
        raise ValueError(f"{tokens.shape[1]} tokens are more than the {config.max_positions} positions of the tables")
    streams = _embed(checkpoint, tokens)
    for stage in range(config.parallel.stages):  # each stage hands the streams to the same tensor ranks of the next
        for layer in range(len(config.stage_layers(stage))):
            streams = Layer(checkpoint, stage, layer).run(streams)
    if config.final_norm:
        last = config.parallel.stages - 1
        streams = [
            _normalise(config, checkpoint.file(last, rank), _FINAL_NORM, x, config.eps["final"])
            for rank, x in enumerate(streams)
        ]
    return _project(checkpoint, streams)


def _embed(checkpoint: Checkpoint, tokens: Tensor) -> Streams:
    """Token and position embedding of every rank.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/gpt/model.py (GPTModel.forward), models/gemma/model.py,
    models/bloom/model.py
    """
    config = checkpoint.config
    streams = [x * config.embedding_scale for x in _look_up(checkpoint, TOKENS, tokens)]
    if config.positions is not None:
        positions = torch.arange(tokens.shape[1])[None, :]
        streams = [x + p for x, p in zip(streams, _look_up(checkpoint, POSITIONS, positions), strict=True)]
    if config.family.embedding_norm:
        eps = config.eps["embedding"]
        return [_normalise(config, checkpoint.file(0, rank), _EMBEDDING_NORM, x, eps) for rank, x in enumerate(streams)]
    return streams


def _look_up(checkpoint: Checkpoint, name: str, rows: Tensor) -> Streams:
    """Rows of a table: whole on each rank, cut by rows and summed, or cut by columns and gathered.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py (embedding)
    """
    config = checkpoint.config
    ranks = range(config.parallel.tensor)
    files = [checkpoint.file(0, rank) for rank in ranks]
    if config.sharded is None:
        return [_gather_rows(file, name, rows) for file in files]
    if config.sharded == 1:
        whole = torch.cat([_gather_rows(file, name, rows) for file in files], -1)
    else:
        held = files[0].info(name)[1][0]
        whole = all_reduce(
            [_gather_rows(file, name, rows - rank * held) for rank, file in zip(ranks, files, strict=True)]
        )
    return [whole for _ in ranks]


def _gather_rows(file: RankFile, name: str, rows: Tensor) -> Tensor:
    """Rows of one file's table in float32; zeros for a row it does not hold."""
    height, width = file.info(name)[1]
    distinct, places = torch.unique(rows, return_inverse=True)
    found = torch.zeros(distinct.numel(), width)
    held = [(place, row) for place, row in enumerate(distinct.tolist()) if 0 <= row < height]
    for (place, _), values in zip(held, file.single_rows(name, [row for _, row in held]), strict=True):
        found[place] = values
    return found[places]


def _normalise(config: Config, file: RankFile, name: str, x: Tensor, eps: float) -> Tensor:
    weight = file.read(f"{name}.weight").float()
    if config.family.norm is Norm.RMS:
        return rms_norm(x, weight, eps)
    bias = file.read(f"{name}.bias").float() if config.family.norm is Norm.LAYER else None
    return layer_norm(x, weight, bias, eps)


def _project(checkpoint: Checkpoint, streams: Streams) -> Tensor:
    """Gather the logits of the ranks' rows of the padded vocabulary, and cut the padding off.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/modeling_utils.py (DecoderModelForCausalLM.forward)
    """
    config = checkpoint.config
    parts = []
    for rank, x in enumerate(streams):
        file = checkpoint.file(config.parallel.stages - 1, rank)
        blocks = file.row_blocks(TOKENS if config.shared else _HEAD)
        logits = torch.cat([torch.matmul(x, block.float().T) for block in blocks], -1)
        parts.append(logits + file.read(_HEAD_BIAS).float() if config.head_bias else logits)
    whole = torch.cat(parts, -1)[..., : config.vocabulary]
    return whole if config.logit_cap is None else soft_cap(whole, config.logit_cap)


class Layer:
    """One layer on all tensor-parallel ranks of its stage.

    Args:
        checkpoint: An opened checkpoint.
        stage: Pipeline stage.
        layer: Layer within the stage, from 0.
    """

    def __init__(self, checkpoint: Checkpoint, stage: int, layer: int) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._files = [checkpoint.file(stage, rank) for rank in range(checkpoint.config.parallel.tensor)]
        self._prefix = _prefix(layer)
        self._edge = _on_edge(checkpoint.config, stage, layer)
        self._parts = {part.name: part for part in _parts(checkpoint.config)}

    def run(self, streams: Streams) -> Streams:
        """The streams after this layer."""
        wiring = self._config.wiring
        if wiring is Wiring.PARALLEL:
            return self._parallel(streams)
        if wiring is Wiring.POST_NORM:
            streams = self._normalise(_FIRST_NORM, "first", _add(streams, self._attention(streams)))
            return self._normalise(self._second, "second", _add(streams, self._inner(streams)))
        attention = self._attention(self._normalise(_FIRST_NORM, "first", streams))
        if wiring is Wiring.SANDWICH:
            attention = self._normalise("post_layernorm", "second", attention)
        streams = _add(streams, attention)
        inner = self._inner(self._normalise(self._second, "second", streams))
        if wiring is Wiring.SANDWICH:
            inner = self._normalise("post_feedforward_layernorm", "second", inner)
        return _add(streams, inner)

    @property
    def _second(self) -> str:
        name = self._config.second_norm
        assert name is not None
        return name

    def _parallel(self, streams: Streams) -> Streams:
        """Attention and inner layer both read the layer's input.

        Source: NVIDIA/TensorRT-LLM@1628a1c:tensorrt_llm/models/gptj/model.py, @585c756:models/falcon/model.py (one
        all-reduce), @v0.13.0:models/gptneox/model.py, @03dd9bb:models/phi/model.py (two)
        """
        first = self._normalise(_FIRST_NORM, "first", streams)
        second = first
        if self._config.second_norm is not None:
            second = self._normalise(self._second, "second", streams)
        attention, inner = self._attention_parts(first), self._inner_parts(second)
        if self._config.joint:
            total = all_reduce(
                [self._biased(rank, a, "attention.dense") for rank, a in enumerate(attention)]
                + [self._biased(rank, m, "mlp.proj") for rank, m in enumerate(inner)]
            )
            return [x + total for x in streams]
        return _add(_add(streams, self._reduce(attention, "attention.dense")), self._reduce(inner, "mlp.proj"))

    def _normalise(self, name: str, kind: str, streams: Streams) -> Streams:
        eps = self._config.eps[kind]
        return [
            _normalise(self._config, file, self._prefix + name, x, eps)
            for file, x in zip(self._files, streams, strict=True)
        ]

    def _attention(self, streams: Streams) -> Streams:
        return self._reduce(self._attention_parts(streams), "attention.dense")

    def _inner(self, streams: Streams) -> Streams:
        if self._config.experts is None:
            return self._reduce(self._inner_parts(streams), "mlp.proj")
        total = all_reduce(self._inner_parts(streams))
        return [total for _ in streams]

    def _inner_parts(self, streams: Streams) -> Streams:
        """Each rank's summand of the inner layer, without the last bias."""
        part: Callable[[int, Tensor], Tensor] = self._mlp if self._config.experts is None else self._moe
        return [part(rank, x) for rank, x in enumerate(streams)]

    def _attention_parts(self, streams: Streams) -> Streams:
        """Each rank's summand of attention, without the last bias."""
        return [self._apply(rank, "attention.dense", self._heads(rank, x)) for rank, x in enumerate(streams)]

    def _linear(self, rank: int, name: str) -> Linear:
        part = self._parts[name]
        return load_linear(
            self._files[rank],
            self._prefix + name,
            out=part.out,
            inp=part.inp,
            dtype=self._config.dtype,
            quantization=self._config.quantization,
            bias=part.bias,
            activations=self._checkpoint.activations,
            quantize=self._checkpoint.quantize,
            edge_layer=self._edge,
        )

    def _apply(self, rank: int, name: str, x: Tensor) -> Tensor:
        """A row-parallel linear, without its bias."""
        return self._linear(rank, name)(x)

    def _column(self, rank: int, name: str, x: Tensor) -> Tensor:
        """A column-parallel linear, with its bias."""
        linear = self._linear(rank, name)
        return linear(x) if linear.bias is None else linear(x) + linear.bias

    def _row_bias(self, rank: int, name: str) -> Tensor | None:
        """The bias of a row-parallel linear as the loader leaves it."""
        if not self._parts[name].bias:
            return None
        bias = self._files[rank].read(f"{self._prefix}{name}.bias").float()
        return torch.zeros_like(bias) if self._config.zeroes_row_bias(rank) else bias

    def _biased(self, rank: int, part: Tensor, name: str) -> Tensor:
        bias = self._row_bias(rank, name)
        return part if bias is None else part + bias

    def _reduce(self, parts: Streams, name: str) -> Streams:
        """The all-reduce of a row-parallel linear, with every rank's bias where the network adds it."""
        if self._config.row_bias(self._prefix + name) is RowBias.BEFORE_REDUCE:
            total = all_reduce([self._biased(rank, part, name) for rank, part in enumerate(parts)])
            return [total for _ in parts]
        total = all_reduce(parts)
        return [self._biased(rank, total, name) for rank in range(len(parts))]

    def _heads(self, rank: int, x_BSH: Tensor) -> Tensor:
        """Attention of one rank's heads, before the last linear; shape (batch, sequence, heads * head size).

        Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/attention.py (Attention.forward)
        """
        config = self._config
        qkv = self._column(rank, "attention.qkv", x_BSH)
        if config.clip is not None:
            qkv = qkv.clamp(-config.clip, config.clip)
        width, key_width = config.local_heads * config.head_size, config.local_key_heads * config.head_size
        q, k, v = (split_heads(part, config.head_size) for part in torch.split(qkv, [width, key_width, key_width], -1))
        if config.qk_norm:
            q, k = self._normalise_heads(rank, "q", q), self._normalise_heads(rank, "k", k)
        length = x_BSH.shape[1]
        if config.rotary is not None:
            cos, sin = rotation(config.rotary, length)
            q, k = rotate(q, config.rotary, cos, sin), rotate(k, config.rotary, cos, sin)
        k, v = self._cached(rank, k), self._cached(rank, v)
        bias = self._alibi(rank, length)
        return attend(q, k, v, scale=config.score_scale, cap=config.score_cap, bias_NST=bias)

    def _normalise_heads(self, rank: int, which: str, x_BNSD: Tensor) -> Tensor:
        weight = self._files[rank].read(f"{self._prefix}attention.{which}_layernorm.weight").float()
        return rms_norm(x_BNSD, weight, _QK_EPS)

    def _alibi(self, rank: int, length: int) -> Tensor | None:
        config = self._config
        if config.alibi_max is None:
            return None
        local = slice(rank * config.local_heads, (rank + 1) * config.local_heads)
        slopes = alibi_slopes(config.heads, bias_max=config.alibi_max)[local]
        return alibi_bias(slopes * config.score_scale if config.alibi_scaled else slopes, length)

    def _cached(self, rank: int, x: Tensor) -> Tensor:
        """Keys or values as a quantized cache gives them back, where that is simulated."""
        algo = self._config.quantization.kv_cache_algo
        if algo is None or not self._checkpoint.activations:
            return x
        scale = self._files[rank].read(f"{self._prefix}attention.kv_cache_scaling_factor").float()
        if algo == "INT8":
            return (x / scale).round().clamp(-_INT8_MAX - 1, _INT8_MAX) * scale
        return (x / scale).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).float() * scale

    def _mlp(self, rank: int, x: Tensor) -> Tensor:
        """Inner layer of one rank.

        Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/mlp.py (MLP.forward, GatedMLP.forward)
        """
        inner = self._column(rank, "mlp.fc", x)
        if self._config.family.inner is Inner.FUSED:
            inner = swiglu(inner)
        else:
            inner = ACTIVATIONS[self._config.activation](inner)
        if self._config.family.inner is Inner.GATED:
            inner = inner * self._column(rank, "mlp.gate", x)
        return self._apply(rank, "mlp.proj", inner)

    def _moe(self, rank: int, x_BSH: Tensor) -> Tensor:
        """One rank's experts on the tokens routed to them, and its part of the expert that sees every token.

        Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/moe.py (MOE.forward), models/qwen/model.py
        (QWenDecoderLayer.forward)
        """
        experts = self._config.experts
        assert experts is not None
        x_TH = x_BSH.flatten(0, 1)
        router = self._files[rank].read(f"{self._prefix}mlp.router.weight").float()
        weights, chosen = route(x_TH, router, top_k=experts.top_k, renormalized=experts.renormalized)
        up, down = self.load_experts(rank, "mlp.fc"), self.load_experts(rank, "mlp.proj")
        first = rank % self._config.parallel.moe_experts * len(up)
        total = torch.zeros_like(x_TH)
        for expert, (fc, proj) in enumerate(zip(up, down, strict=True), start=first):
            tokens, place = (chosen == expert).nonzero(as_tuple=True)
            if tokens.numel() > 0:
                total[tokens] += weights[tokens, place, None] * proj(swiglu(fc(x_TH[tokens])))
        if experts.shared_inner > 0:
            total = total + self._shared_expert(rank, experts, x_TH)
        return total.view_as(x_BSH)

    def load_experts(self, rank: int, name: str) -> tuple[Linear, ...]:
        """One rank's share of its experts: `mlp.fc` or `mlp.proj`."""
        part = self._parts[name]
        assert part.experts is not None
        return load_experts(
            self._files[rank],
            self._prefix + name,
            experts=part.experts,
            out=part.out,
            inp=part.inp,
            dtype=self._config.dtype,
            quantization=self._config.quantization,
            activations=self._checkpoint.activations,
            quantize=self._checkpoint.quantize,
        )

    def _shared_expert(self, rank: int, experts: Experts, x_TH: Tensor) -> Tensor:
        """Each rank gates its own part, before the all-reduce; every rank has the whole gate."""
        inner = swiglu(self._column(rank, f"{experts.shared_name}.fc", x_TH))
        gate = torch.sigmoid(self._column(rank, f"{experts.shared_name}_gate", x_TH))
        return gate * self._apply(rank, f"{experts.shared_name}.proj", inner)


@dataclass(frozen=True)
class ExpertMatrix:
    """One matrix of one expert, put together from the ranks that share it.

    Attributes:
        layer: Counted through the model.
        expert: Counted through the layer.
        part: "gate" or "up", shape (inner, hidden), or "down", (hidden, inner).
        weight: Float32, dequantized.
    """

    layer: int
    expert: int
    part: str
    weight: Tensor


def expert_matrices(checkpoint: Checkpoint) -> Iterator[ExpertMatrix]:
    """Every matrix of every expert, those no token is routed to among them; none for a model without experts.

    Raises:
        MismatchError: A tensor cannot be read, or contradicts its recipe.
    """
    config = checkpoint.config
    if config.experts is None:
        return
    groups = config.parallel.moe_experts
    for stage in range(config.parallel.stages):
        for local, number in enumerate(config.stage_layers(stage)):
            layer = Layer(checkpoint, stage, local)
            for group in range(groups):
                ranks = [rank for rank in range(config.parallel.tensor) if rank % groups == group]
                yield from _group_matrices(layer, number, group, ranks)


def _group_matrices(layer: Layer, number: int, group: int, ranks: list[int]) -> Iterator[ExpertMatrix]:
    """The experts of the ranks that share them; up is the first half of each rank's rows, gate the second."""
    inner = [layer.load_experts(rank, "mlp.fc") for rank in ranks]
    first = group * len(inner[0])
    for index in range(len(inner[0])):
        halves = [experts[index].weight.chunk(2) for experts in inner]
        yield ExpertMatrix(number, first + index, "up", torch.cat([up for up, _ in halves]))
        yield ExpertMatrix(number, first + index, "gate", torch.cat([gate for _, gate in halves]))
    del inner  # a layer of experts in float32 may be gigabytes
    outer = [layer.load_experts(rank, "mlp.proj") for rank in ranks]
    for index in range(len(outer[0])):
        down = torch.cat([experts[index].weight for experts in outer], 1)
        yield ExpertMatrix(number, first + index, "down", down)


def _add(streams: Streams, others: Streams) -> Streams:
    return [x + y for x, y in zip(streams, others, strict=True)]


def table_blocks(checkpoint: Checkpoint, name: str) -> Iterator[Tensor]:
    """A whole embedding table in blocks of rows, put together from the ranks, float32, padding cut off.

    Args:
        checkpoint: An opened checkpoint.
        name: `TOKENS` or `POSITIONS`; a model without learned positions gives no block.

    Raises:
        MismatchError: Ranks that each hold the whole table do not hold the same.
    """
    config = checkpoint.config
    rows = config.vocabulary if name == TOKENS else config.positions
    if rows is None:
        return
    files = [checkpoint.file(0, rank) for rank in range(config.parallel.tensor)]
    yield from joined_blocks(files, name, rows=rows, axis=config.sharded)
