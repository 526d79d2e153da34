"""A stand-in for TensorRT for RTX: an engine is the ONNX model, and ONNX Runtime on CPU is the GPU.

It has the part of the API of tensorrt_rtx 1.7.1 that worker.py and runner.py call. Tensors are read from, and written
to, addresses of the stand-in for NVIDIA's driver (cuda.c), and nothing is computed before its stream is waited for.
Shapes are held against the optimization profile in use, an engine loads on a GPU of its compute capabilities alone, and
no two tensors share an address.

RTX_STANDIN says what goes wrong: noise (logits and states), nan, caches (keys and values of the layers are moved by one
place), refuse (the engine does not load), border (an output has another type), abort, old (without Blackwell).
"""

from __future__ import annotations

import os
import pickle
import sys
from ctypes import CDLL, CFUNCTYPE, c_size_t, c_uint64, c_void_p, create_string_buffer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from llmcompile import onnx_model

__version__ = "1.7.1.116"
_NUMPY = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16, "int64": np.int64}
_NAMES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int64": "INT64"}
_WORK = CFUNCTYPE(None)


def _wrong() -> str:
    return os.environ.get("RTX_STANDIN", "")


class ComputeCapability:
    """GPUs an engine can be for."""

    SM75, SM80, SM86, SM89 = 75, 80, 86, 89
    if _wrong() != "old":
        SM120, SM121 = 120, 121


class NetworkDefinitionCreationFlag:
    """Of a network."""

    STRONGLY_TYPED = 1


class BuilderFlag:
    """Of a build."""

    WEIGHT_STREAMING = 1


class Logger:
    """Says what it is told on stderr, as the vendor's does."""

    INFO, WARNING, ERROR = "INFO", "WARNING", "ERROR"

    def __init__(self, severity: str) -> None:
        self.severity = severity

    def log(self, severity: str, text: str) -> None:
        """One line."""
        sys.stderr.write(f"[11/21/2026-12:00:00] [TRT] [{severity[0]}] {text}\n")


class Network:
    """An ONNX model's border."""

    num_layers = 1

    def __init__(self) -> None:
        self.model: bytes = b""
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def parsed(self, path: Path) -> None:
        """Take a file, with its weights."""
        model = onnx.load(str(path))
        self.model = model.SerializeToString()
        self._inputs, self._outputs = map(_described, (onnx_model.inputs(model), onnx_model.outputs(model)))

    @property
    def num_inputs(self) -> int:
        """How many."""
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        """How many."""
        return len(self._outputs)

    def get_input(self, index: int) -> Any:
        """One."""
        return self._inputs[index]

    def get_output(self, index: int) -> Any:
        """One."""
        return self._outputs[index]


def _described(values: Any) -> list[Any]:
    return [
        SimpleNamespace(
            name=value.name,
            dtype=SimpleNamespace(name=_NAMES[value.dtype]),
            shape=[axis if isinstance(axis, int) else -1 for axis in value.shape],
        )
        for value in values
    ]


class OnnxParser:
    """Reads a file into a network."""

    num_errors = 0

    def __init__(self, network: Network, logger: Logger) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        """Whether it could."""
        self._network.parsed(Path(path))
        return True


class Builder:
    """Packs a network with its profiles and capabilities."""

    def __init__(self, logger: Logger) -> None:
        pass

    def create_network(self, flags: int) -> Network:
        """An empty one."""
        return Network()

    def create_builder_config(self) -> Config:
        """An empty one."""
        return Config()

    def create_optimization_profile(self) -> OptimizationProfile:
        """An empty one."""
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: Config) -> memoryview:
        """The plan."""
        plan = {"model": network.model, "profiles": config.profiles, "capabilities": config.capabilities}
        return memoryview(pickle.dumps(plan))


class OptimizationProfile:
    """Least, best and most shape of each input."""

    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        """Of one input."""
        self.shapes[name] = shapes


class Config:
    """Of a build."""

    num_compute_capabilities = 0

    def __init__(self) -> None:
        self.profiles: list[dict[str, Any]] = []
        self.capabilities: list[int] = []

    def set_compute_capability(self, capability: int, place: int) -> bool:
        """Whether the builder takes it."""
        self.capabilities.append(capability)
        return True

    def set_flag(self, flag: int) -> None:
        """Without effect."""

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        """Its index."""
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1


class Runtime:
    """Loads engines, where a context is current."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._driver = CDLL("libcuda.so.1")

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        """The engine; None where it does not load."""
        if _wrong() == "abort":
            os.abort()
        capability = self._driver.standin_capability()
        made = pickle.loads(plan)
        if capability not in made["capabilities"] or _wrong() == "refuse":
            self._logger.log(Logger.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 6: not for sm{capability}")
            return None
        return Engine(made, self._driver)


class Engine:
    """A plan that was loaded."""

    def __init__(self, made: dict[str, Any], driver: Any) -> None:
        self._model = onnx.load_from_string(made["model"])
        self.inputs = {value.name: value for value in onnx_model.inputs(self._model)}
        self.outputs = {value.name: value for value in onnx_model.outputs(self._model)}
        self.profiles, self._driver = made["profiles"], driver
        self.num_io_tensors = len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        """Inputs come first."""
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        """INPUT or OUTPUT."""
        return SimpleNamespace(name="INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_location(self, name: str) -> Any:
        """All are on the GPU."""
        return SimpleNamespace(name="DEVICE")

    def get_tensor_dtype(self, name: str) -> Any:
        """By the vendor's name."""
        if _wrong() == "border" and name in self.outputs:
            return SimpleNamespace(name="FP8")
        return SimpleNamespace(name=_NAMES[{**self.inputs, **self.outputs}[name].dtype])

    def create_execution_context(self) -> Context:
        """One, with the first profile."""
        return Context(self, self._model, self._driver)


class Context:
    """Runs an engine."""

    def __init__(self, engine: Engine, model: Any, driver: Any) -> None:
        import onnxruntime

        self._engine, self._driver = engine, driver
        if any(value.dtype == "bf16" for value in onnx_model.outputs(model)):
            model = onnx_model.in_float32(model, rounding={name for node in model.graph.node for name in node.output})
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._work: list[Any] = []

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        """Choose, and forget all shapes and addresses."""
        self._shapes, self._addresses, self._profile = {}, {}, index
        return 0 <= index < len(self._engine.profiles) and stream != 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the profile has it."""
        least, _, most = self._engine.profiles[self._profile][name]
        self._shapes[name] = shape
        return len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )

    def infer_shapes(self) -> list[str]:
        """Inputs without a shape."""
        return [name for name in self._engine.inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> list[int]:
        """Of an output, by the names of its axes; -1 for one that is not known."""
        sizes = {
            axis: size
            for given, shape in self._shapes.items()
            for axis, size in zip(self._engine.inputs[given].shape, shape, strict=True)
        }
        if "past" in sizes and "sequence" in sizes:
            sizes.setdefault("total", sizes["past"] + sizes["sequence"])
        axes = self._engine.outputs[name].shape
        return [axis if isinstance(axis, int) else sizes.get(axis, -1) for axis in axes]

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Whether it is one of the GPU."""
        self._addresses[name] = address
        return address >= 1 << 60

    def execute_async_v3(self, stream: int) -> bool:
        """Put the work into the stream."""
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        if addresses.keys() != {*self._engine.inputs, *self._engine.outputs}:
            return False
        if len(set(addresses.values())) < len(addresses):
            return False
        outputs = {name: tuple(self.get_tensor_shape(name)) for name in self._engine.outputs}
        work = _WORK(lambda: self._computed(addresses, shapes, outputs))
        self._work.append(work)
        return bool(self._driver.standin_enqueue(c_void_p(stream), work) == 0)

    def _computed(
        self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]
    ) -> None:
        kinds = {each.name: each.type for each in self._session.get_inputs()}
        given = {}
        for name, shape in shapes.items():
            kind = _NUMPY[self._engine.inputs[name].dtype]
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            buffer = create_string_buffer(max(size, 1))
            assert self._driver.standin_read(buffer, c_uint64(addresses[name]), c_size_t(size)) == 0
            values = np.frombuffer(buffer.raw[:size], dtype=kind).reshape(shape)
            given[name] = values.astype(np.float32) if kinds[name] == "tensor(float)" else values
        found = dict(zip(self._engine.outputs, self._session.run(None, given), strict=True))
        for name, shape in outputs.items():
            values = _spoiled(name, found[name])
            assert values.shape == shape, f"{name}: {values.shape} computed, {shape} inferred"
            content = values.astype(_NUMPY[self._engine.outputs[name].dtype]).tobytes()
            assert self._driver.standin_write(c_uint64(addresses[name]), content, c_size_t(len(content))) == 0


def _spoiled(name: str, values: Any) -> Any:
    cached = name.startswith(("present.", "cross."))
    if _wrong() == "caches" and cached:
        return np.roll(values, 1, axis=2)
    if _wrong() == "nan" and not cached:
        return np.where(np.arange(values.size).reshape(values.shape) == 0, np.nan, values)
    if _wrong() == "noise" and not cached:
        return values + np.random.default_rng(0).normal(0, 0.05 * np.abs(values).max(), values.shape)
    return values
