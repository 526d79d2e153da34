"""XLA itself, through jaxlib's private API: it writes modules, reads what we wrote, and runs both.

Only tests may use this API, which changes with every release of jaxlib; these calls are those of 0.5 to 0.10.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jax
    from jax._src.lib import xla_client


def lowered(function: Callable[..., Any], *arguments: Any, donated: Sequence[int] = ()) -> bytes:
    """The HloModuleProto that JAX makes of `function` of arguments like these."""
    specs = [jax.ShapeDtypeStruct(np.shape(argument), np.asarray(argument).dtype) for argument in arguments]
    traced = jax.jit(function, keep_unused=True, donate_argnums=tuple(donated)).lower(*specs)
    return traced.compiler_ir("hlo").as_serialized_hlo_module_proto()


def text(module: bytes) -> str:
    """HLO text of a serialized module, as XLA reads it."""
    return xla_client.XlaComputation(module).as_hlo_text()


@cache
def client(ranks: int) -> Any:
    """A CPU client of some devices."""
    return xla_client.make_cpu_client(num_devices=ranks)


def run(module: bytes, *arguments: Sequence[Any]) -> list[list[np.ndarray]]:
    """Execute a module as one replica per list of arguments; the results of each replica."""
    ranks = len(arguments)
    cpu = client(ranks)
    devices = cpu.devices()
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = ranks, 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.arange(ranks).reshape(ranks, 1))
    extension = getattr(xla_client, "_xla", xla_client)
    mlir = extension.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(module))
    if hasattr(cpu, "compile_and_load"):
        executable = cpu.compile_and_load(mlir, xla_client.DeviceList(tuple(devices)), options)
    else:
        executable = cpu.compile(mlir, options)
    mesh = jax.sharding.Mesh(np.array(devices), ("replica",))
    stacked = []
    for shares in zip(*(map(np.asarray, share) for share in arguments), strict=True):
        parts = [jax.device_put(share[None], device) for share, device in zip(shares, devices, strict=True)]
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("replica"))
        whole = jax.make_array_from_single_device_arrays((ranks, *shares[0].shape), sharding, parts)
        stacked.append(whole)
    results = executable.execute_sharded(stacked).disassemble_into_single_device_arrays()
    return [[np.asarray(result[rank]) for result in results] for rank in range(ranks)]
