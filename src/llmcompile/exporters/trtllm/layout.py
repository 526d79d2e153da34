"""Which TensorRT-LLM checkpoint a model becomes: rows, config.json, and which models it cannot represent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmcompile import __version__
from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.dtypes import BF16, FP16, FP32, DType
from llmcompile.errors import Problem
from llmcompile.exporters.spec import Layout
from llmcompile.exporters.trtllm import config as configs
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.encodings import FP8_STEPS, INT8_STEPS, step_of
from llmcompile.exporters.trtllm.options import TrtllmOptions, calibration_flags, elsewhere
from llmcompile.exporters.trtllm.rows import (
    ENCODER_DECODER,
    FAMILIES,
    Family,
    Recipe,
    decoder_rows,
    encoder_decoder_rows,
)
from llmcompile.plan import Row
from llmcompile.quantization import NVFP4_BLOCK
from llmcompile.ranges import Measurement, Ranges

FOLDER = "checkpoint/"
DTYPES: Mapping[str, DType] = {"float16": FP16, "bfloat16": BF16, "float32": FP32}
CLAMP = 1200.0
"""Largest magnitude of a weight under FP8_PER_CHANNEL_PER_TOKEN.
Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/llama/convert.py (use_fp8_rowwise, Meta's recipe)."""
_PASSED_THROUGH = {"gptq": "w4a16_gptq", "awq": "w4a16_gptq", "fp8": "fp8"}
"""How the checkpoint comes quantized -> the recipe it is stored by. AutoAWQ's weights have zero points, which the form
called AWQ has no place for and the form called GPTQ has; both compute the same product."""
_GEMMAS = ("gemma", "gemma2")
_NO_EXPERTS: Mapping[str, str] = {
    "int8_sq": "the plugin of experts takes int8 for weights of its own layout, and is given no scales for it",
    "w4a8_awq": "the loader divides scales (experts, groups, out) by one of the shape (experts, 1)",
    "fp8_rowwise": "the network of experts refuses it",
}
"""Why no release loads a recipe of experts.

Sources: NVIDIA/TensorRT-LLM@0.16.0.dev2024121000:tensorrt_llm/layers/moe.py (MixtureOfExperts),
cpp/tensorrt_llm/plugins/mixtureOfExperts/mixtureOfExpertsPlugin.h (hasExpertIntQuantScales); @v1.0.0:
tensorrt_llm/models/modeling_utils.py (preprocess_perlayer_weights), layers/moe.py (MOEWeightWrapper: alpha)."""
NO_PIPELINE = ("gptneox", "opt", "bloom", "mpt", "phi", "phi3", "gemma", "gemma2", *ENCODER_DECODER)
"""Families that refuse --pp above 1; config/ and `_refusals` say why."""


@dataclass(frozen=True)
class Resolved:
    """The options with everything decided that depends on the model.

    Attributes:
        dtype: The model's element type.
        recipe: A name of `versions.RECIPES`, or None.
        source: How the checkpoint comes quantized: "gptq", "awq", "fp8" or "".
        group_size: Inputs that share a scale.
        parallel_embedding: Whether the embedding is divided among the ranks.
        share_embedding: Whether the head is left out because it is the embedding.
    """

    dtype: DType
    recipe: str | None
    source: str
    group_size: int
    parallel_embedding: bool
    share_embedding: bool


def resolve(architecture: Architecture, dims: Dims, options: TrtllmOptions, source_dtype: DType) -> Resolved:
    """Decide what the options leave to the model: its element type, and its recipe where it comes quantized."""
    found = FP16 if source_dtype == FP32 else source_dtype
    source = str(dims.facts.get("quantized", ""))
    given = options.quantization is not None and not (source == "awq" and options.quantization == "w4a16_awq")
    gemma = architecture.name in _GEMMAS
    return Resolved(
        dtype=found if options.dtype is None else DTYPES[options.dtype],
        recipe=options.quantization if given else _PASSED_THROUGH.get(source),
        source=source,
        group_size=int(str(dims.facts["group_size"])) if source in ("gptq", "awq") else options.group_size,
        parallel_embedding=options.use_parallel_embedding or (gemma and options.tp > 1),
        share_embedding=options.use_embedding_sharing or gemma,
    )


def make_layout(
    architecture: Architecture,
    dims: Dims,
    options: TrtllmOptions,
    *,
    source_dtype: DType,
    model_label: str,
    ranges: Ranges | None = None,
) -> Layout:
    """The TensorRT-LLM checkpoint of one model.

    Args:
        architecture: The family.
        dims: Its sizes and facts.
        options: What was asked.
        source_dtype: Type of most of the checkpoint's bytes, used where no --dtype is given.
        model_label: Unused: nothing in the checkpoint names the model.
        ranges: What calibration found; without it, a layout with a `measurement` can be planned and not written.

    Returns:
        The layout; `refusals` says why the model cannot be represented, if so.
    """
    resolved = resolve(architecture, dims, options, source_dtype)
    known = architecture.name in FAMILIES or architecture.name in ENCODER_DECODER
    dims = _with_positions(architecture, dims, options)
    unknown = _no_such_family(architecture, options)
    refusals = [*_refusals(architecture, dims, options, resolved)] if known else [unknown]
    representable = known and refusals == []
    given = _given(dims, options, resolved)
    return Layout(
        backend="trtllm",
        folder=FOLDER,
        rows=_rows(architecture, dims, options, resolved, ranges) if representable else (),
        texts=_texts(architecture, dims, given) if representable else {},
        unused={},
        ranks=options.tp,
        dtype=resolved.dtype,
        deviations=dict(_deviations(architecture, dims, options)) if representable else {},
        refusals=tuple(refusals),
        notes=tuple(_notes(architecture, dims, options, resolved, given, ranges)) if representable else (),
        pp=options.pp,
        moe_ep=options.moe[1],
        measurement=_measurement(options, resolved),
    )


def _measurement(options: TrtllmOptions, resolved: Resolved) -> Measurement | None:
    """What calibration has to find out; None where nothing depends on data."""
    calibrated = resolved.source == "" and resolved.recipe in versions.CALIBRATED
    if not calibrated and options.kv_cache != "int8":
        return None
    columns = {"int8_sq": "smooth", "int4_awq": "search", "w4a8_awq": "search"}
    return Measurement(
        columns=columns.get(str(resolved.recipe), ""),
        group_size=resolved.group_size,
        linears=calibrated,
        cache=options.kv_cache is not None,
    )


def _kv_steps(options: TrtllmOptions, layers: int, ranges: Ranges | None) -> tuple[float, ...]:
    """Scale of each layer's cache: of INT8 what was measured; of FP8 one, or more where values would be clipped.

    Source: nvidia-modelopt 0.47.0: modelopt/torch/export/quant_utils.py (get_kv_cache_scaling_factor).
    """
    if ranges is None or len(ranges.cache) == 0:
        return ()
    if options.kv_cache == "int8":
        return tuple(step_of(ranges.cache[layer], INT8_STEPS) for layer in range(layers))
    if options.kv_cache is None or options.release < versions.KV_MEASURED:
        return ()
    return tuple(max(1.0, step_of(ranges.cache[layer], FP8_STEPS)) for layer in range(layers))


def _with_positions(architecture: Architecture, dims: Dims, options: TrtllmOptions) -> Dims:
    """Meta's files do not say how many positions there are."""
    if options.max_position_embeddings is None or architecture.name != "meta_llama":
        return dims
    return Dims({**dims.sizes, "positions": options.max_position_embeddings}, dims.facts)


def _unbuildable(architecture: Architecture, dims: Dims, given: configs.Given) -> list[Problem]:
    refusals = configs.UNBUILDABLE.get(architecture.name)
    return [] if refusals is None else list(refusals(dims, given))


def _no_such_family(architecture: Architecture, options: TrtllmOptions) -> Problem:
    names = ", ".join([*FAMILIES, *ENCODER_DECODER])
    found = f"a {architecture.name} model, which TensorRT-LLM's converters do not know"
    return Problem("config.json: architectures", found, f"one of {names}", elsewhere(options.build))


def _rows(
    architecture: Architecture, dims: Dims, options: TrtllmOptions, resolved: Resolved, ranges: Ranges | None
) -> tuple[Row, ...]:
    recipe = Recipe(
        dtype=resolved.dtype,
        kind=_kind(options, resolved),
        bits=4 if resolved.recipe == "w4a16" else 8,
        group_size=resolved.group_size,
        fp4_tile=versions.nvfp4_tile(options.release),
        packed_outputs=resolved.source == "awq",
        clamp=CLAMP,
        layers=dims.sizes["layers"],
        decoder_layers=dims.sizes.get("decoder_layers", 0),
        kv_scale=options.kv_cache is not None,
        kv_steps=_kv_steps(options, dims.sizes["layers"], ranges),
        ranges=ranges,
        embedding_split=("out", "in")[options.embedding_sharding_dim] if resolved.parallel_embedding else "",
        share_embedding=resolved.share_embedding,
    )
    if architecture.name in ENCODER_DECODER:
        rows = encoder_decoder_rows(recipe, gated=dims.facts.get("gated") is True)
    else:
        family = FAMILIES[architecture.name]
        if architecture.name == "qwen2_moe" and options.release < versions.SHARED_EXPERT_MOVED:
            family = replace(family, shared_expert="")
        if architecture.name == "falcon":
            family = _falcon(family, dims)
        rows = decoder_rows(family, recipe)
    held = {role for tensor in architecture.tensors if tensor.exists(dims) for role in tensor.roles}
    return tuple(row for row in rows if not held.isdisjoint(row.needed))


def _falcon(family: Family, dims: Dims) -> Family:
    """Of two norms, the second has a name of its own in a parallel block, whose biases are added on every rank."""
    parallel = dims.facts["parallel_attention"] is True
    return replace(family, mlp_norm="mlp_layernorm" if parallel else "post_layernorm", bias_once=parallel)


def _kind(options: TrtllmOptions, resolved: Resolved) -> str:
    """`Recipe.kind` of a recipe."""
    kinds = {
        "w4a16_gptq": "gptq",
        "w4a16_awq": "awq",
        "fp8": "fp8" if resolved.source == "fp8" else "fp8_measured",
        "fp8_rowwise": "fp8_rowwise",
        "int8_sq": "int8_smooth",
        "int4_awq": "awq_measured",
        "w4a8_awq": "awq_fp8",
        "nvfp4": "fp4_measured",
    }
    if resolved.recipe in ("w8a16", "w4a16"):
        return "weight_only" if options.wo_layout == "sm80" else "deferred"
    return "plain" if resolved.recipe is None else kinds[resolved.recipe]


def _given(dims: Dims, options: TrtllmOptions, resolved: Resolved) -> configs.Given:
    moe_tp, moe_ep = options.moe
    return configs.Given(
        dtype=next(name for name, dtype in DTYPES.items() if dtype == resolved.dtype),
        tp=options.tp,
        pp=options.pp,
        moe_tp=moe_tp,
        moe_ep=moe_ep,
        quantization=_quantization(options, resolved, experts="experts" in dims.sizes),
        use_parallel_embedding=resolved.parallel_embedding,
        embedding_sharding_dim=options.embedding_sharding_dim,
        share_embedding_table=resolved.share_embedding,
        logits_dtype="float32",
        version=(*options.release, 0),
        producer_version=__version__,
    )


def _quantization(options: TrtllmOptions, resolved: Resolved, *, experts: bool) -> Mapping[str, Any]:
    """The block `quantization`: only keys that are needed, since a release refuses those it does not know."""
    recipe = resolved.recipe
    block: dict[str, Any] = {"quant_algo": None if recipe is None else versions.RECIPES[recipe].algorithm}
    if options.kv_cache is not None:
        block["kv_cache_quant_algo"] = options.kv_cache.upper()
    if recipe == "w4a16_gptq":
        block |= {"group_size": resolved.group_size, "has_zero_point": True, "pre_quant_scale": False}
    elif recipe in ("w4a16_awq", "int4_awq", "w4a8_awq"):
        block |= {"group_size": resolved.group_size, "has_zero_point": False, "pre_quant_scale": True}
    elif recipe == "nvfp4":
        block["group_size"] = NVFP4_BLOCK
    if recipe in ("w4a16_awq", "int4_awq", "w4a8_awq", "int8_sq", "nvfp4") and not experts:
        # A list takes the place of the runtime's own, which has the router and the shared expert's gate.
        block["exclude_modules"] = ["lm_head"]
    elif recipe == "fp8_rowwise":
        block["clamp_val"] = [-CLAMP, CLAMP]
        if options.release >= versions.META_RECIPE:
            block["use_meta_recipe"] = True
    return block


def _texts(architecture: Architecture, dims: Dims, given: configs.Given) -> Mapping[str, str]:
    if architecture.name in ENCODER_DECODER:
        parts = configs.ENCODER_DECODER[architecture.name](dims, given)
        return {f"{part}/config.json": _json(content) for part, content in parts.items()}
    return {"config.json": _json(configs.CONFIGS[architecture.name](dims, given))}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=4) + "\n"


def _refusals(architecture: Architecture, dims: Dims, options: TrtllmOptions, resolved: Resolved) -> Iterator[Problem]:
    given = _given(dims, options, resolved)
    yield from configs.REFUSALS[architecture.name](dims, given)
    if options.stop_after is None:
        yield from _unbuildable(architecture, dims, given)
    yield from _recipe_refusals(architecture, dims, options, resolved)
    layers = versions.check_layers(dims.sizes["layers"], options.pp, options.trtllm_version)
    if options.pp > 1 and layers is not None:
        yield layers
    if options.max_position_embeddings is not None and architecture.name != "meta_llama":
        found = f"given for {architecture.name}, whose config.json has its own"
        yield Problem("--max-position-embeddings", found, "a Meta checkpoint", "drop --max-position-embeddings")
    if architecture.name in ENCODER_DECODER:
        yield from _encoder_decoder_refusals(architecture, dims, options)
    yield from _moe_refusals(dims, options)
    if options.use_embedding_sharing and dims.facts["tied"] is not True:
        found = "a model whose head is its own (tie_word_embeddings false)"
        yield Problem("--use-embedding-sharing", found, "a tied head", "drop --use-embedding-sharing")
    if architecture.name in _GEMMAS and options.tp > 1 and options.release < (0, 11):
        found = f"{options.tp} with {architecture.name}, whose table is divided by vocabulary"
        hint = "use --tp 1, or --trtllm-version 0.11.0 or later: older releases do not load such a table"
        yield Problem("--tp", found, "1", hint)
    if resolved.share_embedding and options.embedding_sharding_dim == 1:
        yield Problem("--embedding-sharding-dim", f"1 with {architecture.name}", "0", "--embedding-sharding-dim 0")


def _encoder_decoder_refusals(architecture: Architecture, dims: Dims, options: TrtllmOptions) -> Iterator[Problem]:
    vocab = dims.sizes["vocab"]
    if vocab % options.tp != 0:
        # Its head has vocab_size / tp rows and no padding: models/enc_dec/model.py.
        found = f"vocab {vocab} / {options.tp} ranks = {vocab / options.tp:.2f}"
        degrees = ", ".join(str(tp) for tp in range(1, min(vocab, 64) + 1) if vocab % tp == 0)
        yield Problem("--tp", found, "a whole number: this network does not pad", f"degrees that divide it: {degrees}")
    if options.use_embedding_sharing:
        found = f"with {architecture.name}, whose network has a head of its own"
        yield Problem("--use-embedding-sharing", found, "a decoder-only model", "drop --use-embedding-sharing")
    if options.pp > 1:
        yield Problem("--pp", f"{options.pp} with {architecture.name}", "1", "use --tp")
    if options.kv_cache is not None:
        yield Problem("--kv-cache", f"{options.kv_cache} with {architecture.name}", "none", "drop --kv-cache")


def _moe_refusals(dims: Dims, options: TrtllmOptions) -> Iterator[Problem]:
    experts = dims.sizes.get("experts")
    moe_ep = options.moe[1]
    if experts is None and moe_ep > 1:
        yield Problem("--moe-ep, --moe-tp", "given for a model without experts", "neither", "drop them")
    if experts is not None and experts % moe_ep != 0:
        hint = f"give a --moe-ep that divides {experts}"
        yield Problem(
            "--moe-ep", f"{experts} experts / {moe_ep} ranks = {experts / moe_ep:.2f}", "a whole number", hint
        )


def _recipe_refusals(
    architecture: Architecture, dims: Dims, options: TrtllmOptions, resolved: Resolved
) -> Iterator[Problem]:
    recipe, source = resolved.recipe, resolved.source
    expected = _PASSED_THROUGH.get(source)
    if source != "" and recipe != expected:
        found = f"{recipe} for a checkpoint that comes quantized with {source}"
        yield Problem("--quantization", found, str(expected), f"--quantization {expected}, or the unquantized model")
    if source == "" and recipe == "w4a16_gptq":
        hint = "use w8a16, w4a16, w4a16_awq or fp8_rowwise, which need no data, or int4_awq, which is calibrated"
        yield Problem("--quantization", f"{recipe} for float weights", "a checkpoint quantized with GPTQ or AWQ", hint)
    yield from _calibration_refusals(architecture, dims, options, resolved)
    yield from _calibrator_refusals(architecture, dims, options, resolved)
    if architecture.name not in ENCODER_DECODER:
        yield from _unread(architecture, resolved)
    if "experts" in dims.sizes and recipe is not None:
        yield from _refused_of_experts(recipe, options)
    if recipe is not None and architecture.name in ENCODER_DECODER and recipe not in _TWO_STACKS:
        found, expected = f"{recipe} with {architecture.name}", " or ".join(_TWO_STACKS)
        yield Problem("--quantization", found, expected, "--quantization w8a16")
    if recipe is not None and resolved.dtype == FP32:
        yield Problem("--dtype", f"float32 with {recipe}", "float16 or bfloat16", "--dtype float16")
    if recipe == "fp8_rowwise" and architecture.name not in _ROWWISE:
        yield Problem(
            "--quantization", f"fp8_rowwise with {architecture.name}", " or ".join(_ROWWISE), "--quantization w8a16"
        )


def _refused_of_experts(recipe: str, options: TrtllmOptions) -> Iterator[Problem]:
    """A recipe that the release does not load of a model with experts."""
    expected = " or ".join(
        name
        for name, first in versions.EXPERTS.items()
        if first <= options.release <= versions.EXPERTS_LAST.get(name, options.release)
    )
    if recipe not in versions.EXPERTS:
        why = f": {_NO_EXPERTS[recipe]}" if recipe in _NO_EXPERTS else ""
        yield Problem("--quantization", f"{recipe} with experts{why}", expected, "--quantization fp8, or none")
    elif versions.EXPERTS[recipe] > options.release:
        first = versions.text_of(versions.EXPERTS[recipe])
        hint = f"--trtllm-version {versions.DEFAULT_VERSION}: {first} is the first that loads it"
        yield Problem("--quantization", f"{recipe} with experts for {options.trtllm_version}", expected, hint)
    elif versions.EXPERTS_LAST.get(recipe, options.release) < options.release:
        last = versions.text_of(versions.EXPERTS_LAST[recipe])
        hint = f"--trtllm-version {last}.0, the last that is known to load it, or --quantization fp8"
        yield Problem("--quantization", f"{recipe} with experts for {options.trtllm_version}", expected, hint)


def _calibration_refusals(
    architecture: Architecture, dims: Dims, options: TrtllmOptions, resolved: Resolved
) -> Iterator[Problem]:
    """Models whose ranges cannot be measured, or whose cache holds something else than the projections' outputs."""
    measurement = _measurement(options, resolved)
    for flag in calibration_flags(options) if measurement is None else []:
        found = f"given for --quantization {resolved.recipe or 'none'}, which needs no data"
        hint = f"drop {flag}, or choose one of {', '.join(versions.CALIBRATED)}"
        yield Problem(flag, found, "a recipe that is calibrated", hint)
    if measurement is None or architecture.name in ENCODER_DECODER:
        return
    if resolved.source != "":
        found = f"int8 for a checkpoint that comes quantized with {resolved.source}"
        yield Problem("--kv-cache", found, "fp8, or float weights to calibrate", "--kv-cache fp8")


def _calibrator_refusals(
    architecture: Architecture, dims: Dims, options: TrtllmOptions, resolved: Resolved
) -> Iterator[Problem]:
    """What nvidia-modelopt does not measure as it is measured here, where it is asked to."""
    measurement, flag = _measurement(options, resolved), "--calibrator"
    if options.calibrator != "modelopt":
        return
    if measurement is not None and measurement.linears and resolved.recipe not in MODELOPT:
        yield Problem(flag, f"modelopt with {resolved.recipe}", f"one of {', '.join(MODELOPT)}", "drop --calibrator")
    if "experts" in dims.sizes:
        found = "modelopt with experts: while it measures, each of them sees every token, and not its own"
        yield Problem(flag, found, "llmcompile", "drop --calibrator")
    if architecture.name in ENCODER_DECODER:
        found = f"modelopt with {architecture.name}: it was not tried on layers of two stacks"
        yield Problem(flag, found, "llmcompile", "drop --calibrator")


MODELOPT = ("fp8", "int8_sq", "int4_awq", "w4a8_awq", "nvfp4")
"""Recipes that nvidia-modelopt measures a layer by itself for, with figures that fit the layout."""


def _unread(architecture: Architecture, resolved: Resolved) -> Iterator[Problem]:
    """A recipe for checkpoints that come quantized, with a family of which such a checkpoint cannot be checked."""
    found = f"{resolved.recipe} with {architecture.name}"
    subject = "--quantization" if resolved.source == "" else "config.json: quantization_config"
    hint = "start from the unquantized checkpoint"
    if resolved.source == "fp8" and architecture.name not in FP8_SOURCES:
        yield Problem(subject, found, f"one of {', '.join(FP8_SOURCES)}", hint)
    if resolved.recipe == "w4a16_gptq" and architecture.name in _TRANSPOSED:
        yield Problem(subject, found, "a family whose float weights are stored (out, in)", hint)


FP8_SOURCES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
"""Families with one tensor for each of q, k, v, o, gate, up and down, whose FP8 checkpoints are read as they come."""
_TRANSPOSED = ("gpt2",)
"""Families whose float weights are stored (in, out), and whose packed integers are not."""
_TWO_STACKS = ("w8a16", "w4a16", "w4a16_awq", "fp8", "int8_sq", "int4_awq", "w4a8_awq")
"""Recipes of encoder-decoders: those for which the runtime replaces linear layers one by one, whatever the network.
Source: NVIDIA/TensorRT-LLM@0.10.0.dev2024043000:tensorrt_llm/models/enc_dec/model.py (EncoderModel and DecoderModel are
PretrainedModels), models/modeling_utils.py, quantization/quantize.py."""
_ROWWISE = ("llama", "meta_llama", "mistral")
"""Families whose converter upstream has the recipe (models/llama/convert.py)."""


def recipes(family: str) -> tuple[str, ...]:
    """Names of `versions.RECIPES` that a family may be stored by, whether its weights are floats or come quantized."""
    if family in ENCODER_DECODER:
        return _TWO_STACKS
    loaded = {*versions.EXPERTS} - {*versions.EXPERTS_LAST}
    left_out = {*versions.RECIPES} - loaded if FAMILIES[family].mlp == "experts" else set()
    left_out |= set() if family in _ROWWISE else {"fp8_rowwise"}
    left_out |= {"w4a16_gptq"} if family in _TRANSPOSED else set()
    return tuple(name for name in versions.RECIPES if name not in left_out)


def _deviations(architecture: Architecture, dims: Dims, options: TrtllmOptions) -> Iterator[tuple[str, str]]:
    yield "*config.json", "only the keys that every release reads; a key of a newer one stops an older one"
    yield "*rank*.safetensors", "without the buffers that the converter saves and the runtime computes"
    if architecture.name == "falcon" and dims.facts["parallel_attention"] is True and dims.facts["bias"] is True:
        reason = "biases of attention.dense and mlp.proj are on the first rank: this network adds every rank's"
        yield "rank*.safetensors", reason
    kv_heads = dims.sizes.get("kv_heads", options.tp)
    if kv_heads < options.tp and architecture.name in ("llama", "meta_llama", "mistral", "mixtral"):
        yield (
            "rank*.safetensors",
            f"each of {kv_heads} key and value heads is on {options.tp // kv_heads} ranks; the converter of 0.13 cuts "
            "heads in pieces, unless --load_by_shard is given",
        )


def _notes(
    architecture: Architecture,
    dims: Dims,
    options: TrtllmOptions,
    resolved: Resolved,
    given: configs.Given,
    ranges: Ranges | None,
) -> Iterator[str]:
    measurement = _measurement(options, resolved)
    yield from configs.NOTES[architecture.name](dims, given)
    for problem in _unbuildable(architecture, dims, given):
        yield f"{problem}: trtllm-build cannot load this checkpoint"
    if resolved.source == "awq":
        yield "AutoAWQ's integers and zero points are stored by W4A16_GPTQ, which computes the same product"
    if resolved.recipe == "w4a16_gptq" or (resolved.recipe in ("w8a16", "w4a16") and options.wo_layout == "sm80"):
        yield "weights lie in the byte layout of SM75 to SM89: not for Hopper or Blackwell"
    if resolved.recipe in ("w8a16", "w4a16") and options.wo_layout == "deferred":
        yield "weights are stored in full, and quantized by trtllm-build for the GPU it runs on"
    if resolved.recipe == "fp8_rowwise" and dims.sizes["layers"] < 3:
        yield "fp8_rowwise leaves the first and the last layer as they are: nothing of this model is quantized"
    if resolved.recipe == "w4a16_awq":
        yield "rounded to the nearest without calibration: check perplexity on your own text with --eval-text"
    if options.kv_cache == "fp8" and (measurement is None or options.release < versions.KV_MEASURED):
        yield "the scale of the FP8 key and value cache is 1: values beyond 448 are clipped"
    if measurement is not None and options.calib_dataset is None:
        yield "calibrated on a short built-in text: give --calib-dataset a text like yours"
    unreached = {} if ranges is None else ranges.unreached
    if len(unreached) > 0:
        counts = sum(len(experts) for experts in unreached.values())
        yield (
            f"no token of the calibration reached {counts} of {dims.sizes['experts'] * dims.sizes['layers']} experts: "
            "their weights have their own range, their inputs that of the layer's other experts; calibrate on more text"
        )
