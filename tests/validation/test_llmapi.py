"""Checkpoints for the LLM API: what is right passes for every family and recipe, and what is broken is rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import models
from llmcompile.exporters.trtllm.llmapi.recipes import FAMILIES, PLAIN_ONLY
from llmcompile.validation import calibrated, llmapi
from llmcompile.writing import hash_file

if TYPE_CHECKING:
    from conftest import Run

WIDE = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
DENSE = ("llama_gqa", "mistral", "qwen2", "qwen3", "starcoder2")
RECIPES = ("fp8", "nvfp4", "fp8_rowwise", "w8a16", "w4a16_awq", "int4_awq", "w4a8_awq")
GROUPED = ("w4a16_awq", "int4_awq", "w4a8_awq")
LAYER = "model.layers.1"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model(family)` is a checkpoint in bfloat16 wide enough for every recipe, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "model"
            config = {**WIDE, **EXPERTS} if family.endswith("moe") else WIDE
            models.save(family, made[family], dtype="bfloat16", config=config)
            models.add_tokenizer(made[family])
        return made[family]

    return make


@pytest.fixture(scope="session")
def artifact(run: Run, model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`artifact(family, recipe, *flags)` is a validated build, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(family: str, recipe: str, *flags: str) -> Path:
        key = (family, recipe, *flags)
        if key not in made:
            output = tmp_path_factory.mktemp(recipe) / "output"
            asked = ["build", "trtllm", "--model", model(family), "--target", "llmapi", output, *flags]
            asked += [] if recipe == "none" else ["--quantization", recipe]
            asked += ["--group-size", 64] if recipe in GROUPED else []
            result = run(*asked)
            assert result.code == 0, result.err
            made[key] = output
        return made[key]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_cast_and_transformers_computes_the_same_with_it(
    model: Callable[[str], Path], artifact: Callable[..., Path], family: str
) -> None:
    """The plain folder reloads by from_pretrained, with the model's logits."""
    name = "llama_gqa" if family == "llama" else family
    output = artifact(name, "none")
    tokens = torch.arange(1, 17)[None]

    found = AutoModelForCausalLM.from_pretrained(output)(tokens).logits

    wanted = AutoModelForCausalLM.from_pretrained(model(name))(tokens).logits
    assert torch.equal(found, wanted)
    assert json.loads((output / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", DENSE)
def test_every_recipe_is_built_validated_and_scored(artifact: Callable[..., Path], family: str, recipe: str) -> None:
    """The manifest says that it passed, and what it costs."""
    manifest = json.loads((artifact(family, recipe) / "llmcompile.json").read_text())

    assert manifest["validation"]["passed"] is True
    assert (
        manifest["validation"]["quality"]["recipe"]
        == json.loads((artifact(family, recipe) / "hf_quant_config.json").read_text())["quantization"]["quant_algo"]
    )
    assert manifest["options"]["target"] == "llmapi"


@pytest.mark.parametrize("recipe", ["fp8", "nvfp4"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_are_quantized_each_with_its_own_scale(artifact: Callable[..., Path], family: str, recipe: str) -> None:
    """Routers and switches are left as they are, and named."""
    output = artifact(family, recipe)

    held = load_file(output / "model.safetensors")
    scale = "weight_scale" if recipe == "fp8" else "weight_scale_2"
    scales = {float(value) for name, value in held.items() if ".experts." in name and name.endswith(f".{scale}")}
    assert len(scales) > 4
    quantization = json.loads((output / "hf_quant_config.json").read_text())["quantization"]
    routers = [name for name in quantization["exclude_modules"] if name.endswith(".gate")]
    assert len(routers) == 2
    assert all(held[f"{name}.weight"].dtype == torch.bfloat16 for name in quantization["exclude_modules"])


def test_a_tied_head_is_left_out_and_excluded(run: Run, tmp_path: Path) -> None:
    """As transformers and modelopt save it."""
    source = models.save("qwen2", tmp_path / "model", dtype="bfloat16", config={**WIDE, "tie_word_embeddings": True})
    models.add_tokenizer(source)

    result = run("build", "trtllm", "-m", source, "--target", "llmapi", "--quantization", "fp8", tmp_path / "output")

    assert result.code == 0, result.err
    assert "lm_head.weight" not in load_file(tmp_path / "output" / "model.safetensors")
    quantization = json.loads((tmp_path / "output" / "hf_quant_config.json").read_text())["quantization"]
    assert quantization["exclude_modules"] == ["lm_head", "model.embed_tokens"]


def test_shards_and_their_index_are_transformers(run: Run, model: Callable[[str], Path], tmp_path: Path) -> None:
    """Small files, an index that names every tensor, and the same logits."""
    output = tmp_path / "output"
    asked = ("build", "trtllm", "-m", model("llama_gqa"), "--target", "llmapi", "--shard-size", "64KiB", output)
    result = run(*asked)

    assert result.code == 0, result.err
    index = json.loads((output / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in output.glob("model-*.safetensors"))
    count = len(files)
    assert count > 1
    assert files == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    held = {name: file for file in files for name in load_file(output / file)}
    assert index["weight_map"] == held
    tokens = torch.arange(1, 17)[None]
    wanted = AutoModelForCausalLM.from_pretrained(model("llama_gqa"))(tokens).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(output)(tokens).logits, wanted)


# What is broken is rejected


def tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    """Change the tensors of a folder."""

    def apply(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(
            {name: value.contiguous() for name, value in held.items()}, folder / "model.safetensors", {"format": "pt"}
        )

    return apply


def text(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change a JSON file of a folder."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return apply


def arguments(before: str, after: str) -> Callable[[Path], None]:
    """Change model.yaml."""

    def apply(folder: Path) -> None:
        path = folder / "model.yaml"
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after, 1))

    return apply


def groups(content: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of quantized linear layers."""
    found: dict[str, Any] = content["quantization_config"]["config_groups"]["group_0"]
    return found


def scaled(name: str, factor: float) -> Callable[[Path], None]:
    """Multiply a tensor."""

    def change(held: dict[str, Tensor]) -> None:
        held[name] = (held[name].float() * factor).to(held[name].dtype)

    return tensors(change)


def swapped(first: str, second: str) -> Callable[[Path], None]:
    """Exchange two tensors."""

    def change(held: dict[str, Tensor]) -> None:
        held[first], held[second] = held[second].clone(), held[first].clone()

    return tensors(change)


def without(name: str) -> Callable[[Path], None]:
    """Remove a tensor."""
    return tensors(lambda held: held.__delitem__(name))


def excluding(change: Callable[[list[str]], None]) -> Callable[[Path], None]:
    """Change exclude_modules in both places."""

    def apply(folder: Path) -> None:
        text("hf_quant_config.json", lambda content: change(content["quantization"]["exclude_modules"]))(folder)
        text("config.json", lambda content: change(content["quantization_config"]["ignore"]))(folder)

    return apply


def flipped(name: str) -> Callable[[Path], None]:
    """Change one bit of one element in the middle."""

    def change(held: dict[str, Tensor]) -> None:
        bits = held[name].clone().view(torch.uint8).reshape(-1)
        bits[bits.numel() // 2] ^= 8
        held[name] = bits.reshape(*held[name].shape[:-1], -1).view(held[name].dtype)

    return tensors(change)


UP, DOWN, Q, K, V, OUT = (
    f"{LAYER}.{part}" for part in ("mlp.up_proj", "mlp.down_proj", *(f"self_attn.{p}_proj" for p in "qkvo"))
)
BREAKS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a weight of a plain checkpoint": ("none", flipped(f"{UP}.weight")),
    "a row of the table": ("none", flipped("model.embed_tokens.weight")),
    "layers exchanged": ("none", swapped("model.layers.0.mlp.up_proj.weight", f"{UP}.weight")),
    "a tensor missing": ("none", without(f"{Q}.weight")),
    "a tensor unknown": ("none", tensors(lambda held: held.update(more=torch.ones(1)))),
    "another type": ("none", tensors(lambda held: held.update({f"{Q}.weight": held[f"{Q}.weight"].half()}))),
    "another model": ("none", text("config.json", lambda content: content.update(rope_theta=5.0))),
    "another width": ("none", tensors(lambda held: held.update({f"{Q}.weight": held[f"{Q}.weight"][:, :64]}))),
    "float8 elements": ("fp8", flipped(f"{UP}.weight")),
    "a weight's scale": ("fp8", scaled(f"{UP}.weight_scale", 1.5)),
    "an input's scale that is zero": ("fp8", scaled(f"{UP}.input_scale", 0.0)),
    "an input's scale that is far too large": ("fp8", scaled(f"{DOWN}.input_scale", 1e6)),
    "an input's scale that is far too small": ("w4a8_awq", scaled(f"{DOWN}.input_scale", 1e-6)),
    "a float4 input's scale that is far too large": ("nvfp4", scaled(f"{OUT}.input_scale", 1e6)),
    "a cache's scale that is far too large": ("fp8 --kv-cache fp8", scaled(f"{K}.k_scale", 1e6)),
    "fused inputs' scales apart": ("fp8", scaled(f"{K}.input_scale", 2.0)),
    "a scale missing": ("fp8", without(f"{UP}.input_scale")),
    "q and k exchanged": ("fp8", swapped(f"{UP}.weight", f"{LAYER}.mlp.gate_proj.weight")),
    "a module excluded that is not": ("fp8", excluding(lambda names: names.append(UP))),
    "a module not excluded that is": ("fp8", excluding(lambda names: names.remove("lm_head"))),
    "texts that disagree": (
        "fp8",
        text("config.json", lambda content: content["quantization_config"].update(quant_algo="NVFP4")),
    ),
    "weights that are no weights": ("none", lambda folder: (folder / "model.safetensors").write_bytes(b"garbage")),
    "groups of nothing": (
        "int4_awq",
        text("hf_quant_config.json", lambda content: content["quantization"].update(group_size=0)),
    ),
    "modules excluded that are no list": (
        "fp8",
        text("config.json", lambda content: content["quantization_config"].update(ignore=5)),
    ),
    "another network": ("none", text("config.json", lambda content: content.update(architectures=["LlamaModel"]))),
    "another producer": ("fp8", text("hf_quant_config.json", lambda content: content["producer"].update(name="x"))),
    "another producer in config.json": (
        "fp8",
        text("config.json", lambda content: content["quantization_config"]["producer"].update(name="x")),
    ),
    "4 bits in place of 8": (
        "fp8",
        text("config.json", lambda content: groups(content)["weights"].update(num_bits=4)),
    ),
    "another size of blocks": (
        "nvfp4",
        text("config.json", lambda content: groups(content)["weights"].update(group_size=32)),
    ),
    "groups of what has none": (
        "fp8",
        text("hf_quant_config.json", lambda content: content["quantization"].update(group_size=128)),
    ),
    "zero points": (
        "int4_awq",
        text("hf_quant_config.json", lambda content: content["quantization"].update(has_zero_point=True)),
    ),
    "no factors": (
        "int4_awq",
        text("hf_quant_config.json", lambda content: content["quantization"].pop("pre_quant_scale")),
    ),
    "another backend": ("none", arguments("backend: pytorch", "backend: tensorrt")),
    "other degrees": ("none", arguments("tensor_parallel_size: 1", "tensor_parallel_size: 2")),
    "a cache of another type": ("none", arguments("dtype: auto", "dtype: fp8")),
    "arguments that are none": ("none", arguments("backend", "- backend")),
    "an unknown recipe": (
        "fp8",
        text("hf_quant_config.json", lambda content: content["quantization"].update(quant_algo="W2")),
    ),
    "a cache's scale": ("fp8 --kv-cache fp8", scaled(f"{K}.k_scale", 0.5)),
    "a cache's scale missing": ("fp8 --kv-cache fp8", without(f"{LAYER}.self_attn.v_proj.v_scale")),
    "a row's scale": ("fp8_rowwise", scaled(f"{DOWN}.weight_scale", 1.01)),
    "int8 elements": ("w8a16", flipped(f"{DOWN}.weight")),
    "int4 elements": ("int4_awq", flipped(f"{DOWN}.weight")),
    "int4 elements behind a norm": ("int4_awq", flipped(f"{UP}.weight")),
    "groups' scales behind a norm": ("int4_awq", scaled(f"{UP}.weight_scale", 1.1)),
    "factors": ("int4_awq", scaled(f"{DOWN}.pre_quant_scale", 1.1)),
    "factors missing": ("int4_awq", without(f"{OUT}.pre_quant_scale")),
    "factors twice": (
        "int4_awq",
        tensors(lambda held: held.update({f"{UP}.pre_quant_scale": torch.ones(128, dtype=torch.bfloat16)})),
    ),
    "a norm without factors": ("int4_awq", scaled(f"{LAYER}.input_layernorm.weight", 2.0)),
    "float4 elements": ("nvfp4", flipped(f"{DOWN}.weight")),
    "a float4 block's scale": ("nvfp4", flipped(f"{DOWN}.weight_scale")),
    "a float4 weight's scale": ("nvfp4", scaled(f"{DOWN}.weight_scale_2", 2.0)),
    "the second scale": ("w4a8_awq", scaled(f"{DOWN}.weight_scale_2", 2.0)),
    "second scales apart": ("w4a8_awq", scaled(f"{K}.weight_scale_2", 1.001)),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_rejected(
    run: Run, model: Callable[[str], Path], artifact: Callable[..., Path], tmp_path: Path, what: str
) -> None:
    """A change of what was written, with a manifest that knows of it, ends with exit code 7."""
    asked, change = BREAKS[what]
    broken = tmp_path / "broken"
    shutil.copytree(artifact("llama_gqa", *asked.split()), broken)
    change(broken)
    manifest = json.loads((broken / "llmcompile.json").read_text())
    for record in manifest["files"]:
        written = hash_file(broken / record["path"])
        record.update(bytes=written.size_bytes, sha256=written.sha256)
    (broken / "llmcompile.json").write_text(json.dumps(manifest))

    result = run("verify", "--deep", "--model", model("llama_gqa"), broken)

    assert result.code == 7, result.out + result.err


def test_a_scale_of_inputs_that_was_not_measured_is_rejected(
    run: Run, model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calibration is repeated by the model in one piece, before the artifact is published."""
    from llmcompile.exporters.trtllm.llmapi import encodings

    monkeypatch.setattr(encodings, "_scalar", lambda value: np.array(0.9 * value, np.float32))
    asked = ("build", "trtllm", "-m", model("llama_gqa"), "--target", "llmapi", "--quantization", "fp8")

    result = run(*asked, tmp_path / "output")

    assert result.code == 7, result.err
    assert "q_proj.input_scale in the checkpoint" in result.err


def test_samples_are_run_some_at_a_time(
    run: Run, model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: memory does not grow with them."""
    watched, sizes = llmapi.run_reference, list[int]()

    def counted(*arguments: Any, **keywords: Any) -> Any:
        if "positions" in keywords:
            sizes.append(keywords["tokens"].numel())
        return watched(*arguments, **keywords)

    monkeypatch.setattr(llmapi, "run_reference", counted)
    monkeypatch.setattr(calibrated, "BATCH_TOKENS", 128)
    asked = ("--target", "llmapi", "--quantization", "fp8", "--calib-seq-len", 32, "--calib-size", 10)

    result = run("build", "trtllm", "-m", model("llama_gqa"), *asked, tmp_path / "output")

    assert result.code == 0, result.err
    assert sizes == [120, 80], "of 20 tokens, which is what the model has positions for"


@pytest.mark.parametrize(
    ("family", "recipe"),
    [("llama_gqa", "int4_awq"), ("llama_gqa", "nvfp4"), ("starcoder2", "w4a8_awq"), ("qwen3_moe", "fp8")],
)
def test_what_is_whole_is_verified(
    family: str, recipe: str, run: Run, model: Callable[[str], Path], artifact: Callable[..., Path]
) -> None:
    """Verify --deep agrees with what a build made; with AWQ also where a text wakes channels that no sample did."""
    output = artifact(family, recipe)

    verified = run("verify", "--deep", "--model", model(family), output)

    assert verified.code == 0, verified.err


@pytest.fixture(scope="session")
def large_values(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose keys and values are beyond 448, so that a measured scale of its cache is above 1."""
    folder = tmp_path_factory.mktemp("large") / "model"
    shutil.copytree(model("llama_gqa"), folder)
    held = load_file(folder / "model.safetensors")
    held[f"{LAYER}.self_attn.v_proj.weight"] *= 2.0**10
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_cache_of_a_recipe_without_scales_of_inputs_is_measured(
    run: Run, large_values: Path, tmp_path: Path
) -> None:
    """AWQ has data but no scales of inputs: its cache's scales are measured all the same, and both commands say so."""
    output = tmp_path / "output"
    asked = ("--target", "llmapi", "--quantization", "int4_awq", "--group-size", 64, "--kv-cache", "fp8")

    built = run("build", "trtllm", "-m", large_values, *asked, output)

    assert built.code == 0, built.err
    assert float(load_file(output / "model.safetensors")[f"{V}.v_scale"]) > 1
    assert run("verify", "--deep", "-m", large_values, output).code == 0


@pytest.fixture(scope="session")
def dead_channel(model: Callable[[str], Path], run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model one norm of which is 0 in the sixth channel, and its build by AWQ in groups of 64."""
    folder = tmp_path_factory.mktemp("dead")
    shutil.copytree(model("llama_gqa"), folder / "model")
    held = load_file(folder / "model" / "model.safetensors")
    held[f"{LAYER}.post_attention_layernorm.weight"][5] = 0
    save_file(held, folder / "model" / "model.safetensors", {"format": "pt"})
    asked = ("--target", "llmapi", "--quantization", "int4_awq", "--group-size", 64)
    result = run("build", "trtllm", "-m", folder / "model", *asked, folder / "output")
    assert result.code == 0, result.err
    return folder / "model", folder / "output"


def coarse(group: int) -> Callable[[dict[str, Tensor]], None]:
    """Integers of 0 and scales so large that these are the nearest."""

    def change(held: dict[str, Tensor]) -> None:
        held[f"{UP}.weight"][:, 64 * group : 64 * group + 64] = 0
        held[f"{UP}.weight_scale"][:, group] *= 100

    return change


def fill(channel: int, value: float) -> Callable[[dict[str, Tensor]], None]:
    """Another number in the norm."""
    return lambda held: held[f"{LAYER}.post_attention_layernorm.weight"][channel].fill_(value)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "change", [coarse(0), coarse(1), fill(5, 0.5), fill(6, 0)], ids=["its group", "another group", "woken", "killed"]
)
def test_a_dead_channel_hides_nothing(
    change: Callable[[dict[str, Tensor]], None], dead_channel: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    """Its factor is not known; all that does not hang on it is compared."""
    source, output = dead_channel
    broken = Path(shutil.copytree(output, tmp_path / "broken"))
    (broken / "llmcompile.json").unlink()
    tensors(change)(broken)

    result = run("verify", "--deep", "-m", source, broken)

    assert result.code == 7, result.out + result.err


# What is refused


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--quantization", "int8_sq"), 4, "--quantization fp8"),
        (("--quantization", "w4a16"), 4, "w4a16_awq"),
        (("--quantization", "w4a16_gptq"), 4, "int4_awq"),
        (("--kv-cache", "int8"), 2, "--kv-cache fp8"),
        (("--stop-after", "checkpoint"), 2, "drop --stop-after"),
        (("--keep-checkpoint",), 2, "drop --keep-checkpoint"),
        (("--wo-layout", "sm80"), 2, "drop --wo-layout"),
        (("--use-parallel-embedding",), 2, "drop --use-parallel-embedding"),
        (("--gemm-plugin", "auto"), 2, "drop --gemm_plugin"),
        (("--builder", "api"), 2, "drop --builder"),
        (("--dtype", "float32"), 2, "--dtype bfloat16"),
        (("--trtllm-version", "0.21.0"), 4, "1.0 or later"),
        (("--max-batch-size", "0"), 2, "a whole number above 0"),
        (("--quantization", "fp8", "--group-size", "32"), 2, "drop --group-size"),
        (("--tp", "3"), 4, "heads"),
        (("--quantization", "w8a16", "--calibrator", "modelopt"), 4, "drop --calibrator"),
        (("--quantization", "w8a16", "--calib-dataset", "texts.txt"), 4, "drop --calib-dataset"),
        (("--moe-ep", "2", "--tp", "2"), 4, "without experts"),
        (("--quantization", "w8a16", "--trtllm-version", "1.0.0"), 4, "1.1 or later"),
        (("--quantization", "int4_awq", "--group-size", "96"), 4, "whole number of groups"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_before_any_work(
    run: Run, model: Callable[[str], Path], tmp_path: Path, flags: tuple[str, ...], code: int, words: str
) -> None:
    """The message says what to type, and nothing is written."""
    result = run("build", "trtllm", "-m", model("llama_gqa"), "--target", "llmapi", *flags, tmp_path / "output")

    assert result.code == code, result.err
    assert words in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["gpt2", "gemma", "t5", *PLAIN_ONLY])
def test_families_without_a_network_are_refused_with_the_release_that_has_engines(
    run: Run, tmp_path: Path, family: str
) -> None:
    """What to type is --target engine, with the last release that builds."""
    source = models.save(family, tmp_path / "model", dtype="bfloat16")

    result = run("build", "trtllm", "-m", source, "--target", "llmapi", "--quantization", "fp8", tmp_path / "output")

    assert result.code == 4
    assert "--target engine --trtllm-version 1.2.1" in result.err


def test_an_encoder_is_not_sent_to_engines_which_refuse_it_too(run: Run, tmp_path: Path) -> None:
    """What to type is a command that takes it."""
    source = models.save("bert", tmp_path / "model")

    result = run("build", "trtllm", "-m", source, "--target", "llmapi", tmp_path / "output")

    assert result.code == 4
    assert f"llmcompile build tensorrt-rtx --model {source} {tmp_path / 'output'};" in result.err
    assert "--target engine" not in result.err


def test_a_degree_that_does_not_divide_is_one_problem_with_those_that_do(
    run: Run, model: Callable[[str], Path], tmp_path: Path
) -> None:
    """4 heads, 2 key and value heads and 128 of the feed-forward: one list suits all three."""
    source = model("llama_gqa")

    result = run("build", "trtllm", "-m", source, "--target", "llmapi", "--tp", 3, "--json", tmp_path / "output")

    problems = json.loads(result.out)["error"]["problems"]
    assert [problem["hint"] for problem in problems] == ["degrees that divide this model: 1, 2, 4"]


def test_limits_and_degrees_are_in_model_yaml(run: Run, model: Callable[[str], Path], tmp_path: Path) -> None:
    """By the names of tensorrt_llm.LLM's arguments."""
    import yaml

    flags = ("--tp", 2, "--max-batch-size", 8, "--max-seq-len", 64, "--kv-cache", "fp8")
    result = run("build", "trtllm", "-m", model("llama_gqa"), "--target", "llmapi", *flags, tmp_path / "output")

    assert result.code == 0, result.err
    assert yaml.safe_load((tmp_path / "output" / "model.yaml").read_text()) == {
        "backend": "pytorch",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "max_batch_size": 8,
        "max_seq_len": 64,
        "kv_cache_config": {"dtype": "fp8"},
    }


def test_a_build_is_resumed_and_repeated_byte_for_byte(
    run: Run, model: Callable[[str], Path], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    """The same job gives the same files, manifest included."""
    asked = ("build", "trtllm", "--model", model("llama_gqa"), "--target", "llmapi", "--quantization", "fp8")
    again = tmp_path / "output"
    assert run(*asked, again).code == 0

    first = artifact("llama_gqa", "fp8")
    for path in sorted(first.iterdir()):
        if path.name != "llmcompile.json":
            assert path.read_bytes() == (again / path.name).read_bytes(), path.name
