"""What is measured is what plain hooks on transformers' own model see; AWQ's search finds the best of what it tries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from llmcompile.architectures import lookup
from llmcompile.calibration.layers import Layers
from llmcompile.calibration.measuring import LayerRanges, Places, measure_layer
from llmcompile.errors import CheckpointError
from llmcompile.ranges import GROUP_OF, Measurement, search_columns, smoothing_columns
from llmcompile.validation.checks import StoredWeights

LLAMA = {
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.o": ("self_attn.o_proj",),
    "mlp.in": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
GPT2 = {"attn.qkv": ("attn.c_attn",), "attn.o": ("attn.c_proj",), "mlp.in": ("mlp.c_fc",), "mlp.down": ("mlp.c_proj",)}
NEOX = {
    "attn.qkv": ("attention.query_key_value",),
    "attn.o": ("attention.dense",),
    "mlp.in": ("mlp.dense_h_to_4h",),
    "mlp.down": ("mlp.dense_4h_to_h",),
}
TABLES: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "llama_gqa": ("model.layers", LLAMA),
    "gpt2": ("transformer.h", GPT2),
    "gptneox": ("gpt_neox.layers", NEOX),
}
TOKENS = torch.arange(4 * 12).reshape(4, 12) * 5 % models.VOCAB


def measured(
    folder: Path, family: str, measurement: Measurement, dtype: torch.dtype, tokens: Tensor = TOKENS
) -> list[LayerRanges]:
    """Both layers, in batches of three samples and one."""
    weights = StoredWeights([folder / "model.safetensors"])
    layers = Layers(folder, weights)
    architecture = lookup(json.loads((folder / "config.json").read_text()))
    located = architecture.locate(weights.names())
    groups: dict[str, str] = {}
    experts: dict[str, int] = {}
    cached: list[str] = []
    for tensor in architecture.tensors:
        role = tensor.roles[0].removesuffix(".weight")
        for layer, expert in product((0, 1), range(4) if "{expert}" in tensor.name else (None,)):
            name = located.get(tensor.name_at(layer, expert), "")
            if role in GROUP_OF and name != "":
                groups[name] = GROUP_OF[role]
            if role in ("attn.q", "attn.k", "attn.v", "attn.q_norm", "attn.k_norm") and name != "":
                cached.append(name)
            if expert is not None:
                experts[name] = expert
    normed = any("norm" in name for name in cached)
    places = Places(
        groups, experts, [name for name in cached if not (normed and name.endswith(("q_proj.weight", "k_proj.weight")))]
    )
    batches = [layers.embed(batch) for batch in (tokens[:3], tokens[3:])]
    found = []
    for layer in (0, 1):
        after: list[Tensor] = []
        arguments: dict[str, Any] = {"weights": weights, "places": places, "measurement": measurement}
        found.append(
            measure_layer(layers, layer, batches, dtype=dtype, total_tokens=48, done=after.append, **arguments)
        )
        batches = after
    return found


def seen(family: str) -> tuple[dict[tuple[int, str], Tensor], dict[int, float]]:
    """(layer, group) -> every input of its first linear layer, (tokens, C); layer -> largest of its q, k and v."""
    model, (prefix, table) = models.build(family), TABLES[family]
    inputs: dict[tuple[int, str], Tensor] = {}
    cache: dict[int, float] = {0: 0.0, 1: 0.0}
    for layer in (0, 1):
        for group, names in table.items():
            for name in names:
                module = model.get_submodule(f"{prefix}.{layer}.{name}")

                def look(module: Any, given: Any, output: Tensor, place: tuple[int, str] = (layer, group)) -> None:
                    inputs[place] = given[0].flatten(0, -2)
                    if place[1] == "attn.qkv":
                        cache[place[0]] = max(cache[place[0]], float(output.abs().max()))

                module.register_forward_hook(look)
    with torch.inference_mode():
        model(TOKENS)
    return inputs, cache


def matrix(family: str, layer: int, group: str, dtype: torch.dtype) -> np.ndarray[Any, Any]:
    """The weights (out, in) of a group, one above the other, rounded."""
    model, (prefix, table) = models.build(family), TABLES[family]
    parts = []
    for name in table[group]:
        weight = model.get_parameter(f"{prefix}.{layer}.{name}.weight").detach().to(dtype).float()
        parts.append(weight.T if family == "gpt2" else weight)
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("family", TABLES)
def test_ranges_are_those_of_the_model_in_one_piece(family: str, tmp_path: Path) -> None:
    """Largest input, largest weight of the artifact's type, largest query, key or value: of every layer and group."""
    folder = models.save(family, tmp_path)
    inputs, cache = seen(family)

    found = measured(folder, family, Measurement(cache=True), torch.bfloat16)

    for (layer, group), x in inputs.items():
        mine = found[layer].linears[group]
        assert mine.inputs == pytest.approx(float(x.abs().max()), rel=1e-5)
        assert mine.weights == float(np.abs(matrix(family, layer, group, torch.bfloat16)).max())
        assert mine.columns is None
    assert [one.cache for one in found] == pytest.approx([cache[0], cache[1]], rel=1e-5)


@pytest.mark.parametrize("family", TABLES)
def test_smoothing_takes_ranges_of_channels(family: str, tmp_path: Path) -> None:
    """Factors follow from each channel's largest input and weight; the group's figures are those after them."""
    folder = models.save(family, tmp_path)
    inputs, _ = seen(family)

    found = measured(folder, family, Measurement(columns="smooth"), torch.float16)

    for (layer, group), x in inputs.items():
        mine, weights = found[layer].linears[group], np.abs(matrix(family, layer, group, torch.float16)).max(axis=0)
        largest = x.abs().amax(0).numpy()
        assert mine.columns is not None
        assert np.allclose(mine.columns, smoothing_columns(largest, weights).astype(np.float16), rtol=2e-3)
        assert mine.inputs == pytest.approx(float((largest * mine.columns).max()), rel=1e-4)
        assert mine.weights == pytest.approx(float((weights / mine.columns).max()), rel=1e-6)
        assert np.array_equal(mine.columns, mine.columns.astype(np.float16).astype(np.float32))


def rounded(weights: np.ndarray[Any, Any], group: int) -> np.ndarray[Any, Any]:
    """Int4 by groups, in plain numpy."""
    grouped = weights.reshape(len(weights), -1, group)
    scale = np.abs(grouped).max(axis=2, keepdims=True) / np.float32(7)
    return (np.clip(np.rint(grouped / scale), -8, 7) * scale).reshape(weights.shape)


def test_the_search_finds_the_least_error(tmp_path: Path) -> None:
    """Of all exponents, the one whose rounded weights give outputs nearest to the unrounded ones."""
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    model = models.build("llama", config=sizes)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[:4] *= 40  # some channels matter more, as in trained models
    model.save_pretrained(tmp_path)
    x: dict[int, Tensor] = {}
    for layer in (0, 1):
        projection = model.model.layers[layer].self_attn.q_proj

        def look(module: Any, given: Any, layer: int = layer) -> None:
            x[layer] = given[0].flatten(0, -2)

        projection.register_forward_pre_hook(look)
    with torch.inference_mode():
        model(TOKENS)

    found = measured(tmp_path, "llama", Measurement(columns="search", group_size=32), torch.bfloat16)

    for layer in (0, 1):
        names = ("q_proj", "k_proj", "v_proj")
        parts = [getattr(model.model.layers[layer].self_attn, name).weight for name in names]
        weights = torch.cat(parts).detach().bfloat16().float().numpy()
        seen_by = x[layer].numpy()
        tried = [
            torch.from_numpy(columns).bfloat16().float().numpy()
            for columns in search_columns(np.abs(seen_by).mean(axis=0, dtype=np.float64).astype(np.float32))
        ]
        errors = [
            float((((rounded(weights / columns, 32) * columns - weights) @ seen_by.T) ** 2).sum()) for columns in tried
        ]
        columns = found[layer].linears["attn.qkv"].columns
        assert columns is not None
        best = int(np.argmin(errors))
        assert np.allclose(columns, tried[best], rtol=1e-2)
        assert errors[best] < 0.9 * errors[0]


# Experts

MIXTRAL = ("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})
QWEN = ("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
ROUTED = {"mixtral": MIXTRAL, "qwen2_moe": QWEN, "qwen3_moe": QWEN}


def watched(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """Path -> every input of a linear layer, (tokens, C); layers that nothing was sent to are left out."""
    inputs: dict[str, list[Tensor]] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def look(module: Any, given: Any, path: str = path) -> None:
                inputs.setdefault(path, []).append(given[0].flatten(0, -2))

            module.register_forward_pre_hook(look)
    with torch.inference_mode():
        model(tokens)
    found = {path: torch.cat(parts) for path, parts in inputs.items()}
    return {path: x for path, x in found.items() if len(x) > 0}


@pytest.mark.parametrize("family", ROUTED)
def test_experts_share_their_inputs_range_and_have_their_weights_own(family: str, tmp_path: Path) -> None:
    """Those that no token was sent to are named, and have the range of their weights like the others."""
    tokens = torch.full((4, 1), 3)
    folder, model = models.save(family, tmp_path), models.build(family)
    inputs, (block, names) = watched(model, tokens), ROUTED[family]

    found = measured(folder, family, Measurement(), torch.bfloat16, tokens)

    idle = 0
    for layer in (0, 1):
        paths = [f"model.layers.{layer}.{block}.experts.{expert}" for expert in range(4)]
        weights = [
            {part: model.get_parameter(f"{path}.{name}.weight").detach().bfloat16() for part, name in names.items()}
            for path in paths
        ]
        for group, parts in (("experts.in", ("gate", "up")), ("experts.down", ("down",))):
            mine = found[layer].linears[group]
            reached = [inputs[f"{path}.{names[parts[0]]}"] for path in paths if f"{path}.{names[parts[0]]}" in inputs]
            assert mine.inputs == pytest.approx(max(float(x.abs().max()) for x in reached), rel=1e-5)
            assert mine.experts is not None
            assert mine.experts.tolist() == [max(float(one[part].abs().max()) for part in parts) for one in weights]
            assert mine.weights == max(mine.experts.tolist())
        unreached = tuple(e for e, path in enumerate(paths) if f"{path}.{names['gate']}" not in inputs)
        assert found[layer].unreached == unreached
        idle += len(unreached)
        if family == "qwen2_moe":
            x = inputs[f"model.layers.{layer}.mlp.shared_expert.down_proj"]
            assert found[layer].linears["shared.down"].inputs == pytest.approx(float(x.abs().max()), rel=1e-5)
    assert idle > 0


def test_the_search_weighs_each_expert_on_its_own_tokens(tmp_path: Path) -> None:
    """One set of factors for all experts of a layer: the one with the least error of all their outputs together."""
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    model = models.build("mixtral", config=sizes)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight[:4] *= 40
    model.save_pretrained(tmp_path)
    inputs = watched(model, TOKENS)

    found = measured(tmp_path, "mixtral", Measurement(columns="search", group_size=32), torch.bfloat16)

    for layer in (0, 1):
        paths = [f"model.layers.{layer}.block_sparse_moe.experts.{expert}" for expert in range(4)]
        sent = {path: inputs[f"{path}.w1"].numpy() for path in paths if f"{path}.w1" in inputs}
        means = np.abs(np.concatenate([*sent.values()])).mean(axis=0, dtype=np.float64).astype(np.float32)
        tried = [torch.from_numpy(columns).bfloat16().float().numpy() for columns in search_columns(means)]
        errors = [0.0] * len(tried)
        for path, x in sent.items():
            for name in ("w1", "w3"):
                weights = model.get_parameter(f"{path}.{name}.weight").detach().bfloat16().float().numpy()
                for step, columns in enumerate(tried):
                    moved = (rounded(weights / columns, 32) * columns - weights) @ x.T
                    errors[step] += float((moved**2).sum())
        columns = found[layer].linears["experts.in"].columns
        assert columns is not None
        assert np.allclose(columns, tried[int(np.argmin(errors))], rtol=1e-2)


def test_what_norms_make_of_keys_is_what_is_cached(tmp_path: Path) -> None:
    """Qwen 3: the largest of the normalised queries and keys, and of the values."""
    folder, model = models.save("qwen3", tmp_path), models.build("qwen3")
    largest = {0: 0.0, 1: 0.0}
    for layer in largest:
        for name in ("q_norm", "k_norm", "v_proj"):

            def look(module: Any, given: Any, output: Tensor, layer: int = layer) -> None:
                largest[layer] = max(largest[layer], float(output.abs().max()))

            model.model.layers[layer].self_attn.get_submodule(name).register_forward_hook(look)
    with torch.inference_mode():
        model(TOKENS)

    found = measured(folder, "qwen3", Measurement(linears=False, cache=True), torch.float16)

    assert [one.cache for one in found] == pytest.approx([largest[0], largest[1]], rel=1e-5)
    assert [one.linears for one in found] == [{}, {}]


def test_an_activation_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    """The layer and the group are named."""
    model = models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    model.save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match=r"layer 1: mlp\.down: an activation that is NaN or infinite"):
        measured(tmp_path, "llama", Measurement(), torch.float16)


@pytest.mark.parametrize("columns", ["", "smooth"])
def test_a_weight_beyond_the_artifacts_type_is_an_error(columns: str, tmp_path: Path) -> None:
    """The tensor is named, with the type that holds it; in bfloat16 it is measured."""
    model = models.build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight: .* in float16") as caught:
        measured(tmp_path, "llama", Measurement(columns=columns), torch.float16)

    assert caught.value.problems[0].hint == "--dtype bfloat16"
    assert len(measured(tmp_path, "llama", Measurement(columns=columns), torch.bfloat16)) == 2


# nvidia-modelopt's figures

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "calibration" / "ranges.json").read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the golden figures."""
    return models.save(
        "llama_gqa", tmp_path_factory.mktemp("model"), config={"hidden_size": 64, "intermediate_size": 96}
    )


def test_ranges_are_those_of_modelopt(small: Path) -> None:
    """Largest inputs, and largest weights of the layers that share a scale, are the vendor's."""
    found = measured(small, "llama_gqa", Measurement(), torch.float32)

    for layer in (0, 1):
        for group, names in LLAMA.items():
            mine = found[layer].linears[group]
            theirs = [f"model.layers.{layer}.{name}" for name in names]
            largest = [GOLDEN["fp8"][f"{name}.input_amax"][0] for name in theirs]
            assert largest == pytest.approx([mine.inputs] * len(names), rel=1e-5)
            assert max(GOLDEN["fp8"][f"{name}.weight_amax"][0] for name in theirs) == mine.weights


def test_smoothing_is_that_of_modelopt(small: Path) -> None:
    """Factors of channels, and the largest input and weight after them."""
    found = measured(small, "llama_gqa", Measurement(columns="smooth"), torch.float32)

    for layer in (0, 1):
        for group in ("attn.o", "mlp.down"):
            mine, theirs = found[layer].linears[group], f"model.layers.{layer}.{LLAMA[group][0]}"
            assert mine.columns is not None
            assert np.allclose(mine.columns, GOLDEN["int8_sq"][f"{theirs}.pre_quant_scale"], rtol=1e-4)
            assert mine.inputs == pytest.approx(GOLDEN["int8_sq"][f"{theirs}.input_amax"][0], rel=1e-4)
            assert mine.weights == pytest.approx(max(GOLDEN["int8_sq"][f"{theirs}.weight_amax"]), rel=1e-4)
