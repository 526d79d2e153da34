"""Runs a serialized HloModuleProto with XLA's CPU client; the one file that uses the private API of JAX.

A module is compiled as it lies on disk, for as many replicas as it has ranks, and its collectives are real: every rank
is a device of the client, and runs in a thread of its own. Nothing global of JAX is touched, neither its configuration
nor its default backend.

Memory is what a run of a large model is short of. Tensors that begin at a multiple of 64 bytes are used where they lie.
XLA has no matrix product of 16-bit floats on CPU, so it widens each weight to float32 before its product; its default
schedule widens all of them at the start, one for small memory a weight at a time.

The calls are those of jax 0.5.0 to 0.10.2; of these 0.5.0, 0.6.2, 0.7.2 and 0.10.2 were tried.
"""

from __future__ import annotations

import ctypes
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from llmcompile.errors import MismatchError, ToolchainError

Array: TypeAlias = npt.NDArray[Any]

ALIGNMENT: Final = 64
"""XLA uses memory in place if it begins at a multiple of this many bytes, and copies it otherwise."""

_OLDEST: Final = (0, 5, 0)
"""The first jax whose CPU client takes the number of its devices as an argument."""
_INSTALL: Final = "pip install 'llmcompile[neuron]'"

_OPTIONS: Final[tuple[tuple[str, str | bool | int], ...]] = (
    # Rounding to 16 bits between two operations is part of the graph; by default XLA may leave it out.
    ("xla_allow_excess_precision", False),
    # Both are for memory; which of them an XLA knows depends on its age.
    ("xla_cpu_scheduler_type", "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"),
    ("xla_cpu_enable_concurrency_optimized_scheduler", False),
    # Compiling takes half as long without, and a run no longer: its products are a library's.
    ("xla_llvm_disable_expensive_passes", True),
    # Takes products of 16-bit floats that it then lacks the code for, in jax 0.7.
    ("xla_cpu_use_xnnpack", False),
    # Seconds. By default a rank that waits 40 for the others ends the process; on few cores a large layer takes longer.
    ("xla_cpu_collective_call_terminate_timeout_seconds", 30 * 60),
)
_UNKNOWN_OPTION: Final = re.compile(r"No such compile option: '(\w+)'")


@dataclass(frozen=True)
class Buffers:
    """A tensor of every rank, where the ranks' devices can use it.

    Attributes:
        array: One jax.Array with a shard for each rank; a run that donates it leaves it deleted.
    """

    array: Any

    @property
    def pointers(self) -> tuple[int, ...]:
        """Address of each rank's tensor."""
        return tuple(shard.data.unsafe_buffer_pointer() for shard in self.array.addressable_shards)

    @property
    def donated(self) -> bool:
        """Whether a run has written its result over it."""
        return bool(self.array.is_deleted())

    def fetch(self) -> list[Array]:
        """The tensor of each rank; read-only."""
        return [np.asarray(shard.data) for shard in self.array.addressable_shards]


def check_toolchain() -> None:
    """Refuse a JAX that is absent, too old or too new.

    Raises:
        ToolchainError: It is; says what to install.
    """
    _library()


def element_type(name: str) -> np.dtype[Any]:
    """NumPy's type for XLA's name of an element type; that of bf16 comes from ml_dtypes.

    Raises:
        MismatchError: There is none.
    """
    if name == "bf16":
        from ml_dtypes import bfloat16  # comes with jax

        found: np.dtype[Any] = np.dtype(bfloat16)
        return found
    if name not in _ELEMENT_TYPES:
        raise MismatchError("the graph", f"element type {name}", f"bf16, {', '.join(_ELEMENT_TYPES)}")
    return np.dtype(_ELEMENT_TYPES[name])


_ELEMENT_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "pred": "bool",
        **{f"s{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
        **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
        **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    }
)


def aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An array with no values yet, at an address that XLA uses in place."""
    size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size_bytes + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size_bytes].view(dtype).reshape(tuple(shape))


def place(shares: Sequence[Array], *, copied: bool = False) -> Buffers:
    """Give each rank its tensor, in place where it is aligned; what was given must then never be written to.

    Args:
        shares: One array for each rank, row-major, all of one shape and dtype.
        copied: Copy them all the same, so that a run can write over them what it would otherwise write elsewhere.
    """
    library = _library()
    devices = library.client(len(shares)).devices()
    with _private():
        placed = [
            library.xla.batched_device_put(
                library.aval(share.shape, share.dtype),
                library.jax.sharding.SingleDeviceSharding(device),
                [share],
                [device],
                force_copy=copied,
            )
            for share, device in zip(shares, devices, strict=True)
        ]
        return _joined(placed)


def release() -> None:
    """Give back the memory of buffers and programs that nothing refers to.

    XLA keeps arrays whose buffers are gone until it is told, and its compiler leaves freed blocks in many heaps.
    """
    with _private():
        _library().extension.collect_garbage()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc has it, other libraries have not
        trim(0)


class Executable:
    """A module, compiled for this machine's CPU.

    Attributes:
        ranks: Replicas that run it together.
        scratch_bytes: What a run takes beside its arguments and results, on every rank.
    """

    def __init__(self, module: bytes, ranks: int, *, name: str = "the graph") -> None:
        """Compile a module.

        Args:
            module: A serialized HloModuleProto; its parameters and results are arrays, the results in a tuple.
            ranks: Replicas that run it together.
            name: What an error calls it.

        Raises:
            MismatchError: XLA refuses it.
            ToolchainError: JAX is absent, too old or too new.
        """
        library = _library()
        self.ranks = ranks
        self._name = name
        self._compiled = _compiled(library, module, ranks, name)
        release()
        with _private():
            shape = library.xla.XlaComputation(module).program_shape()
            self._parameters = [(one.dimensions(), one.numpy_dtype()) for one in shape.parameter_shapes()]
            self.scratch_bytes = int(self._compiled.get_compiled_memory_stats().temp_size_in_bytes)

    def run(self, arguments: Sequence[Buffers]) -> list[Buffers]:
        """Run it on all ranks, to its end.

        Args:
            arguments: One for each parameter; those that the module aliases with a result are deleted.

        Raises:
            ValueError: The arguments are not what the module takes; a rank that does not start would leave the others
                waiting for it.
            MismatchError: The module fails.
            ToolchainError: This XLA lacks an operation.
        """
        from jax.errors import JaxRuntimeError

        given = [(argument.array.shape, argument.array.dtype) for argument in arguments]
        if given != self._parameters or len({id(argument.array) for argument in arguments}) < len(arguments):
            raise ValueError(f"{self._name} takes {self._parameters}, each its own array; got {given}")
        try:
            with _private():
                results = self._compiled.execute_sharded([argument.array for argument in arguments])
                made = [_joined(shards) for shards in results.disassemble_into_single_device_arrays()]
                for buffers in made:
                    buffers.array.block_until_ready()
                return made
        except JaxRuntimeError as error:
            if "UNIMPLEMENTED" in str(error):
                version = _library().jax.__version__
                raise ToolchainError(
                    "jax", f"{version} cannot run {self._name} ({_first_line(error)})", "a newer one", _INSTALL
                ) from error
            raise MismatchError(self._name, f"fails when it runs ({_first_line(error)})", "results") from error


@dataclass(frozen=True)
class _Library:
    """JAX, and what of it is private."""

    jax: Any
    xla: Any
    extension: Any
    aval: Any

    def client(self, ranks: int) -> Any:
        return _client(ranks)


@cache
def _library() -> _Library:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a library's own use of another
            import jax
    except ImportError as error:
        raise ToolchainError("jax", "not installed", "jax 0.5 or newer", _INSTALL) from error
    if jax.__version_info__ < _OLDEST:
        expected = ".".join(map(str, _OLDEST))
        raise ToolchainError("jax", jax.__version__, f"{expected} or newer", _INSTALL)
    with _private():
        xla = import_module("jax._src.lib").xla_client
        aval = import_module("jax._src.core").ShapedArray
        return _Library(jax=jax, xla=xla, extension=xla._xla, aval=aval)


@cache
def _client(ranks: int) -> Any:
    with _private():
        return _library().xla.make_cpu_client(asynchronous=False, num_devices=ranks)


@contextmanager
def _private() -> Iterator[None]:
    """Say that this JAX is another than we know where its private API is."""
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        import jax

        hint = f"{_INSTALL}, or an older jax"
        raise ToolchainError(
            "jax", f"{jax.__version__} has another private API ({_first_line(error)})", "0.5.0 to 0.10.2", hint
        ) from error


def _compiled(library: _Library, module: bytes, ranks: int, name: str) -> Any:
    """Compile with as many of our options as this XLA knows."""
    from jax.errors import JaxRuntimeError

    xla, client = library.xla, library.client(ranks)
    options = dict(_OPTIONS)
    with _private():
        devices = xla.DeviceList(tuple(client.devices()))
    while True:
        try:
            with _private():
                program = library.extension.mlir.xla_computation_to_mlir_module(xla.XlaComputation(module))
                settings = xla.CompileOptions()
                settings.num_replicas, settings.num_partitions = ranks, 1
                settings.device_assignment = xla.DeviceAssignment.create(np.arange(ranks).reshape(ranks, 1))
                settings.env_option_overrides = list(options.items())
                return _loaded(client, program, devices, settings)
        except JaxRuntimeError as error:
            unknown = _UNKNOWN_OPTION.search(str(error))
            if unknown is None or options.pop(unknown[1], None) is None:
                raise MismatchError(name, f"XLA refuses it ({_first_line(error)})", "a module it compiles") from error


def _loaded(client: Any, program: Any, devices: Any, settings: Any) -> Any:
    """Compile, by the name and arguments that this has had since jax 0.5."""
    if hasattr(client, "compile_and_load"):
        return client.compile_and_load(program, devices, settings)
    try:
        return client.compile(program, devices, settings)
    except TypeError:
        return client.compile(program, settings)


def _joined(shards: Sequence[Any]) -> Buffers:
    """Arrays of one device each as one of all; that it is called replicated only says that no axis is split."""
    jax = _library().jax
    devices = np.array([next(iter(shard.devices())) for shard in shards])
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, ("rank",)), jax.sharding.PartitionSpec())
    return Buffers(jax.make_array_from_single_device_arrays(shards[0].shape, sharding, list(shards)))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return type(error).__name__ if lines == [] else lines[0]
