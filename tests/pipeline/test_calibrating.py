"""Calibrated builds from end to end: every recipe, resumption, what is recorded, what is refused, memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from llmcompile import environment
from llmcompile.calibration.layers import Layers
from llmcompile.checkpoint.headers import Stored
from llmcompile.checkpoint.reader import Reader
from llmcompile.pipeline import calibrating, making
from llmcompile.pipeline import job as jobs

if TYPE_CHECKING:
    from conftest import Run

WIDE = {
    **dict.fromkeys(("n_embd", "n_inner", "hidden_size", "intermediate_size", "ffn_dim", "ffn_hidden_size"), 128),
    **dict.fromkeys(("word_embed_proj_dim", "d_model", "d_ff", "moe_intermediate_size"), 128),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 128),
    "d_kv": 32,
    **dict.fromkeys(("shared_expert_intermediate_size",), 256),
    "head_dim": 32,
}
"""Sizes that two ranks can hold in groups of 64."""
FAMILIES = (
    *("falcon_40b", "falcon_7b", "falcon_rw", "gemma", "gemma2", "gpt2", "gpt_bigcode", "gptj", "gptneox", "llama_gqa"),
    *("bloom", "mistral", "mpt", "opt", "phi", "phi3", "qwen2", "qwen3", "starcoder2"),
)
RECIPES = ("fp8", "int8_sq", "int4_awq", "w4a8_awq")
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")
"""Families with experts, of which two recipes load."""


def save(family: str, folder: Path, **config: Any) -> Path:
    """A checkpoint wide enough for every recipe, in bfloat16."""
    known = models.FAMILIES[family].config
    sizes = {key: value for key, value in WIDE.items() if key in known}
    model = models.build(family, dtype="bfloat16", config={**sizes, **config})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".SelfAttention.q.weight", ".EncDecAttention.q.weight")):
                parameter *= 2**-6  # T5 does not scale scores, and its queries are as much smaller
    model.save_pretrained(folder)
    return folder


def twice(family: str) -> dict[str, int]:
    """The sizes of `WIDE` that the family has, doubled."""
    return {key: 2 * value for key, value in WIDE.items() if key in models.FAMILIES[family].config}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens to calibrate on."""
    path = tmp_path_factory.mktemp("data") / "tokens.jsonl"
    numbers = np.random.default_rng(0).integers(0, models.VOCAB, (20, 33)).tolist()
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in numbers))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model(family)` is a checkpoint, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save(family, tmp_path_factory.mktemp("model"))
        return made[family]

    return make


def arguments(model: Path, data: Path, recipe: str, *more: object) -> tuple[object, ...]:
    """The command without OUTPUT."""
    groups = ("--group-size", 64) if "awq" in recipe else ()
    calibration = ("--calib-dataset", data, "--calib-size", 12, "--calib-seq-len", 16)
    start = ("build", "trtllm", "--stop-after", "checkpoint", "-m", model)
    return (*start, "--quantization", recipe, *groups, *calibration, *more)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_calibrated_and_validated(
    family: str, model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """Two ranks and one, recipe by recipe, with a cache of 8 bits: outputs and scales are the model's, on any text."""
    for number, recipe in enumerate(RECIPES):
        cache = ("int8", "fp8")[number % 2]
        command = arguments(model(family), data, recipe, "--kv-cache", cache, "--tp", 2 - number % 2)

        result = run(*command, tmp_path / recipe)

        assert result.code == 0, f"{recipe}: {result.err}"
        verified = run("verify", "--deep", "-m", model(family), tmp_path / recipe)
        assert verified.code == 0, f"{recipe}: {verified.err}"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_calibrated_as_nvfp4(
    family: str, model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """Two ranks, whose matrices are no whole tiles of scales: outputs and scales are the model's."""
    result = run(*arguments(model(family), data, "nvfp4", "--kv-cache", "fp8", "--tp", 2), tmp_path / "out")

    assert result.code == 0, result.err
    config = json.loads((tmp_path / "out" / "checkpoint" / "config.json").read_text())
    block = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"]}
    assert config["quantization"] == block


STACKS = ("t5", "t5_v11", "bart")
"""Families with an encoder and a decoder."""


@pytest.mark.parametrize("family", STACKS)
def test_every_family_of_two_stacks_is_calibrated_and_validated(
    family: str, model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """Two ranks and one, recipe by recipe: outputs and scales of both stacks are the model's."""
    for number, recipe in enumerate(("fp8", "int8_sq", "int4_awq", "w4a8_awq")):
        result = run(*arguments(model(family), data, recipe, "--tp", 2 - number % 2), tmp_path / recipe)

        assert result.code == 0, f"{recipe}: {result.err}"
        record = json.loads((tmp_path / recipe / "llmcompile.json").read_text())
        wanted = {f"{stack}.{part}" for stack in ("encoder", "decoder") for part in PARTS}
        wanted |= {"decoder.cross.qkv", "decoder.cross.o"}
        assert {name.split(".", 1)[1] for name in record["calibration"]["inputs"]} == wanted
        assert record["validation"]["quality"]["tokens"] > 0


PARTS = ("attn.qkv", "attn.o", "mlp.in", "mlp.down")


def test_cross_attention_has_one_scale_for_all_it_reads(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """The larger of the decoder's states, and of what the encoder gives; by transformers' model in one piece."""
    run(*arguments(model("bart"), data, "fp8", "--no-validate"), tmp_path / "out")
    whole = models.transformers.BartForConditionalGeneration.from_pretrained(model("bart"), dtype=torch.float32)
    largest: dict[str, float] = {}
    attention = whole.model.decoder.layers[1].encoder_attn
    for name in ("q_proj", "k_proj"):

        def look(module: Any, given: Any, name: str = name) -> None:
            largest[name] = float(given[0].abs().max())

        getattr(attention, name).register_forward_pre_hook(look)
    numbers = [token for line in data.read_text().splitlines() for token in json.loads(line)["input_ids"]]
    tokens = torch.tensor(numbers[: 12 * 16]).reshape(12, 16)
    start = torch.full((12, 1), whole.config.decoder_start_token_id)
    with torch.inference_mode():
        whole(input_ids=tokens, decoder_input_ids=torch.cat((start, tokens[:, :-1]), 1))

    found = load_file(tmp_path / "out" / "checkpoint" / "decoder" / "rank0.safetensors")
    scale = float(found["decoder_layers.1.cross_attention.qkv.activation_scaling_factor"])

    assert scale == pytest.approx(max(largest.values()) / 448, rel=1e-4)
    assert abs(largest["q_proj"] - largest["k_proj"]) > 0.1 * max(largest.values())


@pytest.mark.parametrize("family", EXPERTS)
def test_every_family_with_experts_is_calibrated_and_validated(
    family: str, model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """Whole on one rank, divided by width, and divided by experts."""
    for number, (recipe, degrees) in enumerate(product(("fp8", "int4_awq"), ((1, 1), (2, 1), (2, 2)))):
        ranks = ("--tp", degrees[0], *(("--moe-ep", 2) if degrees[1] > 1 else ()))
        command = arguments(model(family), data, recipe, "--kv-cache", ("int8", "fp8")[number % 2], *ranks)

        result = run(*command, tmp_path / f"{number}")

        assert result.code == 0, f"{recipe} {degrees}: {result.err}"


def test_each_expert_has_its_scale_wherever_it_lies(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """1 / 448 of the largest weight of gate and up together, and of down: float32 (experts, 1); one for all inputs."""
    run(*arguments(model("mixtral"), data, "fp8", "--tp", 2, "--moe-ep", 2), tmp_path / "out")

    weights = load_file(model("mixtral") / "model.safetensors")
    ranks = [load_file(tmp_path / "out" / "checkpoint" / f"rank{rank}.safetensors") for rank in (0, 1)]
    for layer, expert in product((0, 1), range(4)):
        name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
        largest = {part: float(weights[f"{name}.{part}.weight"].abs().max()) for part in ("w1", "w2", "w3")}
        for module, value in (("fc", max(largest["w1"], largest["w3"])), ("proj", largest["w2"])):
            prefix = f"transformer.layers.{layer}.mlp.{module}"
            found = ranks[expert // 2][f"{prefix}.weights_scaling_factor"]
            assert (found.dtype, tuple(found.shape)) == (torch.float32, (2, 1))
            assert float(found[expert % 2, 0]) == float(np.float32(value) / np.float32(448))
            assert [tuple(rank[f"{prefix}.activation_scaling_factor"].shape) for rank in ranks] == [(1,), (1,)]
    assert json.loads((tmp_path / "out" / "checkpoint" / "config.json").read_text())["quantization"] == {
        "quant_algo": "FP8"
    }


def test_experts_without_a_token_are_counted_in_a_note(model: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    """Two tokens reach four experts of eight at most; the artifact is valid all the same."""
    data = tmp_path / "few.jsonl"
    data.write_text(json.dumps({"input_ids": [3, 3]}))

    result = run(*arguments(model("mixtral"), data, "fp8"), tmp_path / "out")

    assert result.code == 0, result.err
    notes = " ".join(json.loads((tmp_path / "out" / "llmcompile.json").read_text())["notes"])
    assert "no token of the calibration reached " in notes
    assert " of 8 experts: their weights have their own range" in notes


def test_an_nvfp4_checkpoint_is_what_modelopt_exports(run: Run, tmp_path: Path) -> None:
    """Of the same weights and tokens: names and types, every byte that follows from weights, and ranges of inputs."""
    golden = load_file(Path(__file__).parents[1] / "golden" / "calibration" / "nvfp4.safetensors")
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    folder = models.save("llama_gqa", tmp_path / "model", dtype="bfloat16", config=sizes)
    weights = load_file(folder / "model.safetensors")
    parts = dict(zip("qkv", golden["attention.qkv.source"].split([64, 32, 32]), strict=True))
    parts["o"] = golden["attention.dense.source"]
    layer = "model.layers.0."
    weights |= {f"{layer}self_attn.{letter}_proj.weight": part.contiguous() for letter, part in parts.items()}
    modules = {"gate": "mlp.fc", "up": "mlp.gate", "down": "mlp.proj"}
    weights |= {f"{layer}mlp.{part}_proj.weight": golden[f"{name}.source"] for part, name in modules.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokens = (torch.arange(4 * 12).reshape(4, 12) * 5 % models.VOCAB).tolist()
    (tmp_path / "tokens.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in tokens))
    more = ("--calib-size", 4, "--calib-seq-len", 12)

    result = run(*arguments(folder, tmp_path / "tokens.jsonl", "nvfp4", *more), tmp_path / "out")

    assert result.code == 0, result.err
    rank = load_file(tmp_path / "out" / "checkpoint" / "rank0.safetensors")
    prefix = "transformer.layers.0."
    expected = {name: tensor for name, tensor in golden.items() if name.startswith(("attention.", "mlp."))}
    expected = {f"{prefix}{name}": tensor for name, tensor in expected.items() if not name.endswith("source")}
    assert {name for name in rank if name.startswith((f"{prefix}attention", f"{prefix}mlp"))} == set(expected)
    for name, tensor in expected.items():
        assert rank[name].dtype == tensor.dtype, name
        if name.endswith("activation_scaling_factor"):
            assert float(rank[name]) == pytest.approx(float(tensor), rel=2e-2), name
        else:
            assert rank[name].view(torch.uint8).flatten().equal(tensor.reshape(-1).view(torch.uint8).flatten()), name


@pytest.mark.parametrize("ranks", [("--tp", 1), ("--tp", 2), ("--tp", 2, "--moe-ep", 2)])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_experts_are_calibrated_as_nvfp4(
    family: str, ranks: tuple[object, ...], data: Path, run: Run, tmp_path: Path
) -> None:
    """In the releases that load them: each expert has a second scale, and the router stays out without being named."""
    model = save(family, tmp_path / "model", **twice(family))
    command = arguments(model, data, "nvfp4", "--trtllm-version", "0.20.0", *ranks)

    result = run(*command, tmp_path / "out")

    assert result.code == 0, result.err
    checkpoint = tmp_path / "out" / "checkpoint"
    block = {"quant_algo": "NVFP4", "group_size": 16}
    assert json.loads((checkpoint / "config.json").read_text())["quantization"] == block
    experts = load_file(checkpoint / "rank0.safetensors")["transformer.layers.0.mlp.fc.weight"].shape[0]
    second = load_file(checkpoint / "rank0.safetensors")["transformer.layers.0.mlp.fc.weights_scaling_factor_2"]
    assert (tuple(second.shape), len(set(second.tolist()))) == ((experts,), experts)


def test_stages_have_their_own_layers_scales(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """Layer 0 of the second of two stages has the scales of the model's layer 1."""
    command = arguments(model("llama_gqa"), data, "fp8", "--kv-cache", "int8")
    run(*command, tmp_path / "one")

    result = run(*command, "--pp", 2, tmp_path / "two")

    assert result.code == 0, result.err
    whole = load_file(tmp_path / "one" / "checkpoint" / "rank0.safetensors")
    second = load_file(tmp_path / "two" / "checkpoint" / "rank1.safetensors")
    layer = {name: value for name, value in second.items() if name.startswith("transformer.layers.0.")}
    assert len([name for name in layer if name.endswith("scaling_factor")]) == 11
    for name, value in layer.items():
        assert torch.equal(value.view(torch.uint8), whole[name.replace("layers.0", "layers.1")].view(torch.uint8)), name


def test_scales_of_fp8_are_the_largest_of_what_is_fused(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """One for q, k and v, the same for fc and gate, each 1 / 448 of the largest weight; float32 on every rank."""
    run(*arguments(model("llama_gqa"), data, "fp8", "--tp", 2), tmp_path / "out")

    weights = load_file(model("llama_gqa") / "model.safetensors")
    ranks = [load_file(tmp_path / "out" / "checkpoint" / f"rank{rank}.safetensors") for rank in (0, 1)]
    for layer in (0, 1):
        parts = {"attention.qkv": "qkv", "attention.dense": "o"}
        for module, letters in parts.items():
            largest = max(
                float(weights[f"model.layers.{layer}.self_attn.{letter}_proj.weight"].abs().max()) for letter in letters
            )
            for rank in ranks:
                found = rank[f"transformer.layers.{layer}.{module}.weights_scaling_factor"]
                assert (found.dtype, found.tolist()) == (torch.float32, [float(np.float32(largest) / np.float32(448))])
        gated = [f"transformer.layers.{layer}.mlp.{name}.weights_scaling_factor" for name in ("fc", "gate")]
        assert ranks[0][gated[0]].tolist() == ranks[0][gated[1]].tolist()


def test_an_nvfp4_checkpoint_has_the_planned_bytes(data: Path, run: Run, tmp_path: Path) -> None:
    """Half a byte for each weight, a sixteenth for scales, and 8 for each matrix: what a dry run says from headers."""
    model = save("llama_gqa", tmp_path / "model", **twice("llama_gqa"))
    command = arguments(model, data, "nvfp4", "--tp", 2, "--no-validate")

    planned = run(*command, "--dry-run", "--json", tmp_path / "out")
    made = run(*command, tmp_path / "out")

    assert (planned.code, made.code) == (0, 0), planned.err + made.err
    files = json.loads(planned.out)["plan"]["files"]
    for name, size in files.items():
        if name.endswith(".safetensors"):
            assert (tmp_path / "out" / name).stat().st_size == size, name
    rank = load_file(tmp_path / "out" / "checkpoint" / "rank1.safetensors")
    dense = [tensor for name, tensor in rank.items() if name.startswith("transformer.layers.1.attention.dense.")]
    assert sum(tensor.nbytes for tensor in dense) == 256 * 128 // 2 + 256 * 128 // 16 + 8


def test_an_fp8_cache_is_never_scaled_below_one(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """As the vendor's exporter; and releases that take 1 whatever is stored get 1."""
    for version in ("0.13.0", "1.2.1"):
        run(
            *arguments(model("llama_gqa"), data, "fp8", "--kv-cache", "fp8", "--trtllm-version", version),
            tmp_path / version,
        )

        ranks = load_file(tmp_path / version / "checkpoint" / "rank0.safetensors")
        found = [ranks[f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"].tolist() for layer in (0, 1)]
        assert found == [[1.0], [1.0]]


def test_what_was_measured_is_in_the_manifest(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """The data's hash, how much of it, and every range; nothing of the work is left in the artifact."""
    result = run(*arguments(model("gpt2"), data, "int8_sq", "--kv-cache", "int8"), tmp_path / "out")

    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "llmcompile.json").read_text())["calibration"]
    assert (record["data"], record["samples"], record["tokens"]) == ("tokens.jsonl", 12, 16)
    groups = ("attn.qkv", "attn.o", "mlp.in", "mlp.down")
    assert (
        set(record["inputs"]) == set(record["weights"]) == {f"{layer}.{group}" for layer in (0, 1) for group in groups}
    )
    ranks = load_file(tmp_path / "out" / "checkpoint" / "rank0.safetensors")
    scale = ranks["transformer.layers.1.mlp.proj.activation_scaling_factor"]
    assert float(scale) == float(np.float32(record["inputs"]["1.mlp.down"]) / np.float32(127))
    cache = ranks["transformer.layers.0.attention.kv_cache_scaling_factor"]
    assert float(cache) == float(np.float32(record["cache"]["0"]) / np.float32(127))
    assert not (tmp_path / "out" / "calibration").exists()


def test_factors_of_channels_are_in_the_manifest(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """The hash, the smallest and the largest of what the checkpoint has."""
    run(*arguments(model("gpt2"), data, "int8_sq", "--no-validate"), tmp_path / "out")

    record = json.loads((tmp_path / "out" / "llmcompile.json").read_text())["calibration"]
    ranks = load_file(tmp_path / "out" / "checkpoint" / "rank0.safetensors")
    factors = ranks["transformer.layers.1.mlp.proj.prequant_scaling_factor"].float().numpy()
    digest = hashlib.sha256(factors.astype("<f4").tobytes()).hexdigest()
    expected = {"sha256": digest, "smallest": float(factors.min()), "largest": float(factors.max())}
    assert record["columns"]["1.mlp.down"] == expected
    assert record["columns"].keys() == record["inputs"].keys()
    assert record["experts"] == {}


def test_the_range_of_each_expert_is_in_the_manifest(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """The scale of its weights follows from it."""
    run(*arguments(model("mixtral"), data, "fp8", "--no-validate"), tmp_path / "out")

    record = json.loads((tmp_path / "out" / "llmcompile.json").read_text())["calibration"]
    ranks = load_file(tmp_path / "out" / "checkpoint" / "rank0.safetensors")
    scales = ranks["transformer.layers.0.mlp.proj.weights_scaling_factor"][:, 0].numpy()
    found = np.array(record["experts"]["0.experts.down"], np.float32) / np.float32(448)
    assert found.tolist() == scales.tolist()
    assert record["experts"].keys() == {f"{layer}.experts.{part}" for layer in (0, 1) for part in ("in", "down")}
    assert max(record["experts"]["0.experts.down"]) == record["weights"]["0.experts.down"]
    assert record["columns"] == {}


def test_a_text_is_calibrated_on_with_the_models_tokenizer(run: Run, tmp_path: Path) -> None:
    """Without --calib-dataset it is a short one of our own, and the summary says so."""
    folder = save("gpt2", tmp_path / "model")
    models.add_tokenizer(folder)

    result = run(
        "build", "trtllm", "--stop-after", "checkpoint", "-m", folder, "--quantization", "fp8", tmp_path / "out"
    )

    assert result.code == 0, result.err
    assert json.loads((tmp_path / "out" / "llmcompile.json").read_text())["calibration"]["data"] == "a built-in text"
    assert "give --calib-dataset a text like yours" in result.out


# Interruption


class Stopped(BaseException):
    """What ends a run in the middle."""


@pytest.mark.parametrize(("family", "recipe"), [("llama_gqa", "fp8"), ("llama_gqa", "int4_awq"), ("mixtral", "fp8")])
@pytest.mark.parametrize("stop", [0, 1])
def test_a_stopped_calibration_goes_on_at_its_layer(
    family: str,
    recipe: str,
    stop: int,
    model: Callable[[str], Path],
    data: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers that were measured are not run again, and the artifact is that of one run."""
    command = arguments(model(family), data, recipe, "--no-validate")
    run(*command, tmp_path / "whole")
    ran: list[int] = []
    original = Layers.run

    def watched(self: Layers, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        if layer == stop and len(ran) < 100:
            raise Stopped
        ran.append(layer)
        return original(self, layer, hidden)

    monkeypatch.setattr(Layers, "run", watched)
    with pytest.raises(Stopped):
        run(*command, tmp_path / "out")
    ran[:] = [-1] * 100

    result = run(*command, "--resume", tmp_path / "out")

    assert result.code == 0, result.err
    assert set(ran[100:]) == set(range(stop, 2))
    assert (f"; {stop} are kept" in result.err) == (stop > 0)
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("stop", [("encoder", 1), ("decoder", 0), ("decoder", 2)])
def test_a_calibration_of_two_stacks_goes_on_at_its_layer(
    stop: tuple[str, int],
    model: Callable[[str], Path],
    data: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever it stopped, what the encoder gave among the files that are kept, and the artifact is that of one run."""
    command = arguments(model("t5"), data, "fp8", "--no-validate")
    run(*command, tmp_path / "whole")
    ran: list[tuple[str, int]] = []
    original = Layers.run

    def watched(self: Layers, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        if (self.stack, layer) == stop and len(ran) < 100:
            raise Stopped
        ran.append((self.stack, layer))
        return original(self, layer, hidden)

    monkeypatch.setattr(Layers, "run", watched)
    with pytest.raises(Stopped):
        run(*command, tmp_path / "out")
    ran[:] = [("", -1)] * 100

    result = run(*command, "--resume", tmp_path / "out")

    assert result.code == 0, result.err
    steps = [*(("encoder", layer) for layer in range(2)), *(("decoder", layer) for layer in range(3))]
    assert set(ran[100:]) == set(steps[steps.index(stop) :])
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path


def test_damaged_states_are_not_trusted(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states that changed on the disk are computed again, from the first layer on."""
    command = arguments(model("llama_gqa"), data, "fp8", "--no-validate")
    run(*command, tmp_path / "whole")
    original = Layers.run
    with monkeypatch.context() as patch:

        def stopped(self: Layers, layer: int, hidden: torch.Tensor) -> torch.Tensor:
            if layer == 1:
                raise Stopped
            return original(self, layer, hidden)

        patch.setattr(Layers, "run", stopped)
        with pytest.raises(Stopped):
            run(*command, tmp_path / "out")
    states = tmp_path / "out.partial" / "calibration" / "states-1"
    content = bytearray(states.read_bytes())
    content[100] ^= 255
    states.write_bytes(content)

    result = run(*command, "--resume", tmp_path / "out")

    assert result.code == 0, result.err
    name = "checkpoint/rank0.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_data_are_another_job(model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path) -> None:
    """A work directory of other tokens is not gone on with."""
    other = Path(shutil.copy(data, tmp_path / "other.jsonl"))
    other.write_text(other.read_text().replace("1", "2"))
    partial = tmp_path / "out.partial"
    run(*arguments(model("gpt2"), data, "fp8", "--dtype", "float16", "--no-validate"), tmp_path / "made")
    partial.mkdir()
    manifest = {"job": {"llmcompile": "another"}}
    (partial / ".journal").write_text(json.dumps(manifest) + "\n")

    result = run(*arguments(model("gpt2"), other, "fp8"), "--resume", tmp_path / "out")

    assert result.code == 8
    assert "calibration.sha256 was null" in result.err


def test_another_column_is_another_job(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of one column of a file are not taken for those of another; the manifest says which it was."""
    folder = save("gpt2", tmp_path / "model")
    models.add_tokenizer(folder)
    data = tmp_path / "a.jsonl"
    data.write_text(json.dumps({"text": "a b c d " * 8, "other": "e f g h " * 8}))
    command = arguments(folder, data, "fp8", "--no-validate")
    original = Layers.run
    with monkeypatch.context() as patch:

        def stopped(self: Layers, layer: int, hidden: torch.Tensor) -> torch.Tensor:
            if layer == 1:
                raise Stopped
            return original(self, layer, hidden)

        patch.setattr(Layers, "run", stopped)
        with pytest.raises(Stopped):
            run(*command, tmp_path / "out")

    other = run(*command, "--calib-column", "other", "--resume", tmp_path / "out")
    whole = run(*command, "--calib-column", "other", tmp_path / "whole")

    assert (other.code, 'calibration.column was "text"' in other.err) == (8, True), other.err
    assert whole.code == 0, whole.err
    assert json.loads((tmp_path / "whole" / "llmcompile.json").read_text())["calibration"]["column"] == "other"


def test_other_tokens_of_the_same_data_are_another_job(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tokenizer gives whose own code changed, which no file's hash tells."""
    command = arguments(model("gpt2"), data, "fp8", "--no-validate")
    with monkeypatch.context() as patch:

        def stopped(self: Layers, layer: int, hidden: torch.Tensor) -> torch.Tensor:
            raise Stopped

        patch.setattr(Layers, "run", stopped)
        with pytest.raises(Stopped):
            run(*command, tmp_path / "out")
    original = calibrating.read

    def others(job: Any) -> Any:
        samples = original(job)
        assert samples is not None
        return replace(samples, tokens=samples.tokens.flip(0))

    monkeypatch.setattr(calibrating, "read", others)

    result = run(*command, "--resume", tmp_path / "out")

    assert (result.code, "calibration.tokens_sha256 was" in result.err) == (8, True), result.err


# Refusals and plans


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--quantization", "w8a16"), 4, "--calib-dataset: given for --quantization w8a16, which needs no data"),
        (("--quantization", "fp8", "--dtype", "float32"), 2, "float16 or bfloat16"),
        (("--quantization", "fp8", "--calib-size", 0), 2, "--calib-size"),
        (("--quantization", "int4_awq"), 5, "64 inputs / 128 = 0.50"),
        (("--quantization", "nvfp4", "--tp", 4), 5, "48 outputs / 32 = 1.50; NVFP4 needs a whole number"),
        (("--quantization", "nvfp4", "--trtllm-version", "1.0.0"), 5, "192 outputs / 128 = 1.50; NVFP4 needs"),
        (("--quantization", "nvfp4", "--trtllm-version", "1.0.0"), 5, "--quantization fp8; no --tp suits"),
        (("--quantization", "nvfp4", "--trtllm-version", "0.16.0"), 4, "expected 0.17 or later"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    more: tuple[object, ...], code: int, words: str, data: Path, run: Run, tmp_path: Path
) -> None:
    """Each with its exit code, and no work directory."""
    folder = models.save("llama", tmp_path / "model", dtype="bfloat16", config={"hidden_size": 64})
    command = ("build", "trtllm", "--stop-after", "checkpoint", "-m", folder, "--calib-dataset", data)

    result = run(*command, *more, tmp_path / "out")

    assert (result.code, words in result.err) == (code, True), result.err
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("target", ["engine", "llmapi"])
@pytest.mark.parametrize("recipe", [(), ("--quantization", "w4a16_awq")])
@pytest.mark.parametrize(
    ("flag", "value"), [("--calib-size", 12), ("--calib-seq-len", 16), ("--calibrator", "modelopt")]
)
def test_what_is_said_of_data_needs_a_recipe_that_has_any(
    flag: str, value: object, recipe: tuple[str, ...], target: str, run: Run, tmp_path: Path
) -> None:
    """Each flag is refused by its name, as --calib-dataset is, and is not ignored."""
    folder = models.save("llama", tmp_path / "model", dtype="bfloat16", config={"hidden_size": 128})
    more = ("--group-size", 64) if len(recipe) > 0 else ()
    stop = ("--stop-after", "checkpoint") if target == "engine" else ()

    result = run(
        "build", "trtllm", "--target", target, *stop, "-m", folder, *recipe, *more, flag, value, tmp_path / "out"
    )

    assert (result.code, f"{flag}: given for --quantization" in result.err) == (4, True), result.err
    assert not (tmp_path / "out.partial").exists()


def test_nothing_is_downloaded_for_what_is_refused(
    model: Callable[[str], Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset of the hub is not looked for where the model cannot have the recipe."""

    def called(*arguments: object, **more: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(jobs, "locate_data", called)

    result = run(*arguments(model("mixtral"), Path("org/data"), "int8_sq"), tmp_path / "out")

    assert (result.code, "int8_sq with experts" in result.err) == (4, True), result.err


@pytest.mark.parametrize("target", ["engine", "llmapi"])
def test_a_column_is_one_of_a_file(target: str, model: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    """The built-in text has none."""
    stop = ("--stop-after", "checkpoint") if target == "engine" else ()
    start = ("build", "trtllm", "--target", target, *stop, "-m", model("llama_gqa"), "--quantization", "fp8")

    result = run(*start, "--calib-column", "article", tmp_path / "out")

    assert (result.code, "--calib-column: article without --calib-dataset" in result.err) == (2, True), result.err


@pytest.mark.parametrize(("name", "words"), [("a.csv", ".jsonl"), ("missing.txt", "No such file")])
def test_a_dry_run_looks_at_the_data(
    name: str, words: str, model: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    """Its name and its first record, with exit code 2."""
    if name.endswith("csv"):
        (tmp_path / name).write_text("a")

    result = run(*arguments(model("gpt2"), tmp_path / name, "fp8"), "--dry-run", tmp_path / "out")

    assert (result.code, words in result.err) == (2, True), result.err


def test_a_model_without_tokenizer_needs_tokens(model: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    """Exit code 3 before anything is written."""
    command = ("build", "trtllm", "--stop-after", "checkpoint", "-m", model("gpt2"), "--quantization", "fp8")

    result = run(*command, tmp_path / "out")

    assert (result.code, "input_ids" in result.err) == (3, True), result.err
    assert not (tmp_path / "out.partial").exists()


def test_the_plan_says_what_calibration_takes(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """Samples, layers, memory, disk: known before any work."""
    command = arguments(model("llama_gqa"), data, "int4_awq")

    result = run(*command, "--dry-run", tmp_path / "out")

    assert result.code == 0, result.err
    assert "on at most 12 samples of 16 tokens, layer by layer: 2 layers" in result.out + result.err
    assert "of disk for hidden states" in result.out + result.err


def test_too_little_memory_is_said(model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path) -> None:
    """Exit code 10, with what would need less."""
    command = arguments(model("llama_gqa"), data, "fp8", "--no-validate", "--max-memory", "300MB")

    result = run(*command, tmp_path / "out")

    assert result.code == 10
    assert "needed to calibrate" in result.err
    assert "--calib-seq-len" in result.err


def test_writing_holds_what_calibration_leaves_room_for(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of --max-memory, what is not resident once the heap is trimmed."""
    budgets: list[int] = []
    original, plain = making.stream, environment.resident_memory
    freed: list[None] = []

    def watched(*arguments: Any, budget_bytes: int, **more: Any) -> Any:
        budgets.append(budget_bytes)
        return original(*arguments, budget_bytes=budget_bytes, **more)

    monkeypatch.setattr(making, "stream", watched)
    monkeypatch.setattr(environment, "trim_memory", lambda: freed.append(None))
    monkeypatch.setattr(environment, "resident_memory", lambda: plain() if len(freed) == 0 else 900 << 20)
    command = arguments(model("llama_gqa"), data, "fp8", "--no-validate", "--max-memory", str(4 << 30))

    result = run(*command, tmp_path / "out")

    assert result.code == 0, result.err
    assert budgets == [(4 << 30) - (900 << 20) - (48 << 20)]


@pytest.mark.parametrize("recipe", ["fp8", "int8_sq"])
def test_metas_files_are_calibrated_by_their_own_names(recipe: str, data: Path, run: Run, tmp_path: Path) -> None:
    """Transformers' LLaMA runs on params.json and consolidated files, whose rows of q and k are in another order."""
    model, numbers = tmp_path / "model", torch.Generator().manual_seed(0)
    model.mkdir()
    hidden, inner = 32, 48
    shapes = {"tok_embeddings": (models.VOCAB, hidden), "output": (models.VOCAB, hidden)}
    for layer in (0, 1):
        shapes |= {f"layers.{layer}.attention.w{letter}": (hidden, hidden) for letter in "qo"}
        shapes |= {f"layers.{layer}.attention.w{letter}": (hidden // 2, hidden) for letter in "kv"}
        shapes |= {f"layers.{layer}.feed_forward.w{number}": (inner, hidden) for number in "13"}
        shapes |= {f"layers.{layer}.feed_forward.w2": (hidden, inner)}
    tensors = {f"{name}.weight": torch.randn(shape, generator=numbers) / 2 for name, shape in shapes.items()}
    norms = ["norm", *(f"layers.{layer}.{part}_norm" for layer in (0, 1) for part in ("attention", "ffn"))]
    tensors |= {f"{name}.weight": torch.rand(hidden, generator=numbers) + 0.5 for name in norms}
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, model / "consolidated.00.pth")
    params = {"dim": hidden, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": models.VOCAB, "norm_eps": 1e-5}
    (model / "params.json").write_text(json.dumps({**params, "hidden_dim": inner}))
    command = ("build", "trtllm", "--stop-after", "checkpoint", "-m", model, "--calib-dataset", data, "--tp", 2)

    result = run(*command, "--kv-cache", "int8", "--quantization", recipe, tmp_path / "out")

    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "llmcompile.json").read_text())["calibration"]
    assert set(record["cache"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("family", "recipe"),
    [("llama_gqa", "fp8"), ("llama_gqa", "int8_sq"), ("llama_gqa", "int4_awq"), ("mixtral", "fp8")],
)
def test_one_matrix_is_in_memory_at_a_time(
    family: str, recipe: str, data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many layers and experts there are: of what was read, never more lives than a matrix and a norm."""
    folder = save(family, tmp_path / "model", num_hidden_layers=5)
    live, most = {"bytes": 0}, [0]
    original = Reader.read

    def counted(self: Reader, stored: Stored) -> Any:
        bits = original(self, stored)
        live["bytes"] += stored.size_bytes
        most[0] = max(most[0], live["bytes"])

        def gone() -> None:
            live["bytes"] -= stored.size_bytes

        weakref.finalize(bits, gone)
        return bits

    monkeypatch.setattr(Reader, "read", counted)

    result = run(*arguments(folder, data, recipe, "--no-validate"), tmp_path / "out")

    assert result.code == 0, result.err
    assert live["bytes"] == 0
    assert 0 < most[0] <= 2 * (128 * 128 + 128)
