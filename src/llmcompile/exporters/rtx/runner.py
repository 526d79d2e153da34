"""Run in a process of its own: `python runner.py '{"action": ...}'`: asks NVIDIA's driver, and runs engines on a GPU.

Of its own, since a driver or a runtime may crash, and what they hold is only let go with the process. One JSON object
in, as the only argument; JSON lines with the key "event" out, the runtime's own log between them. The last event is
"result", or "failed" with what was found and what to do, and exit code 1. Standard library only: the driver is called
through ctypes, TensorRT for RTX is imported inside functions.

Everything the GPU does is put into one stream, copies too: a copy from ordinary memory may otherwise come after a
kernel of a stream that does not wait. Every tensor has an address of its own, an empty one too: none may be null.

Sources: CUDA's driver API (cuda.h: names with _v2 are what its macros call; "API synchronization behavior" for copies);
tensorrt_rtx 1.7.1's Python API; docs/formats/tensorrt-rtx.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p, create_string_buffer
from importlib import import_module
from typing import Any

_LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE: the driver is there, and sees no GPU; CUDA_VISIBLE_DEVICES may hide them."""
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING. TensorRT advises against the default stream, which it would synchronize with."""
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (c_void_p,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
}
_MODULES = ("tensorrt_rtx_bindings", "tensorrt_rtx")
_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int64": 8, "int32": 4, "bool": 1}
_HIDE = "or hide the GPU, and the engine is not run: CUDA_VISIBLE_DEVICES="


class FailedError(Exception):
    """What was found, and what to do."""


class DriverError(Exception):
    """A function of the driver that did not succeed.

    Attributes:
        code: Its result.
    """

    def __init__(self, name: str, code: int, said: str) -> None:
        super().__init__(f"{name.partition('_')[0]}: {said}")
        self.code = code


class Driver:
    """NVIDIA's driver.

    Raises:
        OSError: It is not installed, or cannot be loaded.
    """

    def __init__(self) -> None:
        self._library = CDLL(_LIBRARY)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            DriverError: It failed, or this driver has none of the name.
        """
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise DriverError(name, -1, "not in this driver, which is too old") from None
        function.argtypes, function.restype = _ARGUMENTS[name], c_int
        code = function(*arguments)
        if code != 0:
            raise DriverError(name, code, self._said(code))

    def _said(self, code: int) -> str:
        words = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            if hasattr(self._library, name) and getattr(self._library, name)(c_int(code), byref(text)) == 0:
                words.append("" if text.value is None else text.value.decode(errors="replace"))
        return " ".join(f"({word})" if place else word for place, word in enumerate(words)) or f"error {code}"

    def number(self, name: str, *arguments: Any) -> int:
        """The number a function writes to its first argument."""
        found = c_int()
        self.call(name, byref(found), *arguments)
        return found.value

    def handle(self, name: str, *arguments: Any) -> c_void_p:
        """The pointer a function writes to its first argument."""
        found = c_void_p()
        self.call(name, byref(found), *arguments)
        return found

    def gpu(self, index: int) -> dict[str, object]:
        """A GPU's name and compute capability."""
        device = self.number("cuDeviceGet", index)
        name = create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), device)
        major, minor = (self.number("cuDeviceGetAttribute", which, device) for which in (_MAJOR, _MINOR))
        text = name.value.decode(errors="replace")
        return {"index": index, "name": text, "capability": 10 * major + minor}

    def version(self) -> str:
        """The release of CUDA it knows, "12.8"."""
        number = self.number("cuDriverGetVersion")
        return f"{number // 1000}.{number % 1000 // 10}"

    @contextmanager
    def current(self, index: int) -> Iterator[c_void_p]:
        """Make a GPU's primary context, which CUDA's runtime shares, current; a stream in it."""
        device = self.number("cuDeviceGet", index)
        context = self.handle("cuDevicePrimaryCtxRetain", device)
        self.call("cuCtxSetCurrent", context)
        stream = self.handle("cuStreamCreate", _NON_BLOCKING)
        yield stream
        self.call("cuStreamDestroy_v2", stream)
        self.call("cuDevicePrimaryCtxRelease_v2", device)


def emit(event: str, **fields: object) -> None:
    """Write one JSON line, whole, whatever else writes to the same pipe."""
    os.write(1, (json.dumps({"event": event, **fields}) + "\n").encode())


def gpus(request: dict[str, Any]) -> dict[str, object]:
    """Say which GPUs the driver sees; with no driver and no GPU the list is empty, and "reason" says what is broken."""
    try:
        driver = Driver()
    except OSError as error:
        absent = f"{_LIBRARY}: cannot open" in str(error)
        return {"gpus": [], "cuda": None, "reason": "" if absent else f"NVIDIA's driver cannot be loaded: {error}"}
    try:
        driver.call("cuInit", 0)
        found = [driver.gpu(index) for index in range(driver.number("cuDeviceGetCount"))]
        return {"gpus": found, "cuda": driver.version(), "reason": ""}
    except DriverError as error:
        reason = "" if error.code == _NO_DEVICE else f"NVIDIA's driver does not work: {error}"
        return {"gpus": [], "cuda": None, "reason": reason}


class _Memory:
    """Tensors on the GPU: each an address that was asked for, its shape and its bytes."""

    def __init__(self, driver: Driver, stream: c_void_p) -> None:
        self._driver, self._stream = driver, stream
        self._sources: list[Any] = []

    def allocated(self, shape: list[int], size: int) -> tuple[int, list[int], int]:
        """Room for a tensor."""
        address = self._driver.handle("cuMemAlloc_v2", max(size, 1))
        assert address.value is not None
        return address.value, shape, size

    def filled(self, shape: list[int], size: int, file: str) -> tuple[int, list[int], int]:
        """A tensor whose bytes are a file's."""
        tensor = self.allocated(shape, size)
        with open(file, "rb") as stream:
            content = stream.read()
        if len(content) != size:
            raise FailedError(f"{file}: {len(content)} bytes, {size} expected", "please report it")
        if size > 0:
            source = create_string_buffer(content, size)
            self._sources.append(source)  # until the stream has come to the copy
            self._driver.call("cuMemcpyHtoDAsync_v2", tensor[0], source, size, self._stream)
        return tensor

    def written(self, tensor: tuple[int, list[int], int], file: str) -> None:
        """Write a tensor's bytes to a file; the stream has ended."""
        address, _, size = tensor
        target = create_string_buffer(max(size, 1))
        if size > 0:
            self._driver.call("cuMemcpyDtoHAsync_v2", target, address, size, self._stream)
            self.wait()
        with open(file, "wb") as stream:
            stream.write(target.raw[:size])

    def wait(self) -> None:
        """Until the stream has done everything."""
        self._driver.call("cuStreamSynchronize", self._stream)
        self._sources.clear()

    def free(self, tensor: tuple[int, list[int], int]) -> None:
        """Let a tensor go."""
        self._driver.call("cuMemFree_v2", tensor[0])


class _Engine:
    """An engine that was loaded, with one execution context."""

    def __init__(self, trt: Any, runtime: Any, path: str, border: dict[str, dict[str, str]], where: str) -> None:
        self.name = os.path.basename(path)
        with open(path, "rb") as file:
            self._engine = runtime.deserialize_cuda_engine(file.read())
        if self._engine is None:
            raise FailedError(f"{self.name} does not load on {where}", f"update NVIDIA's driver; {_HIDE}")
        found: dict[str, dict[str, str]] = {"INPUT": {}, "OUTPUT": {}}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            kind = self._engine.get_tensor_dtype(name).name
            if self._engine.get_tensor_location(name).name != "DEVICE":
                raise FailedError(f"{self.name} wants {name} in the host's memory", "please report it")
            found[self._engine.get_tensor_mode(name).name][name] = _TYPES.get(kind, kind)
        if found != {"INPUT": border["inputs"], "OUTPUT": border["outputs"]}:
            raise FailedError(f"{self.name} takes and gives other tensors than its graph", "please report it")
        self.types = {**found["INPUT"], **found["OUTPUT"]}
        self.outputs = list(border["outputs"])
        self.context = self._engine.create_execution_context()
        if self.context is None:
            found_text = f"{self.name} cannot be made ready on {where}, which compiles it to its end"
            raise FailedError(found_text, f"update NVIDIA's driver, or free memory of the GPU; {_HIDE}")
        self._profile: int | None = None

    def choose(self, profile: int, stream: c_void_p) -> None:
        """Make an optimization profile the one in use."""
        if profile == self._profile:
            return
        if not self.context.set_optimization_profile_async(profile, stream.value):
            raise FailedError(f"{self.name} has no optimization profile {profile}", "please report it")
        self._profile = profile

    def shaped(self, inputs: dict[str, tuple[int, list[int], int]]) -> dict[str, list[int]]:
        """Set the inputs; the shapes of the outputs."""
        for name, (address, shape, _) in inputs.items():
            self._place(name, address)
            if not self.context.set_input_shape(name, tuple(shape)):
                found = f"{self.name} does not take {name} of shape {tuple(shape)}"
                raise FailedError(found, "please report it: the profiles in llmcompile.json say that it does")
        missing = self.context.infer_shapes()
        shapes = {name: [int(size) for size in self.context.get_tensor_shape(name)] for name in self.outputs}
        unknown = [*missing, *(name for name, shape in shapes.items() if any(size < 0 for size in shape))]
        if len(unknown) > 0:
            raise FailedError(f"{self.name} does not know the shape of {', '.join(unknown)}", "please report it")
        return shapes

    def _place(self, name: str, address: int) -> None:
        if not self.context.set_tensor_address(name, address):
            raise FailedError(f"{self.name} does not take an address for {name}", "please report it")

    def execute(self, outputs: dict[str, tuple[int, list[int], int]], stream: c_void_p) -> None:
        """Put the whole graph into the stream."""
        for name, (address, _, _) in outputs.items():
            self._place(name, address)
        if not self.context.execute_async_v3(stream.value):
            raise FailedError(f"{self.name} does not run", f"see its log above; {_HIDE}")


def run(request: dict[str, Any]) -> dict[str, object]:
    """Run a script of steps, each one call of an engine, on one GPU.

    `script` is a file with `index` of the GPU, `version` of TensorRT for RTX, `engines` (name -> `file`, and `inputs`
    and `outputs` with their types) and `steps`. A step has an `engine`, a `profile`, `given` (input -> `shape` and
    `file` of its bytes), `carried` (input -> an output of an earlier step, which stays where it is), `kept` (output
    -> the file its bytes go to) and `first`, before which everything carried is let go. The result has the shapes of
    what was kept.
    """
    with open(request["script"], encoding="utf-8") as file:
        script = json.load(file)
    trt = _imported()
    if trt.__version__ != script["version"]:
        found = f"TensorRT for RTX {trt.__version__} here, and an engine of {script['version']}, which alone runs it"
        raise FailedError(found, f"pip install tensorrt-rtx-cu12-libs=={script['version']}, and -bindings likewise")
    driver = Driver()
    driver.call("cuInit", 0)
    gpu = driver.gpu(script["index"])
    where = f"{gpu['name']} (sm{gpu['capability']}), whose driver is for CUDA {driver.version()}"
    with driver.current(script["index"]) as stream:
        emit("progress", text="loading")
        logger = trt.Logger(trt.Logger.WARNING)
        runtime = trt.Runtime(logger)
        engines = {name: _Engine(trt, runtime, each["file"], each, where) for name, each in script["engines"].items()}
        memory = _Memory(driver, stream)
        shapes = []
        held: dict[str, tuple[int, list[int], int]] = {}
        for number, step in enumerate(script["steps"], 1):
            emit("progress", text=f"running {number} of {len(script['steps'])}")
            if step["first"]:
                for tensor in held.values():
                    memory.free(tensor)
                held = {}
            shapes.append(_step(step, engines[step["engine"]], memory, held, stream))
        for tensor in held.values():
            memory.free(tensor)
        del engines, runtime
    return {"shapes": shapes}


def _step(
    step: dict[str, Any],
    engine: _Engine,
    memory: _Memory,
    held: dict[str, tuple[int, list[int], int]],
    stream: c_void_p,
) -> dict[str, list[int]]:
    """Call an engine once; its outputs replace those of the same names in `held`."""
    given = {
        name: memory.filled(each["shape"], _size(engine.types[name], each["shape"]), each["file"])
        for name, each in step["given"].items()
    }
    inputs = {**given, **{name: held[output] for name, output in step["carried"].items()}}
    engine.choose(step["profile"], stream)
    made = {
        name: memory.allocated(shape, _size(engine.types[name], shape)) for name, shape in engine.shaped(inputs).items()
    }
    engine.execute(made, stream)
    memory.wait()
    for name, file in step["kept"].items():
        memory.written(made[name], file)
    for tensor in (*given.values(), *(held.pop(name) for name in made if name in held)):
        memory.free(tensor)
    held.update(made)
    return {name: made[name][1] for name in step["kept"]}


def _size(kind: str, shape: list[int]) -> int:
    size = _BYTES[kind]
    for each in shape:
        size *= each
    return size


def _imported() -> Any:
    for name in _MODULES:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in _MODULES:
                raise
    raise FailedError("neither tensorrt_rtx_bindings nor tensorrt_rtx is installed", "pip install 'llmcompile[rtx]'")


def main(text: str) -> None:
    """Do what the request, a JSON object, asks, and say so."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]  # our modules shadow nobody's
    request = json.loads(text)
    try:
        emit("result", **{"gpus": gpus, "run": run}[request["action"]](request))
    except FailedError as error:
        emit("failed", found=error.args[0], hint=error.args[1])
        raise SystemExit(1) from None
    except DriverError as error:
        emit("failed", found=str(error), hint=f"see nvidia-smi for the GPU's state; {_HIDE}")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1])
