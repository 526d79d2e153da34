"""config.json of the two stacks of T5, mT5, BART and mBART: one folder each, `encoder` and `decoder`.

Sources: NVIDIA/TensorRT-LLM:tensorrt_llm/models/enc_dec/model.py and examples/enc_dec/convert_checkpoint.py at
0.10.0.dev2024043000, 0.11.0.dev2024061100, 0.12.0.dev2024073000, 0.13.0 and 0.16.0.dev2024121000.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import Dims
from llmcompile.errors import Problem
from llmcompile.exporters.trtllm.config.pretrained import (
    Config,
    Given,
    Notes,
    Refusals,
    activation,
    activation_notes,
    activation_refusals,
    at_least,
    pretrained_config,
)

_LAYER_NORM, _RMS_NORM = 0, 1
"""LayerNormType in functional.py."""
_PRE, _POST = 0, 1
"""LayerNormPositionType."""
_PLAIN, _GATED = 0, 1
"""MLPType."""
_FIRST = (0, 10, 0)
"""First release whose model map has EncoderModel and DecoderModel."""


def _t5(dims: Dims, given: Given, architecture: str) -> dict[str, Any]:
    """What both stacks of T5 have."""
    gated = dims.facts["gated"] is True
    return {
        **_stack(_with_activation(dims), given, architecture, position_embedding_type="relative"),
        "model_type": "t5",
        "has_position_embedding": False,
        "has_embedding_layernorm": False,
        "has_embedding_scale": False,
        "has_attention_qkvo_bias": False,
        "has_mlp_bias": False,
        "has_model_final_layernorm": True,
        "layernorm_type": _RMS_NORM,
        "layernorm_position": _PRE,
        "mlp_type": _GATED if gated else _PLAIN,
        "gated_act": gated,
        "relative_attention": True,
        "num_buckets": dims.sizes["buckets"],
        "max_distance": dims.facts["max_distance"],
        "q_scaling": 1.0 / dims.sizes["head_dim"] ** 0.5,
    }


def _with_activation(dims: Dims) -> Dims:
    """Dims with the fact `activation`, which T5 hides in feed_forward_proj.

    Source: huggingface/transformers@v4.57.6:src/transformers/models/t5/configuration_t5.py (dense_act_fn).
    """
    kind = str(dims.facts["feed_forward_proj"])
    name = "gelu_new" if kind == "gated-gelu" else kind.rpartition("-")[2]
    return Dims(dims.sizes, {**dims.facts, "activation": name})


def _bart(dims: Dims, given: Given, architecture: str) -> dict[str, Any]:
    """What both stacks of BART have; mBART's norms come first, and once more at the end."""
    return {
        **_stack(dims, given, architecture, position_embedding_type="learned_absolute"),
        "model_type": "bart",
        "has_position_embedding": True,
        "has_embedding_layernorm": True,
        "has_embedding_scale": dims.facts["scale_embedding"],
        "has_attention_qkvo_bias": True,
        "has_mlp_bias": True,
        "has_model_final_layernorm": dims.facts["final_norm"],
        "layernorm_type": _LAYER_NORM,
        "layernorm_position": _PRE if dims.facts["pre_norm"] is True else _POST,
        "mlp_type": _PLAIN,
        "gated_act": False,
        "relative_attention": False,
        "num_buckets": 0,
        "max_distance": 0,
        "q_scaling": 1.0,
    }


def _stack(dims: Dims, given: Given, architecture: str, *, position_embedding_type: str) -> dict[str, Any]:
    return pretrained_config(
        dims,
        given,
        architecture=architecture,
        hidden_act=activation(dims, given),
        position_embedding_type=position_embedding_type,
        kv_heads=dims.sizes["heads"],
        positions=dims.sizes["positions"],
    )


def _decoder(dims: Dims, given: Given, *, rescale: bool) -> dict[str, Any]:
    """What a decoder says besides; 0.13 calls `skip_cross_kv` `skip_cross_qkv`, and 0.10 needs it."""
    return {
        "num_hidden_layers": dims.sizes["decoder_layers"],
        "encoder_hidden_size": dims.sizes["hidden"],
        "encoder_num_heads": dims.sizes["heads"],
        "encoder_head_size": dims.sizes["head_dim"],
        "rescale_before_lm_head": rescale,
        "skip_cross_qkv": False,
        "skip_cross_kv": False,
        "use_implicit_relative_attention": False,
        "decoder_start_token_id": dims.facts["decoder_start_id"],
        "eos_token_id": dims.facts["end_id"],
        "bos_token_id": dims.facts["start_id"],
        "pad_token_id": dims.facts["pad_id"],
    }


def t5_encoder(dims: Dims, given: Given) -> Mapping[str, Any]:
    """The encoder of T5."""
    return _t5(dims, dataclasses.replace(given, share_embedding_table=False), "EncoderModel")


def t5_decoder(dims: Dims, given: Given) -> Mapping[str, Any]:
    """The decoder of T5, which scales its output where the head is the embedding."""
    fields = _t5(dims, given, "DecoderModel")
    return {**fields, **_decoder(dims, given, rescale=dims.facts["tied"] is True)}


def bart_encoder(dims: Dims, given: Given) -> Mapping[str, Any]:
    """The encoder of BART."""
    return _bart(dims, dataclasses.replace(given, share_embedding_table=False), "EncoderModel")


def bart_decoder(dims: Dims, given: Given) -> Mapping[str, Any]:
    """The decoder of BART."""
    return {**_bart(dims, given, "DecoderModel"), **_decoder(dims, given, rescale=False)}


def _both_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from at_least(given, _FIRST, "encoder-decoder checkpoints")
    for key, layers in (("the encoder", dims.sizes["layers"]), ("the decoder", dims.sizes["decoder_layers"])):
        if layers % given.pp != 0:
            yield Problem(
                "--pp",
                f"{layers} layers of {key} / {given.pp} stages = {layers / given.pp:.2f}",
                "a whole number",
                "no release deals the layers of an encoder-decoder unevenly",
            )


def _t5_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from _both_refusals(dims, given)
    yield from activation_refusals(_with_activation(dims), given)
    if dims.facts["has_decoder"] is not True:
        yield Problem(
            "config.json: architectures",
            "an encoder alone",
            "a model with a decoder",
            "TensorRT-LLM has no class for a T5 encoder by itself",
        )


def _bart_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from _both_refusals(dims, given)
    yield from activation_refusals(dims, given)


def _pipeline_notes(given: Given) -> Iterator[str]:
    """Source: examples/enc_dec/README.md at 0.16.0.dev2024121000."""
    if given.pp > 1:
        yield "TensorRT-LLM runs encoder-decoder models in stages by its Python runtime only, not in C++ or Triton"


def _t5_notes(dims: Dims, given: Given) -> Iterator[str]:
    yield from activation_notes(_with_activation(dims), given)
    yield from _pipeline_notes(given)


def _bart_notes(dims: Dims, given: Given) -> Iterator[str]:
    yield from activation_notes(dims, given)
    yield from _pipeline_notes(given)


ENCODER_CONFIGS: Mapping[str, Config] = MappingProxyType({"t5": t5_encoder, "bart": bart_encoder})
DECODER_CONFIGS: Mapping[str, Config] = MappingProxyType({"t5": t5_decoder, "bart": bart_decoder})
REFUSALS: Mapping[str, Refusals] = MappingProxyType({"t5": _t5_refusals, "bart": _bart_refusals})
NOTES: Mapping[str, Notes] = MappingProxyType({"t5": _t5_notes, "bart": _bart_notes})
