"""A checkpoint's family is found by its class, and an unknown one is refused with names that are near."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from llmcompile.architectures import ARCHITECTURES, lookup
from llmcompile.errors import UnsupportedError


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("GPT2LMHeadModel", "gpt2"),
        ("GPT2Model", "gpt2"),
        ("OPTForCausalLM", "opt"),
        ("OPTModel", "opt"),
        ("BloomForCausalLM", "bloom"),
        ("BloomModel", "bloom"),
        ("GPTJForCausalLM", "gptj"),
        ("GPTNeoXForCausalLM", "gptneox"),
        ("LlamaForCausalLM", "llama"),
        ("LlamaModel", "llama"),
        ("T5ForConditionalGeneration", "t5"),
        ("T5EncoderModel", "t5"),
        ("MT5ForConditionalGeneration", "t5"),
        ("BertModel", "bert"),
        ("BertForMaskedLM", "bert"),
        ("BertForSequenceClassification", "bert"),
        ("GPTBigCodeForCausalLM", "gpt_bigcode"),
        ("Starcoder2ForCausalLM", "starcoder2"),
        ("FalconForCausalLM", "falcon"),
        ("RWForCausalLM", "falcon"),
        ("MptForCausalLM", "mpt"),
        ("MPTForCausalLM", "mpt"),
        ("BartForConditionalGeneration", "bart"),
        ("MBartForConditionalGeneration", "bart"),
    ],
)
def test_class_has_its_family(name: str, family: str) -> None:
    """Each class that transformers writes to config.json belongs to one family."""
    assert lookup({"architectures": [name]}).name == family


@pytest.mark.parametrize(
    ("model_type", "family"),
    [
        ("gpt2", "gpt2"),
        ("opt", "opt"),
        ("bloom", "bloom"),
        ("gptj", "gptj"),
        ("gpt_neox", "gptneox"),
        ("llama", "llama"),
        ("t5", "t5"),
        ("mt5", "t5"),
        ("bert", "bert"),
    ],
)
@pytest.mark.parametrize("architectures", [{}, {"architectures": None}, {"architectures": []}])
def test_model_type_stands_in_for_the_class(model_type: str, family: str, architectures: dict[str, Any]) -> None:
    """Where config.json names no class, `model_type` tells the family."""
    assert lookup({"model_type": model_type, **architectures}).name == family


def test_class_wins_over_model_type() -> None:
    """A class that is not known is refused even where `model_type` is."""
    with pytest.raises(UnsupportedError, match="GPT2DoubleHeadsModel"):
        lookup({"architectures": ["GPT2DoubleHeadsModel"], "model_type": "gpt2"})


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("LLaMAForCausalLM", "LlamaForCausalLM"),
        ("GPTNeoForCausalLM", "GPTNeoXForCausalLM"),
        ("BertLMHeadModel", "BertModel"),
    ],
)
def test_unknown_class_is_refused_with_near_names(name: str, near: str) -> None:
    """The refusal of a class suggests those that are spelt nearly so."""
    with pytest.raises(UnsupportedError) as caught:
        lookup({"architectures": [name]})

    assert near in caught.value.problems[0].hint


def test_unknown_class_is_refused_with_all_families() -> None:
    """The refusal of a class lists every family there is."""
    with pytest.raises(UnsupportedError) as caught:
        lookup({"architectures": ["FooModel"]})

    assert all(family.name in str(caught.value) for family in ARCHITECTURES)


def test_class_like_no_other_is_refused_with_where_to_look() -> None:
    """A class that is near to none is sent to the list of families."""
    with pytest.raises(UnsupportedError) as caught:
        lookup({"architectures": ["Qqq"]})

    assert "README.md" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "mamba"},
        {"model_type": None},
        {"model_type": 3},
        {"architectures": [None]},
        {"architectures": [["x"]]},
        {"architectures": "GPT2LMHeadModel"},
    ],
)
def test_config_that_names_nothing_known_is_refused(config: dict[str, Any]) -> None:
    """A config.json without a class or a type that is known, or with neither, is refused."""
    with pytest.raises(UnsupportedError, match=r"config\.json"):
        lookup(config)


@pytest.mark.parametrize(
    ("quantization", "method"),
    [({"quant_method": "gptq", "bits": 4}, "gptq"), ({"bits": 8}, "unnamed"), ("awq", "awq"), ({}, "unnamed")],
)
def test_quantized_checkpoint_is_refused(quantization: object, method: str) -> None:
    """A checkpoint with a quantization_config is refused, naming the method."""
    with pytest.raises(UnsupportedError, match=f"quantization_config: a checkpoint quantized with {method}"):
        lookup({"architectures": ["LlamaForCausalLM"], "quantization_config": quantization})


def test_null_quantization_is_none() -> None:
    """A quantization_config of null means that there is none."""
    assert lookup({"architectures": ["LlamaForCausalLM"], "quantization_config": None}).name == "llama"


def test_names_of_families_are_unique() -> None:
    """No two families share a name."""
    names = [family.name for family in ARCHITECTURES]

    assert len(set(names)) == len(names)


def test_classes_are_in_one_family_each() -> None:
    """No class belongs to two families."""
    names = [name for family in ARCHITECTURES for name in family.classes]

    assert len(set(names)) == len(names)


def test_model_types_are_in_one_family_each() -> None:
    """No model type belongs to two families."""
    names = [name for family in ARCHITECTURES for name in family.model_types]

    assert len(set(names)) == len(names)


ELSEWHERE = {
    "T5WithLMHeadModel": "a class of transformers until it was renamed",
    "QWenLMHeadModel": "a class the checkpoint carries",
    "RWForCausalLM": "a class the first checkpoints of Falcon carry",
    "RWModel": "a class the first checkpoints of Falcon carry",
    "MetaLlama": "our name for Meta's own files, which have no class",
    "MPTForCausalLM": "a class of llm-foundry, which the first checkpoints carry",
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
@pytest.mark.parametrize("name", [name for family in ARCHITECTURES for name in family.classes])
def test_class_is_one_of_transformers(name: str) -> None:
    """Every class we answer to is one of transformers, but for a few with a reason."""
    assert name in ELSEWHERE or hasattr(transformers, name)


def test_bias_behind_barts_head_must_be_zeros() -> None:
    """It is ignored for being zeros, so that must be looked at, whatever the prefix."""
    assumed = lookup({"architectures": ["BartForConditionalGeneration"]}).assumption("final_logits_bias")

    assert assumed is not None
    assert (assumed.group, assumed.content) == (0, "zeros, since the artifact has no bias behind the head")
