"""Which FasterTransformer model a family becomes, with which files, and which models it cannot represent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.dtypes import BF16, BY_NAME, FP16, FP32, DType
from llmcompile.errors import Problem, UnsupportedError
from llmcompile.exporters.ft import config_ini, rows, smoothquant
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.spec import Layout
from llmcompile.plan import Row

ATTENTION_SIZES = (32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256)
"""Head sizes the decoding kernel is compiled for.
Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/decoder_masked_multihead_attention.cu."""
_T5_ACTIVATIONS = ("relu", "gelu", "silu", "gated-relu", "gated-gelu", "gated-silu")
_DTYPES = (FP32, FP16, BF16)


@dataclass(frozen=True)
class Family:
    """How one family is written for FasterTransformer.

    Attributes:
        rows: Its files.
        config: Text of config.ini.
        refusals: Why a model cannot be represented.
        deviations: File name pattern and how it differs from the vendor converter's.
        default_name: `model_name` where nothing else gives one.
        name_from: What the converter takes `model_name` from: "path" (the one it was given), "config" (config.json's
            _name_or_path), or "" for `default_name`.
        dtypes: Element types the family's loader is compiled for.
        decodes: Whether the runtime generates tokens, through the decoding kernel.
    """

    rows: tuple[Row, ...]
    config: Callable[[Dims, config_ini.Given], str]
    refusals: Callable[[Dims, FtOptions], Iterator[Problem]]
    deviations: Callable[[Dims, FtOptions, DType], Iterator[tuple[str, str]]]
    default_name: str = ""
    name_from: str = ""
    dtypes: tuple[DType, ...] = _DTYPES
    decodes: bool = True


def make_layout(
    architecture: Architecture, dims: Dims, options: FtOptions, *, source_dtype: DType, model_label: str
) -> Layout:
    """The FasterTransformer artifact of one model.

    Args:
        architecture: The family.
        dims: Its sizes and facts.
        options: What was asked.
        source_dtype: Type of most of the checkpoint's bytes, used where no --dtype is given.
        model_label: Hub id or folder name, the stand-in for the path the vendor's converters record.

    Returns:
        The layout; `refusals` says why the model cannot be represented, if so.

    Raises:
        UnsupportedError: The runtime has no such family, or the checkpoint is quantized.
    """
    family = _family(architecture, dims)
    dtype = source_dtype if options.dtype is None else BY_NAME[options.dtype]
    name = _model_name(family, architecture, dims, options, model_label)
    given = config_ini.Given(name, dtype.name, options.tp, options.encoder_only, options.act_scales is not None)
    refusals = [*family.refusals(dims, options), *_common_refusals(family, architecture, dims, options, dtype)]
    table = rows.T5_ENCODER_ROWS if options.encoder_only and architecture.name == "t5" else family.rows
    if options.act_scales is not None and architecture.name == "opt" and dtype != BF16:
        scales = smoothquant.read_scales(options.act_scales, dims.sizes["layers"])
        table += smoothquant.rows(scales, dims.sizes["layers"])
    return Layout(
        backend="ft",
        folder=f"{options.tp}-gpu/",
        rows=table,
        texts={"config.ini": family.config(dims, given)},
        unused=_unused(architecture, options),
        ranks=options.tp,
        dtype=dtype,
        deviations=dict(family.deviations(dims, options, dtype)),
        refusals=tuple(refusals),
        notes=tuple(_notes(family, architecture, dims, dtype)),
    )


def _family(architecture: Architecture, dims: Dims) -> Family:
    if architecture.name not in FAMILIES:
        raise UnsupportedError(
            f"config.json: a {architecture.name} model",
            "FasterTransformer has no such family",
            f"one of {', '.join(FAMILIES)}",
            "choose another backend",
        )
    if "quantized" in dims.facts:
        raise UnsupportedError(
            "config.json: quantization_config",
            f"a checkpoint quantized with {dims.facts['quantized']}",
            "float weights, which is what FasterTransformer reads",
            "start from the unquantized checkpoint",
        )
    return FAMILIES[architecture.name]


def _model_name(family: Family, architecture: Architecture, dims: Dims, options: FtOptions, model_label: str) -> str:
    if options.model_name is not None:
        return options.model_name
    name = {"path": model_label, "config": str(dims.facts["name_or_path"])}.get(family.name_from, "")
    if architecture.name == "bert":
        name = str(dims.facts["model_type"])
    # A line break in somebody's config.json must not become a line of ours.
    name = "".join(character for character in name if character.isprintable())
    room = config_ini.MAX_LINE_BYTES - len("_name_or_path = ")
    return (family.default_name if name == "" else name).encode()[:room].decode(errors="ignore")


def _unused(architecture: Architecture, options: FtOptions) -> Mapping[str, str]:
    if architecture.name == "bert":
        return {"embed.": "FasterTransformer's BERT starts from hidden states: the server embeds"}
    if architecture.name == "t5" and options.encoder_only:
        return {"decoder.": "--encoder-only", "head.": "--encoder-only"}
    return {}


def _common_refusals(
    family: Family, architecture: Architecture, dims: Dims, options: FtOptions, dtype: DType
) -> Iterator[Problem]:
    if dtype not in family.dtypes:
        names = ", ".join(allowed.name for allowed in family.dtypes)
        yield Problem(
            f"--dtype {dtype.name}",
            f"FasterTransformer's {architecture.name} loader has no {dtype.name}",
            names,
            f"add --dtype {family.dtypes[-1].name}",
        )
    layers = dims.sizes["layers"]
    if options.pp > layers:
        yield Problem("--pp", f"{options.pp} stages for {layers} layers", f"at most {layers}", f"--pp {layers}")
    if options.encoder_only and architecture.name != "t5":
        yield Problem("--encoder-only", f"a {architecture.name} model", "a T5 model", "drop --encoder-only")
    if options.act_scales is not None and architecture.name != "opt":
        yield Problem("--act-scales", f"a {architecture.name} model", "an OPT model", "drop --act-scales")
    elif options.act_scales is not None and dims.facts["pre_norm"] is not True:
        yield Problem(
            "--act-scales",
            "a model with do_layer_norm_before false",
            "true: the int8 runtime quantizes only behind a pre-norm",
            "drop --act-scales",
        )
    elif options.act_scales is not None and dtype == BF16:
        yield Problem("--act-scales", "--dtype bf16", "fp32 or fp16 weights", "add --dtype fp16")


def _notes(family: Family, architecture: Architecture, dims: Dims, dtype: DType) -> Iterator[str]:
    head_dim = dims.sizes["head_dim"]
    if family.decodes and head_dim not in ATTENTION_SIZES:
        sizes = ", ".join(str(size) for size in ATTENTION_SIZES)
        yield f"size_per_head {head_dim}: FasterTransformer's decoding kernel is compiled for {sizes} only"
    if dims.facts.get("residual_after_norm") is True:
        yield (
            "apply_residual_connection_post_layernorm: FasterTransformer's bloom-post is a plain post-norm model, "
            "which computes something else; expect the validation to fail"
        )
    rotary = dims.facts.get("rotary_dim")
    if architecture.name == "gptneox" and isinstance(rotary, int) and rotary > 2 and rotary % 4 != 0:
        yield f"rotary_embedding {rotary}: FasterTransformer's rotation is only right for 2 and multiples of 4"
    if architecture.name == "bert":
        yield "FasterTransformer's BERT loader joins paths without a slash: give it a folder that ends in one"
        yield "embeddings are not stored: the server feeds hidden states"
    if architecture.name == "t5" and dtype == FP16:
        yield "T5 activations overflow fp16 in larger models: fp32 or bf16 files with a bf16 runtime are safer"


def _unsupported_fact(found: str, expected: str) -> Problem:
    return Problem("config.json", found, expected, "FasterTransformer cannot represent this model")


def _activation(dims: Dims, *known: str) -> Iterator[Problem]:
    activation = str(dims.facts["activation"])
    if activation not in known:
        yield _unsupported_fact(f"activation {activation}", f"one of {', '.join(known)}")


_GELUS = ("gelu_new", "gelu", "gelu_pytorch_tanh", "gelu_fast", "gelu_python")


def _token_ids(dims: Dims) -> Iterator[Problem]:
    for fact, key in (("start_id", "bos_token_id"), ("end_id", "eos_token_id")):
        if dims.facts[fact] is None:
            yield Problem(
                f"config.json: {key}", "null", "an integer", f"set {key} in config.json; the runtime needs one"
            )


def _rope(dims: Dims) -> Iterator[Problem]:
    if dims.facts["rotary_base"] != 10000.0:
        yield _unsupported_fact(f"rope_theta {dims.facts['rotary_base']:g}", "10000, which is compiled in")
    if dims.facts["rope_scaling"] is not None:
        yield _unsupported_fact(f"rope_scaling {dims.facts['rope_scaling']}", "none")


def _inner_size(dims: Dims) -> Iterator[tuple[str, str]]:
    if dims.sizes["ffn"] != 4 * dims.sizes["hidden"]:
        yield "config.ini", "inter_size is the model's own; the converter writes 4 x hidden whatever the model has"


def _bf16(dtype: DType) -> Iterator[tuple[str, str]]:
    if dtype == BF16:
        yield "config.ini", "weight_data_type bf16: the loader reads it, the vendor's converter cannot write it"


# GPT-2


def _gpt2_refusals(dims: Dims, options: FtOptions) -> Iterator[Problem]:
    yield from _activation(dims, *_GELUS, "relu")
    yield from _token_ids(dims)
    if dims.facts["scale_attn_weights"] is not True:
        yield _unsupported_fact("scale_attn_weights false", "true")
    if dims.facts["scale_attn_by_inverse_layer_idx"] is True:
        yield _unsupported_fact("scale_attn_by_inverse_layer_idx true", "false")


def _gpt2_deviations(dims: Dims, options: FtOptions, dtype: DType) -> Iterator[tuple[str, str]]:
    reasons = [
        f"layernorm_eps is written: the converter leaves it out, and the loader then takes 1e-06 instead of "
        f"{dims.facts['norm_eps']}"
    ]
    reasons += [reason for _, reason in (*_inner_size(dims), *_bf16(dtype))]
    if not config_ini.is_gelu(dims.facts["activation"]):
        reasons.append("activation_type is written: the converter leaves it out, and the loader then takes Gelu")
    yield "config.ini", "; ".join(reasons)
    if dims.facts["tied"] is not True:
        yield "model.lm_head.weight.bin", "written, since the head is not tied; the converter drops it"


# OPT


def _opt_refusals(dims: Dims, options: FtOptions) -> Iterator[Problem]:
    yield from _activation(dims, *_GELUS, "relu")
    yield from _token_ids(dims)
    if dims.facts["bias"] is not True:
        yield _unsupported_fact("enable_bias false", "true: the loader has no model without biases")
    if dims.facts["affine_norms"] is not True:
        yield _unsupported_fact("layer_norm_elementwise_affine false", "true")


def _opt_deviations(dims: Dims, options: FtOptions, dtype: DType) -> Iterator[tuple[str, str]]:
    reasons = [reason for _, reason in _bf16(dtype)]
    if config_ini.is_gelu(dims.facts["activation"]):
        reasons.append("activation_type is the model's own; the converter writes Relu whatever the model has")
    if len(reasons) > 0:
        yield "config.ini", "; ".join(reasons)
    if dims.facts["tied"] is not True:
        yield "model.lm_head.weight.bin", "the model's own head; the converter writes the embedding"
    if options.act_scales is not None and dtype != FP32:
        for kind in ("scale", "scale_out", "scale_inter"):
            yield f"*.{kind}.bin", f"float32, as the loader reads it; the converter writes {dtype.name}"


# BLOOM


def _bloom_refusals(dims: Dims, options: FtOptions) -> Iterator[Problem]:
    yield from _token_ids(dims)


def _bloom_deviations(dims: Dims, options: FtOptions, dtype: DType) -> Iterator[tuple[str, str]]:
    yield from _bf16(dtype)
    reason = (
        "not written, since the head is tied; where the checkpoint repeats it, the converter writes it transposed, and "
        "the loader would prefer that"
        if dims.facts["tied"] is True
        else "(vocab, hidden), as the loader reads it; the converter writes it transposed"
    )
    yield "model.lm_head.weight.bin", reason


# GPT-J


def _gptj_refusals(dims: Dims, options: FtOptions) -> Iterator[Problem]:
    yield from _activation(dims, *_GELUS)
    yield from _token_ids(dims)


def _gptj_deviations(dims: Dims, options: FtOptions, dtype: DType) -> Iterator[tuple[str, str]]:
    reasons = [reason for _, reason in _inner_size(dims)]
    if dims.facts["rotary_dim_given"] is not True:
        reasons.append("rotary_embedding is the head size, since config.json gives none; the converter writes None")
    if dtype != FP32:
        reasons.append(f"weight_data_type {dtype.name}: the loader reads it, the converter only writes fp32")
    if len(reasons) > 0:
        yield "config.ini", "; ".join(reasons)


# GPT-NeoX


def _neox_refusals(dims: Dims, options: FtOptions) -> Iterator[Problem]:
    yield from _activation(dims, *_GELUS)
    yield from _token_ids(dims)
    yield from _rope(dims)
    if dims.facts["bias"] is not True:
        yield _unsupported_fact("attention_bias false", "true: the loader has no model without biases")


def _neox_deviations(dims: Dims, options: FtOptions, dtype: DType) -> Iterator[tuple[str, str]]:
    if dims.facts["parallel_residual"] is not True and options.tp > 1:
        reason = (
            "whole: without the parallel residual the runtime adds it after the all-reduce; the converter divides it "
            "by the ranks"
        )
        yield "model.layers.*.attention.dense.bias.bin", reason
        yield "model.layers.*.mlp.dense_4h_to_h.bias.bin", reason


# LLaMA


def _llama_refusals(dims: Dims, options: FtOptions) -> Iterator[Problem]:
    yield from _activation(dims, "silu")
    yield from _token_ids(dims)
    yield from _rope(dims)
    for fact in ("attention_bias", "mlp_bias"):
        if dims.facts[fact] is True:
            yield _unsupported_fact(f"{fact} true", "false: the loader has no such file")
    heads, head_dim, hidden = dims.sizes["heads"], dims.sizes["head_dim"], dims.sizes["hidden"]
    if heads * head_dim != hidden:
        yield _unsupported_fact(
            f"head_dim {head_dim} x {heads} heads = {heads * head_dim}", f"the hidden size, {hidden}"
        )


def _llama_deviations(dims: Dims, options: FtOptions, dtype: DType) -> Iterator[tuple[str, str]]:
    if dims.facts["tied"] is True:
        yield "model.lm_head.weight.bin", "written from the embedding; the converter leaves it out, the loader needs it"


# BERT


def _bert_refusals(dims: Dims, options: FtOptions) -> Iterator[Problem]:
    yield from _activation(dims, "gelu", "relu")
    if dims.facts["position_embedding_type"] != "absolute":
        yield _unsupported_fact(f"position_embedding_type {dims.facts['position_embedding_type']}", "absolute")
    if dims.facts["is_decoder"] is True:
        yield _unsupported_fact("is_decoder true", "false")


def _bert_deviations(dims: Dims, options: FtOptions, dtype: DType) -> Iterator[tuple[str, str]]:
    yield from _bf16(dtype)


# T5


def _t5_refusals(dims: Dims, options: FtOptions) -> Iterator[Problem]:
    if dims.facts["has_decoder"] is not True and not options.encoder_only:
        yield Problem("config.json: architectures", "a model without decoder", "--encoder-only", "add --encoder-only")
    activation = str(dims.facts["feed_forward_proj"])
    if activation not in _T5_ACTIVATIONS:
        yield _unsupported_fact(f"feed_forward_proj {activation}", f"one of {', '.join(_T5_ACTIVATIONS)}")
    if dims.facts["max_distance"] != 128:
        yield _unsupported_fact(
            f"relative_attention_max_distance {dims.facts['max_distance']}", "128, which is compiled in"
        )
    ids = (("end_id", "eos_token_id"), ("decoder_start_id", "decoder_start_token_id"))
    for fact, key in ids:
        if dims.facts[fact] is None and not (options.encoder_only and fact == "decoder_start_id"):
            yield Problem(
                f"config.json: {key}", "null", "an integer", f"set {key} in config.json; the runtime needs one"
            )


def _t5_deviations(dims: Dims, options: FtOptions, dtype: DType) -> Iterator[tuple[str, str]]:
    reasons = ["the keys that are read; the converter dumps all attributes of the config object"]
    yield "config.ini", "; ".join([*reasons, *(reason for _, reason in _bf16(dtype))])


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        rows=rows.GPT2_ROWS,
        config=config_ini.gpt2,
        name_from="path",
        default_name="gpt",
        refusals=_gpt2_refusals,
        deviations=_gpt2_deviations,
    ),
    "opt": Family(
        rows=rows.OPT_ROWS,
        config=config_ini.opt,
        name_from="path",
        default_name="opt",
        refusals=_opt_refusals,
        deviations=_opt_deviations,
    ),
    "bloom": Family(
        rows=rows.BLOOM_ROWS,
        config=config_ini.bloom,
        name_from="config",
        refusals=_bloom_refusals,
        deviations=_bloom_deviations,
    ),
    "gptj": Family(
        rows=rows.GPTJ_ROWS,
        config=config_ini.gptj,
        name_from="config",
        default_name="gptj",
        refusals=_gptj_refusals,
        deviations=_gptj_deviations,
    ),
    "gptneox": Family(
        rows=rows.NEOX_ROWS,
        config=config_ini.gptneox,
        default_name="gptneox",
        dtypes=(FP32, FP16),
        refusals=_neox_refusals,
        deviations=_neox_deviations,
    ),
    "llama": Family(
        rows=rows.LLAMA_ROWS,
        config=config_ini.llama,
        default_name="llama",
        refusals=_llama_refusals,
        deviations=_llama_deviations,
    ),
    "bert": Family(
        rows=rows.BERT_ROWS,
        config=config_ini.bert,
        default_name="bert",
        refusals=_bert_refusals,
        deviations=_bert_deviations,
        decodes=False,
    ),
    "t5": Family(
        rows=rows.T5_ROWS,
        config=config_ini.t5,
        name_from="path",
        default_name="t5",
        refusals=_t5_refusals,
        deviations=_t5_deviations,
    ),
}
