"""optimum-neuron is found, run in a child interpreter, and what it wrote is checked; a stand-in takes its place.

The stand-in has the signatures of the real wheels (tests/golden/neuron/optimum). The Neuron SDK was never at hand: what
its functions write was seen with the real optimum-neuron and a replaced torch_neuronx.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optimum_standin as standin
from llmcompile.errors import ToolchainError
from llmcompile.exporters.neuron import optimum, optimum_requests
from llmcompile.exporters.neuron.optimum import Exported, Sdk
from llmcompile.exporters.neuron.optimum_requests import Request
from llmcompile.exporters.neuron.options import NeuronOptions, Shapes
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.processes import Line

TOKENS = Shapes(batch_size=1, sequence_length=4)
LLAMA = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2, "torch_dtype": "bfloat16"}


class Encoder(torch.nn.Module):
    """What a traced encoder looks like from outside: three tensors in, a dictionary out."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Something that tells its inputs apart."""
        values = input_ids + 10.0 * attention_mask + 100.0 * token_type_ids
        return {"last_hidden_state": values, "pooler_output": values.sum(-1)}


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript file."""
    path = tmp_path_factory.mktemp("module") / "model.neuron"
    ones = torch.ones(1, 4, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; it is what torch_neuronx writes
        torch.jit.save(torch.jit.trace(Encoder(), (ones, ones, ones), strict=False), path)
    return path


@pytest.fixture
def sdk(tmp_path: Path, module: Path) -> Sdk:
    """The stand-in of the newest release."""
    return optimum.probe(standin.install(tmp_path / "sdk", module))


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """Make a model's folder of a config.json, at a path that says too much."""

    def make(config: dict[str, Any], name: str = "config.json", **files: str) -> Path:
        folder = tmp_path / "sentence-transformers" / "it"
        folder.mkdir(parents=True)
        for path, text in {name: json.dumps(config), **files}.items():
            (folder / path).write_text(text)
        return folder

    return make


def request(root: Path, task: str, shapes: Shapes = TOKENS, *, release: Any = (0, 4, 5), **asked: Any) -> Request:
    """What is asked for a model, into artifact/ beside its folder's parent."""
    build = BuildOptions(model=str(root), output=Path("out"), **asked.pop("build", {}))
    options = NeuronOptions(build=build, shapes=shapes, **asked)
    index = root / "model_index.json"
    config = json.loads((index if index.exists() else root / "config.json").read_text())
    work = root.parents[1]
    return optimum_requests.make_request(
        options,
        task,
        root,
        work / "artifact",
        source=optimum_requests.source_of(config, task),
        release=release,
        target="inf2" if options.instance_type is None else options.instance_type,
        folder=work,
        environ={},
    )


def made(sdk: Sdk, asked: Request, log: list[Line] | None = None) -> Exported:
    """Export, in a folder beside the artifact."""
    folder = Path(str(asked.content["output"])).parent
    return optimum.export(sdk, asked, folder=folder, on_line=(lambda line: None) if log is None else log.append)


def called(sdk: Sdk) -> dict[str, Any]:
    """How the stand-in was called."""
    found = json.loads((sdk.python.parents[1] / "called.json").read_text())
    assert isinstance(found, dict)
    return found


def failure(sdk: Sdk, asked: Request) -> ToolchainError:
    """Why an export fails."""
    with pytest.raises(ToolchainError) as caught:
        made(sdk, asked)
    return caught.value


# Find


def test_the_interpreter_that_was_named_is_asked(tmp_path: Path) -> None:
    """By the option, before the variable."""
    first, second = standin.install(tmp_path / "a"), standin.install(tmp_path / "b", version="0.4.1")

    assert optimum.find(first, {"LLMCOMPILE_NEURON_PYTHON": str(second)}).python == first
    assert optimum.find(None, {"LLMCOMPILE_NEURON_PYTHON": str(second)}).release == (0, 4, 1)


def test_an_environment_of_aws_is_found(tmp_path: Path) -> None:
    """The newest whole one, where ours lacks optimum-neuron; one that cannot be run is passed over."""
    for name in ("aws_neuronx_venv_pytorch_2_7", "aws_neuronx_venv_pytorch_2_8"):
        standin.install(tmp_path / name)
    standin.install(tmp_path / "aws_neuronx_venv_pytorch_2_9", packages=standin.PLACEHOLDERS)
    broken = tmp_path / "aws_neuronx_venv_x" / "bin"
    broken.mkdir(parents=True)
    (broken / "python").write_text("#!/bin/sh\nexit 3\n")
    (broken / "python").chmod(0o755)

    found = optimum.find(None, {}, venvs=tmp_path)

    assert found.python == tmp_path / "aws_neuronx_venv_pytorch_2_8" / "bin" / "python"


def test_where_there_is_none_every_package_is_named(tmp_path: Path) -> None:
    """And the ways on, with AWS's index, the images and our own way."""
    with pytest.raises(ToolchainError) as caught:
        optimum.find(None, {}, venvs=tmp_path)

    problems = caught.value.problems
    assert [problem.subject for problem in problems] == [
        "optimum-neuron",
        "optimum",
        "torch-neuronx",
        "neuronx-cc",
        "libneuronxla",
        "neuronx-distributed",
    ]
    assert problems[0].found == f"not installed for {sys.executable}"
    assert "--extra-index-url https://pip.repos.neuron.amazonaws.com" in problems[-1].hint
    assert "amazonaws.com/huggingface-pytorch-inference-neuronx:" in problems[-1].hint
    assert "--via xla" in problems[-1].hint
    assert caught.value.exit_code == 6


def test_the_placeholders_of_pypi_are_no_sdk(tmp_path: Path) -> None:
    """Each with the version found and the one wanted."""
    python = standin.install(tmp_path, packages={**standin.PLACEHOLDERS, "optimum": "2.0.0"})

    with pytest.raises(ToolchainError) as caught:
        optimum.find(python, {})

    assert [(problem.subject, problem.found, problem.expected) for problem in caught.value.problems] == [
        ("torch-neuronx", f"1.0, PyPI's placeholder, for {python}", "2 or later"),
        ("neuronx-cc", f"1.0.post1, PyPI's placeholder, for {python}", "2 or later"),
        ("libneuronxla", f"1.0, PyPI's placeholder, for {python}", "2 or later"),
        ("neuronx-distributed", f"0.1, PyPI's placeholder, for {python}", "0.9 or later"),
    ]


def test_an_old_release_is_refused(tmp_path: Path) -> None:
    """0.2.2 has another API."""
    python = standin.install(tmp_path, version="0.2.2", signatures="0.3.0")

    with pytest.raises(ToolchainError, match=r"optimum-neuron: 0\.2\.2 for .*expected 0\.3 or later"):
        optimum.find(python, {})


@pytest.mark.parametrize(
    ("version", "release"),
    [("0.4.5", (0, 4, 5)), ("0.4.6.dev4", (0, 4, 6)), ("0.5", (0, 5, 0)), ("1.0.0rc1", (1, 0, 0))],
)
def test_a_release_is_three_numbers(version: str, release: tuple[int, int, int]) -> None:
    """Of whatever the distribution says."""
    versions = {"optimum-neuron": version}
    found = Sdk(python=Path("p"), python_version="3.11.7", versions=versions, devices=0, missing=())

    assert found.release == release


def test_an_interpreter_that_is_none_is_refused(tmp_path: Path) -> None:
    """Without a traceback."""
    with pytest.raises(ToolchainError, match="--toolchain-python"):
        optimum.find(tmp_path / "absent", {})
    with pytest.raises(ToolchainError, match="answered nothing"):
        optimum.find(Path("/bin/echo"), {})


# Export: the real layouts


def test_an_encoder_is_exported(sdk: Sdk, model: Callable[..., Path]) -> None:
    """Its file, configuration and tokenizer; every byte read."""
    root = model({"model_type": "bert"}, **{"tokenizer.json": "{}", "vocab.txt": "a"})
    log: list[Line] = []

    done = made(sdk, request(root, "feature-extraction", auto_cast="matmul"), log)

    assert set(done.files) == {"config.json", "model.neuron", "tokenizer.json", "vocab.txt"}
    assert done.modules["model.neuron"].size_bytes == done.files["model.neuron"]
    assert done.modules["model.neuron"].not_loaded == "no Neuron device"
    assert done.compiler_version == "2.21.33363.0+82129205"
    assert done.versions["optimum-neuron"] == "0.4.5"
    assert [line.progress for line in log if line.progress is not None] == ["compiling model", "compiled in 1.25 s"]
    assert called(sdk)["shapes"] == {"batch_size": 1, "sequence_length": 4}


def test_the_path_of_the_model_changes_no_flag(sdk: Sdk, model: Callable[..., Path]) -> None:
    """It is sentence-transformers/it here, and optimum-neuron sees a link called model."""
    made(sdk, request(model({"model_type": "bert"}), "feature-extraction", auto_cast="all"))

    seen = called(sdk)
    assert seen["flags"] == "--auto-cast all --auto-cast-type bf16 --optlevel 2 --model-type transformer"
    assert Path(seen["arguments"]["model_name_or_path"]).name == "model"
    assert not Path(seen["arguments"]["model_name_or_path"]).exists()


def test_the_target_is_there_before_anything_is_imported(sdk: Sdk, model: Callable[..., Path]) -> None:
    """The stand-in refuses another, as the real one does."""
    made(sdk, request(model({"model_type": "bert"}), "feature-extraction", instance_type="trn2"))

    assert called(sdk)["environment"]["NEURON_PLATFORM_TARGET_OVERRIDE"] == "trn2"


def test_the_compiler_beside_the_interpreter_is_on_its_path(sdk: Sdk, model: Callable[..., Path]) -> None:
    """torch_neuronx calls neuronx-cc by its name, and nobody activated that environment."""
    made(sdk, request(model({"model_type": "bert"}), "feature-extraction"))

    assert called(sdk)["environment"]["PATH"].split(":")[0] == str(sdk.python.parent)


def test_the_token_reaches_the_child_alone(
    sdk: Sdk, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its environment, where it asks the hub; no other secret of ours does."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws")
    asked = request(
        model({"model_type": "bert"}), "feature-extraction", build={"token": "hf_x"}, disable_neuron_cache=False
    )
    log: list[Line] = []

    made(sdk, asked, log)

    environment = called(sdk)["environment"]
    assert environment["HF_TOKEN"] == "hf_x"
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert all("hf_x" not in line.text for line in log)


def test_an_encoder_decoder_is_exported_in_two_parts(sdk: Sdk, model: Callable[..., Path]) -> None:
    """Each with a configuration of its own, and the generation's beside them."""
    root = model({"model_type": "t5", "is_encoder_decoder": True})

    done = made(sdk, request(root, "text2text-generation", Shapes(batch_size=1, sequence_length=8, num_beams=2)))

    assert set(done.files) == {
        "config.json",
        "generation_config.json",
        "encoder/config.json",
        "encoder/model.neuron",
        "decoder/config.json",
        "decoder/model.neuron",
    }
    assert called(sdk)["shapes"] == {"batch_size": 1, "sequence_length": 8, "num_beams": 2}


def test_a_pipeline_is_exported_in_its_parts(sdk: Sdk, model: Callable[..., Path], tmp_path: Path) -> None:
    """With another UNet; model_index.json names the model, and no folder of ours that is gone."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.2",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    root = model(index, "model_index.json")
    shapes = Shapes(batch_size=1, height=64, width=96, num_images_per_prompt=2)

    done = made(sdk, request(root, "text-to-image", shapes, unet=tmp_path / "other"))

    assert set(done.modules) == {
        f"{part}/model.neuron" for part in ("text_encoder", "unet", "vae_encoder", "vae_decoder")
    }
    seen = called(sdk)
    assert seen["shapes"]["unet_or_transformer"] == {
        "batch_size": 2,
        "sequence_length": None,
        "height": 64,
        "width": 96,
    }
    assert Path(seen["arguments"]["submodels"]["unet"]).name == "unet"
    assert json.loads((tmp_path / "artifact" / "model_index.json").read_text())["_name_or_path"] == str(root)


@pytest.mark.parametrize("version", ["0.3.0", "0.4.0", "0.4.1", "0.4.5"])
def test_a_decoder_is_exported_by_every_generation(
    version: str, tmp_path: Path, module: Path, model: Callable[..., Path]
) -> None:
    """Configuration, graphs, weights of every rank, tokenizer; in the checkpoint's type and for the target."""
    sdk = optimum.probe(standin.install(tmp_path / "sdk", module, version=version))
    root = model(LLAMA, **{"tokenizer.json": "{}", "generation_config.json": "{}", "modeling_llama.py": ""})

    done = made(sdk, request(root, "text-generation", release=sdk.release, num_cores=2, instance_type="trn2"))

    assert set(done.files) == {
        "config.json",
        "neuron_config.json",
        "model.pt",
        "checkpoint/weights/tp0_sharded_checkpoint.safetensors",
        "checkpoint/weights/tp1_sharded_checkpoint.safetensors",
        "generation_config.json",
        "tokenizer.json",
    }
    artifact = tmp_path / "artifact"
    recorded = json.loads((artifact / "neuron_config.json").read_text())
    assert recorded["torch_dtype"] == "bfloat16"
    assert recorded["target"] == (None if version == "0.3.0" else "trn2")
    assert called(sdk)["work"] == f"{tmp_path}/nxd/"


def test_a_decoders_type_is_replaced(sdk: Sdk, model: Callable[..., Path], tmp_path: Path) -> None:
    """By --torch-dtype, before neuronx-distributed casts the weights."""
    made(sdk, request(model(LLAMA), "text-generation", torch_dtype="float16"))

    assert json.loads((tmp_path / "artifact" / "neuron_config.json").read_text())["torch_dtype"] == "float16"


def test_code_of_the_checkpoint_goes_along(sdk: Sdk, model: Callable[..., Path], tmp_path: Path) -> None:
    """Where --trust-remote-code was given."""
    root = model({"model_type": "bert"}, **{"modeling_x.py": "x = 1"})

    made(sdk, request(root, "feature-extraction", build={"trust_remote_code": True}))

    assert (tmp_path / "artifact" / "modeling_x.py").read_text() == "x = 1"
    assert called(sdk)["arguments"]["trust_remote_code"] is True


# Releases that were not read


def test_a_newer_release_is_tried(tmp_path: Path, module: Path, model: Callable[..., Path]) -> None:
    """Where it takes every argument."""
    sdk = optimum.probe(standin.install(tmp_path / "sdk", module, version="0.5.0", signatures="0.4.5"))

    done = made(sdk, request(model({"model_type": "bert"}), "feature-extraction", release=sdk.release))

    assert done.versions["optimum-neuron"] == "0.5.0"


def test_a_newer_release_without_an_argument_names_it(tmp_path: Path, module: Path, model: Callable[..., Path]) -> None:
    """And is not called: **input_shapes would swallow the argument."""
    sdk = optimum.probe(
        standin.install(tmp_path / "sdk", module, version="0.5.0", signatures="0.4.5", without="optlevel")
    )

    error = failure(sdk, request(model({"model_type": "bert"}), "feature-extraction", release=sdk.release))

    assert str(error).startswith("optimum-neuron 0.5.0: its main_export has no argument optlevel")
    assert "--via xla" in error.problems[0].hint
    assert not (tmp_path / "sdk" / "called.json").exists()


# What goes wrong


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the stand-in do something wrong."""
    return lambda how: monkeypatch.setenv("OPTIMUM_STANDIN", how)


def test_an_exception_is_the_message(sdk: Sdk, model: Callable[..., Path], wrong: Callable[[str], None]) -> None:
    """With the last lines, and the command that repeats it, which holds no link of ours."""
    wrong("fail")
    root = model({"model_type": "bert"})

    error = failure(sdk, request(root, "feature-extraction"))

    found, hint = error.problems[0].found, error.problems[0].hint
    assert found.startswith("exit code 1: AttributeError: Cannot find the value of `num_choices`")
    assert "to repeat it: env NEURON_PLATFORM_TARGET_OVERRIDE=trn1 BASE_COMPILE_WORK_DIR=" in hint
    assert f'"model": "{root}"' in hint
    assert "Traceback" in hint


def test_the_compilers_end_by_lack_of_memory_has_advice(
    sdk: Sdk, model: Callable[..., Path], wrong: Callable[[str], None]
) -> None:
    """The kernel killed it."""
    wrong("memory")

    problem = failure(sdk, request(model({"model_type": "bert"}), "feature-extraction")).problems[0]

    assert problem.found.startswith("killed by SIGKILL: [F137] neuronx-cc was forcibly killed")
    assert problem.hint.startswith("this machine's memory ran out")


def test_a_code_of_the_compiler_counts_though_much_is_said_after_it(
    sdk: Sdk, model: Callable[..., Path], wrong: Callable[[str], None]
) -> None:
    """It is no longer among the last lines."""
    wrong("instructions")

    problem = failure(sdk, request(model({"model_type": "bert"}), "feature-extraction")).problems[0]

    assert problem.found.startswith("exit code 1: [XTP003]: Number of instructions (10046893)")
    assert "-O1" in problem.hint


def test_a_hang_ends_at_the_timeout(sdk: Sdk, model: Callable[..., Path], wrong: Callable[[str], None]) -> None:
    """With its processes."""
    wrong("hang")
    asked = request(model({"model_type": "bert"}), "feature-extraction")
    before = time.monotonic()

    with pytest.raises(ToolchainError, match="still running after 1 s; stopped"):
        optimum.export(sdk, asked, folder=sdk.python.parent, on_line=lambda line: None, timeout_seconds=1.0)

    assert time.monotonic() - before < 10


DAMAGE = (
    ("half", "model.neuron: not written"),
    ("cut", "model.neuron: not a whole TorchScript file"),
    ("other", "config.json: auto_cast: all"),
)


@pytest.mark.parametrize(("how", "said"), DAMAGE, ids=[row[0] for row in DAMAGE])
def test_a_damaged_encoder_is_found(
    how: str, said: str, sdk: Sdk, model: Callable[..., Path], wrong: Callable[[str], None]
) -> None:
    """Though the vendor said nothing."""
    wrong(how)

    error = failure(sdk, request(model({"model_type": "bert"}), "feature-extraction"))

    assert said in str(error)
    assert error.exit_code == 6


DECODER_DAMAGE = (
    ("half", "model.pt: not written"),
    ("cut", "model.pt: not a whole TorchScript file"),
    ("shard", "tp0_sharded_checkpoint.safetensors: not a whole safetensors file"),
    ("rank", "tp1_sharded_checkpoint.safetensors: tensors of other names or shapes"),
    ("other", "neuron_config.json: batch_size: 7; expected 1, as asked"),
)


@pytest.mark.parametrize(("how", "said"), DECODER_DAMAGE, ids=[row[0] for row in DECODER_DAMAGE])
def test_a_damaged_decoder_is_found(
    how: str, said: str, sdk: Sdk, model: Callable[..., Path], wrong: Callable[[str], None]
) -> None:
    """Any file of it."""
    wrong(how)

    assert said in str(failure(sdk, request(model(LLAMA), "text-generation", num_cores=2)))


def test_a_decoder_without_its_weights_is_found(sdk: Sdk, model: Callable[..., Path], tmp_path: Path) -> None:
    """What is made of a hub id has none, and is fetched when it is loaded."""
    asked = request(model(LLAMA), "text-generation", num_cores=2)
    made(sdk, asked)
    (tmp_path / "artifact" / asked.shards[1]).unlink()

    with pytest.raises(ToolchainError, match=r"tp1_sharded_checkpoint\.safetensors: not written"):
        optimum.check(sdk, asked, folder=tmp_path, on_line=lambda line: None)


def test_a_module_for_each_rank_may_be_a_folder(sdk: Sdk, model: Callable[..., Path], tmp_path: Path) -> None:
    """As parallel_model_save writes T5 for several cores; each must be there."""
    root = model({"model_type": "t5", "is_encoder_decoder": True})
    shapes = Shapes(batch_size=1, sequence_length=8, num_beams=2)
    asked = request(root, "text2text-generation", shapes, num_cores=2)
    made(sdk, asked)
    for part in ("encoder", "decoder"):
        path = tmp_path / "artifact" / part / "model.neuron"
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        for rank in (0, 1):
            (path / f"tp_{rank}.pt").write_bytes(content)

    done = optimum.check(sdk, asked, folder=tmp_path, on_line=lambda line: None)

    assert set(done.modules) == {
        f"{part}/model.neuron/tp_{rank}.pt" for part in ("encoder", "decoder") for rank in (0, 1)
    }
    (tmp_path / "artifact" / "decoder" / "model.neuron" / "tp_1.pt").unlink()
    with pytest.raises(ToolchainError, match=r"decoder/model\.neuron/tp_1\.pt: not written"):
        optimum.check(sdk, asked, folder=tmp_path, on_line=lambda line: None)


# Staging


def test_a_folder_of_ours_has_no_word_that_changes_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither TMPDIR nor what mkdtemp makes up."""
    assert not optimum.is_neutral("/models/sentence-transformers/x")
    assert not optimum.is_neutral("/tmp/llmcompile-vae1xyz")
    assert optimum.is_neutral("/tmp/llmcompile-abc")
    (tmp_path / "unet").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unet"))

    with optimum._neutral_folder() as folder:
        assert optimum.is_neutral(str(folder))
        assert folder.is_dir()
    assert not folder.exists()


def test_a_name_made_up_with_such_a_word_is_made_up_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One in some ten thousand has "vae" in it."""
    base = tmp_path_factory.getbasetemp()
    names: Iterator[str] = iter(["vae", "unet", "fine"])

    def mkdtemp(prefix: str, dir: str) -> str:
        path = base / f"{prefix}{next(names)}"
        path.mkdir()
        return str(path)

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    monkeypatch.setattr(tempfile, "tempdir", str(base))

    with optimum._neutral_folder() as folder:
        assert folder.name == "llmcompile-fine"
    assert [path for path in base.iterdir() if path.name.startswith("llmcompile-")] == []


# Run


def test_a_traced_encoder_is_run_on_what_is_given(tmp_path: Path, module: Path, model: Callable[..., Path]) -> None:
    """In the child's torch; this one needs no device, since nothing was compiled."""
    sdk = optimum.probe(standin.install(tmp_path / "sdk", module, real_torch=True))
    asked = request(model({"model_type": "bert"}), "feature-extraction")
    made(sdk, asked)
    ids, mask, kinds = (np.array([row], dtype=np.int64) for row in ((1, 2, 3, 4), (1, 1, 1, 0), (0, 0, 1, 1)))

    answer = optimum.run_module(
        sdk,
        asked,
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds},
        folder=tmp_path,
        on_line=lambda line: None,
    )

    expected = (ids + 10.0 * mask + 100.0 * kinds).astype(np.float32)
    assert answer.not_run is None
    np.testing.assert_array_equal(answer.outputs["last_hidden_state"], expected)
    np.testing.assert_array_equal(answer.outputs["pooler_output"], expected.sum(-1))


def test_a_module_that_cannot_run_here_says_why(tmp_path: Path, module: Path, model: Callable[..., Path]) -> None:
    """A compiled one asks for torch.classes.neuron, and for a device."""
    sdk = optimum.probe(standin.install(tmp_path / "sdk", module, real_torch=True))
    asked = request(model({"model_type": "bert"}), "feature-extraction")
    made(sdk, asked)
    with zipfile.ZipFile(tmp_path / "artifact" / "model.neuron", "w") as archive:
        archive.writestr("model/constants.pkl", b"")

    answer = optimum.run_module(
        sdk, asked, {"input_ids": np.zeros((1, 4), np.int64)}, folder=tmp_path, on_line=lambda line: None
    )

    assert answer.outputs == {}
    assert str(answer.not_run).startswith("no Neuron device: ")


def test_parts_are_not_run_by_us(sdk: Sdk, model: Callable[..., Path], tmp_path: Path) -> None:
    """A decoder takes caches, an encoder-decoder a search: optimum-neuron's own classes run them."""
    asked = request(model(LLAMA), "text-generation")

    answer = optimum.run_module(sdk, asked, {}, folder=tmp_path, on_line=lambda line: None)

    assert str(answer.not_run).startswith("it is compiled in parts")


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("***** Compiling unet *****", "compiling unet"),
        ("[Compilation Time] 37.2 seconds.", "compiled in 37.2 s"),
        ("[Total compilation Time] 80.01 seconds.", "all compiled in 80.01 s"),
        ("INFO:Neuron:Generating HLO: token_generation, input example shape = ...", "tracing token_generation"),
        ("Compiler status PASS", "passed"),
        ("Using Neuron: --optlevel 2", None),
    ],
)
def test_lines_of_the_log_tell_how_far_it_is(line: str, meaning: str | None) -> None:
    """The vendors' own words."""
    assert optimum.progress(line) == meaning
