"""`llmcompile build tensorrt-rtx`, from the command line to an engine, with the vendor's real builder."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

import models
import rtx_artifacts
import rtx_gpu
from llmcompile.exporters.rtx import builder
from llmcompile.exporters.rtx.options import CAPABILITIES

if TYPE_CHECKING:
    from conftest import Result, Run

pytest.importorskip("tensorrt_rtx_bindings")

COMMAND = ("build", "tensorrt-rtx")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def run(run: Run) -> Run:
    """Run a command as on a machine without a GPU: there what is built is executed too."""

    def hidden(*arguments: object, env: Mapping[str, str] | None = None) -> Result:
        return run(*arguments, env={"CUDA_VISIBLE_DEVICES": ""} if env is None else env)

    return hidden


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with grouped-query attention."""
    folder = tmp_path_factory.mktemp("llama")
    models.save("llama_gqa", folder, config=rtx_artifacts.SMALL)
    models.add_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def engine(llama: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Its engine for two kinds of GPU, float32 with int4 weights, and what was said."""
    output = tmp_path_factory.mktemp("engine") / "out"
    shapes = ("--batch-size", "1,2,4", "--sequence-length", "1,16,48")
    target = ("--compute-capability", "8.6", "--compute-capability", "sm89")
    return output, run(*COMMAND, "--model", llama, "--quantization", "int4", *shapes, *target, output)


def test_a_decoder_becomes_an_engine(engine: tuple[Path, Result]) -> None:
    """Validated, built and said to be not executed; the manifest knows what an engine cannot be asked."""
    output, result = engine

    assert result.code == 0, result.err
    assert "sm86, sm89, not executed" in result.out
    assert "built, not executed: there is no NVIDIA GPU here" in result.out
    manifest = rtx_artifacts.read(output)
    made = manifest.rtx
    assert made is not None
    assert (made.status, made.executed, made.compute_capabilities) == ("built", "built, not executed", (86, 89))
    assert made.tensorrt_rtx == importlib.import_module("tensorrt_rtx_bindings").__version__
    (graph,) = made.graphs
    assert [value.name for value in graph.inputs] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    assert graph.outputs[0].shape == ("batch", 1, models.VOCAB)
    assert graph.outputs[1].shape == ("batch", 2, "total", 32)
    decode = next(profile for profile in graph.profiles if profile.name == "decode")
    assert decode.shapes["past_key_values.0.key"] == ((1, 2, 1, 32), (2, 2, 16, 32), (4, 2, 47, 32))
    assert len(made.quantized) == 7
    assert (output / "engine" / "model.engine").stat().st_size > 10_000
    assert manifest.validation is not None
    inputs = {item.input for item in manifest.validation.comparisons}
    assert any("32 greedy tokens" in text for text in inputs)


def test_an_artifact_is_verified_by_its_bytes_and_its_numbers(
    engine: tuple[Path, Result], llama: Path, run: Run
) -> None:
    """The engine by its hash, the ONNX model beside it by running it again."""
    output, _ = engine

    result = run("verify", output, "--deep", "--model", llama)

    assert result.code == 0, result.err
    assert "agrees with" in result.out


@pytest.mark.parametrize("target", ["lmi", "triton", "rayllm", "ray-serve", "sagemaker", "tgi"])
def test_an_engine_is_packaged_for_no_server(
    target: str, engine: tuple[Path, Result], run: Run, tmp_path: Path
) -> None:
    """Each says that no server runs TensorRT for RTX, and what does."""
    needed = {
        "rayllm": ("--model-id", "org/tiny", "--bucket-uri", "s3://bucket/tiny/"),
        "sagemaker": (
            *("--role-arn", "arn:aws:iam::123456789012:role/serving"),
            *("--s3-uri", "s3://bucket/tiny/", "--region", "us-east-1"),
        ),
    }

    result = run("package", target, *needed.get(target, ()), engine[0], tmp_path / "out")

    assert result.code == 4, result.err
    assert "does not serve an engine of TensorRT for RTX" in result.err
    assert "tensorrt_rtx" in result.err
    assert list(tmp_path.iterdir()) == []


def _swapped(floats: dict[str, npt.NDArray[Any]]) -> None:
    first, second = "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"
    floats[first], floats[second] = floats[second].copy(), floats[first].copy()


def _rescaled(floats: dict[str, npt.NDArray[Any]]) -> None:
    floats["model.layers.0.mlp.down_proj.weight::scale"] *= 1.02


def _one_row(floats: dict[str, npt.NDArray[Any]]) -> None:
    """A row of a token that no check feeds would pass by the logits alone."""
    floats["model.embed_tokens.weight"][40, 3] += np.float32(1e-3)


@pytest.mark.parametrize("change", [_swapped, _rescaled, _one_row], ids=["two weights", "a scale", "an embedding"])
def test_a_broken_graph_is_seen(change: Any, engine: tuple[Path, Result], llama: Path, tmp_path: Path) -> None:
    """Two weights exchanged, one scale 2 % too large, one value of one embedding."""
    broken = tmp_path / "broken"
    shutil.copytree(engine[0], broken)
    rtx_artifacts.change(broken / "onnx" / "model.onnx", change)

    found = rtx_artifacts.validated(rtx_artifacts.subject(broken, llama))

    assert not found.record.passed
    decided = [item for item in found.record.comparisons if "int4" in item.reference]
    assert change is _one_row or any(not item.passed for item in decided)


def test_a_failed_build_keeps_the_onnx_model_and_a_mismatch_rejects_it(llama: Path, run: Run, tmp_path: Path) -> None:
    """After the builder's time is over, --resume validates what is there and exports nothing; then it is broken."""
    output = tmp_path / "out"
    command = (*COMMAND, "--model", llama, "--sequence-length", "24", output)
    late = run(*command, "--build-timeout", "0.01")
    work = tmp_path / "out.partial"
    before = (work / "onnx" / "model.onnx").stat().st_mtime_ns

    assert (late.code, output.exists()) == (6, False)
    assert "--build-timeout" in late.err
    assert "--resume" in late.err
    rtx_artifacts.change(work / "onnx" / "model.onnx", _swapped)
    rtx_artifacts.forge_journal(work)
    changed = (work / "onnx" / "model.onnx").stat().st_mtime_ns
    found = run(*command, "--resume", "--json")

    assert found.code == 7
    assert json.loads(found.out)["error"]["category"] == "mismatch"
    assert not output.exists()
    assert changed != before
    assert (tmp_path / "out.rejected" / "onnx" / "model.onnx").stat().st_mtime_ns == changed
    assert not (tmp_path / "out.rejected" / "engine").exists()


def test_a_trained_encoder_becomes_an_engine(run: Run, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 in fp16, with the cosine of its embeddings within 1e-3; without its ONNX model nothing runs."""
    output = tmp_path / "out"

    made = run(*COMMAND, "--model", rtx_artifacts.minilm(), "--dtype", "fp16", "--no-keep-onnx", output)
    deep = run("verify", output, "--deep", "--model", rtx_artifacts.minilm())

    assert made.code == 0, made.err
    assert not (output / "onnx").exists()
    manifest = rtx_artifacts.read(output)
    assert manifest.validation is not None
    cosines = [item for item in manifest.validation.comparisons if item.output.startswith("cosine")]
    assert len(cosines) == 3
    assert all(item.passed for item in cosines)
    assert run("verify", output).code == 0
    assert (deep.code, "--keep-onnx" in deep.err) == (3, True)


def test_an_encoder_decoder_becomes_two_engines(run: Run, tmp_path: Path) -> None:
    """What crosses is computed once by the encoder; the decoder keeps its own keys and values."""
    model = models.save("t5", tmp_path / "model", config={"num_layers": 1, "num_decoder_layers": 1})
    output = tmp_path / "out"

    result = run(*COMMAND, "--model", model, "--dtype", "bf16", output)

    assert result.code == 0, result.err
    made = rtx_artifacts.read(output).rtx
    assert made is not None
    assert (made.status, made.executed) == ("built", "built, not executed")
    encoder, decoder = made.graphs
    assert [profile.name for profile in (*encoder.profiles, *decoder.profiles)] == ["encode", "prefill", "decode"]
    assert all((output / str(graph.engine)).stat().st_size > 10_000 for graph in made.graphs)
    assert [value.name for value in encoder.outputs] == ["encoder_hidden_states", "cross.0.key", "cross.0.value"]
    assert {value.name: value.shape for value in decoder.inputs}["cross.0.key"] == ("batch", 4, "source", 8)
    assert {value.name: value.shape for value in decoder.outputs}["present.0.key"] == ("batch", 4, "total", 8)
    assert "rounded to bf16 as it was made" in result.err


def test_a_16_bit_decoder_with_a_transposed_weight_becomes_an_engine(run: Run, tmp_path: Path) -> None:
    """GPT-2 in fp16 with int8 weights, all logits, for every GPU there is, Turing to Blackwell."""
    model = models.save("gpt2", tmp_path / "model", config={"n_layer": 1, "n_positions": 48})
    targets = [word for each in CAPABILITIES for word in ("--compute-capability", each)]
    options = ("--dtype", "float16", "--quantization", "int8", "--all-logits", *targets)

    result = run(*COMMAND, "--model", model, *options, "--quiet", tmp_path / "out")

    assert result.code == 0, result.err
    made = rtx_artifacts.read(tmp_path / "out").rtx
    assert made is not None
    assert made.compute_capabilities == (75, 80, 86, 89, 120, 121)
    assert made.graphs[0].outputs[0].shape == ("batch", "sequence", models.VOCAB)
    assert len(made.quantized) == 4


def test_the_vendors_runtime_is_called_where_a_gpu_is(
    engine: tuple[Path, Result], llama: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a driver that is none it loads no engine, which is said in its words; that is all there is without a GPU."""
    rtx_gpu.plug(monkeypatch, rtx_gpu.driver(tmp_path), "89", runtime=False)

    result = run("verify", engine[0], "--deep", "--model", llama, env={})

    assert result.code == 6, result.err
    assert "tensorrt_rtx on Stand-in 0 (sm89): model.engine does not load" in result.err


def test_the_builder_has_the_capabilities_that_are_accepted() -> None:
    """Asked of the vendor's own enumeration."""
    assert builder.find().capabilities == tuple(CAPABILITIES)


def test_an_onnx_model_alone_serves_on_a_cpu(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of docs/formats/tensorrt-rtx.md, with nothing but the artifact, give what transformers gives."""
    import torch
    from transformers import AutoModel

    made = run(*COMMAND, "--model", rtx_artifacts.minilm(), "--stop-after", "onnx", tmp_path / "OUT")
    assert made.code == 0, made.err
    assert "is a validated ONNX model" in made.out
    record = rtx_artifacts.read(tmp_path / "OUT").rtx
    assert record is not None
    assert (record.status, record.executed, record.execution, record.tensorrt_rtx) == ("onnx", None, None, None)
    packaged = run("package", "triton", tmp_path / "OUT", tmp_path / "package")
    assert packaged.code == 4
    assert "REPOSITORY/NAME/1/model.onnx/" in packaged.err
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"```python\n(.*?)```", (DOCS / "formats" / "tensorrt-rtx.md").read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {}

    exec(lines[-1], scope)

    model = AutoModel.from_pretrained(rtx_artifacts.minilm()).eval()
    ids = torch.from_numpy(scope["ids"])
    with torch.no_grad():
        expected = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert np.abs(scope["found"][0] - expected.numpy()).max() < 1e-4


def test_what_the_builder_needs_is_known_before_any_work(llama: Path, run: Run, tmp_path: Path) -> None:
    """3.6 times the weights: of 2 G weights in fp16, written as a hole, 400 MiB and 14.4 GiB."""
    shutil.copytree(llama, tmp_path / "model")
    for file in (tmp_path / "model").glob("*.safetensors*"):
        file.unlink()
    size = 2 << 31
    named = {
        "model.layers.0.mlp.up_proj.weight": {"dtype": "F16", "shape": [1 << 15, 1 << 16], "data_offsets": [0, size]}
    }
    header = json.dumps(named).encode()
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)

    command = (*COMMAND, "--model", tmp_path / "model", "--max-memory", "12GiB")
    result = run(*command, tmp_path / "out", "--json")
    smaller = run(*command, tmp_path / "out", "--quantization", "int8", "--json")

    assert result.code == 10
    needed = (400 << 20) + int(3.6 * size)
    (problem,) = [each for each in json.loads(result.out)["error"]["problems"] if "by the builder" in each["found"]]
    assert f"about {needed} bytes needed by the builder" in problem["found"]
    assert "--quantization int8" in problem["hint"]
    assert "by the builder" not in smaller.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--compute-capability", "90"), 2, "H100"),
        (("--compute-capability", "86", "--quantization", "fp8"), 4, "fp8"),
        (("--compute-capability", "75", "--dtype", "bf16"), 4, "--dtype fp16"),
        (("--compute-capability", "75", "--dtype", "fp16", "--quantization", "int4"), 4, "int4"),
        (("--compute-capability", "75"), 4, "fp32"),
        (("--sequence-length", "1,8,64"), 5, "--sequence-length 48"),
        (("--target-length", "8"), 5, "drop --target-length"),
        (("--max-memory", "64MiB"), 10, "bytes"),
        (("--batch-size", "3,2,1"), 2, "MIN <= OPT <= MAX"),
        (("--task", "fill-maks"), 2, "--task fill-mask"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    options: tuple[str, ...], code: int, words: str, llama: Path, run: Run, tmp_path: Path
) -> None:
    """Each with its exit code and something to type, and nothing is written."""
    result = run(*COMMAND, "--model", llama, *options, tmp_path / "out")

    assert result.code == code, result.err
    assert words in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "falcon_rw"])
def test_a_model_onnx_has_no_graph_for_is_refused_by_name(family: str, run: Run, tmp_path: Path) -> None:
    """Experts depend on values; Falcon's ALiBi is bfloat16 whatever is asked for."""
    model = models.save(family, tmp_path / "model")

    result = run(*COMMAND, "--model", model, "--stop-after", "onnx", tmp_path / "out")

    assert result.code == 4
    assert "build trtllm" in result.err


def test_the_plan_says_what_will_be(llama: Path, run: Run, tmp_path: Path) -> None:
    """Profiles, targets, memory of the builder and disk; without writing."""
    result = run(*COMMAND, "--model", llama, "--dry-run", "--json", tmp_path / "out")

    plan = json.loads(result.out)["plan"]
    assert result.code == 0
    assert plan["profiles"]["model"]["decode"]["past"] == [1, 47, 47]
    assert plan["compute_capabilities"] == [86, 89, 120]
    assert plan["memory_builder_bytes"] > 3 * plan["onnx_bytes"]
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_nothing_is_begun(
    llama: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 6, with what to type; an ONNX model needs no builder."""
    found = importlib.util.find_spec
    lost = {"tensorrt_rtx_bindings", "tensorrt_rtx", "onnxruntime"}
    monkeypatch.setattr(builder, "find_spec", lambda name: None if name in lost else found(name))

    result = run(*COMMAND, "--model", llama, tmp_path / "out")

    assert result.code == 6
    assert "pip install 'llmcompile[rtx]'" in result.err
    assert builder.missing_packages(builder=False) == ["onnxruntime"]
    assert list(tmp_path.iterdir()) == []


def test_the_builders_own_message_is_shown(tmp_path: Path) -> None:
    """A graph it cannot parse is named, in its words; our process lives on."""
    (tmp_path / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(builder.ToolchainError) as caught:
        builder.build(
            tmp_path / "model.onnx",
            tmp_path / "engine" / "model.engine",
            inputs={},
            profiles=(),
            capabilities=(86,),
            weight_streaming=False,
            timeout_seconds=60,
            on_line=lambda line: None,
        )

    assert caught.value.problems[0].subject == "tensorrt_rtx, model.onnx"
    assert "pars" in caught.value.problems[0].found.lower()
