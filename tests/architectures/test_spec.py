"""The vocabulary of roles: shapes from axes, names with and without prefix, and config.json read strictly."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from llmcompile.architectures.qwen2_moe import dense_layers
from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    HFConfig,
    Tensor,
    chosen,
    fused,
    linear,
    norm,
    number,
    per_head,
    read_config,
    rope,
)
from llmcompile.errors import CheckpointError

DIMS = Dims(
    sizes={"hidden": 24, "heads": 4, "head_dim": 6, "ffn": 28, "vocab": 44, "positions": 20, "layers": 2, "deep": 3},
    facts={"gated": True, "tied": False},
)


def family(*tensors: Tensor, prefixes: tuple[str, ...] = (), ignored: dict[str, str] | None = None) -> Architecture:
    """An architecture of those tensors."""
    return Architecture(
        name="tiny",
        classes=("TinyModel",),
        model_types=("tiny",),
        prefixes=prefixes,
        tensors=tensors,
        dims=lambda _: DIMS,
        ignored=MappingProxyType(ignored or {}),
    )


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        (Tensor(("mlp.up.weight",), "up.weight", "ffn", "hidden"), (28, 24)),
        (Tensor(("mlp.up.weight",), "up.weight", "ffn", "hidden", in_first=True), (24, 28)),
        (Tensor(("mlp.up.bias",), "up.bias", "ffn"), (28,)),
        (Tensor(("attn.q.weight",), "q.weight", "heads head_dim", "hidden"), (24, 24)),
        (Tensor(("attn.o.weight",), "o.weight", "hidden", "heads head_dim", in_first=True), (24, 24)),
        (Tensor(("a", "b", "c"), "qkv.weight", "part heads head_dim", "hidden"), (72, 24)),
        (Tensor(("a", "b", "c"), "qkv.weight", "part heads head_dim", "hidden", in_first=True), (24, 72)),
        (Tensor(("embed.positions.weight",), "positions.weight", "positions", "hidden", skip_rows=2), (22, 24)),
    ],
    ids=["linear", "conv1d", "bias", "heads", "from heads", "fused", "fused conv1d", "padded"],
)
def test_shape_follows_from_the_axes(tensor: Tensor, shape: tuple[int, ...]) -> None:
    """A tensor's stored shape is the product of each side's axes, in stored order, plus rows without data."""
    assert tensor.stored_shape(DIMS) == shape


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (Tensor(("a",), "q.weight", "heads head_dim", "hidden"), "heads 4 x head_dim 6, hidden 24"),
        (Tensor(("a", "b"), "kv.bias", "part heads head_dim"), "part 2 x heads 4 x head_dim 6"),
        (Tensor(("a",), "p.weight", "positions", "hidden", skip_rows=2), "positions 20 + 2, hidden 24"),
    ],
    ids=["heads", "fused", "padded"],
)
def test_arithmetic_is_spelt_out(tensor: Tensor, text: str) -> None:
    """The text behind an expected shape names every axis with its size."""
    assert tensor.arithmetic(DIMS) == text


@pytest.mark.parametrize(
    ("when", "exists"), [("", True), ("gated", True), ("!gated", False), ("tied", False), ("!tied", True)]
)
def test_tensor_exists_when_its_fact_holds(when: str, exists: bool) -> None:
    """A tensor with a condition is part of those models only whose facts meet it."""
    assert Tensor(("a",), "a.weight", "hidden", when=when).exists(DIMS) is exists


def test_tensor_is_expected_in_every_layer() -> None:
    """A name with {layer} is expected once per layer, one without once."""
    tiny = family(Tensor(("a",), "h.{layer}.a", "hidden"), Tensor(("b",), "b", "hidden"))

    found = [(tensor.name, layer) for tensor, layer, _ in tiny.expected(DIMS)]

    assert found == [("h.{layer}.a", 0), ("h.{layer}.a", 1), ("b", None)]


def test_layers_are_counted_by_the_repeat() -> None:
    """A stack with a layer count of its own is expected that often."""
    tiny = family(Tensor(("a",), "h.{layer}.a", "hidden", repeat="deep"))

    found = [layer for _, layer, _ in tiny.expected(DIMS)]

    assert found == [0, 1, 2]


def test_absent_tensor_is_not_expected() -> None:
    """A tensor whose condition does not hold is not expected."""
    tiny = family(Tensor(("a",), "h.{layer}.a", "hidden", when="tied"))

    assert list(tiny.expected(DIMS)) == []


@pytest.mark.parametrize("name", ["h.11.a", "transformer.h.11.a"])
def test_name_is_located_with_and_without_prefix(name: str) -> None:
    """A checkpoint's name maps to the canonical one whether or not it carries the family's prefix."""
    tiny = family(Tensor(("a",), "h.{layer}.a", "hidden"), prefixes=("transformer.",))

    assert dict(tiny.locate([name])) == {"h.11.a": name}


def test_longest_prefix_is_tried_first() -> None:
    """Of two prefixes that fit, the one listed first is taken off."""
    tiny = family(Tensor(("a",), "a", "hidden"), prefixes=("model.decoder.", "model."))

    assert dict(tiny.locate(["model.decoder.a"])) == {"a": "model.decoder.a"}


def test_legacy_name_is_located() -> None:
    """An older spelling stands for today's."""
    tiny = family(Tensor(("a",), "h.{layer}.norm.weight", "hidden", legacy=("h.{layer}.norm.gamma",)))

    assert dict(tiny.locate(["h.3.norm.gamma"])) == {"h.3.norm.weight": "h.3.norm.gamma"}


@pytest.mark.parametrize("names", [("norm.gamma", "norm.weight"), ("norm.weight", "norm.gamma")])
def test_current_name_wins_over_a_legacy_one(names: tuple[str, str]) -> None:
    """Where both spellings are present, today's is read, in whatever order they come."""
    tiny = family(Tensor(("a",), "norm.weight", "hidden", legacy=("norm.gamma",)))

    assert tiny.locate(names)["norm.weight"] == "norm.weight"


def test_name_beside_its_place_maps_from_itself() -> None:
    """A legacy name whose place is taken stays findable under its own name."""
    tiny = family(Tensor(("a",), "norm.weight", "hidden", legacy=("norm.gamma",)))

    assert tiny.locate(["norm.weight", "norm.gamma"])["norm.gamma"] == "norm.gamma"


@pytest.mark.parametrize("name", ["h.01.a", "h.-1.a", "h.x.a", "h.1.a.b", "xh.1.a", "h.1xa", "h.٣.a", "h.1.a\n"])
def test_other_names_are_not_located(name: str) -> None:
    """A name that differs from the pattern, if only by a leading zero, is nobody's tensor."""
    tiny = family(Tensor(("a",), "h.{layer}.a", "hidden"), prefixes=("transformer.",))

    assert dict(tiny.locate([f"transformer.{name}"])) == {f"transformer.{name}": f"transformer.{name}"}


@pytest.mark.parametrize("name", ["h.0.attn.bias", "transformer.h.0.attn.bias"])
def test_ignored_tensor_has_a_reason(name: str) -> None:
    """A tensor that is never read is told why, with and without prefix."""
    tiny = family(prefixes=("transformer.",), ignored={"h.*.attn.bias": "a mask"})

    assert tiny.why_ignored(name) == "a mask"


@pytest.mark.parametrize("name", ["h.0.attn.bias2", "H.0.attn.bias", "other.h.0.attn.bias"])
def test_unknown_tensor_has_no_reason(name: str) -> None:
    """A tensor that matches no pattern to the letter has no reason to be ignored."""
    tiny = family(prefixes=("transformer.",), ignored={"h.*.attn.bias": "a mask"})

    assert tiny.why_ignored(name) is None


def test_linear_is_a_weight_and_a_bias() -> None:
    """A linear layer is its weight, out by in, and its bias, out."""
    weight, bias = linear("mlp.up", "fc1", "ffn", "hidden")

    assert (weight.roles, weight.name, weight.stored_shape(DIMS)) == (("mlp.up.weight",), "fc1.weight", (28, 24))
    assert (bias.roles, bias.name, bias.stored_shape(DIMS)) == (("mlp.up.bias",), "fc1.bias", (28,))


def test_linear_without_bias_is_its_weight() -> None:
    """A linear layer without bias is one tensor."""
    tensors = linear("mlp.up", "fc1", "ffn", "hidden", bias=False)

    assert [tensor.name for tensor in tensors] == ["fc1.weight"]


def test_fused_holds_its_roles_in_weight_and_bias() -> None:
    """A fused layer's weight and bias hold the roles in the order given."""
    weight, bias = fused(("attn.q", "attn.k"), "qk", "part heads head_dim", "hidden")

    assert (weight.roles, bias.roles) == (("attn.q.weight", "attn.k.weight"), ("attn.q.bias", "attn.k.bias"))


def test_norm_knows_the_names_of_tensorflow() -> None:
    """A norm that TensorFlow may have written answers to gamma and beta as well."""
    tensors = norm("norm", "LayerNorm", legacy=True)

    assert [(t.name, t.legacy) for t in tensors] == [
        ("LayerNorm.weight", ("LayerNorm.gamma",)),
        ("LayerNorm.bias", ("LayerNorm.beta",)),
    ]


def test_norm_without_bias_is_its_weight() -> None:
    """An RMSNorm is one tensor."""
    tensors = norm("norm", "norm", bias=False)

    assert [tensor.name for tensor in tensors] == ["norm.weight"]


class Config(HFConfig):
    """A config with one key of each kind."""

    size: int
    rate: float = 1.0
    flag: bool = False


def test_every_wrong_key_is_named_at_once() -> None:
    """An absent key and an ill-typed one make two problems of one error."""
    with pytest.raises(CheckpointError) as caught:
        read_config(Config, {"flag": "yes"})

    found = [(problem.subject, problem.found) for problem in caught.value.problems]
    assert found == [("config.json: size", "absent"), ("config.json: flag", "'yes'")]


@pytest.mark.parametrize("value", ["32", 32.5, 32.0, None, True, [32], {}])
def test_size_is_an_integer(value: object) -> None:
    """Nothing but an integer is taken for a size, not even what Python would convert."""
    with pytest.raises(CheckpointError, match=r"config\.json: size"):
        read_config(Config, {"size": value})


@pytest.mark.parametrize("value", ["1", None, True, []])
def test_rate_is_a_number(value: object) -> None:
    """Nothing but a number is taken for a rate."""
    with pytest.raises(CheckpointError, match=r"config\.json: rate"):
        read_config(Config, {"size": 1, "rate": value})


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_flag_is_a_boolean(value: object) -> None:
    """Nothing but true and false is taken for a flag."""
    with pytest.raises(CheckpointError, match=r"config\.json: flag"):
        read_config(Config, {"size": 1, "flag": value})


def test_integer_is_a_number() -> None:
    """JSON's 1 will do for 1.0."""
    assert read_config(Config, {"size": 1, "rate": 1}).rate == 1.0


def test_other_keys_are_other_peoples() -> None:
    """Keys that the family does not know are passed over."""
    assert read_config(Config, {"size": 1, "torch_dtype": "float16"}).size == 1


def test_message_for_a_long_value_is_short() -> None:
    """A value of a million characters is not repeated in full."""
    with pytest.raises(CheckpointError) as caught:
        read_config(Config, {"size": "9" * 1_000_000})

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("end", "expected"), [(2, 2), ([7, 8], 7), (None, None), ([], None)], ids=["one", "several", "none", "empty"]
)
def test_end_token_is_the_first(end: object, expected: int | None) -> None:
    """Of several end tokens the first is taken, for the runtimes know one."""
    config = read_config(HFConfig, {"bos_token_id": 1, "eos_token_id": end})

    assert config.start_and_end() == {"start_id": 1, "end_id": expected}


def test_head_is_its_share_of_the_hidden_size() -> None:
    """24 elements in 4 heads are 6 per head."""
    assert per_head(24, 4) == 6


@pytest.mark.parametrize("heads", [5, 0, -4])
def test_heads_that_do_not_divide_are_refused(heads: int) -> None:
    """A hidden size that is no multiple of the heads is refused with both numbers."""
    with pytest.raises(CheckpointError, match=f"hidden size 24 with {heads} heads"):
        per_head(24, heads)


@pytest.mark.parametrize(
    ("config", "base", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 500000}, 500000.0, None),
        ({"rotary_emb_base": 20000}, 20000.0, None),
        ({"rope_scaling": None}, 10000.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 10000.0, "linear"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            10000.0,
            "llama3",
        ),
        ({"rope_scaling": {"rope_type": "default"}}, 10000.0, None),
        ({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, 500000.0, None),
        ({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "yarn"}}, 500000.0, "yarn"),
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 500000.0}}, 500000.0, None),
    ],
)
def test_rotary_facts_are_read_in_every_spelling(config: dict[str, Any], base: float, scaling: str | None) -> None:
    """Base and scaling of the rotary embedding are found where transformers 4 and 5 keep them."""
    facts = rope(config, base=10000.0)

    assert (facts["rotary_base"], facts["rope_scaling"]) == (base, scaling)


@pytest.mark.parametrize("value", ["10000", None, True, [], float("inf"), float("nan")])
def test_rotary_base_is_a_number(value: object) -> None:
    """A rope_theta that is no finite number is refused by name."""
    with pytest.raises(CheckpointError, match=r"config\.json: rope_theta"):
        rope({"rope_theta": value}, base=10000.0)


@pytest.mark.parametrize("value", [0, 0.0, -1.0])
def test_rotary_base_is_above_zero(value: float) -> None:
    """No power of 0 or of a negative number is a frequency."""
    with pytest.raises(CheckpointError, match=r"config\.json: rope_theta: .*; expected a number above 0"):
        rope({"rope_theta": value}, base=10000.0)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"rope_scaling": [1, 2]}, "rope_scaling"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": float("nan")}}, "rope_scaling.factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, "rope_scaling.factor"),
        ({"rope_scaling": {**LLAMA3, "factor": "x"}}, "rope_scaling.factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "rope_scaling.low_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "rope_scaling.high_freq_factor"),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 10**400}},
            "rope_scaling.original_max_position_embeddings",
        ),
    ],
)
def test_scaling_that_cannot_be_computed_is_refused(config: dict[str, Any], key: str) -> None:
    """What is no object, or lacks a number above 0 that its kind computes with, is refused by name."""
    with pytest.raises(CheckpointError) as caught:
        rope(config, base=10000.0)

    (problem,) = caught.value.problems
    assert problem.subject == f"config.json: {key}"


class Tiny(HFConfig):
    """A config of one size and two numbers."""

    hidden_size: int = 1
    rms_norm_eps: Epsilon = 1e-6
    softcap: float = 1.0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rms_norm_eps": 0.0}, "rms_norm_eps: 0.0; expected greater than 0"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps: -1e-05; expected greater than 0"),
        ({"softcap": float("inf")}, "softcap: inf; expected a finite number"),
        ({"softcap": float("nan")}, "softcap: nan; expected a finite number"),
        ({"hidden_size": 10**400}, "hidden_size: 1000"),
        ({"hidden_size": 2**40 + 1}, "hidden_size: 1099511627777; expected -1099511627776 to 1099511627776"),
    ],
)
def test_absurd_numbers_of_a_config_are_refused(config: dict[str, Any], expected: str) -> None:
    """Epsilons are above 0, floats finite, and whole numbers small enough to compute with."""
    with pytest.raises(CheckpointError) as caught:
        read_config(Tiny, config, file="params.json")

    assert str(caught.value).startswith(f"params.json: {expected}")


@pytest.mark.parametrize("per_token", [0, -1, 9])
def test_experts_that_are_not_there_cannot_be_chosen(per_token: int) -> None:
    """A token is sent to one expert at least, and to all at most."""
    with pytest.raises(CheckpointError, match=f"num_experts_per_tok: {per_token} of 8 experts; expected 1 to 8"):
        chosen(per_token, 8)


@pytest.mark.parametrize(
    ("layers", "step", "named"), [(7, 2, [0, 1, 5, 5, 9]), (4, 1, None), (6, 3, []), (5, 1, [-1, 4])]
)
def test_layers_without_experts_are_counted(layers: int, step: int, named: list[int] | None) -> None:
    """Those that are named, and those between every so many: as transformers decides it layer by layer."""
    expected = sum(layer in ([] if named is None else named) or (layer + 1) % step != 0 for layer in range(layers))

    assert dense_layers(layers, step, named) == expected


def test_absurdly_many_layers_are_counted_at_once() -> None:
    """Nothing loops over a number of layers that no checkpoint has been held against."""
    assert dense_layers(10**12, 2, [0, 1]) == 10**12 // 2 + 1


def test_number_is_a_float() -> None:
    """An integer of config.json becomes a float."""
    assert repr(number("rope_theta", 10000)) == "10000.0"
