"""What --target llmapi builds, packaged for the servers that load it, and refused for those that do not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

import models
from serving_artifacts import model_py

if TYPE_CHECKING:
    from conftest import Run

WIDE = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_key_value_heads": 2}


@pytest.fixture(scope="session")
def artifact(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`artifact(*flags)` is a build for two ranks, made once."""
    made: dict[tuple[str, ...], Path] = {}
    source = models.save("llama_gqa", tmp_path_factory.mktemp("model"), dtype="bfloat16", config=WIDE)
    models.add_tokenizer(source)

    def make(*flags: str) -> Path:
        if flags not in made:
            output = tmp_path_factory.mktemp("artifact") / "output"
            asked = ("--target", "llmapi", "--tp", 2, "--max-batch-size", 4, "--no-validate")
            result = run("build", "trtllm", "-m", source, *asked, *flags, output)
            assert result.code == 0, result.err
            made[flags] = output
        return made[flags]

    return make


@pytest.mark.parametrize("recipe", ["none", "fp8", "w4a16_awq"])
def test_triton_is_told_what_the_artifact_was_built_for(
    run: Run, artifact: Callable[..., Path], tmp_path: Path, recipe: str
) -> None:
    """Degrees, limits and the cache are those of model.yaml, whose place the package's own takes."""
    groups = ("--group-size", "64") if recipe == "w4a16_awq" else ()
    flags = () if recipe == "none" else ("--quantization", recipe, *groups, "--kv-cache", "fp8")
    code = model_py(tmp_path / "code")

    result = run("package", "triton", artifact(*flags), tmp_path / "package", "--model-py", code)

    assert result.code == 0, result.err
    home = tmp_path / "package" / "tensorrt_llm" / "1"
    content = yaml.safe_load((home / "model.yaml").read_text())
    assert (content["tensor_parallel_size"], content["max_batch_size"]) == (2, 4)
    assert content["kv_cache_config"] == {"dtype": "auto" if recipe == "none" else "fp8"}
    assert (home / "model" / "model.safetensors").is_file()
    assert (home / "model" / "hf_quant_config.json").is_file() is (recipe != "none")
    assert not (home / "model" / "model.yaml").exists()


@pytest.mark.parametrize("server", ["lmi", "ray-serve"])
@pytest.mark.parametrize("recipe", ["none", "fp8"])
def test_servers_with_vllm_take_what_it_loads(
    run: Run, artifact: Callable[..., Path], tmp_path: Path, recipe: str, server: str
) -> None:
    """A plain folder, and modelopt's FP8."""
    flags = () if recipe == "none" else ("--quantization", recipe)
    result = run("package", server, artifact(*flags), tmp_path / "package")

    assert result.code == 0, result.err
    assert len(list((tmp_path / "package").rglob("model.safetensors"))) == 1


@pytest.mark.parametrize("server", ["lmi", "ray-serve"])
def test_servers_with_vllm_refuse_what_it_does_not_load(
    run: Run, artifact: Callable[..., Path], tmp_path: Path, server: str
) -> None:
    """Modelopt's AWQ, with Triton as the way on."""
    output = artifact("--quantization", "w4a16_awq", "--group-size", "64")

    result = run("package", server, output, tmp_path / "package")

    assert result.code == 4
    assert "W4A16_AWQ, which vLLM does not load" in result.err
    assert "llmcompile package triton" in result.err
    assert not (tmp_path / "package").exists()


def test_a_build_packages_itself(run: Run, tmp_path: Path) -> None:
    """--package makes OUTPUT-ray-serve too."""
    source = models.save("llama_gqa", tmp_path / "model", dtype="bfloat16", config=WIDE)
    models.add_tokenizer(source)

    flags = ("--target", "llmapi", "--no-validate", "--package", "ray-serve")
    result = run("build", "trtllm", "-m", source, *flags, tmp_path / "output")

    assert result.code == 0, result.err
    assert json.loads((tmp_path / "output-ray-serve" / "llmcompile.json").read_text())["package"]["kind"] == "hf"


@pytest.mark.parametrize("recipe", ["none", "fp8", "w4a16_awq"])
def test_the_summary_has_a_command_that_packages_it(run: Run, tmp_path: Path, recipe: str) -> None:
    """It works as it is printed, where NVIDIA's clone that it names is there."""
    source = models.save("llama_gqa", tmp_path / "model", dtype="bfloat16", config=WIDE)
    models.add_tokenizer(source)
    groups = ("--group-size", "64") if recipe == "w4a16_awq" else ()
    flags = () if recipe == "none" else ("--quantization", recipe, *groups)
    built = run("build", "trtllm", "-m", source, "--target", "llmapi", "--no-validate", *flags, tmp_path / "out")
    line = next(line for line in built.out.splitlines() if line.startswith("  or "))
    words = shlex.split(line)[1:]
    if "--model-py" in words:
        words[-1] = str(model_py(tmp_path / words[-1]))

    result = run(*words[1:])

    assert words[0] == "llmcompile"
    assert result.code == 0, result.err


def test_the_code_of_the_release_it_was_built_for_is_named(run: Run, tmp_path: Path) -> None:
    """In a command that can be typed."""
    source = models.save("llama_gqa", tmp_path / "model", dtype="bfloat16", config=WIDE)
    models.add_tokenizer(source)
    asked = ("--target", "llmapi", "--trtllm-version", "1.2.0", "--no-validate")
    assert run("build", "trtllm", "-m", source, *asked, tmp_path / "out").code == 0

    result = run("package", "triton", tmp_path / "out", tmp_path / "package")

    clone = "git clone --depth 1 --branch v1.2.0 https://github.com/NVIDIA/TensorRT-LLM"
    assert clone in [line.removeprefix("hint:").strip() for line in result.err.splitlines()]


REFUSED: list[tuple[str, tuple[str, ...], int, str]] = [
    ("lmi", ("--quantization", "int4_awq"), 4, "W4A16_AWQ, which vLLM does not load"),
    ("ray-serve", ("--quantization", "int4_awq"), 4, "W4A16_AWQ, which vLLM does not load"),
    ("sagemaker", ("--quantization", "int4_awq"), 4, "W4A16_AWQ, which vLLM does not load"),
    ("rayllm", ("--kv-cache", "fp8"), 4, "'modelopt', which RayLLM's vLLM does not load"),
    ("triton", (), 2, "--model-py: not given"),
]


@pytest.mark.parametrize(("server", "flags", "code", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_package_that_cannot_be_is_refused_before_the_build(
    run: Run, tmp_path: Path, server: str, flags: tuple[str, ...], code: int, words: str
) -> None:
    """By recipe and options, in a dry run too: the model itself is not looked at yet."""
    output = tmp_path / "output"
    asked = ("--target", "llmapi", "--dry-run", *flags, "--package", server, output)

    result = run("build", "trtllm", "-m", tmp_path, *asked, env={"LLMCOMPILE_BUCKET_URI": "s3://bucket/name/"})

    assert result.code == code, result.err
    assert words in result.err


def test_a_build_is_told_by_which_variable_a_package_takes_an_option(run: Run, tmp_path: Path) -> None:
    """It has no --model-py itself."""
    output = tmp_path / "output"

    result = run("build", "trtllm", "-m", tmp_path, "--target", "llmapi", "--package", "triton", output)

    assert "takes it from the variable LLMCOMPILE_MODEL_PY" in result.err
    assert f"llmcompile package triton {output} {output}-triton" in result.err
