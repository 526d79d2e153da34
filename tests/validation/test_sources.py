"""Quantized and Meta's checkpoints as floats, against the formats' formulas written out element by element."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcompile.errors import CheckpointError
from llmcompile.validation.sources import MetaWeights, QuantizedWeights

LAYER = "model.layers.0.self_attn.q_proj"
OUT, IN, GROUP = 16, 32, 8
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def word(values: list[int]) -> int:
    """Eight 4-bit values as an int32, the first in the lowest bits."""
    unsigned = sum(value << 4 * place for place, value in enumerate(values))
    return unsigned - 2**32 if unsigned >= 2**31 else unsigned


def values_zeros_scales() -> tuple[Tensor, Tensor, Tensor]:
    """Integers (in, out), zeros and scales (groups, out)."""
    numbers = torch.Generator().manual_seed(1)
    values = torch.randint(0, 16, (IN, OUT), generator=numbers)
    zeros = torch.randint(1, 16, (IN // GROUP, OUT), generator=numbers)
    scales = (torch.rand((IN // GROUP, OUT), generator=numbers) / 10).half()
    return values, zeros, scales


def meant() -> Tensor:
    """(value - zero) * scale of each weight, (out, in)."""
    values, zeros, scales = values_zeros_scales()
    return torch.tensor(
        [
            [float(values[i, o] - zeros[i // GROUP, o]) * float(scales[i // GROUP, o]) for i in range(IN)]
            for o in range(OUT)
        ]
    )


def gptq_file(folder: Path) -> Path:
    """AutoGPTQ's tensors: values packed along inputs, zeros along outputs and less one."""
    values, zeros, scales = values_zeros_scales()
    packed = [[word([int(values[8 * row + place, o]) for place in range(8)]) for o in range(OUT)] for row in range(4)]
    less = [
        [word([int(zeros[g, 8 * column + place]) - 1 for place in range(8)]) for column in range(2)] for g in range(4)
    ]
    return saved(folder, packed, less, scales)


def awq_file(folder: Path) -> Path:
    """AutoAWQ's tensors: both packed along outputs, in its order."""
    values, zeros, scales = values_zeros_scales()

    def packed(rows: Tensor) -> list[list[int]]:
        return [[word([int(row[8 * column + place]) for place in AWQ_ORDER]) for column in range(2)] for row in rows]

    return saved(folder, packed(values), packed(zeros), scales)


def saved(folder: Path, packed: list[list[int]], zeros: list[list[int]], scales: Tensor) -> Path:
    """A checkpoint of one quantized layer and a norm."""
    path = folder / "model.safetensors"
    tensors = {
        f"{LAYER}.qweight": torch.tensor(packed, dtype=torch.int32),
        f"{LAYER}.qzeros": torch.tensor(zeros, dtype=torch.int32),
        f"{LAYER}.scales": scales,
        f"{LAYER}.bias": torch.ones(OUT),
        f"{LAYER}.g_idx": torch.arange(IN, dtype=torch.int32) // GROUP,
        "model.norm.weight": torch.arange(4.0),
    }
    save_file(tensors, path)
    return path


def fp8_file(folder: Path) -> Path:
    """Three matrices that will be fused, and one that will not, each with a scale of its own."""
    numbers = torch.Generator().manual_seed(2)
    tensors = {}
    for part, scale in (("q_proj", 0.5), ("k_proj", 0.125), ("v_proj", 0.3), ("o_proj", 0.25)):
        stem = f"model.layers.0.self_attn.{part}"
        tensors[f"{stem}.weight"] = torch.randn(4, 4, generator=numbers).to(torch.float8_e4m3fn)
        tensors[f"{stem}.weight_scale"] = torch.tensor(scale)
        tensors[f"{stem}.input_scale"] = torch.tensor([scale / 8])
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize(("method", "write"), [("gptq", gptq_file), ("awq", awq_file)])
def test_four_bits_are_value_less_zero_times_scale(method: str, write: Any, tmp_path: Path) -> None:
    """What a quantizer meant."""
    weights = QuantizedWeights([write(tmp_path)], method, group_size=GROUP)

    torch.testing.assert_close(weights.read(f"{LAYER}.weight"), meant(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("method", "write"), [("gptq", gptq_file), ("awq", awq_file)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_stored_has_rounded_offsets(method: str, write: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """(value - 8) * scale, and (8 - zero) * scale rounded to the type."""
    values, zeros, scales = values_zeros_scales()
    weights = QuantizedWeights([write(tmp_path)], method, group_size=GROUP, stored_dtype=dtype)

    found = weights.read(f"{LAYER}.weight")

    for i, o in ((0, 0), (9, 3), (31, 15)):
        scale = scales[i // GROUP, o].float()
        rest = (8 - zeros[i // GROUP, o]) * scale
        rounded = (rest.half() if method == "gptq" else rest).to(dtype).float()
        assert float(found[o, i]) == pytest.approx(float((values[i, o] - 8) * scale + rounded), rel=1e-6)


def test_names_are_those_of_the_float_model(tmp_path: Path) -> None:
    """A quantized layer has a weight and a bias; what is not quantized keeps its name."""
    weights = QuantizedWeights([gptq_file(tmp_path)], "gptq", group_size=GROUP)

    assert set(weights.names()) == {f"{LAYER}.weight", f"{LAYER}.bias", "model.norm.weight"}
    assert weights.is_quantized(f"{LAYER}.weight")
    assert not weights.is_quantized(f"{LAYER}.bias")
    assert not weights.is_quantized("model.norm.weight")
    assert torch.equal(weights.read("model.norm.weight"), torch.arange(4.0))


def test_fp8_is_bits_times_scale(tmp_path: Path) -> None:
    """What a quantizer meant, and the scale of the input beside it."""
    weights = QuantizedWeights([path := fp8_file(tmp_path)], "fp8", group_size=0)
    bits = QuantizedWeights([path], "gptq", group_size=0).read("model.layers.0.self_attn.o_proj.weight")

    found = weights.read("model.layers.0.self_attn.o_proj.weight")

    assert torch.equal(found, bits.float() * 0.25)
    assert weights.input_scale("model.layers.0.self_attn.o_proj") == 0.25 / 8


def test_fused_fp8_has_the_largest_scale(tmp_path: Path) -> None:
    """Parts of a fused matrix are rounded again, with the largest of their scales; what is not fused stays."""
    path = fp8_file(tmp_path)
    exact = QuantizedWeights([path], "fp8", group_size=0)
    stored = QuantizedWeights([path], "fp8", group_size=0, stored_dtype=torch.float16)

    for part in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{part}.weight"
        expected = (exact.read(name) / 0.5).to(torch.float8_e4m3fn).float() * 0.5
        assert torch.equal(stored.read(name), expected)
    name = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(stored.read(name), exact.read(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("method", "write"), [("gptq", gptq_file), ("awq", awq_file)])
def test_group_scales_of_any_float_type_are_read(method: str, write: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """What is meant has them as they are, what is stored has them in float16."""
    path = write(tmp_path)
    tensors = load_file(path)
    wide = (tensors[f"{LAYER}.scales"].float() * 1.001).to(dtype)
    save_file({**tensors, f"{LAYER}.scales": wide}, path)
    half = tmp_path / "half.safetensors"
    save_file({**tensors, f"{LAYER}.scales": wide.half()}, half)
    values, zeros, _ = values_zeros_scales()
    expected = ((values - zeros.repeat_interleave(GROUP, 0)) * wide.float().repeat_interleave(GROUP, 0)).T

    def read(source: Path, stored: torch.dtype | None) -> Tensor:
        weights = QuantizedWeights([source], method, group_size=GROUP, stored_dtype=stored)
        return weights.read(f"{LAYER}.weight")

    assert torch.equal(read(path, None), expected)
    assert torch.equal(read(path, torch.float16), read(half, torch.float16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_group_scale_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    """By its name."""
    path = gptq_file(tmp_path)
    tensors = load_file(path)
    tensors[f"{LAYER}.scales"][1, 2] = value
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"q_proj\.scales: a scale that is NaN"):
        QuantizedWeights([path], "gptq", group_size=GROUP).read(f"{LAYER}.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp8_scales_of_any_float_type_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    """A quarter is a quarter in each."""
    path = fp8_file(tmp_path)
    stem = "model.layers.0.self_attn.o_proj"
    expected = QuantizedWeights([path], "fp8", group_size=0).read(f"{stem}.weight")
    save_file({key: t.to(dtype) if "scale" in key else t for key, t in load_file(path).items()}, path)

    weights = QuantizedWeights([path], "fp8", group_size=0)

    assert torch.equal(weights.read(f"{stem}.weight"), expected)
    assert weights.input_scale(stem) == 0.25 / 8


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -0.5])
@pytest.mark.parametrize("leaf", ["weight_scale", "input_scale"])
def test_an_fp8_scale_that_cannot_be_one_is_refused(leaf: str, value: float, tmp_path: Path) -> None:
    """NaN, infinite, zero and negative ones; the largest of several would hide a NaN."""
    path = fp8_file(tmp_path)
    stem = "model.layers.0.self_attn.k_proj"
    save_file({**load_file(path), f"{stem}.{leaf}": torch.tensor(value)}, path)
    weights = QuantizedWeights([path], "fp8", group_size=0, stored_dtype=torch.float16)

    def read() -> None:
        _ = weights.input_scale(stem) if leaf == "input_scale" else weights.read(f"{stem}.weight")

    with pytest.raises(CheckpointError, match=rf"k_proj\.{leaf}: .*expected a finite number above 0"):
        read()


def test_an_fp8_scale_for_each_row_is_refused(tmp_path: Path) -> None:
    """One value is expected."""
    path = fp8_file(tmp_path)
    stem = "model.layers.0.self_attn.o_proj"
    save_file({**load_file(path), f"{stem}.weight_scale": torch.ones(4, 1)}, path)

    with pytest.raises(CheckpointError, match=r"weight_scale: shape \(4, 1\)"):
        QuantizedWeights([path], "fp8", group_size=0).read(f"{stem}.weight")


# Meta's files

DIM, HEADS, KV, HEAD, FFN, VOCAB = 16, 4, 2, 4, 24, 20
META = {"dim": DIM, "n_layers": 1, "n_heads": HEADS, "n_kv_heads": KV, "vocab_size": VOCAB, "norm_eps": 1e-6}
SPLIT = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}


def whole(kv_heads: int = KV) -> dict[str, Tensor]:
    """Meta's tensors, as if one file held them."""
    numbers = torch.Generator().manual_seed(5)
    shapes = {
        "tok_embeddings.weight": (VOCAB, DIM),
        "output.weight": (VOCAB, DIM),
        "norm.weight": (DIM,),
        "layers.0.attention_norm.weight": (DIM,),
        "layers.0.ffn_norm.weight": (DIM,),
        "layers.0.attention.wq.weight": (HEADS * HEAD, DIM),
        "layers.0.attention.wk.weight": (kv_heads * HEAD, DIM),
        "layers.0.attention.wv.weight": (kv_heads * HEAD, DIM),
        "layers.0.attention.wo.weight": (DIM, HEADS * HEAD),
        "layers.0.feed_forward.w1.weight": (FFN, DIM),
        "layers.0.feed_forward.w2.weight": (DIM, FFN),
        "layers.0.feed_forward.w3.weight": (FFN, DIM),
    }
    return {name: torch.randn(shape, generator=numbers) for name, shape in shapes.items()}


def meta_files(folder: Path, parts: int, *, embeddings: int, settings: dict[str, Any] = META) -> MetaWeights:
    """Write them as `parts` files, the token table divided along axis `embeddings`."""
    paths = []
    tensors = whole(settings.get("n_kv_heads", HEADS))
    for part in range(parts):
        mine: dict[str, Tensor] = {"rope.freqs": torch.ones(2)}
        for name, tensor in tensors.items():
            leaf = name.removesuffix(".weight").rpartition(".")[2]
            axis = embeddings if leaf == "tok_embeddings" else SPLIT.get(leaf)
            mine[name] = tensor if axis is None else tensor.chunk(parts, axis)[part].clone()
        paths.append(folder / f"consolidated.{part:02}.pth")
        torch.save(mine, paths[-1])
    (folder / "params.json").write_text(json.dumps(settings))
    return MetaWeights(paths[::-1], folder / "params.json")


@pytest.mark.parametrize(("parts", "embeddings"), [(1, 0), (2, 1), (2, 0)])
def test_parts_are_joined(parts: int, embeddings: int, tmp_path: Path) -> None:
    """LLaMA 1 and 2 divide the token table by hidden size, 3 by vocabulary; norms are in each file."""
    weights, expected = meta_files(tmp_path, parts, embeddings=embeddings), whole()

    pairs = {
        "model.embed_tokens.weight": "tok_embeddings.weight",
        "lm_head.weight": "output.weight",
        "model.norm.weight": "norm.weight",
        "model.layers.0.input_layernorm.weight": "layers.0.attention_norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "layers.0.ffn_norm.weight",
        "model.layers.0.self_attn.v_proj.weight": "layers.0.attention.wv.weight",
        "model.layers.0.self_attn.o_proj.weight": "layers.0.attention.wo.weight",
        "model.layers.0.mlp.gate_proj.weight": "layers.0.feed_forward.w1.weight",
        "model.layers.0.mlp.down_proj.weight": "layers.0.feed_forward.w2.weight",
        "model.layers.0.mlp.up_proj.weight": "layers.0.feed_forward.w3.weight",
    }
    for name, meta in pairs.items():
        assert torch.equal(weights.read(name), expected[meta]), name
    turned = {f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk"}
    assert set(weights.names()) == {*pairs, *turned}


@pytest.mark.parametrize(("part", "heads"), [("q", HEADS), ("k", KV)])
@pytest.mark.parametrize("parts", [1, 2])
def test_rotary_pairs_are_put_apart(part: str, heads: int, parts: int, tmp_path: Path) -> None:
    """Row i of a head's first half is Meta's row 2 i, of its second half row 2 i + 1."""
    found = meta_files(tmp_path, parts, embeddings=1).read(f"model.layers.0.self_attn.{part}_proj.weight")

    meta = whole()[f"layers.0.attention.w{part}.weight"]

    for head in range(heads):
        rows = [*range(0, HEAD, 2), *range(1, HEAD, 2)]
        expected = torch.stack([meta[head * HEAD + row] for row in rows])
        assert torch.equal(found[head * HEAD : (head + 1) * HEAD], expected)
    permuted = meta.view(heads, HEAD // 2, 2, DIM).transpose(1, 2).reshape(heads * HEAD, DIM)
    assert torch.equal(found, permuted)  # transformers' convert_llama_weights_to_hf.permute


def config_of(folder: Path, **settings: Any) -> dict[str, Any]:
    """The config.json that is written for params.json with other settings; None leaves one out."""
    merged = {key: value for key, value in {**META, **settings}.items() if value is not None}
    made = folder / "made"
    made.mkdir()
    meta_files(folder, 1, embeddings=0, settings=merged).write_config(made)
    config: dict[str, Any] = json.loads((made / "config.json").read_text())
    return config


def test_config_is_from_params_and_tensors(tmp_path: Path) -> None:
    """Sizes come from params.json, and from shapes where it does not say."""
    config = config_of(tmp_path, vocab_size=-1)

    assert (config["vocab_size"], config["hidden_size"], config["intermediate_size"]) == (VOCAB, DIM, FFN)
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]) == (1, 4, 2)
    assert (config["rms_norm_eps"], config["rope_theta"], config["rope_scaling"]) == (1e-6, 10000.0, None)
    assert config["tie_word_embeddings"] is False


def test_absent_key_heads_are_all_heads(tmp_path: Path) -> None:
    """LLaMA 1 has no n_kv_heads."""
    assert config_of(tmp_path, n_kv_heads=None)["num_key_value_heads"] == HEADS


def test_scaled_rope_is_llama3s(tmp_path: Path) -> None:
    """`use_scaled_rope` stands for LLaMA 3.1's numbers."""
    config = config_of(tmp_path, use_scaled_rope=True, rope_theta=500000.0)

    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_absent_epsilon_is_metas(tmp_path: Path) -> None:
    """As ModelArgs has it."""
    assert config_of(tmp_path, norm_eps=None)["rms_norm_eps"] == 1e-5


def test_rotary_frequencies_of_llama_1_are_passed_over(tmp_path: Path) -> None:
    """Each layer holds its own, under its attention."""
    path = tmp_path / "consolidated.00.pth"
    torch.save({**whole(), "layers.0.attention.inner_attention.rope.freqs": torch.ones(2)}, path)
    (tmp_path / "params.json").write_text(json.dumps(META))

    weights = MetaWeights([path], tmp_path / "params.json")

    assert len(weights.names()) == len(whole())


def test_head_size_of_params_is_used(tmp_path: Path) -> None:
    """Where params.json has it, heads are not the hidden size divided."""
    path, wide = tmp_path / "consolidated.00.pth", 2 * HEAD
    tensors = {**whole(), "layers.0.attention.wk.weight": torch.arange(1.0 * KV * wide * DIM).view(KV * wide, DIM)}
    torch.save(tensors, path)
    (tmp_path / "params.json").write_text(json.dumps({**META, "head_dim": wide}))
    weights = MetaWeights([path], tmp_path / "params.json")

    weights.write_config(tmp_path)

    found = weights.read("model.layers.0.self_attn.k_proj.weight")
    assert torch.equal(found[1], tensors["layers.0.attention.wk.weight"][2])
    assert torch.equal(found[wide // 2], tensors["layers.0.attention.wk.weight"][1])
    assert json.loads((tmp_path / "config.json").read_text())["head_dim"] == wide


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"dim": 10**400}, "dim"),
        ({"dim": "x"}, "dim"),
        ({"dim": None}, "dim"),
        ({"n_heads": 0}, "n_heads"),
        ({"n_heads": -4}, "n_heads"),
        ({"n_heads": True}, "n_heads"),
        ({"n_heads": 1000}, "n_heads"),
        ({"n_layers": 1.5}, "n_layers"),
        ({"n_kv_heads": 0}, "n_kv_heads"),
        ({"head_dim": 3}, "head_dim"),
        ({"norm_eps": "x"}, "norm_eps"),
        ({"norm_eps": -1}, "norm_eps"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_theta": [1]}, "rope_theta"),
        ({"rope_scaling_factor": 0}, "rope_scaling_factor"),
    ],
)
def test_params_that_cannot_be_are_refused(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    """By their key."""
    with pytest.raises(CheckpointError, match=rf"params\.json: {key}"):
        meta_files(tmp_path, 1, embeddings=0, settings={**META, **changes})


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '"\\ud800'])
def test_params_that_are_no_object_are_refused(content: str, tmp_path: Path) -> None:
    """By the file."""
    meta_files(tmp_path, 1, embeddings=0)
    (tmp_path / "params.json").write_text(content)

    with pytest.raises(CheckpointError, match=r"params\.json: "):
        MetaWeights([tmp_path / "consolidated.00.pth"], tmp_path / "params.json")


@pytest.mark.parametrize("name", ["other", "layers.0.attention.wz.weight", "layers.0", "rope"])
def test_a_tensor_that_is_not_metas_is_refused(name: str, tmp_path: Path) -> None:
    """By its name."""
    path = tmp_path / "consolidated.00.pth"
    torch.save({**whole(), name: torch.ones(2)}, path)
    (tmp_path / "params.json").write_text(json.dumps(META))

    with pytest.raises(CheckpointError, match=name):
        MetaWeights([path], tmp_path / "params.json")


def test_heads_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    """The queries' rows are no multiple of a head."""
    weights = meta_files(tmp_path, 1, embeddings=0, settings={**META, "head_dim": 6})

    with pytest.raises(CheckpointError, match=r"wq\.weight: shape \(16, 16\)"):
        weights.read("model.layers.0.self_attn.q_proj.weight")
