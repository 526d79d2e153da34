"""A calibrated checkpoint with any wrong scale is caught, by numbers or by measuring again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
from llmcompile import quantization, ranges
from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.errors import LlmCompileError
from llmcompile.exporters.trtllm import encodings, layout
from llmcompile.pipeline import validating
from llmcompile.validation import calibrated, trtllm
from llmcompile.validation.calibrated import Calibration, place_of, siblings
from llmcompile.validation.checks import Check, Quality, problems_of
from llmcompile.validation.tensorrt_llm.linears import fake_quantized

if TYPE_CHECKING:
    from conftest import Run

SIZES = {"hidden_size": 128, "intermediate_size": 128}
TILES = {"hidden_size": 256, "intermediate_size": 256}
"""Of NVFP4's scales: 128 outputs by 64 inputs on each rank."""
WIDE: Mapping[str, Mapping[str, Any]] = {
    "qwen2_moe": {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 256},
    "bart": {"d_model": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
}
TOKENS = np.random.default_rng(0).integers(0, models.VOCAB, (12, 16)).tolist()
RECIPES = ("fp8", "int8_sq", "int4_awq", "w4a8_awq", "nvfp4")


@dataclass(frozen=True)
class Made:
    """A checkpoint of two ranks, and how it was made."""

    command: tuple[object, ...]
    model: Path
    folder: Path

    def subject(self, *, samples: int = 12) -> trtllm.Subject:
        """What is validated, with so many of the samples it was calibrated on; 0 for none known."""
        checkpoint = open_checkpoint(self.model)
        architecture = lookup(checkpoint.config, checkpoint.tensors)
        tokens = torch.tensor(TOKENS[:samples])
        return validating.trtllm_subject(
            checkpoint,
            architecture,
            architecture.dims(checkpoint.config),
            folder=self.folder,
            eval_text=None,
            overflow_accepted=False,
            calibration=Calibration(tokens=tokens, cache_measured=True) if samples > 0 else None,
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Callable[..., Made]:
    """`made(recipe, family)` is a validated artifact, made once; who breaks it restores it."""
    known: dict[tuple[str, str], Made] = {}
    root = tmp_path_factory.mktemp("made")
    sizes = {**dict.fromkeys(RECIPES, SIZES), "nvfp4": TILES}
    data = root / "tokens.jsonl"
    data.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in TOKENS))

    def make(recipe: str, family: str = "llama_gqa") -> Made:
        model = root / f"{family}-{sizes[recipe]['hidden_size']}"
        if not model.exists():
            models.save(family, model, dtype="bfloat16", config={**sizes[recipe], **WIDE.get(family, {})})
        if (recipe, family) not in known:
            groups = ("--group-size", 64) if "awq" in recipe else ()
            start = ("build", "trtllm", "--stop-after", "checkpoint", "-m", model, "--tp", 2, *groups)
            cache = () if family == "bart" else ("--kv-cache", "int8")
            calibration = ("--calib-dataset", data, "--calib-seq-len", 16, *cache)
            older = ("--trtllm-version", "0.20.0") if (recipe, family) == ("nvfp4", "qwen2_moe") else ()
            command = (*start, *calibration, "--quantization", recipe, *older)
            output = root / f"{family}-{recipe}"
            result = run(*command, output)
            assert result.code == 0, result.err
            known[recipe, family] = Made(command, model, output / "checkpoint")
        return known[recipe, family]

    return make


def complaints(subject: trtllm.Subject) -> list[str]:
    """What is wrong with a checkpoint; nothing more is computed once something is."""
    try:
        for item in trtllm.validate(replace(subject), atol=None, rtol=None, trust_remote_code=False):
            found = problems_of([item]) if isinstance(item, Check) else []
            if len(found) > 0:
                return [str(problem) for problem in found]
            if isinstance(item, Quality):
                return []
    except LlmCompileError as error:
        return [str(problem) for problem in error.problems]
    return []


def after(made: Made, changes: Mapping[str, Tensor], rank: int = 0, part: str = "", **subject: Any) -> list[str]:
    """What validation says with tensors of a rank, of a stack where there are two, replaced, which is undone."""
    path = made.folder / part / f"rank{rank}.safetensors"
    before = path.read_bytes()
    save_file({**load_file(path), **changes}, path)
    try:
        return complaints(made.subject(**subject))
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_wrong_scale_is_caught(recipe: str, made: Callable[..., Made]) -> None:
    """Every kind of scale of the last layer, a twentieth too large or too small, on the second rank alone."""
    artifact = made(recipe)
    tensors = load_file(artifact.folder / "rank1.safetensors")
    names = [name for name in tensors if "layers.1" in name and name.endswith(("_factor", "_factor_2"))]
    assert len(names) >= 11

    survivors = [
        f"{name} x {factor}"
        for name in names
        for factor in (1.05, 0.95)
        if after(artifact, {name: (tensors[name].float() * factor).to(tensors[name].dtype)}, rank=1) == []
    ]

    assert survivors == []


@pytest.mark.parametrize("recipe", ["fp8", "int4_awq"])
def test_each_wrong_scale_of_experts_is_caught(recipe: str, made: Callable[..., Made]) -> None:
    """Of one expert alone where each has its own, and of the expert that sees every token."""
    artifact = made(recipe, "qwen2_moe")
    tensors = load_file(artifact.folder / "rank1.safetensors")
    names = [name for name in tensors if "layers.1.mlp" in name and name.endswith("_factor")]
    assert len(names) == 8

    survivors = []
    for name, factor in product(names, (1.05, 0.95)):
        wrong = tensors[name].float()
        (wrong if "shared" in name else wrong[-1]).mul_(factor)
        if after(artifact, {name: wrong.to(tensors[name].dtype)}, rank=1) == []:
            survivors.append(f"{name} x {factor}")

    assert survivors == []


@pytest.mark.parametrize("recipe", ["fp8", "int4_awq", "nvfp4"])
def test_experts_in_another_order_are_caught(recipe: str, made: Callable[..., Made]) -> None:
    """Their weights, or the scales of these."""
    artifact = made(recipe, "qwen2_moe")
    tensors = load_file(artifact.folder / "rank0.safetensors")
    kinds = ("weight", "weights_scaling_factor", *(("weights_scaling_factor_2",) if recipe == "nvfp4" else ()))
    names = [f"transformer.layers.0.mlp.{module}.{kind}" for module, kind in product(("fc", "proj"), kinds)]

    def turned(found: Tensor) -> Tensor:
        return found.view(torch.int8).roll(1, 0).view(found.dtype)

    assert [name for name in names if after(artifact, {name: turned(tensors[name])}) == []] == []


def test_experts_with_factors_of_their_own_are_caught(made: Callable[..., Made]) -> None:
    """The runtime reads those of the first expert alone."""
    name = "transformer.layers.0.mlp.proj.prequant_scaling_factor"
    factors = load_file(made("int4_awq", "qwen2_moe").folder / "rank0.safetensors")[name].clone()
    factors[2] = factors[2].roll(1)

    found = after(made("int4_awq", "qwen2_moe"), {name: factors})

    assert ["experts with other factors than the first" in text for text in found] == [True]


@pytest.mark.parametrize(("recipe", "part"), [("fp8", "encoder"), ("fp8", "decoder"), ("int8_sq", "decoder")])
def test_each_wrong_scale_of_two_stacks_is_caught(recipe: str, part: str, made: Callable[..., Made]) -> None:
    """Of self attention, of cross attention and of the feed-forward, on the second rank alone.

    Weights by more than activations: self attention hardly moves what this decoder gives.
    """
    artifact = made(recipe, "bart")
    tensors = load_file(artifact.folder / part / "rank1.safetensors")
    names = [name for name in tensors if "layers.1" in name and name.endswith(("_factor", "_factor_2"))]
    assert len(names) >= (8 if part == "encoder" else 12)

    survivors = []
    for name in names:
        wrong = tensors[name].float() * (1.05 if "activation" in name else 2)
        if after(artifact, {name: wrong.to(tensors[name].dtype)}, rank=1, part=part) == []:
            survivors.append(name)

    assert survivors == []


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_impossible_scales_of_two_stacks_are_caught_without_data(value: float, made: Callable[..., Made]) -> None:
    """As in a checkpoint of one stack; the folder is named."""
    name = "decoder_layers.0.cross_attention.dense.activation_scaling_factor"

    found = after(made("fp8", "bart"), {name: torch.tensor([value])}, part="decoder", samples=0)

    assert [f"{name} in decoder/rank0.safetensors" in text and "a finite number above 0" in text for text in found] == [
        True
    ]


@pytest.mark.parametrize("recipe", ["fp8", "int8_sq", "nvfp4"])
def test_each_wrong_weight_is_caught(recipe: str, made: Callable[..., Made]) -> None:
    """A tensor of quantized weights with its rows in another order."""
    artifact = made(recipe)
    tensors = load_file(artifact.folder / "rank0.safetensors")
    names = [name for name in tensors if "layers.0" in name and name.endswith(".weight") and tensors[name].dim() == 2]

    survivors = [
        name
        for name in names
        if after(
            artifact, {name: tensors[name].view(torch.int8).roll(1, 0).view_as(tensors[name]).view(tensors[name].dtype)}
        )
        == []
    ]

    assert len(names) == 5
    assert survivors == []


@pytest.mark.parametrize(
    ("ending", "change"),
    [
        ("weight", lambda bytes: bytes << 4 | bytes >> 4),
        ("weight", lambda bytes: bytes ^ 0x88),
        ("weights_scaling_factor", lambda bytes: bytes.roll(1, 1)),
        (
            "weights_scaling_factor",
            lambda bytes: bytes.view(1, 4, 32, -1, 4).permute(0, 3, 2, 1, 4).reshape(bytes.shape),
        ),
    ],
)
@pytest.mark.parametrize("module", ["attention.dense", "mlp.gate"])
def test_each_wrong_order_of_nvfp4_is_caught(
    module: str, ending: str, change: Callable[[Tensor], Tensor], made: Callable[..., Made]
) -> None:
    """Nibbles the other way round, signs, scales of the blocks beside, and scales that are interleaved already."""
    artifact, name = made("nvfp4"), f"transformer.layers.1.{module}.{ending}"
    tensor = load_file(artifact.folder / "rank1.safetensors")[name][:128].contiguous()
    rest = load_file(artifact.folder / "rank1.safetensors")[name][128:]

    changed = torch.cat((change(tensor.view(torch.uint8)), rest.view(torch.uint8))).view(tensor.dtype)

    assert after(artifact, {name: changed}, rank=1) != []


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("module", ["attention.dense.activation_scaling_factor", "attention.kv_cache_scaling_factor"])
def test_impossible_scales_are_caught_without_data(module: str, value: float, made: Callable[..., Made]) -> None:
    """Also where nobody knows what the checkpoint was calibrated on."""
    name = f"transformer.layers.0.{module}"

    found = after(made("fp8"), {name: torch.tensor([value])}, samples=0)

    assert [name in text and "a finite number above 0" in text for text in found] == [True]


def test_part_of_the_data_bounds_scales_from_below(made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all samples can be afforded, a scale may be larger than theirs and never smaller."""
    monkeypatch.setattr(trtllm, "_MULTIPLICATIONS", 0)
    monkeypatch.setattr(trtllm, "_FEWEST_TOKENS", 32)
    artifact, name = made("fp8"), "transformer.layers.1.mlp.proj.activation_scaling_factor"
    scale = load_file(artifact.folder / "rank0.safetensors")[name]

    small, large = after(artifact, {name: scale / 4}), after(artifact, {name: scale * 4})

    assert complaints(artifact.subject()) == []
    assert "on what was run" in small[0]
    assert large == []


@pytest.mark.parametrize("recipe", ["fp8", "int8_sq", "w4a8_awq", "nvfp4"])
@pytest.mark.parametrize("module", ["attention.dense.activation", "attention.kv_cache"])
@pytest.mark.parametrize("samples", [0, 12])
def test_a_scale_of_another_order_of_magnitude_is_caught(
    recipe: str, module: str, samples: int, made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the data, and where only some samples can be afforded."""
    monkeypatch.setattr(trtllm, "_MULTIPLICATIONS", 0)
    monkeypatch.setattr(trtllm, "_FEWEST_TOKENS", 32)
    artifact, name = made(recipe), f"transformer.layers.1.{module}_scaling_factor"
    scale = load_file(artifact.folder / "rank0.safetensors")[name]

    found = [after(artifact, {name: scale * factor}, samples=samples) for factor in (1e-6, 1e6)]

    assert complaints(artifact.subject(samples=samples)) == []
    assert [[name in text for text in texts] for texts in found] == [[True], [True]]


@pytest.mark.parametrize("family", ["llama_gqa", "bart"])
def test_samples_are_run_some_at_a_time(
    family: str, made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all of them there is neither one batch nor one table of logits: memory does not grow with the samples."""
    subject = made("fp8", family).subject()
    run, shapes = trtllm.run_reference, list[tuple[int, ...]]()

    def counted(*arguments: Any, **keywords: Any) -> Any:
        found = run(*arguments, **keywords)
        if keywords["prepare"] is not None and "positions" in keywords:
            shapes.append((*keywords["tokens"].shape, *found.outputs["logits"].shape[:2]))
        return found

    monkeypatch.setattr(trtllm, "run_reference", counted)
    monkeypatch.setattr(calibrated, "BATCH_TOKENS", 5 * 16)

    assert complaints(subject) == []

    assert shapes == [(5, 16, 5, 1), (5, 16, 5, 1), (2, 16, 2, 1)]


def test_factors_that_ranks_do_not_share_are_caught(made: Callable[..., Made]) -> None:
    """What reads the whole input has the same factors on every rank."""
    name = "transformer.layers.0.attention.qkv.prequant_scaling_factor"
    factors = load_file(made("int8_sq").folder / "rank1.safetensors")[name]

    found = after(made("int8_sq"), {name: factors.roll(1)}, rank=1)

    assert ["not the same wherever the same input is read" in text for text in found] == [True]


# Exit codes


def half_inputs(patch: pytest.MonkeyPatch) -> None:
    """A writer that takes activations for half as large as they are."""
    original = ranges.Ranges.of

    def of(self: ranges.Ranges, layer: int, role: str) -> ranges.Measured:
        found = original(self, layer, role)
        return replace(found, inputs=found.inputs / 2)

    patch.setattr(ranges.Ranges, "of", of)


def half_weights(patch: pytest.MonkeyPatch) -> None:
    """One that takes weights for half as large, so that the largest are clipped."""
    original = ranges.Ranges.of

    def of(self: ranges.Ranges, layer: int, role: str) -> ranges.Measured:
        found = original(self, layer, role)
        return replace(found, weights=found.weights / 2)

    patch.setattr(ranges.Ranges, "of", of)


def turned_experts(patch: pytest.MonkeyPatch) -> None:
    """One that gives each expert the next one's range."""
    original = ranges.Ranges.of

    def of(self: ranges.Ranges, layer: int, role: str) -> ranges.Measured:
        found = original(self, layer, role)
        return replace(found, experts=None if found.experts is None else np.roll(found.experts, 1))

    patch.setattr(ranges.Ranges, "of", of)


def whole_columns(patch: pytest.MonkeyPatch) -> None:
    """One that stores factors other than those it divided the weights by."""
    original = encodings.from_float32

    def wrong(values: Any, target: Any) -> Any:
        return original(values * np.float32(1.25), target)

    patch.setattr(encodings, "from_float32", wrong)


def wrong_cache(patch: pytest.MonkeyPatch) -> None:
    """One that gives each layer the next one's scale of the cache."""
    original = layout._kv_steps

    def steps(*arguments: Any) -> tuple[float, ...]:
        found = original(*arguments)
        return (*found[1:], *found[:1])

    patch.setattr(layout, "_kv_steps", steps)


def high_first(patch: pytest.MonkeyPatch) -> None:
    """One that packs NVFP4's first input into the high nibble."""
    original = quantization.Nvfp4.encode

    def encode(self: quantization.Nvfp4, block: Any, part: int) -> Any:
        packed = original(self, block, part)
        return packed << 4 | packed >> 4

    patch.setattr(quantization.Nvfp4, "encode", encode)


def whole_steps(patch: pytest.MonkeyPatch) -> None:
    """One that rounds the scales of NVFP4's blocks again, to powers of 2."""
    original = quantization.Nvfp4.rest

    def rest(self: quantization.Nvfp4) -> Any:
        scales, second = original(self)
        return scales & 0x78, second

    patch.setattr(quantization.Nvfp4, "rest", rest)


@pytest.mark.parametrize(
    ("recipe", "family", "fault"),
    [
        ("fp8", "llama_gqa", half_inputs),
        ("int8_sq", "llama_gqa", half_inputs),
        ("w4a8_awq", "llama_gqa", half_inputs),
        ("nvfp4", "llama_gqa", half_inputs),
        ("fp8", "llama_gqa", half_weights),
        ("nvfp4", "llama_gqa", half_weights),
        ("nvfp4", "llama_gqa", high_first),
        ("nvfp4", "llama_gqa", whole_steps),
        ("int8_sq", "llama_gqa", whole_columns),
        ("int4_awq", "llama_gqa", whole_columns),
        ("fp8", "llama_gqa", wrong_cache),
        ("fp8", "qwen2_moe", half_inputs),
        ("fp8", "bart", half_inputs),
        ("int4_awq", "bart", whole_columns),
        ("fp8", "qwen2_moe", turned_experts),
        ("int4_awq", "qwen2_moe", whole_columns),
    ],
)
def test_a_writer_with_a_fault_ends_with_7(
    recipe: str,
    family: str,
    fault: Callable[[pytest.MonkeyPatch], None],
    made: Callable[..., Made],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The artifact is kept aside, and OUTPUT does not appear."""
    command = made(recipe, family).command
    fault(monkeypatch)

    result = run(*command, tmp_path / "out")

    assert result.code == 7, result.err
    assert not (tmp_path / "out").exists()
    part = "decoder" if family == "bart" else ""
    assert (tmp_path / "out.rejected" / "checkpoint" / part / "rank0.safetensors").is_file()


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("fp8", "transformer.layers.0.mlp.fc.weights_scaling_factor"),
        ("int8_sq", "transformer.layers.1.attention.dense.prequant_scaling_factor"),
        ("int4_awq", "transformer.layers.1.mlp.proj.weights_scaling_factor"),
        ("w4a8_awq", "transformer.layers.0.attention.qkv.prequant_scaling_factor"),
        ("nvfp4", "transformer.layers.1.attention.dense.weights_scaling_factor_2"),
    ],
)
def test_verify_of_a_broken_scale_ends_with_7(
    recipe: str, name: str, made: Callable[..., Made], run: Run, tmp_path: Path
) -> None:
    """Without the manifest and without the data."""
    artifact = made(recipe)
    broken = Path(shutil.copytree(artifact.folder, tmp_path / "checkpoint"))
    tensors = load_file(broken / "rank0.safetensors")
    save_file({**tensors, name: (tensors[name].float() * 1.1).to(tensors[name].dtype)}, broken / "rank0.safetensors")

    whole = run("verify", "--deep", "--model", artifact.model, artifact.folder)
    result = run("verify", "--deep", "--model", artifact.model, broken)

    assert whole.code == 0, whole.err
    assert result.code == 7, result.err


# Arithmetic


def test_quality_says_how_far_distributions_are_apart(made: Callable[..., Made]) -> None:
    """Kullback-Leibler divergence beside perplexity, in the line and in the manifest."""
    subject = made("fp8").subject()
    items = list(trtllm.validate(subject, atol=None, rtol=None, trust_remote_code=False))

    quality = next(item for item in items if isinstance(item, Quality))

    assert f"KL {quality.kl:.2g} nats/token" in str(quality)
    assert 0 < quality.kl < 2
    manifest = json.loads((made("fp8").folder.parent / "llmcompile.json").read_text())
    assert manifest["validation"]["quality"]["kl"] == pytest.approx(quality.kl, rel=1e-2)


def test_int8_weights_are_rounded_by_rows_behind_the_factors() -> None:
    """W / columns in steps of max / 127, times columns: in two parts where two ranks share the inputs."""
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    columns = torch.tensor([1.0, 2.0, 0.5, 1.0])

    found = fake_quantized(weight, "W8A8_SQ_PER_CHANNEL", group_size=1, column_parts=2, columns=columns)

    left, right = 1.0 / 127, 6.0 / 127
    assert torch.allclose(
        found, torch.tensor([[127 * left, 127 * left * 2, 127 * right * 0.5, round(4 / right) * right]])
    )


def test_fp8_weights_take_the_scale_of_all_that_share_it() -> None:
    """448 is the largest of them, wherever that is."""
    found = fake_quantized(torch.tensor([[99.0, 1.0]]), "FP8", group_size=1, column_parts=1, largest=448.0)

    assert found.tolist() == [[96.0, 1.0]]


@pytest.mark.parametrize("algo", ["FP8", "W4A8_AWQ", "NVFP4"])
def test_a_recipe_without_what_it_needs_is_our_bug(algo: str) -> None:
    """No scale can be made up."""
    with pytest.raises(ValueError, match="with what it needs"):
        fake_quantized(torch.ones(2, 4), algo, group_size=4, column_parts=1)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("model.layers.3.self_attn.o_proj", (3, "attn.o")),
        ("transformer.h.1.attn.c_proj", (1, "attn.o")),
        ("transformer.h.1.mlp.c_proj", (1, "mlp.down")),
        ("transformer.h.0.self_attention.query_key_value", (0, "attn.qkv")),
        ("gpt_neox.layers.2.attention.dense", (2, "attn.o")),
        ("transformer.blocks.0.ffn.up_proj", (0, "mlp.in")),
        ("model.layers.0.mlp.dense_4h_to_h", (0, "mlp.down")),
        ("model.layers.5.block_sparse_moe.experts.7.w2", (5, "experts.down")),
        ("model.layers.5.mlp.experts.7.up_proj", (5, "experts.in")),
        ("model.layers.1.mlp.shared_expert.down_proj", (1, "shared.down")),
        ("model.layers.1.mlp.shared_expert_gate", None),
        ("model.decoder.layers.1.fc1", (1, "mlp.in")),
        ("model.layers.1.mlp.gate", None),
        ("lm_head", None),
        ("model.layers.0.input_layernorm", None),
    ],
)
def test_linear_layers_are_known_by_their_paths(path: str, place: tuple[int, str] | None) -> None:
    """Layer and group, whatever a family calls them."""
    assert place_of(path) == place


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("encoder.block.3.layer.0.SelfAttention.k", (3, "encoder.attn.qkv")),
        ("decoder.block.3.layer.1.EncDecAttention.q", (3, "decoder.cross.qkv")),
        ("decoder.block.0.layer.1.EncDecAttention.o", (0, "decoder.cross.o")),
        ("decoder.block.0.layer.2.DenseReluDense.wi_1", (0, "decoder.mlp.in")),
        ("decoder.block.0.layer.2.DenseReluDense.wo", (0, "decoder.mlp.down")),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", None),
        ("model.decoder.layers.2.encoder_attn.v_proj", (2, "decoder.cross.qkv")),
        ("model.encoder.layers.2.self_attn.out_proj", (2, "encoder.attn.o")),
        ("lm_head", None),
    ],
)
def test_linear_layers_of_two_stacks_are_known_by_their_paths(path: str, place: tuple[int, str] | None) -> None:
    """The group begins with the stack."""
    assert place_of(path, two_stacks=True) == place


def test_what_is_fused_shares_a_scale() -> None:
    """q, k and v; gate and up; anything else is alone."""
    assert siblings("model.layers.0.self_attn.k_proj.weight") == tuple(
        f"model.layers.0.self_attn.{letter}_proj.weight" for letter in "qkv"
    )
    assert siblings("a.0.experts.3.w3.weight") == ("a.0.experts.3.w1.weight", "a.0.experts.3.w3.weight")
    assert siblings("a.0.experts.3.w2.weight") == ("a.0.experts.3.w2.weight",)
    assert siblings("transformer.h.0.mlp.c_fc.weight") == ("transformer.h.0.mlp.c_fc.weight",)
