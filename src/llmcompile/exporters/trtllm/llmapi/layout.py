"""Which unified checkpoint a model becomes: rows, texts, and which models the PyTorch backend cannot load."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from llmcompile import quantization
from llmcompile.architectures.spec import Architecture, Dims, Tensor
from llmcompile.dtypes import BF16, FP16, FP32, DType
from llmcompile.errors import Problem
from llmcompile.exporters.spec import Layout
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.encodings import FP8_STEPS, step_of
from llmcompile.exporters.trtllm.llmapi import documents
from llmcompile.exporters.trtllm.llmapi.recipes import FAMILIES, PLAIN_ONLY, RECIPES, Recipe
from llmcompile.exporters.trtllm.llmapi.rows import Stored, is_quantized, kept, name_of, rows
from llmcompile.exporters.trtllm.options import TrtllmOptions, calibration_flags, elsewhere
from llmcompile.exporters.trtllm.rows import ENCODER_DECODER
from llmcompile.exporters.trtllm.rows import FAMILIES as ENGINE_FAMILIES
from llmcompile.plan import Row
from llmcompile.ranges import GROUP_OF, GROUPS, Measurement, Ranges

DTYPES: Mapping[str, DType] = {"float16": FP16, "bfloat16": BF16}
_ENGINE = f"--target engine --trtllm-version {versions.LAST_VERSION}"
_SCALES = "config.json: quantization_config"
_MOST_RANKS = 512


def make_layout(
    architecture: Architecture,
    dims: Dims,
    options: TrtllmOptions,
    *,
    source_dtype: DType,
    model_label: str,
    ranges: Ranges | None = None,
) -> Layout:
    """The unified checkpoint of one model.

    Args:
        architecture: The family.
        dims: Its sizes and facts.
        options: What was asked.
        source_dtype: Type of most of the checkpoint's bytes, used where no --dtype is given.
        model_label: Unused: nothing in the checkpoint names the model.
        ranges: What calibration found; without it, a layout with a `measurement` can be planned and not written.

    Returns:
        The layout; `refusals` says why the model cannot be loaded, if so.
    """
    refusals = tuple(_refusals(architecture, dims, options))
    representable = len(refusals) == 0
    recipe = None if options.quantization is None else RECIPES.get(options.quantization)
    dtype = FP16 if source_dtype == FP32 else source_dtype
    if options.dtype is not None:
        dtype = DTYPES.get(options.dtype, FP32)
    quantized = _quantized(architecture, dims, options, recipe) if representable else None
    return Layout(
        backend="trtllm",
        folder="",
        rows=_rows(architecture, dims, options, recipe, ranges) if representable else (),
        texts=_texts(dims, options, quantized) if representable else {},
        unused={},
        ranks=1,
        dtype=dtype,
        deviations=dict(_deviations(options, recipe)) if representable else {},
        refusals=refusals,
        notes=tuple(_notes(options, recipe)) if representable else (),
        measurement=_measurement(options, recipe),
        config=partial(
            documents.config_json,
            kind=architecture.classes[0],
            dtype=next((name for name, known in DTYPES.items() if known == dtype), ""),
            quantized=quantized,
        ),
        shard_bytes=options.shard_size,
    )


def _quantized(
    architecture: Architecture, dims: Dims, options: TrtllmOptions, recipe: Recipe | None
) -> documents.Quantized | None:
    """What the checkpoint says of its quantization; None for a plain one."""
    if recipe is None and options.kv_cache is None:
        return None
    size = 0 if recipe is None else options.group_size if recipe.groups is None else recipe.groups
    left = sorted(_left(architecture, dims))
    return documents.Quantized(recipe=recipe, group_size=size, cache=options.kv_cache, left=left)


def _left(architecture: Architecture, dims: Dims) -> Iterator[str]:
    """Modules with a matrix that no recipe touches: heads, tied ones too, tables, routers and switches."""
    for tensor in architecture.tensors:
        matrix = tensor.exists(dims) and tensor.inp != "" and tensor.roles[0].endswith(".weight")
        if matrix and not is_quantized(tensor):
            for layer, _ in tensor.places(dims):
                name = name_of(architecture, tensor).removesuffix(".weight")
                yield name if layer is None else name.replace("{layer}", str(layer))


def _rows(
    architecture: Architecture, dims: Dims, options: TrtllmOptions, recipe: Recipe | None, ranges: Ranges | None
) -> tuple[Row, ...]:
    cache = _cache_steps(dims.sizes["layers"], ranges) if options.kv_cache is not None else ()
    stored = Stored(recipe=recipe, group_size=options.group_size, ranges=ranges, cache=cache)
    return rows(architecture, dims, stored)


def _cache_steps(layers: int, ranges: Ranges | None) -> tuple[float, ...]:
    """Scale of each layer's keys and values: one, or more where values would be clipped.

    TensorRT-LLM takes one whatever is stored (attention_backend/trtllm.py); vLLM multiplies by these.
    """
    if ranges is None or len(ranges.cache) == 0:
        return (1.0,) * layers
    return tuple(max(1.0, step_of(ranges.cache[layer], FP8_STEPS)) for layer in range(layers))


def _measurement(options: TrtllmOptions, recipe: Recipe | None) -> Measurement | None:
    if recipe is None or not recipe.calibrated:
        return None
    return Measurement(columns=recipe.columns, group_size=options.group_size, cache=options.kv_cache is not None)


def _texts(dims: Dims, options: TrtllmOptions, quantized: documents.Quantized | None) -> Mapping[str, str]:
    moe = options.moe if "experts" in dims.sizes else None
    limits = {name.removeprefix("--"): int(value) for name, value in options.engine}
    texts = {
        "model.yaml": documents.model_yaml(tp=options.tp, pp=options.pp, moe=moe, cache=options.kv_cache, limits=limits)
    }
    return texts if quantized is None else {**texts, "hf_quant_config.json": documents.hf_quant_config(quantized)}


# What cannot be loaded


def _refusals(architecture: Architecture, dims: Dims, options: TrtllmOptions) -> Iterator[Problem]:
    family = architecture.name
    if family not in FAMILIES:
        found = f"{family}, for which TensorRT-LLM's PyTorch backend has no network; 1.3 removed engines"
        built = family in ENGINE_FAMILIES or family in ENCODER_DECODER
        hint = f"{_ENGINE}, for an engine" if built else elsewhere(options.build)
        yield Problem("config.json: architectures", found, f"one of {', '.join(FAMILIES)}", hint)
        return
    first = FAMILIES[family]
    if options.release < first:
        found = f"{options.trtllm_version}, whose PyTorch backend has no network for {family}"
        since = versions.text_of(first)
        yield Problem("--trtllm-version", found, f"{since} or later", f"--trtllm-version {versions.LLMAPI_VERSION}")
    source = str(dims.facts.get("quantized", ""))
    if source != "":
        found = f"a checkpoint that comes quantized with {source}"
        hint = f"start from the unquantized checkpoint, or {_ENGINE}"
        yield Problem(_SCALES, found, "float weights", hint)
        return
    yield from _recipe_refusals(family, dims, options)
    yield from _degree_refusals(architecture, dims, options)


def _recipe_refusals(family: str, dims: Dims, options: TrtllmOptions) -> Iterator[Problem]:
    name = options.quantization
    recipe = None if name is None else RECIPES.get(name)
    if family in PLAIN_ONLY and (recipe is not None or options.kv_cache is not None):
        asked = f"--quantization {name}" if recipe is not None else f"--kv-cache {options.kv_cache}"
        found = f"with {family}, {PLAIN_ONLY[family]}"
        yield Problem(asked.partition(" ")[0], found, "no quantization", f"drop {asked}, or {_ENGINE}")
    calibrated = ", ".join(known for known, other in RECIPES.items() if other.calibrated)
    if recipe is None or not recipe.calibrated:
        found = f"given for --quantization {name or 'none'}, which needs no data"
        yield from (Problem(flag, found, f"one of {calibrated}", f"drop {flag}") for flag in calibration_flags(options))
    elif options.calibrator != TrtllmOptions.calibrator and "experts" in dims.sizes:
        yield Problem("--calibrator", f"{options.calibrator} with experts", "llmcompile", "drop --calibrator")
    if recipe is None:
        return
    if "experts" in dims.sizes and not recipe.experts:
        suitable = " or ".join(known for known, other in RECIPES.items() if other.experts)
        yield Problem("--quantization", f"{name} with experts", suitable, "--quantization fp8")
    if options.release < recipe.first:
        found = f"{options.trtllm_version}, which does not load {recipe.algorithm}"
        yield Problem("--trtllm-version", found, f"{versions.text_of(recipe.first)} or later")


def _degree_refusals(architecture: Architecture, dims: Dims, options: TrtllmOptions) -> Iterator[Problem]:
    """Degrees that the runtime asserts: it divides the checkpoint when it loads it."""
    sizes, moe_ep = dims.sizes, options.moe[1]
    misfits = _misfits(architecture, dims, options.tp, moe_ep)
    if misfits != []:
        tried = range(moe_ep, min(sizes["heads"], _MOST_RANKS) + 1, moe_ep)
        fits = ", ".join(str(tp) for tp in tried if _misfits(architecture, dims, tp, moe_ep) == [])
        hint = f"degrees that divide this model: {fits}" if fits != "" else "drop --moe-ep, which no --tp suits"
        yield Problem("--tp", "; ".join(misfits), "whole numbers, and of kv_heads a multiple or a divisor", hint)
    experts = sizes.get("experts")
    if experts is None and moe_ep > 1:
        yield Problem("--moe-ep, --moe-tp", "given for a model without experts", "neither", "drop them")
    if experts is not None and experts % moe_ep != 0:
        yield Problem("--moe-ep", f"{experts} experts / {moe_ep} ranks", "a whole number", f"a divisor of {experts}")
    if options.pp > sizes["layers"]:
        yield Problem("--pp", f"{options.pp} stages, {sizes['layers']} layers", "a layer each", "a smaller --pp")
    if misfits == []:
        yield from _unpackable(architecture, dims, options)


def _misfits(architecture: Architecture, dims: Dims, tp: int, moe_ep: int) -> list[str]:
    """What so many ranks cannot divide among them."""
    sizes = dims.sizes
    divided = {(axis, tp // moe_ep if inner else tp) for axis, inner in _divided(architecture, dims)}
    found = [
        f"{sizes[axis]} {axis} / {ranks} ranks = {sizes[axis] / ranks:.2f}"
        for axis, ranks in sorted(divided)
        if sizes[axis] % ranks != 0
    ]
    kv_heads = sizes["kv_heads"]
    if kv_heads % tp != 0 and tp % kv_heads != 0:
        found.append(f"{kv_heads} kv_heads and {tp} ranks")
    return found


def _unpackable(architecture: Architecture, dims: Dims, options: TrtllmOptions) -> Iterator[Problem]:
    """Matrices of integers of which a rank could not lay its share out: the runtime does that as the builder did.

    Source: NVIDIA/TensorRT-LLM@00bbf71e:tensorrt_llm/_torch/modules/linear.py (preprocess_weights_for_mixed_gemm).
    """
    recipe = None if options.quantization is None else RECIPES.get(options.quantization)
    if recipe is None or (recipe.integer_bits == 0 and recipe.groups == 0):
        return
    size = options.group_size if recipe.groups is None else max(1, recipe.groups)
    shapes: dict[str, tuple[int, int]] = {}
    for tensor in kept(architecture, dims):
        if is_quantized(tensor):
            group = GROUP_OF[tensor.roles[0].removesuffix(".weight")]
            out, inp = _share(tensor, dims, options)
            shapes[group] = (shapes.get(group, (0, 0))[0] + out, inp)
    for group, (out, inp) in shapes.items():
        reason = None if recipe.integer_bits == 0 else quantization.check(out, inp, recipe.integer_bits)
        if reason is None and inp % size != 0:
            reason = f"{inp} inputs / {size} = {inp / size:.2f}; a whole number of groups is needed"
        if reason is not None:
            hint = "a smaller --tp or --group-size, or --quantization fp8, which has no such limit"
            yield Problem(f"{', '.join(GROUPS[group])}", f"({out}, {inp}) on each of {options.tp} ranks", reason, hint)


def _share(tensor: Tensor, dims: Dims, options: TrtllmOptions) -> tuple[int, int]:
    """Outputs and inputs of a matrix on a rank; key and value heads are repeated where there are fewer than ranks."""
    block, part, _ = tensor.roles[0].split(".")
    out, inp = (math.prod(tensor.size(axis, dims) for axis in axes.split()) for axes in (tensor.out, tensor.inp))
    ranks = options.moe[0] if block == "experts" else options.tp
    if part in ("o", "down"):
        return out, inp // ranks
    return (out // min(ranks, dims.sizes["kv_heads"]) if part in ("k", "v") else out // ranks), inp


def _divided(architecture: Architecture, dims: Dims) -> Iterator[tuple[str, bool]]:
    """Axes of linear layers that ranks divide among them, and whether they are an expert's."""
    for tensor in kept(architecture, dims):
        for role in tensor.roles:
            if role.endswith(".weight") and role.split(".")[1] in ("q", "up"):
                width = tensor.out.split()[-1]
                yield "heads" if role.startswith("attn") else width, role.startswith("experts")


def _deviations(options: TrtllmOptions, recipe: Recipe | None) -> Iterator[tuple[str, str]]:
    reasons = []
    if recipe is not None and recipe.algorithm == "FP8":
        reasons.append("layers that the runtime fuses share a weight_scale, to which it would bring them itself")
    if options.kv_cache is not None:
        reasons.append("k_scale and v_scale are equal and at least one, so that nothing is clipped")
    if len(reasons) > 0:
        yield "*.safetensors", "; ".join(reasons)


def _notes(options: TrtllmOptions, recipe: Recipe | None) -> Iterator[str]:
    if recipe is not None and recipe.calibrated and options.calib_dataset is None:
        yield "calibrated on a short built-in text: give --calib-dataset a text like yours"
    if options.kv_cache == "fp8":
        yield "TensorRT-LLM's FP8 key and value cache has a scale of 1 whatever is stored: beyond 448 it clips"
    if options.quantization == "w4a16_awq":
        yield "rounded to the nearest without calibration: check perplexity on your own text with --eval-text"


def recorded(options: TrtllmOptions, layout: Layout) -> Mapping[str, Any]:
    """The options that decide the checkpoint's bytes."""
    moe_tp, moe_ep = options.moe
    return {
        "target": options.target,
        "tp": options.tp,
        "pp": options.pp,
        "moe_tp": moe_tp,
        "moe_ep": moe_ep,
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == layout.dtype),
        "quantization": options.quantization,
        "group_size": options.group_size,
        "kv_cache": options.kv_cache,
        "shard_size": options.shard_size,
        "trtllm_version": options.trtllm_version,
    }
