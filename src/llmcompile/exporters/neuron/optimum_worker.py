"""Run in the interpreter that has optimum-neuron, with nothing of ours: `python optimum_worker.py '{"action": ...}'`.

One JSON object in, as the only argument; JSON lines with the key "event" out, the vendors' own log between them. The
last event is "result". A failure is a traceback and exit code 1; an argument that this release of optimum-neuron does
not have is a result with the key "refused". Standard library only; torch and optimum are imported inside functions.

Sources: optimum/exporters/neuron/__main__.py (main_export, maybe_export_from_neuron_model_class),
optimum/neuron/modeling_decoder.py (0.3.0, 0.4.0) and optimum/neuron/models/inference/modeling_utils.py (0.4.1 on) of
the wheels of optimum-neuron 0.3.0 to 0.4.5.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import struct
import sys
import zipfile
from importlib import import_module, metadata
from typing import Any

PACKAGES = (
    "optimum-neuron",
    "optimum",
    "torch-neuronx",
    "neuronx-cc",
    "libneuronxla",
    "neuronx-distributed",
    "torch",
    "transformers",
    "diffusers",
    "sentence-transformers",
)
_MAJORS = "/proc/devices"
_DEVICES = "/dev"
_CHUNK_BYTES = 1 << 22
_NEFF_HEADER_BYTES = 1024
_SHARD = "tp{}_sharded_checkpoint.safetensors"


class Refused(Exception):
    """A function of this release has another signature than the adapter knows."""

    def __init__(self, function: str, argument: str) -> None:
        super().__init__(f"{function} has no argument {argument}")
        self.function, self.argument = function, argument


def emit(event: str, **fields: object) -> None:
    """Write one JSON line, whole, whatever else writes to the same pipe."""
    os.write(1, (json.dumps({"event": event, **fields}) + "\n").encode())


# Probe


def probe(request: dict[str, Any]) -> dict[str, object]:
    """Say which packages this interpreter has, without importing them: they take seconds and set variables."""
    return {
        "versions": installed(),
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "devices": devices(_MAJORS, _DEVICES),
    }


def installed() -> dict[str, str]:
    """The version of each package of `PACKAGES` that has one."""
    found = {}
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version is not None:
            found[name] = str(version)
    return found


def devices(majors: str, folder: str) -> int:
    """Neuron devices of this machine, as optimum-neuron counts them: files of the driver's number in /dev."""
    try:
        with open(majors, encoding="utf-8") as file:
            match = re.search(r"^\s*(\d+)\s+neuron\s*$", file.read(), re.MULTILINE)
    except OSError:
        return 0
    if match is None:
        return 0
    names = [name for name in os.listdir(folder) if re.fullmatch(r"neuron\d+", name)]
    return sum(os.major(os.stat(os.path.join(folder, name)).st_rdev) == int(match[1]) for name in names)


# Export


def export(request: dict[str, Any]) -> dict[str, object]:
    """Call main_export: encoders, encoder-decoders, vision, audio and diffusion.

    `arguments` are main_export's; `shapes` its static shapes by name, which `normalize` says optimum shall deal out to
    the parts of a pipeline.
    """
    entry = import_module("optimum.exporters.neuron.__main__")
    arguments = {"model_name_or_path": request["model"], "output": request["output"], **request["arguments"]}
    if request["unet"] is not None:
        arguments["submodels"] = {"unet": request["unet"]}
    shapes = request["shapes"]
    if request["normalize"]:
        accepts(entry.normalize_diffusers_input_shapes, ["args"])
        shapes = entry.normalize_diffusers_input_shapes(shapes)
    accepts(entry.main_export, [*arguments, *shapes])
    entry.main_export(**arguments, **shapes)
    return {"files": listing(request["output"])}


def decoder(request: dict[str, Any]) -> dict[str, object]:
    """Trace a decoder's graphs with neuronx-distributed, and write them with the weights of each rank.

    `dtype` is torch's name of the element type, or None for the checkpoint's own.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    model, trust = request["model"], request["trust_remote_code"]
    config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=trust).get_text_config()
    config._name_or_path = model  # save_pretrained writes the weights of this folder; a nested config has no path
    set_dtype(torch, config, request["dtype"])
    lookup = import_module("optimum.neuron.models.auto_model").get_neuron_model_class
    kind = lookup(config.model_type, task=request["task"], mode="inference")
    neuron_config = ADAPTERS[request["generation"]](kind, request, config)
    arguments = {"model_id": model, "config": config, "neuron_config": neuron_config, "load_weights": False}
    accepts(kind.export, arguments)
    emit("progress", text="compiling the graphs")
    compiled = kind.export(**arguments)
    emit("progress", text="writing the graphs and the weights of each rank")
    compiled.save_pretrained(request["output"])
    return {"files": listing(request["output"])}


def set_dtype(torch: Any, config: Any, name: str | None) -> None:
    """Make a configuration say an element type, or under its old name the one that it says under its new name.

    transformers 4.56 renamed torch_dtype to dtype; an older one finds no type in a config.json that a newer one wrote,
    and optimum-neuron would take float32.
    """
    read = getattr(config, "dtype", None)
    if name is None and config.torch_dtype is None and isinstance(read, str):
        name = read
    if name is not None:
        config.torch_dtype = getattr(torch, name)
        if isinstance(read, str):
            config.dtype = name


def _sizes(request: dict[str, Any], config: Any) -> dict[str, object]:
    return {
        "model_name_or_path": request["model"],
        "config": config,
        "batch_size": request["batch_size"],
        "sequence_length": request["sequence_length"],
        "tensor_parallel_size": request["tensor_parallel_size"],
    }


def _short_dtype(config: Any) -> str:
    # Said always: the default compares a torch.dtype with a string, and is fp32 for every checkpoint.
    return {"torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(str(config.torch_dtype), "fp32")


def _config_0_3_0(kind: Any, request: dict[str, Any], config: Any) -> Any:
    arguments = {**_sizes(request, config), "auto_cast_type": _short_dtype(config)}
    return called(kind.get_neuron_config, arguments)


def _config_0_4_0(kind: Any, request: dict[str, Any], config: Any) -> Any:
    arguments = {**_sizes(request, config), "auto_cast_type": _short_dtype(config)}
    return called(kind.get_neuron_config, {**arguments, "instance_type": request["instance_type"]})


def _config_0_4_1(kind: Any, request: dict[str, Any], config: Any) -> Any:
    arguments = {**_sizes(request, config), "instance_type": request["instance_type"]}
    return called(kind.get_neuron_config, arguments)


ADAPTERS = {"0.3.0": _config_0_3_0, "0.4.0": _config_0_4_0, "0.4.1": _config_0_4_1}
"""How a decoder's configuration is asked for, by the first release of each generation of the API."""


def called(function: Any, arguments: dict[str, object]) -> Any:
    """The function's answer, if it takes all of the arguments."""
    accepts(function, arguments)
    return function(**arguments)


def accepts(function: Any, names: Any) -> None:
    """Raise `Refused` for the first of `names` that a function does not take; `**kwargs` of main_export are shapes."""
    parameters = inspect.signature(function).parameters
    if any(kind.kind is inspect.Parameter.VAR_KEYWORD for kind in parameters.values()):
        known = {*parameters, *SHAPES} if function.__name__ == "main_export" else set(parameters)
    else:
        known = set(parameters)
    for name in names:
        if name not in known:
            raise Refused(function.__name__, name)


SHAPES = (
    "batch_size",
    "text_batch_size",
    "image_batch_size",
    "sequence_length",
    "num_beams",
    "num_choices",
    "num_channels",
    "width",
    "height",
    "audio_sequence_length",
    "text_encoder",
    "unet_or_transformer",
    "vae_encoder",
    "vae_decoder",
)
"""What main_export takes as `**input_shapes`: a model's shapes, or those of a pipeline's parts."""


def listing(folder: str) -> dict[str, int]:
    """Bytes of each file below a folder, by its path with slashes."""
    found = {}
    for here, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(here, name)
            found[os.path.relpath(path, folder).replace(os.sep, "/")] = os.path.getsize(path)
    return dict(sorted(found.items()))


# Check


def check(request: dict[str, Any]) -> dict[str, object]:
    """Read everything that was written: every byte of each module's zip, each shard's header; load where devices are.

    `modules` are paths of TorchScript files and `shards` of safetensors below `output`. A module that cannot be read
    is in the answer with `problem`; one that was not loaded says why in `not_loaded`.
    """
    count = devices(_MAJORS, _DEVICES)
    modules = {path: _module(os.path.join(request["output"], path), count) for path in request["modules"]}
    shards = {path: _shard(os.path.join(request["output"], path)) for path in request["shards"]}
    return {"modules": modules, "shards": shards, "files": listing(request["output"])}


def _module(path: str, count: int) -> dict[str, object]:
    try:
        facts: dict[str, object] = {"bytes": os.path.getsize(path), "neffs": read_zip(path)}
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        return {"problem": f"not a whole TorchScript file: {error}"}
    if count == 0:
        return {**facts, "not_loaded": "no Neuron device"}
    try:
        _load(path, count)
    except (RuntimeError, ImportError, OSError) as error:
        return {**facts, "problem": f"torch.jit.load: {error}"}
    return facts


def _load(path: str, count: int) -> Any:
    torch = import_module("torch")
    if count > 0:
        import_module("torch_neuronx")  # its classes are in the file
    return torch.jit.load(path)


def read_zip(path: str) -> int:
    """Read every member of a zip against its checksum; the number of NEFF headers among the bytes.

    A NEFF begins with its version (1 or 2) and its header's size, 64 bits each.
    Source: aws-neuron/aws-neuron-sdk: the struct neff_header of the Neuron runtime's documentation.
    """
    patterns = [struct.pack("<QQ", version, _NEFF_HEADER_BYTES) for version in (1, 2)]
    found = 0
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith(("constants.pkl", "data.pkl")) for name in names):
            raise zipfile.BadZipFile("no constants.pkl")
        for name in names:
            with archive.open(name) as member:
                kept = b""
                while True:
                    chunk = member.read(_CHUNK_BYTES)
                    if chunk == b"":
                        break
                    window = kept + chunk
                    found += sum(window.count(pattern) for pattern in patterns)
                    kept = window[-(len(patterns[0]) - 1) :]
    return found


def _shard(path: str) -> dict[str, object]:
    try:
        return shard_facts(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        return {"problem": f"not a whole safetensors file: {error}"}


def shard_facts(path: str) -> dict[str, object]:
    """Names, dtypes and shapes of a safetensors file, whose header must cover its bytes exactly."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > os.path.getsize(path):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    ends = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    at = 0
    for begin, end in ends:
        if begin != at or end < begin:
            raise ValueError(f"bytes {at} to {begin} belong to no tensor")
        at = end
    if 8 + length + at != os.path.getsize(path):
        raise ValueError(f"{os.path.getsize(path)} bytes, expected {8 + length + at}")
    tensors = {name: [entry["dtype"], entry["shape"]] for name, entry in sorted(header.items())}
    return {"bytes": os.path.getsize(path), "tensors": tensors}


# Validate


def validate(request: dict[str, Any]) -> dict[str, object]:
    """Run a traced encoder on given inputs, and write what it answers as .npy for our side to compare.

    `inputs` are .npy files in the order of the traced arguments; `outputs` names the results, for one that has no
    names of its own. Where it cannot run the answer is `not_run`, with the reason.
    """
    torch, numpy = import_module("torch"), import_module("numpy")
    count = devices(_MAJORS, _DEVICES)
    try:
        model = _load(request["module"], count)
        inputs = [torch.from_numpy(numpy.load(path)) for path in request["inputs"]]
        with torch.no_grad():
            answer = model(*inputs)
    except (RuntimeError, ImportError, OSError, torch.jit.Error) as error:
        if count > 0:
            raise
        return {"not_run": f"no Neuron device: {_reason(error)}"}
    if not isinstance(answer, dict):
        values = (answer,) if hasattr(answer, "shape") else tuple(answer)
        names = request["outputs"] if len(request["outputs"]) == len(values) else map(str, range(len(values)))
        answer = dict(zip(names, values, strict=True))
    written, left_out = {}, []
    for name, value in answer.items():
        if hasattr(value, "shape"):
            written[name] = os.path.join(request["folder"], f"{name}.npy")
            numpy.save(written[name], value.float().cpu().numpy())
        else:
            left_out.append(name)
    return {"outputs": written, "left_out": left_out}


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() != ""]
    return lines[0] if lines != [] else type(error).__name__


def main(text: str) -> None:
    """Do what the request, a JSON object, asks, and say so."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]  # our modules shadow nobody's
    request = json.loads(text)
    actions = {"probe": probe, "export": export, "decoder": decoder, "check": check, "validate": validate}
    try:
        done = actions[request["action"]](request)
    except Refused as error:
        done = {"refused": {"function": error.function, "argument": error.argument}}
    emit("result", **done)


if __name__ == "__main__":
    main(sys.argv[1])
