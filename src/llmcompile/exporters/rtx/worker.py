"""Run in a process of its own: `python worker.py '{"action": ...}'`, since a builder may crash or take all memory.

One JSON object in, as the only argument; JSON lines with the key "event" out, the builder's own log between them. The
last event is "result". A failure is a traceback and exit code 1. Standard library only; TensorRT for RTX is imported
inside functions, the one place that does.

Sources: tensorrt_rtx 1.7.1 (its Python API), asked on a machine without a GPU; docs/formats/tensorrt-rtx.md.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any

_MODULES = ("tensorrt_rtx_bindings", "tensorrt_rtx")
"""The wheels from PyPI have the first; the second is the name NVIDIA's own package gives it."""
_TYPES = {
    "FLOAT": "fp32",
    "HALF": "fp16",
    "BF16": "bf16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def emit(event: str, **fields: object) -> None:
    """Write one JSON line, whole, whatever else writes to the same pipe."""
    os.write(1, (json.dumps({"event": event, **fields}) + "\n").encode())


def _imported() -> Any:
    for name in _MODULES:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in _MODULES:
                raise
    raise SystemExit("neither tensorrt_rtx_bindings nor tensorrt_rtx is installed")


def probe(request: dict[str, Any]) -> dict[str, object]:
    """Say which release this is, and what it compiles for."""
    trt = _imported()
    names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    return {"version": trt.__version__, "capabilities": sorted(int(name[2:]) for name in names)}


def build(request: dict[str, Any]) -> dict[str, object]:
    """Build one engine of an ONNX file, strongly typed, and write it.

    `profiles` are lists of {"input", "shapes": [least, best, most]}.
    """
    trt = _imported()
    logger = trt.Logger(trt.Logger.INFO)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    emit("progress", text="parsing")
    if not parser.parse_from_file(request["onnx"]):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise SystemExit("the parser refuses the graph: " + "; ".join(errors))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(request["capabilities"])
    for place, capability in enumerate(request["capabilities"]):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), place):
            raise SystemExit(f"the builder does not take compute capability {capability}")
    if request["weight_streaming"]:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, tuple(least), tuple(best), tuple(most))
        if config.add_optimization_profile(profile) < 0:
            raise SystemExit("the builder does not take an optimization profile")
    emit("progress", text="building")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SystemExit("the builder gave no engine; its log says why")
    emit("progress", text="writing")
    with open(request["engine"], "wb") as file:
        file.write(plan)
    return {"version": trt.__version__, "bytes": plan.nbytes, **_border(network)}


def _border(network: Any) -> dict[str, object]:
    """What the network takes and gives: an engine cannot be asked where there is no GPU."""

    def value(tensor: Any) -> dict[str, object]:
        return {
            "name": tensor.name,
            "dtype": _TYPES.get(tensor.dtype.name, tensor.dtype.name),
            "shape": list(tensor.shape),
        }

    return {
        "inputs": [value(network.get_input(index)) for index in range(network.num_inputs)],
        "outputs": [value(network.get_output(index)) for index in range(network.num_outputs)],
        "layers": network.num_layers,
    }


def main(text: str) -> None:
    """Do what the request, a JSON object, asks, and say so."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]  # our modules shadow nobody's
    request = json.loads(text)
    emit("result", **{"probe": probe, "build": build}[request["action"]](request))


if __name__ == "__main__":
    main(sys.argv[1])
