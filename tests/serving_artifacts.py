"""A tiny artifact of every kind that can be packaged, made by the commands themselves; stand-ins are the compilers."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import models
import neuronx_cc_standin
import optimum_standin
import trtllm_standin

if TYPE_CHECKING:
    from conftest import Run

LENGTH = 16
SHAPES = ("--batch_size", 2, "--sequence_length", LENGTH)
A100 = "0, NVIDIA A100-SXM4-40GB, 8.0, 580.65.06, 40960"
KINDS: tuple[str, ...] = (
    "ft",
    "trtllm-engine",
    "trtllm-checkpoint",
    "neuron-optimum",
    "neuron-sdk-2.16",
    "neuron-lmi-split",
    "neuron-lmi-cache",
    "neuron-nxd",
    "neuron-lowered",
    "rtx-engine",
    "onnx",
    "hf",
)


def make(kind: str, folder: Path, run: Run, *added: object) -> Path:
    """An artifact of a kind in a new folder: tp 2 wherever a degree can be asked for.

    Args:
        kind: One of `KINDS`.
        folder: To work in; the artifact is in it.
        run: The command line, as the fixture of that name.
        added: Further words of the command.
    """
    model = source(folder / "org--tiny-llama")
    if kind == "hf":
        return model
    output = folder / kind
    words, environment = _COMMANDS[kind](folder)
    unchecked = () if "tensorrt-rtx" in words else ("--no-validate",)  # an ONNX model always is
    result = run(*words, "--model", model, *unchecked, "--quiet", *added, output, env=environment)
    assert result.code == 0, result.err
    if kind == "rtx-engine":
        _add_engine(output)
    return output


def source(folder: Path) -> Path:
    """A tiny LLaMA of a head size that every server has kernels for, and a tokenizer with a chat template."""
    model = models.save("llama", folder, config={"hidden_size": 256})
    models.add_tokenizer(model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    template = (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'system' %}{{ '<<SYS>>' + message['content'] + '<</SYS>>' }}"
        "{% else %}{{ ' ' + message['content'] + ' </s>' }}{% endif %}"
        "{% endfor %}"
    )
    config |= {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"}
    (model / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return model


_Made = tuple[tuple[object, ...], Mapping[str, str]]


def _ft(folder: Path) -> _Made:
    return ("partition", "ft", "--tp", 2, "--dtype", "fp16"), {}


def _checkpoint(folder: Path) -> _Made:
    return ("build", "trtllm", "--tp", 2, "--dtype", "float16", "--stop-after", "checkpoint"), {}


def _engine(folder: Path) -> _Made:
    trtllm_standin.nvidia_smi(folder / "tools", A100)
    python = trtllm_standin.install(folder / "env", "1.2.1", "1.2")
    limits = ("--max-batch-size", 4, "--max-seq-len", 20, "--max-input-len", 12)
    words = ("build", "trtllm", "--tp", 2, "--dtype", "float16", *limits, "--toolchain-python", python)
    path = f"{folder / 'tools'}{os.pathsep}{os.environ['PATH']}"
    return words, {"PATH": path, "TRTLLM_STANDIN_LOG": str(folder)}


def _neuron(layout: str) -> Callable[[Path], _Made]:
    def command(folder: Path) -> _Made:
        compiler = neuronx_cc_standin.install(folder / "bin")
        words = ("export", "neuron", *SHAPES, "--num_cores", 2, "--via", "xla", "--layout", layout)
        return (*words, "--auto_cast_type", "bf16", "--neuronx-cc", compiler), {}

    return command


def _lowered(folder: Path) -> _Made:
    return ("export", "neuron", *SHAPES, "--num_cores", 2, "--via", "xla", "--stop-after", "lower"), {}


def _onnx(folder: Path) -> _Made:
    return ("build", "tensorrt-rtx", "--dtype", "fp16", "--sequence-length", LENGTH, "--stop-after", "onnx"), {}


def _add_engine(artifact: Path) -> None:
    """Let an ONNX model have an engine, of no bytes that matter."""
    manifest = json.loads((artifact / "llmcompile.json").read_text())
    (artifact / "engine").mkdir()
    (artifact / "engine" / "model.engine").write_bytes(b"engine")
    digest = hashlib.sha256(b"engine").hexdigest()
    manifest["files"].append({"path": "engine/model.engine", "bytes": 6, "sha256": digest})
    manifest["rtx"] |= {"status": "built", "compute_capabilities": [86], "tensorrt_rtx": "1.7.1.116"}
    manifest["rtx"]["graphs"][0] |= {"engine": "engine/model.engine", "engine_sha256": digest}
    (artifact / "llmcompile.json").write_text(json.dumps(manifest))


def _optimum(folder: Path) -> _Made:
    python = optimum_standin.install(folder / "sdk", _nothing(folder / "module.pt"))
    words = ("export", "neuron", *SHAPES, "--num_cores", 2, "--auto_cast_type", "bf16", "--via", "optimum")
    return (*words, "--toolchain-python", python), {}


def _nothing(path: Path) -> Path:
    """A TorchScript module that does nothing."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Identity()), path)
    return path


_COMMANDS: Mapping[str, Callable[[Path], _Made]] = {
    "ft": _ft,
    "trtllm-checkpoint": _checkpoint,
    "trtllm-engine": _engine,
    "neuron-lowered": _lowered,
    "onnx": _onnx,
    "rtx-engine": _onnx,
    "neuron-optimum": _optimum,
    **{f"neuron-{layout}": _neuron(layout) for layout in ("sdk-2.16", "lmi-split", "lmi-cache", "nxd")},
}


def flags(target: str, kind: str, folder: Path) -> tuple[object, ...]:
    """What a target must be told besides the artifact, because no artifact knows it; `folder` is to work in."""
    if (target, kind) == ("triton", "hf"):
        return ("--model-py", model_py(folder / "triton"))
    return _FLAGS.get((target, kind), _FLAGS.get((target, ""), ()))


def model_py(folder: Path) -> Path:
    """A clone with the Python models of Triton's backends, by their names alone."""
    for path in (
        "llmapi/tensorrt_llm/1/model.py",
        "llmapi/tensorrt_llm/1/helpers.py",
        "inflight_batcher_llm/preprocessing/1/model.py",
        "inflight_batcher_llm/postprocessing/1/model.py",
        "inflight_batcher_llm/tensorrt_llm_bls/1/model.py",
        "inflight_batcher_llm/tensorrt_llm_bls/1/lib/decode.py",
        "inflight_batcher_llm/tensorrt_llm_bls/1/lib/triton_decoder.py",
    ):
        file = folder / "all_models" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {path}\n")
    return folder


_ENGINE = ("--runtime-version", "1.2.1")
_RAYLLM = ("--model-id", "org/tiny-llama", "--bucket-uri", "s3://bucket/tiny-llama/")
_SAGEMAKER = (
    *("--role-arn", "arn:aws:iam::123456789012:role/serving"),
    *("--s3-uri", "s3://bucket/tiny-llama/", "--region", "us-east-1"),
)
_FLAGS: Mapping[tuple[str, str], tuple[object, ...]] = {
    ("lmi", "trtllm-engine"): _ENGINE,
    ("rayllm", ""): _RAYLLM,
    ("rayllm", "trtllm-engine"): (*_RAYLLM, *_ENGINE),
    ("sagemaker", ""): _SAGEMAKER,
    ("sagemaker", "trtllm-engine"): (*_SAGEMAKER, *_ENGINE),
}
"""(target, kind) or (target, "") -> flags."""
