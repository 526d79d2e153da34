"""The files of every FasterTransformer model, as tables over canonical roles.

Source: NVIDIA/FasterTransformer@df4a753:examples/pytorch/*/utils/huggingface_*_convert.py for the layouts and
src/fastertransformer/models/*/*Weight.cc for what the loaders open; LLaMA: void-main/FasterTransformer@e770ddf and,
with grouped-query attention, sfc-gh-zhwang/FasterTransformer@a4b6dd9. Weights lie (in, out), the transpose of torch's.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmcompile.dtypes import FP32, DType
from llmcompile.plan import Compute, Row
from llmcompile.transforms import Array, divide_rounded, project, to_float32

_LAYER = "model.layers.{layer}."
_QKV = ("attn.q", "attn.k", "attn.v")


def _column(file: str, *roles: str, prefix: str = _LAYER, when: str = "") -> Row:
    """A weight whose outputs are divided among the ranks."""
    weights = tuple(f"{role}.weight" for role in roles)
    return Row(f"{prefix}{file}.weight.{{rank}}.bin", weights, in_first=True, split="out", when=when)


def _column_bias(file: str, *roles: str, prefix: str = _LAYER) -> Row:
    """The bias of a `_column` weight, divided likewise."""
    return Row(f"{prefix}{file}.bias.{{rank}}.bin", tuple(f"{role}.bias" for role in roles), split="out")


def _row(file: str, role: str, prefix: str = _LAYER) -> Row:
    """A weight whose inputs are divided among the ranks; each rank's product is a part of the sum."""
    return Row(f"{prefix}{file}.weight.{{rank}}.bin", (f"{role}.weight",), in_first=True, split="in")


def _once(file: str, role: str, *, when: str = "", in_first: bool = False) -> Row:
    """A tensor that every rank reads whole."""
    return Row(file, (role,), when=when, in_first=in_first)


def _norm(file: str, role: str, *, bias: bool = True, when: str = "") -> tuple[Row, ...]:
    kinds = ("weight", "bias") if bias else ("weight",)
    return tuple(_once(f"{file}.{kind}.bin", f"{role}.{kind}", when=when) for kind in kinds)


_GPT_LAYER = (
    *_norm(f"{_LAYER}input_layernorm", "attn.norm"),
    _column("attention.query_key_value", *_QKV),
    _column_bias("attention.query_key_value", *_QKV),
    _row("attention.dense", "attn.o"),
    _once(f"{_LAYER}attention.dense.bias.bin", "attn.o.bias"),
    *_norm(f"{_LAYER}post_attention_layernorm", "mlp.norm"),
    _column("mlp.dense_h_to_4h", "mlp.up"),
    _column_bias("mlp.dense_h_to_4h", "mlp.up"),
    _row("mlp.dense_4h_to_h", "mlp.down"),
    _once(f"{_LAYER}mlp.dense_4h_to_h.bias.bin", "mlp.down.bias"),
)
_WTE = _once("model.wte.bin", "embed.tokens.weight")
_WPE = _once("model.wpe.bin", "embed.positions.weight")
_LM_HEAD = "model.lm_head.weight.bin"

GPT2_ROWS: tuple[Row, ...] = (
    _WTE,
    _WPE,
    *_GPT_LAYER,
    *_norm("model.final_layernorm", "norm"),
    _once(_LM_HEAD, "head.weight", when="!tied"),
)

BLOOM_ROWS: tuple[Row, ...] = (
    _WTE,
    *_norm("model.pre_decoder_layernorm", "embed.norm"),
    *_GPT_LAYER,
    *_norm("model.final_layernorm", "norm"),
    _once(_LM_HEAD, "head.weight", when="!tied"),
)


def _project_in(inputs: Sequence[Array], dtype: DType, ranks: int, constants: tuple[float, ...]) -> list[Array]:
    """Embedding (vocab, width) and project_in (hidden, width) to (vocab, hidden)."""
    return [project(inputs[0], inputs[1].T)]


def _project_out(inputs: Sequence[Array], dtype: DType, ranks: int, constants: tuple[float, ...]) -> list[Array]:
    """Head (vocab, width) and project_out (width, hidden) to (vocab, hidden)."""
    return [project(inputs[0], inputs[1])]


def _projected(file: str, role: str, projection: str, compute: Compute) -> Row:
    return Row(file, (role, projection), compute=compute, when="projected")


OPT_ROWS: tuple[Row, ...] = (
    _once("model.wte.bin", "embed.tokens.weight", when="!projected"),
    _once(_LM_HEAD, "head.weight", when="!projected"),
    _projected(
        "model.wte.bin",
        "embed.tokens.weight",
        "embed.project_in.weight",
        Compute(_project_in, "vocab hidden", inputs=FP32, by_rows=True),
    ),
    _projected(
        _LM_HEAD,
        "head.weight",
        "embed.project_out.weight",
        Compute(_project_out, "vocab hidden", inputs=FP32, by_rows=True),
    ),
    _WPE,
    *_GPT_LAYER,
    *_norm("model.final_layernorm", "norm", when="final_norm"),
)

GPTJ_ROWS: tuple[Row, ...] = (
    _WTE,
    *_norm(f"{_LAYER}input_layernorm", "attn.norm"),
    _column("attention.query_key_value", *_QKV),
    _row("attention.dense", "attn.o"),
    _column("mlp.dense_h_to_4h", "mlp.up"),
    _column_bias("mlp.dense_h_to_4h", "mlp.up"),
    _row("mlp.dense_4h_to_h", "mlp.down"),
    _once(f"{_LAYER}mlp.dense_4h_to_h.bias.bin", "mlp.down.bias"),
    *_norm("model.final_layernorm", "norm"),
    _once(_LM_HEAD, "head.weight"),
    _once("model.lm_head.bias.bin", "head.bias"),
)


def _shared_bias(inputs: Sequence[Array], dtype: DType, ranks: int, constants: tuple[float, ...]) -> list[Array]:
    """Each rank's share of a bias that all add before the all-reduce, rounded as the vendor's converter does."""
    return [divide_rounded(inputs[0], ranks, dtype)]


def _summed_bias(inputs: Sequence[Array], dtype: DType, ranks: int, constants: tuple[float, ...]) -> list[Array]:
    """The sum of two `_shared_bias`es, in float32: it is rounded, and its overflow counted, when it is written."""
    first, second = (divide_rounded(bias, ranks, dtype) for bias in inputs)
    return [to_float32(first, dtype) + to_float32(second, dtype)]


_PARALLEL = "parallel_residual"
_DENSE_BIAS, _DOWN_BIAS = f"{_LAYER}attention.dense.bias.bin", f"{_LAYER}mlp.dense_4h_to_h.bias.bin"

NEOX_ROWS: tuple[Row, ...] = (
    _WTE,
    *_norm(f"{_LAYER}input_layernorm", "attn.norm"),
    *_norm(f"{_LAYER}post_attention_layernorm", "mlp.norm"),
    _column("attention.query_key_value", *_QKV),
    _column_bias("attention.query_key_value", *_QKV),
    _row("attention.dense", "attn.o"),
    _column("mlp.dense_h_to_4h", "mlp.up"),
    _column_bias("mlp.dense_h_to_4h", "mlp.up"),
    _row("mlp.dense_4h_to_h", "mlp.down"),
    # The runtime adds the sum on every rank before the all-reduce, so there it is divided; it does not read the two
    # others then. Without the parallel residual it adds each after the all-reduce, so there they are whole.
    Row(_DENSE_BIAS, ("attn.o.bias",), compute=Compute(_shared_bias, "hidden"), when=_PARALLEL),
    Row(_DOWN_BIAS, ("mlp.down.bias",), compute=Compute(_shared_bias, "hidden"), when=_PARALLEL),
    Row(
        f"{_LAYER}mlp.attention.bias.sum.bin",
        ("attn.o.bias", "mlp.down.bias"),
        compute=Compute(_summed_bias, "hidden"),
        when=_PARALLEL,
    ),
    _once(_DENSE_BIAS, "attn.o.bias", when=f"!{_PARALLEL}"),
    _once(_DOWN_BIAS, "mlp.down.bias", when=f"!{_PARALLEL}"),
    *_norm("model.final_layernorm", "norm"),
    _once(_LM_HEAD, "head.weight"),
)

LLAMA_ROWS: tuple[Row, ...] = (
    _once("model.wte.weight.bin", "embed.tokens.weight"),
    *_norm(f"{_LAYER}input_layernorm", "attn.norm", bias=False),
    _column("attention.query_key_value", *_QKV),
    _row("attention.dense", "attn.o"),
    *_norm(f"{_LAYER}post_attention_layernorm", "mlp.norm", bias=False),
    _column("mlp.gate_proj", "mlp.gate"),
    _column("mlp.up_proj", "mlp.up"),
    _row("mlp.down_proj", "mlp.down"),
    *_norm("model.final_layernorm", "norm", bias=False),
    _once(_LM_HEAD, "head.weight"),
)

_BERT = "model.encoder.layer.{layer}."

BERT_ROWS: tuple[Row, ...] = (
    *(
        row
        for file, role in (("query", "attn.q"), ("key", "attn.k"), ("value", "attn.v"))
        for row in (
            _column(f"attention.self.{file}", role, prefix=_BERT),
            _column_bias(f"attention.self.{file}", role, prefix=_BERT),
        )
    ),
    _row("attention.output.dense", "attn.o", prefix=_BERT),
    _once(f"{_BERT}attention.output.dense.bias.bin", "attn.o.bias"),
    *_norm(f"{_BERT}attention.output.LayerNorm", "attn.norm"),
    _column("intermediate.dense", "mlp.up", prefix=_BERT),
    _column_bias("intermediate.dense", "mlp.up", prefix=_BERT),
    _row("output.dense", "mlp.down", prefix=_BERT),
    _once(f"{_BERT}output.dense.bias.bin", "mlp.down.bias"),
    *_norm(f"{_BERT}output.LayerNorm", "mlp.norm"),
)


def _t5_stack(stack: str, mlp: int) -> tuple[Row, ...]:
    """What encoder and decoder share; `mlp` is the feed-forward's number among the block's layers."""
    block = f"{stack}.block.{{layer}}.layer."
    dense = f"{mlp}.DenseReluDense"
    return (
        _once(f"{block}0.layer_norm.weight.bin", f"{stack}.attn.norm.weight"),
        Row(
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight.{{rank}}.bin",
            (f"{stack}.attn.relative.weight",),
            split="out",
        ),
        _row("0.SelfAttention.o", f"{stack}.attn.o", prefix=block),
        _once(f"{block}{mlp}.layer_norm.weight.bin", f"{stack}.mlp.norm.weight"),
        _column(f"{dense}.wi", f"{stack}.mlp.up", prefix=block, when="!gated"),
        _column(f"{dense}.wi", f"{stack}.mlp.gate", prefix=block, when="gated"),
        _column(f"{dense}.wi2", f"{stack}.mlp.up", prefix=block, when="gated"),
        _row(f"{dense}.wo", f"{stack}.mlp.down", prefix=block),
        _once(f"{stack}.final_layer_norm.weight.bin", f"{stack}.norm.weight"),
    )


def _t5_attention(layer: str, name: str, role: str) -> tuple[Row, ...]:
    return tuple(_column(f"{name}.{part}", f"{role}.{part}", prefix=layer) for part in ("q", "k", "v"))


_DECODER = "decoder.block.{layer}.layer."

T5_ENCODER_ROWS: tuple[Row, ...] = (
    _once("shared.weight_T.bin", "embed.tokens.weight"),
    _once("shared.weight.bin", "embed.tokens.weight", in_first=True),
    *_t5_attention("encoder.block.{layer}.layer.", "0.SelfAttention", "encoder.attn"),
    *_t5_stack("encoder", mlp=1),
)

T5_ROWS: tuple[Row, ...] = (
    *T5_ENCODER_ROWS,
    _column("0.SelfAttention.qkv", "decoder.attn.q", "decoder.attn.k", "decoder.attn.v", prefix=_DECODER),
    *_t5_stack("decoder", mlp=2),
    _once(f"{_DECODER}1.layer_norm.weight.bin", "decoder.cross.norm.weight"),
    *_t5_attention(_DECODER, "1.EncDecAttention", "decoder.cross"),
    _row("1.EncDecAttention.o", "decoder.cross.o", prefix=_DECODER),
    _once("lm_head.weight.bin", "head.weight"),
)
