"""Which per-rank weights a decoder becomes, what neuron_config.json says of it, and which models have no network here.

Source of neuron_config.json: huggingface/optimum-neuron@v0.4.5:optimum/neuron/models/inference/backend/config.py
(NxDNeuronConfig) and optimum/neuron/configuration_utils.py (NeuronConfig.to_dict).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.dtypes import BF16, FP16, FP32, FP64, DType
from llmcompile.errors import Problem
from llmcompile.exporters.neuron import families
from llmcompile.exporters.neuron.heads import heads_of
from llmcompile.exporters.neuron.options import NeuronOptions
from llmcompile.exporters.neuron.rows import FAMILIES, VENDORS, decoder_rows
from llmcompile.exporters.spec import Layout
from llmcompile.plan import Row

DTYPES: Mapping[str, DType] = MappingProxyType({"float32": FP32, "float16": FP16, "bfloat16": BF16})
CAST_DTYPES: Mapping[str, DType] = MappingProxyType({"fp16": FP16, "bf16": BF16})
"""--auto-cast-type, which is a decoder's dtype where nothing else is cast."""
SHORTEST_BUCKET = 128
"""Tokens of the smallest graph for prompts unless --buckets says otherwise."""
_MOST_TOPK = 256
"""NxDNeuronConfig's default, which counts for on-device sampling alone."""


def buckets(options: NeuronOptions) -> tuple[int, ...]:
    """Lengths of prompts that there is a graph for, ascending; the last is the sequence length.

    Args:
        options: With a sequence length.
    """
    longest = options.shapes.sequence_length
    assert longest is not None
    lengths = options.buckets
    if lengths is None:
        doublings = range(max(0, longest.bit_length() - SHORTEST_BUCKET.bit_length() + 1))
        lengths = tuple(SHORTEST_BUCKET << doubling for doubling in doublings)
    return (*sorted({length for length in lengths if 1 < length < longest}), longest)


def resolve_dtype(options: NeuronOptions, source_dtype: DType) -> DType:
    """The element type of weights, caches and arithmetic: as asked, or the checkpoint's own."""
    if options.torch_dtype is not None:
        return DTYPES[options.torch_dtype]
    own = FP32 if source_dtype == FP64 else source_dtype
    if options.auto_cast == "none" and options.auto_cast_type is not None:
        return CAST_DTYPES.get(options.auto_cast_type, own)
    return own


def cache_bytes(architecture: Architecture, dims: Dims, options: NeuronOptions, dtype: DType) -> int:
    """Bytes of one rank's key and value caches; 0 for a family that has no network here."""
    shapes = options.shapes
    if architecture.name not in families.FAMILIES or shapes.batch_size is None or shapes.sequence_length is None:
        return 0
    heads = heads_of(dims).kv_per_rank(options.num_cores) if heads_of(dims).kv > 0 else 0
    elements = shapes.batch_size * heads * shapes.sequence_length * dims.sizes["head_dim"]
    return 2 * dims.sizes["layers"] * elements * dtype.size_bytes


def make_layout(
    architecture: Architecture, dims: Dims, options: NeuronOptions, *, source_dtype: DType, model_label: str
) -> Layout:
    """The weights of one decoder on every rank, or why it has none.

    Args:
        architecture: The model's family.
        dims: Its sizes and facts.
        options: What was asked.
        source_dtype: The prevailing element type of its weights.
        model_label: What neuron_config.json calls the model.

    Returns:
        Rows that `architecture` can fill, neuron_config.json, and everything worth knowing; `refusals` is empty when
        our network computes the model.
    """
    dtype = resolve_dtype(options, source_dtype)
    refusals = tuple(_refusals(architecture, dims, options, dtype))
    representable = len(refusals) == 0
    return Layout(
        backend="neuron",
        folder="",
        rows=_rows(architecture, dims) if representable else (),
        texts={"neuron_config.json": _neuron_config(architecture, options, dtype, model_label)}
        if representable
        else {},
        unused={},
        ranks=options.num_cores,
        dtype=dtype,
        deviations=dict(_deviations(architecture, dims, options)) if representable else {},
        refusals=refusals,
        notes=tuple(_notes(architecture, dims, options)) if representable else (),
    )


def recorded(options: NeuronOptions, layout: Layout) -> Mapping[str, Any]:
    """The options that decide the artifact's bytes."""
    return {
        "num_cores": options.num_cores,
        "dtype": layout.dtype.name,
        "batch_size": options.shapes.batch_size,
        "sequence_length": options.shapes.sequence_length,
        "buckets": list(buckets(options)) if options.shapes.sequence_length is not None else None,
    }


def _rows(architecture: Architecture, dims: Dims) -> tuple[Row, ...]:
    rows = decoder_rows(FAMILIES[architecture.name], heads_of(dims))
    held = {role for tensor in architecture.tensors if tensor.exists(dims) for role in tensor.roles}
    return tuple(row for row in rows if not held.isdisjoint(row.needed))


def _neuron_config(architecture: Architecture, options: NeuronOptions, dtype: DType, model_label: str) -> str:
    """NxDNeuronConfig of what our graphs do: they return logits, and a batch goes through as a whole.

    The versions are null, since neither package made them; optimum-neuron refuses such a file.
    """
    shapes = options.shapes
    content = {
        "_serialized_key": "NxDNeuronConfig",
        "batch_size": shapes.batch_size,
        "capacity_factor": None,
        "checkpoint_id": model_label,
        "checkpoint_revision": options.build.revision,
        "continuous_batching": False,
        "ep_degree": 1,
        "fused_qkv": FAMILIES[architecture.name].fused_qkv,
        "glu_mlp": True,
        "local_ranks_size": options.num_cores,
        "max_batch_size": shapes.batch_size,
        "max_context_length": shapes.sequence_length,
        "max_topk": _MOST_TOPK,
        "n_active_tokens": shapes.sequence_length,
        "neuronxcc_version": None,
        "on_device_sampling": False,
        "optimum_neuron_version": None,
        "output_logits": False,
        "pp_degree": 1,
        "sequence_length": shapes.sequence_length,
        "speculation_length": 0,
        "start_rank_id": 0,
        "target": "trn2" if options.instance_type == "trn2" else "trn1",
        "torch_dtype": next(name for name, item in DTYPES.items() if item == dtype),
        "tp_degree": options.num_cores,
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _refusals(architecture: Architecture, dims: Dims, options: NeuronOptions, dtype: DType) -> Iterator[Problem]:
    shapes = options.shapes
    if architecture.name not in FAMILIES:
        found = f"a {architecture.name} model, which is no decoder of ours"
        yield Problem("config.json: architectures", found, f"one of {', '.join(FAMILIES)}", "try --via optimum")
        return
    if "quantized" in dims.facts:
        found = f"a checkpoint quantized with {dims.facts['quantized']}"
        yield Problem(
            "config.json: quantization_config", found, "float weights", "start from the unquantized checkpoint"
        )
    if architecture.name == "meta_llama" and options.layout not in (None, "nxd"):
        found = f"{options.layout}, which keeps the model's tensors by transformers' names, of a checkpoint of Meta's"
        yield Problem("--layout", found, "nxd", "use --layout nxd, or convert_llama_weights_to_hf.py of transformers")
    if dtype not in DTYPES.values():
        found = f"weights of type {dtype.name}"
        yield Problem("--torch-dtype", found, f"one of {', '.join(DTYPES)}", "--torch-dtype bfloat16")
    if shapes.batch_size is None:
        yield Problem("--batch-size", "not given", "sequences at once", "--batch-size 1")
    if shapes.sequence_length is None:
        most = min(dims.sizes.get("positions", _USUAL), _USUAL)
        yield Problem("--sequence-length", "not given", "tokens of prompt and answer", f"--sequence-length {most}")
        return
    yield from families.refusals(architecture.name, dims, shapes.sequence_length)


_USUAL = 4096
"""Sequence length optimum-neuron takes where the model allows it (NeuronModelForCausalLM.get_neuron_config)."""


def _deviations(architecture: Architecture, dims: Dims, options: NeuronOptions) -> Iterator[tuple[str, str]]:
    reason = "no versions and no sampling: the graphs are llmcompile's own, and optimum-neuron does not load them"
    yield "neuron_config.json", reason
    weights = "weights/*.safetensors"
    if architecture.name not in VENDORS:
        yield weights, f"optimum-neuron has no {architecture.name}: names by its pattern, and of ours where it has none"
    elif dims.facts.get("mlp_bias") is True and dims.sizes["ffn"] % options.num_cores != 0:
        yield weights, "biases of the MLP are padded with zeros, where optimum-neuron pads with the least number"
    elif dims.facts.get("attention_bias") is True:
        yield weights, "with the biases of attention, which optimum-neuron's network of this family leaves out"


def _notes(architecture: Architecture, dims: Dims, options: NeuronOptions) -> Iterator[str]:
    length, ranks, heads = options.shapes.sequence_length, options.num_cores, heads_of(dims)
    assert length is not None
    network = families.FAMILIES[architecture.name](dims)
    if network.alibi is None and length > dims.sizes["positions"]:
        yield f"{length} tokens are more than the {dims.sizes['positions']} positions the model was made for"
    if network.rotary is not None and 0 < network.rotary.original < length:
        yield (
            f"a text that grows past {network.rotary.original} tokens keeps the keys of LongRoPE's short factors, "
            "where transformers' generate computes all keys anew"
        )
    queries, keys = heads.queries_per_rank(ranks) * ranks, heads.kv_per_rank(ranks) * ranks
    if queries > heads.query:
        yield f"{queries - heads.query} of {queries} attention heads are zeros, since {ranks} cores share {heads.query}"
    if keys > heads.kv:
        yield f"{heads.kv} key and value heads are stored as {keys}, so that every core has those its queries read"
    if network.experts is not None:
        yield "prompts go through all experts, those a token is not sent to with weight 0"
