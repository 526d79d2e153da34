"""A stand-in for optimum-neuron and the Neuron SDK in an interpreter of its own, standard library only.

`install` writes the packages: functions with the signatures recorded in tests/golden/neuron/optimum/<version>.json, so
that an argument they do not have is a TypeError, which write what optimum-neuron writes. Compiled files are copies of a
TorchScript file that the test made. OPTIMUM_STANDIN says what goes wrong: fail, memory, instructions, hang, half (a
file is not written), cut (a compiled file is cut short), shard (a rank's file is cut short), rank (a rank has another
shape) or other (compiled with other options). What was called, and with what, is in called.json of the interpreter's
folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "neuron" / "optimum"
VERSIONS = {
    "torch-neuronx": "2.8.0.2.10.16998",
    "neuronx-cc": "2.21.33363.0+82129205",
    "libneuronxla": "2.2.12677.0",
    "neuronx_distributed": "0.15.22404",
    "optimum": "2.0.0",
}
PLACEHOLDERS = {"torch-neuronx": "1.0", "neuronx-cc": "1.0.post1", "libneuronxla": "1.0", "neuronx_distributed": "0.1"}
"""What pypi.org has under these names."""
TARGETS = {"inf2": "trn1", "trn1": "trn1", "trn1n": "trn1", "trn2": "trn2"}


def install(
    folder: Path,
    module: Path | None = None,
    *,
    version: str = "0.4.5",
    signatures: str | None = None,
    without: str = "",
    real_torch: bool = False,
    packages: Mapping[str, str] = VERSIONS,
) -> Path:
    """Make an interpreter with optimum-neuron of `version`; returns it.

    Args:
        folder: To make.
        module: The TorchScript file that every compiled file is a copy of.
        version: What the distribution says.
        signatures: The recorded release whose signatures it has; None for `version`.
        without: An argument that its main_export lacks.
        real_torch: Whether it sees our torch and transformers, which take seconds to import.
        packages: Versions of the others.
    """
    site = folder / "site"
    for name, number in {**packages, "optimum-neuron": version}.items():
        info = site / f"{name.replace('-', '_')}-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    settings = {
        "module": None if module is None else str(module),
        "log": str(folder / "called.json"),
        "version": version,
    }
    recorded = json.loads((GOLDEN / f"{version if signatures is None else signatures}.json").read_text())
    functions = recorded["functions"]
    functions["main_export"]["arguments"].pop(without, None)
    entry = (
        _source("main_export", functions["main_export"], settings, "optimum_standin.main_export")
        + _source("normalize_diffusers_input_shapes", functions["normalize_diffusers_input_shapes"], settings, "deal")
        + "from optimum_standin import deal\nimport optimum_standin\n"
    )
    lookup = (
        "import optimum_standin\n"
        "class Model:\n"
        + _method("get_neuron_config", functions["get_neuron_config"], settings)
        + _method("export", functions["export"], settings)
        + _source("get_neuron_model_class", functions["get_neuron_model_class"], settings, "found")
        + "def found(arguments, settings):\n    return optimum_standin.model_class(Model, arguments)\n"
    )
    for path, text in (
        ("optimum/exporters/neuron/__main__.py", entry),
        ("optimum/neuron/models/auto_model.py", lookup),
        *(() if real_torch else (("torch.py", _TORCH), ("transformers.py", _TRANSFORMERS))),
    ):
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    for package in ("optimum", "optimum/exporters", "optimum/exporters/neuron", "optimum/neuron"):
        (site / package / "__init__.py").write_text("")
    (site / "optimum/neuron/models/__init__.py").write_text("")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}:{Path(__file__).parent}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def _signature(recorded: Mapping[str, Any]) -> str:
    words = [
        name if default is None else f"{name}={default if default != 'torch.float32' else repr('float32')}"
        for name, default in recorded["arguments"].items()
    ]
    return ", ".join([*words, *(["**others"] if recorded["keywords"] else [])])


def _source(name: str, recorded: Mapping[str, Any], settings: Mapping[str, Any], then: str) -> str:
    return f"def {name}({_signature(recorded)}):\n    return {then}(dict(locals()), {dict(settings)!r})\n"


def _method(name: str, recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return (
        f"    @classmethod\n    def {name}(cls, {_signature(recorded)}):\n"
        f"        return optimum_standin.{name}(dict(locals()), {dict(settings)!r})\n"
    )


_TORCH = """
float16, bfloat16, float32 = "torch.float16", "torch.bfloat16", "torch.float32"
"""
_TRANSFORMERS = """
import json, os
import torch

class Config:
    def get_text_config(self):
        return self

class AutoConfig:
    @classmethod
    def from_pretrained(cls, path, trust_remote_code=False):
        config = Config()
        config.content = json.load(open(os.path.join(path, "config.json")))
        config.model_type = config.content["model_type"]
        config.torch_dtype = getattr(torch, config.content.get("torch_dtype", "float32"))
        return config
"""


def called(settings: Mapping[str, Any], **facts: object) -> None:
    """Add facts to called.json."""
    path = Path(settings["log"])
    before = json.loads(path.read_text()) if path.exists() else {"environment": dict(os.environ)}
    path.write_text(json.dumps({**before, **facts}))


def misbehave() -> None:
    """Do what OPTIMUM_STANDIN says."""
    how = os.environ.get("OPTIMUM_STANDIN", "")
    if how == "fail":
        raise AttributeError("Cannot find the value of `num_choices` which is mandatory for exporting the model")
    if how == "memory":
        say("[F137] neuronx-cc was forcibly killed - This most commonly occurs due to insufficient system memory.")
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "instructions":
        say("2025-01-01T00:00:00Z ERROR 1 [XTP003]: Number of instructions (10046893) is over the threshold (5000000)")
        for number in range(30):
            say(f"line {number}")
        raise RuntimeError("neuronx-cc failed with 70")
    if how == "hang":
        time.sleep(300)


def say(text: str) -> None:
    """One line of a log."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def deal(arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Deal the shapes out to the parts of a pipeline, as build_stable_diffusion_components_mandatory_shapes does."""
    given = arguments["args"]
    size = {"height": given["height"], "width": given["width"]}
    images = given["batch_size"] * given["num_images_per_prompt"]
    text = {"batch_size": given["batch_size"], "sequence_length": given["sequence_length"]}
    unet = {"batch_size": images, "sequence_length": given["sequence_length"], **size}
    vae = {"batch_size": images, **size}
    return {"text_encoder": text, "unet_or_transformer": unet, "vae_encoder": vae, "vae_decoder": dict(vae)}


def main_export(arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write what main_export writes, for one of the libraries."""
    told = {name: value for name, value in arguments.items() if name != "others"}
    shapes, compiler = arguments["others"], arguments["compiler_kwargs"]
    called(settings, arguments=told, shapes=shapes)
    aligned(compiler.get("instance_type"))
    assert arguments["library_name"] is not None
    assert arguments["task"] != "auto"
    model, output = Path(arguments["model_name_or_path"]), Path(arguments["output"])
    say("***** Compiling model *****")
    misbehave()
    if arguments["library_name"] == "diffusers":
        index = {**json.loads((model / "model_index.json").read_text()), "_name_or_path": str(model)}
        write(output / "model_index.json", index)
        write(output / "scheduler" / "scheduler_config.json", {})
        held = [part for part in ("text_encoder", "text_encoder_2", "unet", "transformer") if part in index]
        parts = [*held, "vae_encoder", "vae_decoder"]
    else:
        config = json.loads((model / arguments["subfolder"] / "config.json").read_text())
        parts = ["encoder", "decoder"] if config.get("is_encoder_decoder", False) else [""]
        if parts != [""]:
            write(output / "config.json", config)
            write(output / "generation_config.json", {})
        for name in ("tokenizer.json", "vocab.txt", "preprocessor_config.json"):
            if (model / name).exists():
                output.mkdir(parents=True, exist_ok=True)
                shutil.copy(model / name, output / name)
    for part in parts:
        section = recorded(arguments, shapes if part == "" or parts[0] == "encoder" else {})
        dtype = {} if arguments["library_name"] == "diffusers" else {"dtype": arguments["torch_dtype"]}
        write(output / part / "config.json", {"model_type": part, **dtype, "torchscript": True, "neuron": section})
        compiled(output / part / "model.neuron", settings, last=part == parts[-1])
    flags = compiler_flags(arguments, model)
    called(settings, flags=flags)
    say("[Compilation Time] 1.25 seconds.")


def recorded(arguments: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The section `neuron` of config.json, as store_compilation_config writes it."""
    section = {
        "compiler_type": "neuronx-cc",
        "compiler_version": VERSIONS["neuronx-cc"],
        "inline_weights_to_neff": arguments["inline_weights_to_neff"],
        **{f"static_{name}": size for name, size in shapes.items() if not isinstance(size, dict)},
        "dynamic_batch_size": arguments["dynamic_batch_size"],
        "tensor_parallel_size": arguments["tensor_parallel_size"],
        "optlevel": arguments["optlevel"],
        **arguments["compiler_kwargs"],
        "output_attentions": arguments["output_attentions"],
        "output_hidden_states": arguments["output_hidden_states"],
        "task": arguments["task"],
    }
    return {**section, "auto_cast": "all"} if os.environ.get("OPTIMUM_STANDIN") == "other" else section


def compiler_flags(arguments: Mapping[str, Any], model: Path) -> str:
    """The compiler's flags of a transformers model, with what a word in its path adds."""
    compiler = arguments["compiler_kwargs"]
    words = ["--auto-cast", "matmult" if compiler["auto_cast"] == "matmul" else compiler["auto_cast"] or "none"]
    words += ["--auto-cast-type", compiler["auto_cast_type"]] if compiler["auto_cast"] is not None else []
    words += ["--optlevel", arguments["optlevel"], "--model-type", "transformer"]
    if any(mark in str(model).lower() for mark in ("text_encoder", "vae", "unet", "transformer", "controlnet")):
        words += ["--enable-fast-loading-neuron-binaries"]
    return " ".join(words)


def aligned(instance_type: str | None) -> None:
    """Refuse a target that was not in the environment, as align_compilation_target does without a device."""
    target = os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE")
    if instance_type is not None and TARGETS[instance_type] != target:
        raise ValueError(f"The compilation target is {instance_type} but NEURON_PLATFORM_TARGET_OVERRIDE is {target}")


def compiled(path: Path, settings: Mapping[str, Any], *, last: bool) -> None:
    """Write a compiled file."""
    how = os.environ.get("OPTIMUM_STANDIN", "")
    if how == "half" and last:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(settings["module"], path)
    if how == "cut" and last:
        os.truncate(path, path.stat().st_size // 2)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def model_class(kind: Any, arguments: Mapping[str, Any]) -> Any:
    """The class, for the model types of LlamaConfig and Qwen3Config."""
    assert arguments["mode"] == "inference"
    if arguments["model_type"] not in ("llama", "qwen3"):
        raise ValueError(f"Model type {arguments['model_type']} is not supported for task {arguments['task']}")
    return kind


def get_neuron_config(arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of neuron_config.json."""
    told = {name: value for name, value in arguments.items() if name not in ("cls", "config")}
    called(settings, neuron_config=told)
    short = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
    dtype = arguments["config"].torch_dtype.removeprefix("torch.")
    if "auto_cast_type" in arguments:
        dtype = short[arguments["auto_cast_type"] or "fp32"]
    instance_type = arguments.get("instance_type")
    made = {
        "_serialized_key": "NxDNeuronConfig",
        "batch_size": arguments["batch_size"],
        "checkpoint_id": None,
        "neuronxcc_version": VERSIONS["neuronx-cc"],
        "optimum_neuron_version": settings["version"],
        "sequence_length": arguments["sequence_length"],
        "target": None if instance_type is None else TARGETS[instance_type],
        "torch_dtype": dtype,
        "tp_degree": arguments["tensor_parallel_size"],
    }
    return {**made, "batch_size": 7} if os.environ.get("OPTIMUM_STANDIN") == "other" else made


def export(arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """Trace a decoder."""
    assert arguments["load_weights"] is False
    assert Path(arguments["model_id"]).is_dir()
    called(settings, work=os.environ["BASE_COMPILE_WORK_DIR"])
    aligned(arguments["neuron_config"]["target"])
    misbehave()
    return Traced(arguments["config"], arguments["neuron_config"], settings)


class Traced:
    """A traced decoder, which `save_pretrained` writes."""

    def __init__(self, config: Any, neuron_config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self.config, self.neuron_config, self.settings = config, neuron_config, settings

    def save_pretrained(self, folder: str) -> None:
        """Write the folder as NxDPreTrainedModel does: with weights only for a model that was read from a folder."""
        output, how = Path(folder), os.environ.get("OPTIMUM_STANDIN", "")
        write(output / "neuron_config.json", self.neuron_config)
        write(output / "config.json", self.config.content)
        compiled(output / "model.pt", self.settings, last=True)
        if not os.path.isdir(self.config._name_or_path):
            return
        for rank in range(self.neuron_config["tp_degree"]):
            path = output / "checkpoint" / "weights" / f"tp{rank}_sharded_checkpoint.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = 3 if how == "rank" and rank > 0 else 2
            path.write_bytes(safetensors({"lm_head.weight": (rows, 4)}))
            if how == "shard":
                os.truncate(path, path.stat().st_size - 1)


def safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of float32 zeros."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)
