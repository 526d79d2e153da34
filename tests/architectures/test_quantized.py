"""A quantized checkpoint's table follows from that of its float family, and what has no table is refused."""

from __future__ import annotations

from typing import Any

import pytest

from llmcompile.architectures import lookup
from llmcompile.architectures.quantized import awq, fp8, gptq, scheme_of
from llmcompile.architectures.spec import Architecture, Dims, Tensor, linear
from llmcompile.errors import UnsupportedError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 40,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
_SIDE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": _SIDE, "input_activations": _SIDE}},
}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
FP8 = {"quant_method": "fp8", "activation_scheme": "static"}
DIMS = Dims({"layers": 1, "hidden": 64, "heads": 4, "head_dim": 16, "ffn": 96, "experts": 2}, {})


def table(quantization: object) -> tuple[Architecture, Dims]:
    """The table of a quantized LLaMA, and its dims."""
    config = {**LLAMA, "quantization_config": quantization}
    architecture = lookup(config)
    return architecture, architecture.dims(config)


def shapes(quantization: object) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what the table expects of layer 0's q and down projections."""
    architecture, dims = table(quantization)
    return {
        tensor.name_at(layer, expert).removeprefix("layers.0."): tensor.stored_shape(dims)
        for tensor, layer, expert in architecture.expected(dims)
        if "k_proj" in tensor.name or "down_proj" in tensor.name
    }


def family(*tensors: Tensor) -> Architecture:
    """A family of those tensors alone."""
    return Architecture("tiny", (), (), (), tensors, lambda _: DIMS, {})


def tensor_of(architecture: Architecture, role: str) -> Tensor:
    """The tensor that holds a role."""
    return next(tensor for tensor in architecture.tensors if role in tensor.roles)


def test_gptq_packs_inputs() -> None:
    """Eight values along the inputs are one integer, and a group of inputs has a scale for each output."""
    assert shapes(GPTQ) == {
        "self_attn.k_proj.qweight": (16, 64),
        "self_attn.k_proj.qzeros": (2, 8),
        "self_attn.k_proj.scales": (2, 64),
        "mlp.down_proj.qweight": (24, 128),
        "mlp.down_proj.qzeros": (3, 16),
        "mlp.down_proj.scales": (3, 128),
    }


def test_awq_packs_outputs() -> None:
    """Eight values along the outputs are one integer."""
    assert shapes(AWQ) == {
        "self_attn.k_proj.qweight": (128, 8),
        "self_attn.k_proj.qzeros": (2, 8),
        "self_attn.k_proj.scales": (2, 64),
        "mlp.down_proj.qweight": (192, 16),
        "mlp.down_proj.qzeros": (3, 16),
        "mlp.down_proj.scales": (3, 128),
    }


@pytest.mark.parametrize("quantization", [FP8, MODELOPT, COMPRESSED], ids=lambda q: str(q["quant_method"]))
def test_fp8_has_two_scales_per_weight(quantization: dict[str, Any]) -> None:
    """The weight keeps its shape, with one scale for it and one for its input."""
    assert shapes(quantization) == {
        "self_attn.k_proj.weight": (64, 128),
        "self_attn.k_proj.weight_scale": (1,),
        "self_attn.k_proj.input_scale": (1,),
        "mlp.down_proj.weight": (128, 192),
        "mlp.down_proj.weight_scale": (1,),
        "mlp.down_proj.input_scale": (1,),
    }


@pytest.mark.parametrize(
    ("quantization", "method", "group"),
    [(GPTQ, "gptq", 64), (AWQ, "awq", 64), (FP8, "fp8", 0), (MODELOPT, "fp8", 0), (COMPRESSED, "fp8", 0)],
)
def test_scheme_is_a_fact(quantization: dict[str, Any], method: str, group: int) -> None:
    """A backend sees how the checkpoint is quantized; the family and its sizes stay."""
    architecture, dims = table(quantization)

    assert (architecture.name, dims.facts["quantized"], dims.facts["group_size"]) == ("llama", method, group)
    assert dims.sizes == lookup(LLAMA).dims(LLAMA).sizes


def test_float_checkpoint_has_no_such_fact() -> None:
    """A fact that is there tells a quantized checkpoint."""
    assert "quantized" not in lookup(LLAMA).dims(LLAMA).facts


def test_kinds_of_elements_are_told() -> None:
    """Integers are int32, FP8 weights e4m3, and scales floats."""
    packed, _ = table(GPTQ)
    eight, _ = table(FP8)

    kinds = [tensor_of(packed, f"attn.k.{ending}").kind for ending in ("qweight", "qzeros", "scales")]

    assert kinds == ["int32", "int32", ""]
    assert [tensor_of(eight, f"attn.k.{ending}").kind for ending in ("weight", "weight_scale")] == ["fp8_e4m3", ""]


def test_head_and_embedding_stay_float() -> None:
    """What no quantizer converts is as it was."""
    for quantization in (GPTQ, AWQ, FP8):
        architecture, _ = table(quantization)
        for role in ("embed.tokens.weight", "head.weight", "norm.weight", "attn.norm.weight"):
            assert tensor_of(architecture, role) == tensor_of(lookup(LLAMA), role)


def test_routers_and_switches_stay_float() -> None:
    """Of experts the projections are packed, the router is not."""
    tiny = family(
        *linear("router", "layers.{layer}.gate", "experts", "hidden", bias=False),
        *linear("shared.switch", "layers.{layer}.switch", "1", "hidden", bias=False),
        *linear("experts.up", "layers.{layer}.experts.{expert}.w3", "ffn", "hidden", bias=False),
    )

    names = {tensor.name for tensor in gptq(tiny, DIMS, 32).tensors}

    assert names == {
        "layers.{layer}.gate.weight",
        "layers.{layer}.switch.weight",
        *(f"layers.{{layer}}.experts.{{expert}}.w3.{ending}" for ending in ("qweight", "qzeros", "scales")),
    }


@pytest.mark.parametrize(
    ("group", "axes"), [(16, "heads head_dim/16"), (8, "heads head_dim/8"), (32, "heads/2"), (64, "heads/4")]
)
def test_group_may_span_heads(group: int, axes: str) -> None:
    """A group is a part of a head, or some whole heads."""
    tiny = family(*linear("attn.o", "layers.{layer}.o", "hidden", "heads head_dim", bias=False))

    scales = tensor_of(gptq(tiny, DIMS, group), "attn.o.scales")

    assert scales.inp == axes
    assert scales.stored_shape(DIMS) == (64 // group, 64)


@pytest.mark.parametrize("group", [24, 48, 128])
def test_group_that_cuts_heads_is_refused(group: int) -> None:
    """A group that does not fall on heads is refused with the arithmetic."""
    tiny = family(*linear("attn.o", "layers.{layer}.o", "hidden", "heads head_dim", bias=False))

    with pytest.raises(UnsupportedError, match="heads 4 x head_dim 16"):
        gptq(tiny, DIMS, group)


def test_sum_is_divided_by_addends() -> None:
    """Each role of a fused tensor is packed by itself."""
    tiny = family(
        Tensor(("mlp.gate.weight", "mlp.up.weight"), "layers.{layer}.gate_up.weight", "ffn+ffn", "hidden"),
    )

    packed = tensor_of(awq(tiny, DIMS, 32), "mlp.up.qweight")

    assert (packed.out, packed.roles) == ("ffn/8+ffn/8", ("mlp.gate.qweight", "mlp.up.qweight"))
    assert packed.stored_shape(DIMS) == (64, 24)


def test_fused_fp8_is_refused() -> None:
    """One scale for several roles is not one scale for each."""
    tiny = family(Tensor(("attn.q.weight", "attn.k.weight"), "qk.weight", "part heads head_dim", "hidden"))

    with pytest.raises(UnsupportedError, match=r"fuses attn\.q\.weight, attn\.k\.weight"):
        fp8(tiny)


def test_what_a_quantizer_adds_is_ignored_for_a_reason() -> None:
    """AutoGPTQ's order of groups and the zero biases of layers without are known to be unused."""
    architecture, _ = table(GPTQ)

    assert architecture.why_ignored("model.layers.0.mlp.down_proj.g_idx") is not None
    assert architecture.why_ignored("model.layers.0.mlp.down_proj.bias") is not None
    assert architecture.why_ignored("model.layers.0.input_layernorm.bias") is None


def test_what_is_ignored_for_its_content_is_said() -> None:
    """Element i of g_idx is i // group_size, and a bias that the quantizer added is zeros."""
    architecture, _ = table(GPTQ)
    order = architecture.assumption("model.layers.0.mlp.down_proj.g_idx")
    bias = architecture.assumption("layers.0.mlp.down_proj.bias")

    assert order is not None
    assert bias is not None
    assert (order.group, bias.group) == (64, 0)
    assert architecture.assumption("model.layers.0.input_layernorm.bias") is None


def test_refused_groups_name_all_layers() -> None:
    """A size that does not divide is of every layer: none of the table's own placeholders is shown."""
    with pytest.raises(UnsupportedError) as caught:
        table({**GPTQ, "group_size": 48})

    assert "{" not in str(caught.value)
    assert "layers.*.self_attn" in str(caught.value)


def test_bias_of_the_model_is_not_ignored() -> None:
    """A bias that config.json names is read."""
    config = {**LLAMA, "attention_bias": True, "quantization_config": GPTQ}
    architecture = lookup(config)

    assert architecture.why_ignored("model.layers.0.self_attn.q_proj.bias") is None


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({**GPTQ, "bits": 8}, "bits 8"),
        ({**GPTQ, "desc_act": True}, "desc_act True"),
        ({**GPTQ, "group_size": -1}, "group_size -1"),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, "checkpoint_format 'gptq_v2'"),
        ({**GPTQ, "lm_head": True}, "lm_head True"),
        ({**AWQ, "version": "gemv"}, "version 'gemv'"),
        ({**AWQ, "zero_point": False}, "zero_point False"),
        ({**AWQ, "bits": True}, "bits True"),
        ({**FP8, "activation_scheme": "dynamic"}, "activation_scheme 'dynamic'"),
        ({**FP8, "weight_block_size": [128, 128]}, "weight_block_size"),
        ({**MODELOPT, "quant_algo": "NVFP4"}, "quant_algo 'NVFP4'"),
        ({**COMPRESSED, "config_groups": {}}, "config_groups"),
        ({**COMPRESSED, "format": "pack-quantized"}, "format"),
        (
            {**COMPRESSED, "config_groups": {"g": {"weights": {**_SIDE, "num_bits": 4}, "input_activations": _SIDE}}},
            "num_bits 4",
        ),
        (
            {**COMPRESSED, "config_groups": {"g": {"weights": _SIDE, "input_activations": None}}},
            "input_activations None",
        ),
        (
            {**COMPRESSED, "config_groups": {"g": {"weights": {**_SIDE, "strategy": "channel"}}}},
            "strategy 'channel'",
        ),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
    ],
)
def test_variant_without_a_table_is_refused(quantization: dict[str, Any], said: str) -> None:
    """A checkpoint whose tensors mean something else is refused by the key that says so."""
    with pytest.raises(UnsupportedError, match="quantization_config: a checkpoint quantized with") as caught:
        lookup({**LLAMA, "quantization_config": quantization})

    assert said in str(caught.value)


def test_fp8_is_told_by_its_scales() -> None:
    """A config.json that says nothing of FP8 does not hide the input scales."""
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.input_scale"]

    assert lookup(LLAMA, names).dims(LLAMA).facts["quantized"] == "fp8"


@pytest.mark.parametrize("name", ["a.weight", "a.weight_scale", "a.weight_scale_2"])
def test_float_names_tell_nothing(name: str) -> None:
    """Weights alone are floats, and scales without an input's are not this FP8."""
    assert scheme_of({}, [name]) is None


def test_packed_integers_without_a_config_are_refused() -> None:
    """What the integers mean cannot be guessed."""
    with pytest.raises(UnsupportedError, match="qweight"):
        scheme_of({}, ["a.qweight"])
