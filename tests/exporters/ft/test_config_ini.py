"""config.ini is the vendor's text, but for what the vendor leaves to wrong defaults."""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import pytest

from llmcompile.architectures import lookup
from llmcompile.dtypes import BY_NAME
from llmcompile.exporters.ft.layout import make_layout
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.options import BuildOptions

GOLDEN = Path(__file__).parents[2] / "golden" / "ft"
EXPECTATIONS = sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.glob("*/expected-*.json"))
T5_READ = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_max_distance",
    "feed_forward_proj",
    "is_gated_act",
    "tie_word_embeddings",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "weight_data_type",
    "relative_attention_num_buckets_or_max_pos_seq_len",
    "_name_or_path",
)
"""Keys of T5's sections that the loader, the Triton backend or the examples read; section 5 of the specification."""


def expectation(name: str) -> dict[str, Any]:
    """What the vendor's converter made."""
    value: dict[str, Any] = json.loads((GOLDEN / name).read_bytes())
    return value


def config_ini(config: dict[str, Any], *, tp: int = 2, dtype: str = "fp16", label: str = "hf", **options: Any) -> str:
    """The text llmcompile writes for a config.json."""
    architecture = lookup(config)
    asked = FtOptions(build=BuildOptions(model="hf", output=Path("out")), tp=tp, dtype=dtype, **options)
    layout = make_layout(architecture, architecture.dims(config), asked, source_dtype=BY_NAME[dtype], model_label=label)
    return layout.texts["config.ini"]


def ours(name: str) -> str:
    """The text llmcompile writes where the vendor's converter wrote the expectation's."""
    golden = expectation(name)
    folder = (GOLDEN / name).parent / "hf"
    return config_ini(
        json.loads((folder / "config.json").read_bytes()),
        tp=golden["tensor_parallel"],
        dtype=golden["weight_data_type"],
        act_scales=folder / "act_scales.json" if "-act_scale" in golden["command"] else None,
    )


def hf(variant: str, **changes: Any) -> dict[str, Any]:
    """config.json of a golden variant, with some keys changed."""
    config: dict[str, Any] = json.loads((GOLDEN / variant / "hf" / "config.json").read_bytes())
    return config | changes


def parsed(text: str) -> configparser.ConfigParser:
    """The text as an INI reader sees it, values as they are."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.read_string(text)
    return parser


def entry(text: str, key: str) -> str | None:
    """A key of the only section, or None."""
    parser = parsed(text)
    (section,) = parser.sections()
    return parser[section].get(key)


@pytest.mark.parametrize("name", [name for name in EXPECTATIONS if "t5" not in name and "gpt2" not in name])
def test_text_equals_the_vendors(name: str) -> None:
    """Section, keys, order, spaces and blank lines are the vendor's bytes."""
    assert ours(name) == expectation(name)["config_ini"]


@pytest.mark.parametrize("name", [name for name in EXPECTATIONS if "gpt2" in name])
def test_gpt2s_text_is_the_vendors_and_the_epsilon(name: str) -> None:
    """One line is added, since the loader would take 1e-06 where GPT-2 has 1e-05."""
    vendors = expectation(name)["config_ini"]

    assert ours(name) == vendors.removesuffix("\n") + "layernorm_eps = 1e-05\n\n"


@pytest.mark.parametrize("section", ["encoder", "decoder"])
@pytest.mark.parametrize("name", [name for name in EXPECTATIONS if "t5" in name])
def test_t5_has_every_key_that_is_read_with_the_vendors_value(name: str, section: str) -> None:
    """Of the dump of the config object, the keys somebody reads are there and equal."""
    vendors = parsed(expectation(name)["config_ini"])[section]
    found = parsed(ours(name))[section]

    expected = {key: vendors[key] for key in T5_READ if key in vendors}
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", [name for name in EXPECTATIONS if "t5" in name])
def test_t5s_structure_equals_the_vendors(name: str) -> None:
    """The section about biases, gates and position embeddings has the vendor's keys and values."""
    vendors = parsed(expectation(name)["config_ini"])

    assert dict(parsed(ours(name))["structure"]) == dict(vendors["structure"])


@pytest.mark.parametrize("name", [name for name in EXPECTATIONS if "t5" in name])
def test_t5_has_no_key_the_vendor_does_not_write(name: str) -> None:
    """Nothing is added to T5's sections."""
    vendors, found = parsed(expectation(name)["config_ini"]), parsed(ours(name))

    for section in ("encoder", "decoder"):
        assert set(found[section]) <= set(vendors[section])


def test_t5_encoder_only_has_an_empty_decoder_section() -> None:
    """The vendor's --encoder_only leaves the section without keys."""
    text = config_ini(hf("t5-a"), encoder_only=True)

    assert parsed(text).sections() == ["encoder", "decoder", "structure"]
    assert dict(parsed(text)["decoder"]) == {}


@pytest.mark.parametrize("variant", ["gpt2-a", "gptj-a"])
def test_inter_size_is_the_models_own(variant: str) -> None:
    """The loader reads as many bytes as inter_size says, so it is n_inner and not always four times n_embd."""
    assert entry(config_ini(hf(variant, n_inner=96)), "inter_size") == "96"


@pytest.mark.parametrize(("activation", "expected"), [("relu", "Relu"), ("gelu_new", None), ("gelu", None)])
def test_gpt2s_activation_is_written_where_the_loaders_default_is_wrong(activation: str, expected: str | None) -> None:
    """The loader takes Gelu where nothing is written."""
    assert entry(config_ini(hf("gpt2-a", activation_function=activation)), "activation_type") == expected


@pytest.mark.parametrize(("activation", "expected"), [("relu", "Relu"), ("gelu", "Gelu")])
def test_opts_activation_is_the_models_own(activation: str, expected: str) -> None:
    """Galactica, an OPT with GELU, is not written as Relu."""
    assert entry(config_ini(hf("opt-a", activation_function=activation)), "activation_type") == expected


def test_gptjs_rotary_embedding_is_a_number_where_config_json_has_none() -> None:
    """With rotary_dim null the whole head is rotated, where the vendor's converter writes "None"."""
    assert entry(config_ini(hf("gptj-a", rotary_dim=None)), "rotary_embedding") == "8"


@pytest.mark.parametrize("grouped", [True, False])
def test_llamas_kv_heads_are_written_only_with_grouped_queries(grouped: bool) -> None:
    """kv_head_num is a key of the fork that knows grouped-query attention."""
    text = config_ini(hf("llama-gqa-a" if grouped else "llama-a"))

    assert entry(text, "kv_head_num") == ("4" if grouped else None)


@pytest.mark.parametrize(("sequential", "expected"), [(False, "1"), (True, "0")])
def test_gptneoxs_residual_is_written(sequential: bool, expected: str) -> None:
    """use_gptj_residual says whether attention and feed-forward are parallel."""
    text = config_ini(hf("gptneox-a", use_parallel_residual=not sequential))

    assert entry(text, "use_gptj_residual") == expected


def test_the_first_of_several_end_tokens_is_written() -> None:
    """The runtime knows one end token; a list's first is it."""
    assert entry(config_ini(hf("llama-a", eos_token_id=[7, 9])), "end_id") == "7"


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("variant", ["bert-a", "bloom-a", "gpt2-a", "gptj-a", "llama-a", "opt-a"])
def test_the_element_type_is_written(variant: str, dtype: str) -> None:
    """weight_data_type is what the loader takes the files' bytes for."""
    assert entry(config_ini(hf(variant), dtype=dtype), "weight_data_type") == dtype


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_t5s_element_type_is_written_for_both_stacks(dtype: str) -> None:
    """Encoder and decoder each have their own weight_data_type."""
    found = parsed(config_ini(hf("t5-a"), dtype=dtype))

    assert [found[section]["weight_data_type"] for section in ("encoder", "decoder")] == [dtype, dtype]


NAMED = ["bloom-a", "bert-a", "gpt2-a", "gptj-a", "gptneox-a", "llama-a", "opt-a"]


@pytest.mark.parametrize("variant", NAMED)
def test_a_given_model_name_is_written(variant: str) -> None:
    """--model-name goes before whatever the converter would take."""
    assert entry(config_ini(hf(variant), model_name="50% mine"), "model_name") == "50% mine"


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("gpt2-a", "org/model"),
        ("opt-a", "org/model"),
        ("bloom-a", "from-config"),
        ("gptj-a", "from-config"),
        ("gptneox-a", "gptneox"),
        ("llama-a", "llama"),
        ("bert-a", "bert"),
    ],
)
def test_a_model_name_comes_from_where_the_converter_takes_it(variant: str, expected: str) -> None:
    """The path it was given, config.json's _name_or_path, the model type, or a fixed name."""
    text = config_ini(hf(variant, _name_or_path="from-config"), label="org/model")

    assert entry(text, "model_name") == expected


@pytest.mark.parametrize(("variant", "expected"), [("gpt2-a", "gpt"), ("opt-a", "opt"), ("gptj-a", "gptj")])
def test_an_empty_model_name_is_the_familys(variant: str, expected: str) -> None:
    """Where there is nothing to call the model by, the converter's own default is written."""
    assert entry(config_ini(hf(variant, _name_or_path=""), label=""), "model_name") == expected


@pytest.mark.parametrize("variant", ["bloom-a", "gptj-a"])
def test_a_line_break_in_a_strangers_config_adds_no_line(variant: str) -> None:
    """A name with line breaks cannot smuggle a key of its own into config.ini."""
    plain = config_ini(hf(variant, _name_or_path="evil"))

    text = config_ini(hf(variant, _name_or_path="evil\nhead_num = 99\r\n[gpt]\n"))

    assert text.count("\n") == plain.count("\n")
    assert entry(text, "head_num") == "4"


@pytest.mark.parametrize("variant", ["gpt2-a", "t5-a", "bloom-a"])
def test_no_line_is_longer_than_the_reader_takes(variant: str) -> None:
    """FasterTransformer cuts lines at 200 bytes, also in the middle of a name of two-byte characters."""
    text = config_ini(hf(variant, _name_or_path="é" * 300), label="é" * 300)

    assert max(len(line.encode()) for line in text.splitlines()) < 200
