"""Each family's table says of a checkpoint just what transformers says of the model it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

import models
from llmcompile.architectures import ARCHITECTURES, lookup
from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.errors import CheckpointError, UnsupportedError

VARIANTS = [(family, base) for family in models.FAMILIES for base in (False, True)]
NAMES = [f"{family}-{'base' if base else 'head'}" for family, base in VARIANTS]
HEADLESS = {"gptj", "gptneox", "gptneox_sequential"}
"""Families whose class without a head is not looked up; `model_type` finds them."""
MORE = {
    "gpt2-tied": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "opt-no-final-norm": ("opt", {"_remove_final_layer_norm": True}),
    "llama-biases": ("llama_gqa", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-head_dim": ("llama_gqa", {"head_dim": 10}),
    "gptj-default-ffn": ("gptj", {"n_inner": None}),
    "gpt2-default-ffn": ("gpt2", {"n_inner": None}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "qwen3_moe-biases": ("qwen3_moe", {"attention_bias": True}),
    "qwen2_moe-no-biases": ("qwen2_moe", {"qkv_bias": False}),
    "gemma-biases": ("gemma", {"attention_bias": True}),
    "gemma2-biases": ("gemma2", {"attention_bias": True}),
    "gemma-untied": ("gemma", {"tie_word_embeddings": False}),
    "mixtral-head_dim": ("mixtral", {"head_dim": 10}),
    "phi3-all-kv_heads": ("phi3", {"num_key_value_heads": None}),
    "falcon-one-norm": ("falcon_40b", {"num_ln_in_parallel_attn": 1}),
    "falcon-biases": ("falcon_40b", {"bias": True}),
    "falcon-default-ffn": ("falcon_7b", {"ffn_hidden_size": None}),
    "starcoder2-no-biases": ("starcoder2", {"use_bias": False}),
    "mpt-ignored-keys": ("mpt", {"expansion_ratio": 2, "no_bias": False}),
    "bart-untied": ("bart", {"tie_word_embeddings": False}),
    "t5-even-stacks": ("t5", {"num_decoder_layers": None}),
}


def described(config: Mapping[str, Any]) -> tuple[Architecture, Dims]:
    """The family of a config, whatever its class, and what it says of the model."""
    architecture = lookup({"model_type": config["model_type"]})
    return architecture, architecture.dims(config)


def saved(family: str, folder: Path, *, base: bool = False, **config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config.json of a checkpoint, and the shapes of its tensors by name."""
    models.save(family, folder, base=base, config=config)
    with safe_open(folder / "model.safetensors", framework="np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return json.loads((folder / "config.json").read_text()), shapes


def expected_names(architecture: Architecture, dims: Dims) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor the table expects."""
    return {
        tensor.name_at(layer, expert): tensor.stored_shape(dims)
        for tensor, layer, expert in architecture.expected(dims)
    }


def unclaimed(architecture: Architecture, dims: Dims, names: Mapping[str, object]) -> list[str]:
    """Names in a checkpoint that the table neither expects nor ignores with a reason."""
    located = architecture.locate(names)
    claimed = {located[name] for name in expected_names(architecture, dims) if name in located}
    return [name for name in names if name not in claimed and architecture.why_ignored(name) is None]


@pytest.mark.parametrize(("family", "base"), VARIANTS, ids=NAMES)
def test_every_stored_tensor_is_claimed(tmp_path: Path, family: str, base: bool) -> None:
    """Each tensor of a checkpoint, with prefix or without, is expected or ignored for a reason."""
    config, shapes = saved(family, tmp_path, base=base)

    architecture, dims = described(config)

    assert unclaimed(architecture, dims, shapes) == []


@pytest.mark.parametrize(("family", "base"), VARIANTS, ids=NAMES)
def test_every_name_in_memory_is_claimed(family: str, base: bool) -> None:
    """Each name of the model's state dict, as older pickles hold it, tied copies included, is claimed."""
    model = models.build(family, base=base)

    architecture, dims = described(model.config.to_dict())

    assert unclaimed(architecture, dims, model.state_dict()) == []


@pytest.mark.parametrize(("family", "base"), VARIANTS, ids=NAMES)
def test_every_expected_tensor_is_stored(tmp_path: Path, family: str, base: bool) -> None:
    """Each tensor the table expects is in the checkpoint, but for a tied head and for the head of a base model."""
    config, shapes = saved(family, tmp_path, base=base)
    architecture, dims = described(config)

    located = architecture.locate(shapes)
    absent = {name for name in expected_names(architecture, dims) if name not in located}

    heads = {t.name for t in architecture.tensors if t.roles[0].startswith("head.")}
    assert absent <= (heads if base or dims.facts.get("tied") is True else set())


@pytest.mark.parametrize(("family", "base"), VARIANTS, ids=NAMES)
def test_shapes_are_those_of_transformers(tmp_path: Path, family: str, base: bool) -> None:
    """The shape config.json implies for a tensor is the shape transformers stored."""
    config, shapes = saved(family, tmp_path, base=base)
    architecture, dims = described(config)

    located = architecture.locate(shapes)
    expected = {name: shape for name, shape in expected_names(architecture, dims).items() if name in located}

    assert expected == {name: shapes[located[name]] for name in expected}


@pytest.mark.parametrize("variant", MORE)
def test_shapes_of_unusual_models_are_those_of_transformers(tmp_path: Path, variant: str) -> None:
    """Tables follow config keys that most checkpoints leave alone: what exists, and in which shape."""
    family, settings = MORE[variant]
    config, shapes = saved(family, tmp_path, **settings)
    architecture, dims = described(config)

    located = architecture.locate(shapes)
    expected = {
        name: shape
        for name, shape in expected_names(architecture, dims).items()
        if name in located or not (name == "lm_head.weight" and dims.facts["tied"] is True)
    }

    assert expected == {name: shapes.get(located.get(name, "")) for name in expected}
    assert unclaimed(architecture, dims, shapes) == []


@pytest.mark.parametrize("family", sorted(set(models.FAMILIES) - HEADLESS))
def test_class_without_head_is_looked_up(family: str) -> None:
    """A checkpoint of the class without a head belongs to the family too."""
    made = models.FAMILIES[family]

    assert lookup({"architectures": [made.base_class]}) is lookup({"architectures": [made.model_class]})


@pytest.mark.parametrize("family", models.FAMILIES)
def test_tied_is_what_transformers_does(family: str) -> None:
    """The fact `tied` holds just when transformers' head and embedding share their memory."""
    model = models.build(family)
    head = model.get_output_embeddings()
    _, dims = described(model.config.to_dict())

    shared = head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()

    assert dims.facts.get("tied", shared) is shared


@pytest.mark.parametrize("name", lookup({"model_type": "bert"}).classes)
def test_every_bert_task_is_claimed(name: str) -> None:
    """A BERT saved with any task head is the encoder, and heads that are ignored for a reason."""
    config = transformers.BertConfig(**models.FAMILIES["bert"].config)
    names = getattr(transformers, name)(config).state_dict()

    architecture, dims = described(config.to_dict())

    assert unclaimed(architecture, dims, names) == []


@pytest.mark.parametrize("name", ["T5EncoderModel", "MT5EncoderModel"])
def test_encoder_alone_is_claimed(name: str) -> None:
    """A T5 encoder saved by itself holds nothing that the table does not know."""
    family = "mt5" if name.startswith("M") else "t5"
    made = models.FAMILIES[family]
    config = getattr(transformers, made.config_class)(**made.config)
    names = getattr(transformers, name)(config).state_dict()

    architecture, dims = described(config.to_dict())

    assert unclaimed(architecture, dims, names) == []


@pytest.mark.parametrize("family", models.FAMILIES)
def test_strange_tensor_is_not_claimed(tmp_path: Path, family: str) -> None:
    """A tensor that transformers would not have saved is neither expected nor ignored."""
    config, shapes = saved(family, tmp_path)
    architecture, dims = described(config)

    found = unclaimed(architecture, dims, {**shapes, "adapter.lora_A.weight": (), "layers.99.mlp.w9.weight": ()})

    assert found == ["adapter.lora_A.weight", "layers.99.mlp.w9.weight"]


def test_layer_beyond_the_config_is_not_claimed(tmp_path: Path) -> None:
    """A checkpoint with one layer more than config.json says holds tensors nobody expects."""
    config, shapes = saved("llama", tmp_path)
    architecture, dims = described({**config, "num_hidden_layers": 1})

    found = unclaimed(architecture, dims, shapes)

    assert sorted(found) == sorted(name for name in shapes if "layers.1." in name)


@pytest.mark.parametrize("old", ["gamma", "beta"])
def test_bert_of_tensorflow_is_claimed(tmp_path: Path, old: str) -> None:
    """A BERT whose norms are called gamma and beta is read as one with weight and bias."""
    new = {"gamma": "weight", "beta": "bias"}[old]
    config, shapes = saved("bert", tmp_path)
    renamed = {name.replace(f"LayerNorm.{new}", f"LayerNorm.{old}"): shape for name, shape in shapes.items()}
    architecture, _ = described(config)

    located = architecture.locate(renamed)

    name = f"encoder.layer.0.output.LayerNorm.{new}"
    assert located[name] == f"bert.encoder.layer.0.output.LayerNorm.{old}"


@pytest.mark.parametrize("family", models.FAMILIES)
def test_keys_left_out_have_the_defaults_of_transformers(family: str) -> None:
    """A config.json that leaves keys out means what the class of transformers means by leaving them out."""
    made = models.FAMILIES[family]
    config_class = getattr(transformers, made.config_class)
    whole = config_class(**made.config).to_dict()
    architecture, expected = described(whole)

    found = architecture.dims({"model_type": whole["model_type"], **made.config})

    assert (found.sizes, {**found.facts, "name_or_path": ""}) == (
        expected.sizes,
        {**expected.facts, "name_or_path": ""},
    )


@pytest.mark.parametrize("family", models.FAMILIES)
def test_sizes_are_those_that_were_asked_for(family: str) -> None:
    """Heads, layers and vocabulary of the model are read from whatever the family calls them."""
    config = getattr(transformers, models.FAMILIES[family].config_class)(**models.FAMILIES[family].config)

    _, dims = described(config.to_dict())

    found = (dims.sizes["vocab"], dims.sizes["heads"], dims.sizes["layers"], dims.sizes["hidden"])
    assert found == (44, 4, 2, config.hidden_size)


_USUAL = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
REQUIRED = {
    "gpt2": ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
    "opt": (
        "vocab_size",
        "max_position_embeddings",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "ffn_dim",
    ),
    "bloom": ("vocab_size", "hidden_size", "n_layer", "n_head"),
    "gptj": ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
    "gptneox": (
        "vocab_size",
        "max_position_embeddings",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ),
    "llama": ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "bert": (
        "vocab_size",
        "max_position_embeddings",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ),
    "t5": ("vocab_size", "d_model", "d_ff", "num_layers", "num_heads"),
    **dict.fromkeys(("mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3"), _USUAL),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), _USUAL[:-1]),
    "gpt_bigcode": ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
    "starcoder2": _USUAL,
    "falcon_7b": _USUAL[:-1],
    "mpt": ("vocab_size", "d_model", "n_layers", "n_heads"),
    "bart": (
        *("vocab_size", "d_model", "encoder_layers", "encoder_ffn_dim", "encoder_attention_heads"),
        *("decoder_layers", "decoder_ffn_dim", "decoder_attention_heads"),
    ),
}
KEYS = [(family, key) for family, keys in REQUIRED.items() for key in keys]


def raw(family: str) -> dict[str, Any]:
    """The config.json of a family as a plain dict."""
    made = models.FAMILIES[family]
    return {"model_type": getattr(transformers, made.config_class).model_type, **made.config}


@pytest.mark.parametrize("family", REQUIRED)
def test_every_default_is_that_of_transformers(family: str) -> None:
    """A config.json of the required keys alone means what the class of transformers makes of them."""
    config = {key: value for key, value in raw(family).items() if key in ("model_type", *REQUIRED[family])}
    whole = getattr(transformers, models.FAMILIES[family].config_class)(**config).to_dict()
    _, expected = described(whole)

    _, found = described(config)

    unsaid = {"name_or_path": "", "positions": 0}
    assert {**found.facts, **unsaid} == {**expected.facts, **unsaid}
    assert found.sizes.keys() == expected.sizes.keys()


@pytest.mark.parametrize(
    ("family", "key", "value", "fact"),
    [
        ("gpt2", "activation_function", "relu", "activation"),
        ("gpt2", "layer_norm_epsilon", 1e-3, "norm_eps"),
        ("gpt2", "scale_attn_weights", False, "scale_attn_weights"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", "bos_token_id", 9, "start_id"),
        ("gpt2", "eos_token_id", 9, "end_id"),
        ("gpt2", "_name_or_path", "org/tiny", "name_or_path"),
        ("opt", "activation_function", "gelu", "activation"),
        ("opt", "do_layer_norm_before", False, "pre_norm"),
        ("opt", "do_layer_norm_before", False, "final_norm"),
        ("opt", "enable_bias", False, "bias"),
        ("opt", "layer_norm_elementwise_affine", False, "affine_norms"),
        ("opt", "tie_word_embeddings", False, "tied"),
        ("bloom", "apply_residual_connection_post_layernorm", True, "residual_after_norm"),
        ("bloom", "layer_norm_epsilon", 1e-3, "norm_eps"),
        ("gptj", "rotary_dim", 2, "rotary_dim"),
        ("gptj", "activation_function", "relu", "activation"),
        ("gptneox", "use_parallel_residual", False, "parallel_residual"),
        ("gptneox", "attention_bias", False, "bias"),
        ("gptneox", "hidden_act", "gelu_fast", "activation"),
        ("gptneox", "layer_norm_eps", 1e-3, "norm_eps"),
        ("gptneox", "tie_word_embeddings", True, "tied"),
        ("llama", "rms_norm_eps", 1e-3, "norm_eps"),
        ("llama", "hidden_act", "gelu", "activation"),
        ("llama", "attention_bias", True, "attention_bias"),
        ("llama", "mlp_bias", True, "mlp_bias"),
        ("llama", "rope_theta", 5e5, "rotary_base"),
        ("gpt_bigcode", "scale_attn_weights", False, "scale_attn_weights"),
        ("gpt_bigcode", "multi_query", False, "multi_query"),
        ("starcoder2", "use_bias", False, "bias"),
        ("starcoder2", "sliding_window", 9, "sliding_window"),
        ("falcon_7b", "alibi", True, "alibi"),
        ("falcon_7b", "parallel_attn", False, "parallel_attention"),
        ("falcon_40b", "rope_theta", 5e5, "rotary_base"),
        ("mpt", "logit_scale", 0.5, "logit_scale"),
        ("bart", "scale_embedding", True, "scale_embedding"),
        ("bart", "decoder_start_token_id", 9, "decoder_start_id"),
        ("mistral", "sliding_window", None, "sliding_window"),
        ("mistral", "rope_theta", 5e5, "rotary_base"),
        ("mixtral", "num_experts_per_tok", 3, "experts_per_token"),
        ("qwen2_moe", "norm_topk_prob", True, "normalized_experts"),
        ("qwen2_moe", "qkv_bias", False, "attention_bias"),
        ("qwen3_moe", "num_experts_per_tok", 3, "experts_per_token"),
        ("gemma", "hidden_activation", "relu", "activation"),
        ("gemma", "hidden_act", "relu", "activation"),
        ("gemma2", "query_pre_attn_scalar", 9, "query_pre_attn_scalar"),
        ("gemma2", "final_logit_softcapping", None, "final_logit_softcapping"),
        ("gemma2", "attn_logit_softcapping", 7.0, "attn_logit_softcapping"),
        ("phi", "partial_rotary_factor", 0.25, "rotary_pct"),
        ("phi", "qk_layernorm", True, "qk_norm"),
        ("phi3", "original_max_position_embeddings", 10, "original_positions"),
        ("phi3", "partial_rotary_factor", 0.75, "rotary_pct"),
        ("bert", "hidden_act", "relu", "activation"),
        ("bert", "layer_norm_eps", 1e-3, "norm_eps"),
        ("bert", "position_embedding_type", "relative_key", "position_embedding_type"),
        ("bert", "is_decoder", True, "is_decoder"),
        ("t5", "feed_forward_proj", "gated-silu", "feed_forward_proj"),
        ("t5", "relative_attention_max_distance", 64, "max_distance"),
        ("t5", "layer_norm_epsilon", 1e-3, "norm_eps"),
        ("t5", "pad_token_id", 9, "pad_id"),
        ("t5", "decoder_start_token_id", 9, "decoder_start_id"),
        ("t5", "tie_word_embeddings", False, "tied"),
    ],
)
def test_fact_is_what_the_config_says(family: str, key: str, value: object, fact: str) -> None:
    """A key of config.json that changes what a model computes is a fact with that value."""
    _, dims = described({**raw(family), key: value})

    assert dims.facts[fact] == value


@pytest.mark.parametrize(
    ("family", "settings", "elements"),
    [
        ("gptneox", {"rotary_pct": 0.25}, 2),
        ("gptneox", {"rotary_pct": 1.0}, 8),
        ("gptneox", {"rotary_pct": None, "partial_rotary_factor": 0.5}, 4),
        ("gptneox", {"rotary_pct": None, "rope_parameters": {"partial_rotary_factor": 0.75}}, 6),
        ("gptneox", {"rotary_pct": None}, 2),
        ("gptj", {"rotary_dim": None}, 8),
    ],
)
def test_rotated_elements_of_a_head(family: str, settings: dict[str, Any], elements: int) -> None:
    """Of each head's 8 elements as many are rotated as config.json says, in whichever of its spellings."""
    _, dims = described({**raw(family), **settings})

    assert dims.facts["rotary_dim"] == elements


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize(
    ("settings", "layers"),
    [({}, 0), ({"decoder_sparse_step": 2}, 1), ({"mlp_only_layers": [1]}, 1), ({"decoder_sparse_step": 3}, 2)],
)
def test_layers_without_experts_are_counted(family: str, settings: dict[str, Any], layers: int) -> None:
    """Of two layers, those that config.json makes plain are those transformers gives no router."""
    config = {**raw(family), **settings}
    names = models.build(family, config=settings).state_dict()

    _, dims = described(config)

    assert dims.facts["dense_layers"] == layers
    assert len([name for name in names if name.endswith(".mlp.gate.weight")]) == 2 - layers


def test_window_counts_only_where_it_is_used() -> None:
    """Qwen states a window that it does not use unless told so."""
    windows = [
        described({**raw("qwen2"), "use_sliding_window": used, "sliding_window": 8})[1].facts["sliding_window"]
        for used in (False, True)
    ]

    assert windows == [None, 8]


def test_gelu_of_gemma_is_its_approximation() -> None:
    """Gemma's first config files say "gelu" and mean the tanh approximation the weights were trained with."""
    _, dims = described({**raw("gemma"), "hidden_act": "gelu"})

    assert dims.facts["activation"] == "gelu_pytorch_tanh"


@pytest.mark.parametrize("family", ["phi", "phi3"])
def test_rotary_share_where_transformers_5_keeps_it(family: str) -> None:
    """The share of rotated elements is read from rope_parameters too."""
    _, dims = described({**raw(family), "rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.75}})

    assert (dims.facts["rotary_pct"], dims.facts["rotary_base"]) == (0.75, 7.0)


@pytest.mark.parametrize(
    ("config", "kv_heads", "facts"),
    [
        ({"model_type": "RefinedWeb", "n_head_kv": 2, "parallel_attn": True}, 2, ["grouped", "two_norms"]),
        ({"model_type": "RefinedWebModel", "multi_query": True, "parallel_attn": True}, 1, ["multi_query"]),
        ({"model_type": "RefinedWebModel", "alibi": True}, 4, ["alibi"]),
    ],
)
def test_falcon_before_transformers_had_it(config: dict[str, Any], kv_heads: int, facts: list[str]) -> None:
    """Keys and values of `model_type` of the first Falcons are understood; what they leave out is false."""
    old = {"architectures": ["RWForCausalLM"], "vocab_size": 44, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    architecture = lookup({**old, **config})
    dims = architecture.dims({**old, **config})

    assert architecture.name == "falcon"
    assert dims.sizes["kv_heads"] == kv_heads
    assert [fact for fact in ("grouped", "multi_query", "two_norms", "alibi") if dims.facts[fact] is True] == facts


def test_mosaics_mpt_follows_its_config() -> None:
    """MosaicML's own class has the width, the heads and the biases that its config says."""
    config = {**raw("mpt"), "architectures": ["MPTForCausalLM"], "expansion_ratio": 2, "no_bias": False}
    config["attn_config"] = {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "alibi": True}
    dims = lookup(config).dims(config)

    assert (dims.sizes["ffn"], dims.sizes["kv_heads"], dims.facts["bias"]) == (64, 2, True)


def test_mbart_has_a_last_norm() -> None:
    """MBART is BART with a norm at the end of each stack."""
    config = transformers.MBartConfig(**models.FAMILIES["bart"].config)
    names = transformers.MBartForConditionalGeneration(config).state_dict()
    architecture, dims = described(config.to_dict())

    assert unclaimed(architecture, dims, names) == []
    assert expected_names(architecture, dims).keys() <= architecture.locate(names).keys()


def test_bart_of_unequal_stacks_is_refused() -> None:
    """One size serves both stacks, so two are refused."""
    with pytest.raises(UnsupportedError, match="decoder_ffn_dim: 40, with encoder_ffn_dim 36"):
        described({**raw("bart"), "decoder_ffn_dim": 40})


QWEN1 = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "vocab_size": 44,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "intermediate_size": 72,
}
"""Qwen 1 runs the checkpoint's own code, so there is no class to build it from."""
QWEN1_SHAPES = {
    "transformer.wte.weight": (44, 32),
    "transformer.ln_f.weight": (32,),
    "lm_head.weight": (44, 32),
} | {
    f"transformer.h.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "ln_1.weight": (32,),
        "ln_2.weight": (32,),
        "attn.c_attn.weight": (96, 32),
        "attn.c_attn.bias": (96,),
        "attn.c_proj.weight": (32, 32),
        "mlp.w1.weight": (36, 32),
        "mlp.w2.weight": (36, 32),
        "mlp.c_proj.weight": (32, 36),
    }.items()
}


def test_qwen_1_holds_what_its_published_code_makes() -> None:
    """Names and shapes are those of modeling_qwen.py, whose feed-forward halves are half of intermediate_size wide."""
    architecture = lookup(QWEN1)
    dims = architecture.dims(QWEN1)

    located = architecture.locate(QWEN1_SHAPES)

    expected = expected_names(architecture, dims)
    assert {located[name]: shape for name, shape in expected.items()} == QWEN1_SHAPES


def test_qwen_1_activates_its_second_matrix() -> None:
    """modeling_qwen.py computes w1(x) * silu(w2(x)), so w2 is the gate."""
    roles = {tensor.name: tensor.roles for tensor in lookup(QWEN1).tensors}

    assert roles["h.{layer}.mlp.w2.weight"] == ("mlp.gate.weight",)
    assert roles["h.{layer}.mlp.w1.weight"] == ("mlp.up.weight",)


@pytest.mark.parametrize(("family", "key"), KEYS)
def test_absent_key_is_named(family: str, key: str) -> None:
    """A config.json without a size that the tables need is refused, naming the key."""
    config = {name: value for name, value in raw(family).items() if name != key}

    with pytest.raises(CheckpointError) as caught:
        described(config)

    assert [(p.subject, p.found) for p in caught.value.problems] == [(f"config.json: {key}", "absent")]


@pytest.mark.parametrize("value", ["32", 32.5, None, True, [32]], ids=repr)
@pytest.mark.parametrize(("family", "key"), KEYS)
def test_ill_typed_key_is_named(family: str, key: str, value: object) -> None:
    """A config.json whose size is no integer is refused, naming the key."""
    with pytest.raises(CheckpointError) as caught:
        described({**raw(family), key: value})

    assert {problem.subject.split(".")[:2][-1] for problem in caught.value.problems} == {f"json: {key}"}


@pytest.mark.parametrize(("family", "key"), [("llama", "rope_theta"), ("gptneox", "rotary_emb_base")])
def test_ill_typed_rotary_base_is_refused(family: str, key: str) -> None:
    """A rotary base that is no number is refused."""
    with pytest.raises(CheckpointError, match=r"config\.json: rope_theta: 'x'; expected a number"):
        described({**raw(family), key: "x"})


def test_ill_typed_rotary_share_is_refused() -> None:
    """A share of rotated elements that is no number, where transformers 5 keeps it, is refused."""
    config = {name: value for name, value in raw("gptneox").items() if name != "rotary_pct"}

    with pytest.raises(CheckpointError, match="partial_rotary_factor"):
        described({**config, "rope_parameters": {"partial_rotary_factor": "x"}})


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "gptj", "gptneox", "llama", "bert"])
def test_heads_that_do_not_divide_are_refused(family: str) -> None:
    """A hidden size that is no multiple of the heads is refused in every family that derives the head's size."""
    config = raw(family)
    key = "n_head" if "n_head" in config else "num_attention_heads"

    with pytest.raises(CheckpointError, match="hidden size 32 with 5 heads"):
        described({**config, key: 5})


VOCABULARY = {
    *("embed.tokens", "embed.positions", "embed.types", "embed.norm", "embed.project_in", "embed.project_out"),
    *("norm", "head", "pooler", "attn.norm", "attn.q", "attn.k", "attn.v", "attn.o", "attn.relative"),
    *("cross.norm", "cross.q", "cross.k", "cross.v", "cross.o", "mlp.norm", "mlp.up", "mlp.gate", "mlp.down"),
    *("attn.q_norm", "attn.k_norm", "attn.post_norm", "mlp.post_norm", "router"),
    *("experts.up", "experts.gate", "experts.down", "shared.up", "shared.gate", "shared.down", "shared.switch"),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_roles_are_of_the_vocabulary(architecture: Architecture) -> None:
    """Every role of a table is one that all backends know, its stack in front and its kind behind."""
    roles = {role for tensor in architecture.tensors for role in tensor.roles}

    plain = {role.removeprefix("encoder.").removeprefix("decoder.") for role in roles}

    assert {role.rpartition(".")[0] for role in plain} <= VOCABULARY
    assert {role.rpartition(".")[2] for role in plain} <= {"weight", "bias"}


@pytest.mark.parametrize("family", models.FAMILIES)
def test_role_is_held_once_per_layer(family: str) -> None:
    """No two tensors of one model hold the same role of the same layer."""
    architecture, dims = described(raw(family))

    held = [(role, *place) for tensor, *place in architecture.expected(dims) for role in tensor.roles]

    assert len(set(held)) == len(held)


def total(weights: Mapping[str, torch.Tensor]) -> float:
    """A number that differs from one checkpoint to another."""
    return sum(float(tensor.double().sum()) for tensor in weights.values())


def test_factories_are_reproducible() -> None:
    """Two models of one seed hold the same numbers."""
    first, second = (models.build("llama").state_dict() for _ in range(2))

    assert total(first) == total(second)


def test_factories_differ_by_seed() -> None:
    """Models of two seeds hold different numbers."""
    first, second = (models.build("llama", seed=seed).state_dict() for seed in range(2))

    assert total(first) != total(second)


def test_factories_fill_norms_and_biases() -> None:
    """No parameter of a factory's model is left at zeros or ones."""
    states = [models.build(family).named_parameters() for family in models.FAMILIES]

    assert [name for state in states for name, parameter in state if parameter.unique().numel() < 2] == []


def test_tokenizer_fits_the_vocabulary(tmp_path: Path) -> None:
    """The ids of the tests' tokenizer are below the vocabulary's size."""
    models.save("llama", tmp_path)
    models.add_tokenizer(tmp_path)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)

    assert max(tokenizer("a b z 0 9 unheard").input_ids) < models.VOCAB
