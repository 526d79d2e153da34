"""Modelopt's figures of a layer by itself are those it gives of the whole model, and agree with our own."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from llmcompile.architectures import lookup
from llmcompile.calibration import modelopt
from llmcompile.calibration.layers import Layers
from llmcompile.calibration.measuring import LayerRanges, Places, measure_layer
from llmcompile.errors import CheckpointError, ToolchainError
from llmcompile.ranges import GROUP_OF, Measurement
from llmcompile.validation.checks import StoredWeights

installed = pytest.mark.skipif(find_spec("modelopt") is None, reason="nvidia-modelopt is not installed")

FAMILIES: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "llama_gqa": (
        "model.layers",
        {
            "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attn.o": ("self_attn.o_proj",),
            "mlp.in": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down": ("mlp.down_proj",),
        },
    ),
    "gpt2": (
        "transformer.h",
        {
            "attn.qkv": ("attn.c_attn",),
            "attn.o": ("attn.c_proj",),
            "mlp.in": ("mlp.c_fc",),
            "mlp.down": ("mlp.c_proj",),
        },
    ),
    "falcon_7b": (
        "transformer.h",
        {
            "attn.qkv": ("self_attention.query_key_value",),
            "attn.o": ("self_attention.dense",),
            "mlp.in": ("mlp.dense_h_to_4h",),
            "mlp.down": ("mlp.dense_4h_to_h",),
        },
    ),
}
"""Family -> where transformers has its layers, and their linear layers: one with three and two that are fused, one
whose matrices lie (in, out), one with a class of its own."""
WIDTHS = ("n_embd", "n_inner", "hidden_size", "intermediate_size", "ffn_hidden_size")
MEASUREMENTS = {
    "fp8": Measurement(cache=True),
    "nvfp4": Measurement(cache=True),
    "int8_sq": Measurement(columns="smooth", cache=True),
    "int4_awq": Measurement(columns="search", group_size=16),
    "w4a8_awq": Measurement(columns="search", group_size=16),
}
TOKENS = torch.arange(4 * 12).reshape(4, 12) * 5 % models.VOCAB


def sizes(family: str) -> dict[str, int]:
    """Sizes that groups of 16 divide."""
    return {key: 64 for key in WIDTHS if key in models.FAMILIES[family].config}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`folder(family)` is a checkpoint, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = models.save(family, tmp_path_factory.mktemp("model"), config=sizes(family))
        return made[family]

    return make


def measured(
    folder: Path, recipe: str, *, theirs: bool, batches: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[list[LayerRanges], list[Tensor]]:
    """Both layers by modelopt or by us, and the hidden states behind the last."""
    weights = StoredWeights([folder / "model.safetensors"])
    layers = Layers(folder, weights)
    architecture = lookup(json.loads((folder / "config.json").read_text()))
    located = architecture.locate(weights.names())
    groups: dict[str, str] = {}
    for tensor in architecture.tensors:
        group = GROUP_OF.get(tensor.roles[0].removesuffix(".weight"))
        if group is not None and tensor.roles[0].endswith(".weight"):
            groups |= {located[name]: group for layer in (0, 1) if (name := tensor.name_at(layer, None)) in located}
    states = [layers.embed(batch) for batch in torch.chunk(TOKENS, batches)]
    found = []
    places = Places(groups, cached=[name for name, group in groups.items() if group == "attn.qkv"])
    arguments: dict[str, Any] = {"weights": weights, "places": places, "measurement": MEASUREMENTS[recipe]}
    for layer in (0, 1):
        after: list[Tensor] = []
        more = {"dtype": dtype, "done": after.append, **arguments}
        if theirs:
            found.append(modelopt.measure_layer(layers, layer, iter(states), recipe=recipe, samples=4, **more))
            assert len(list(layers.modules[layer].parameters())) == 0
        else:
            found.append(measure_layer(layers, layer, states, total_tokens=48, **more))
        states = after
    return found, states


def whole(family: str, recipe: str) -> Iterator[tuple[int, str, list[Any]]]:
    """Layer, group and quantized linear layers of the whole model that modelopt was given."""
    model, (prefix, table) = models.build(family, config=sizes(family)), FAMILIES[family]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from modelopt.torch import quantization

        config = copy.deepcopy(getattr(quantization, modelopt.PRESETS[recipe]))
        if recipe == "int8_sq":
            config["algorithm"] = {"method": "smoothquant", "alpha": 0.5}
        for entry in config["quant_cfg"]:
            for part in entry["cfg"] if isinstance(entry.get("cfg"), list) else [entry.get("cfg")]:
                if part is not None and part.get("block_sizes", {}).get("type") == "static":
                    part["block_sizes"][-1] = 16
        quantization.quantize(model, config, lambda quantized: quantized(TOKENS))
    for layer in (0, 1):
        for group, names in table.items():
            yield layer, group, [model.get_submodule(f"{prefix}.{layer}.{name}") for name in names]


@installed
@pytest.mark.parametrize("recipe", MEASUREMENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_by_itself_is_measured_as_in_the_model(family: str, recipe: str, folder: Any) -> None:
    """Ranges of FP8 and NVFP4; factors of the rest: where layers are fused their mean, as in the vendor's exporter."""
    found, _ = measured(folder(family), recipe, theirs=True)

    for layer, group, modules in whole(family, recipe):
        mine = found[layer].linears[group]
        if recipe in ("fp8", "nvfp4"):
            assert mine.columns is None
            assert mine.inputs == pytest.approx(max(float(one.input_quantizer.amax) for one in modules), rel=1e-5)
            assert mine.weights == max(float(one.weight_quantizer.amax) for one in modules)
            continue
        factors = np.stack([one.input_quantizer.pre_quant_scale.flatten().numpy() for one in modules])
        assert mine.columns is not None
        assert np.allclose(mine.columns, factors.mean(axis=0), rtol=1e-4)
        if len(modules) == 1 and recipe != "int4_awq":
            assert mine.inputs == pytest.approx(float(modules[0].input_quantizer.amax), rel=1e-4)


@installed
@pytest.mark.parametrize("recipe", ["fp8", "nvfp4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranges_are_ours(family: str, recipe: str, folder: Any) -> None:
    """Largest inputs, weights of the artifact's type, and keys and values, in batches; and the states behind them."""
    theirs, states = measured(folder(family), recipe, theirs=True, batches=2, dtype=torch.bfloat16)
    ours, expected = measured(folder(family), recipe, theirs=False, batches=2, dtype=torch.bfloat16)

    for one, other in zip(theirs, ours, strict=True):
        assert one.cache == pytest.approx(other.cache, rel=1e-6)
        for group, mine in other.linears.items():
            assert one.linears[group].inputs == pytest.approx(mine.inputs, rel=1e-6)
            assert one.linears[group].weights == mine.weights
    for one_batch, other_batch in zip(states, expected, strict=True):
        assert torch.allclose(one_batch, other_batch, rtol=1e-6, atol=1e-6)


@installed
@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_is_ours_where_a_layer_is_alone(family: str, folder: Any) -> None:
    """Factors that the artifact's type holds, and the largest input and weight after them."""
    theirs, _ = measured(folder(family), "int8_sq", theirs=True, dtype=torch.float16)
    ours, _ = measured(folder(family), "int8_sq", theirs=False, dtype=torch.float16)

    for one, other in zip(theirs, ours, strict=True):
        for group in ("attn.o", "mlp.down"):
            mine, expected = one.linears[group], other.linears[group]
            assert mine.columns is not None
            assert expected.columns is not None
            assert np.array_equal(mine.columns, mine.columns.astype(np.float16).astype(np.float32))
            assert np.allclose(mine.columns, expected.columns, rtol=2e-3)
            assert (mine.inputs, mine.weights) == pytest.approx((expected.inputs, expected.weights), rel=2e-3)


@installed
@pytest.mark.parametrize("recipe", ["w4a8_awq", "int4_awq"])
def test_the_search_looks_at_a_batch_of_all_samples(recipe: str, folder: Any) -> None:
    """In batches of one sample it looks at the first; ranges of inputs are those of all samples nevertheless."""
    theirs, _ = measured(folder("llama_gqa"), recipe, theirs=True, batches=4)
    at_once, _ = measured(folder("llama_gqa"), recipe, theirs=True)

    for one, other in zip(theirs, at_once, strict=True):
        mine, expected = one.linears["mlp.down"], other.linears["mlp.down"]
        assert mine.columns is not None
        assert expected.columns is not None
        assert mine.inputs / mine.columns.max() <= expected.inputs / expected.columns.min()


@installed
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("inf"), r"layers\.1\.mlp\.up_proj\.weight: a weight that is NaN or infinite"),
        (3e38, r"layer 1: mlp\.down: an activation that is NaN or infinite"),
    ],
)
def test_what_is_no_number_is_an_error(value: float, words: str, tmp_path: Path) -> None:
    """The tensor is named, or the layer and the group, as by our own measuring."""
    model = models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = value
    model.save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match=words):
        measured(tmp_path, "fp8", theirs=True)


@installed
@pytest.mark.parametrize("recipe", ["fp8", "int8_sq"])
def test_a_weight_beyond_the_artifacts_type_is_an_error(recipe: str, tmp_path: Path) -> None:
    """As by our own measuring."""
    model = models.build("llama", config=sizes("llama_gqa"))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight: .* in float16"):
        measured(tmp_path, recipe, theirs=True, dtype=torch.float16)


def test_what_does_not_import_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to type, where one of modelopt's own packages is absent or too new for it."""
    monkeypatch.setitem(sys.modules, "modelopt.torch", None)
    folder = models.save("llama_gqa", tmp_path, config=sizes("llama_gqa"))

    with pytest.raises(ToolchainError, match="does not import") as raised:
        measured(folder, "fp8", theirs=True)

    assert raised.value.problems[0].hint == "pip install 'llmcompile[trtllm]'"


@installed
@pytest.mark.parametrize("error", [TypeError("no such argument"), KeyError("quant_cfg"), AttributeError("gone")])
def test_whatever_stops_modelopt_is_said(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the layer, and who measures instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelopt.torch import quantization

    def stopped(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(quantization, "quantize", stopped)
    folder = models.save("llama_gqa", tmp_path, config=sizes("llama_gqa"))

    with pytest.raises(ToolchainError, match=f"layer 0: {type(error).__name__}") as raised:
        measured(folder, "fp8", theirs=True)

    assert raised.value.problems[0].hint == "--calibrator llmcompile"


@pytest.mark.parametrize(("version", "words"), [("", "not installed"), ("0.19.0", "0.19.0")])
def test_what_is_absent_or_too_old_is_said(version: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to type."""

    def answer(name: str) -> str:
        if version == "":
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", answer)

    with pytest.raises(ToolchainError, match=words) as raised:
        modelopt.installed_version()
    assert "pip install" in raised.value.problems[0].hint
