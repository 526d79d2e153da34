"""Print the serialized module of one function: a dot, calls, a branch, markers of collectives, a donated parameter."""

import sys
from importlib import import_module

import jax
import jax.numpy as jnp


def main() -> None:
    """Print the module."""
    ffi = jax.ffi if hasattr(jax, "ffi") else import_module("jax.extend.ffi")
    f32, s32 = jnp.float32, jnp.int32

    def function(left: jax.Array, right: jax.Array, rows: jax.Array, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
        summed = ffi.ffi_call("llmcompile_all_reduce", jax.ShapeDtypeStruct((4, 6), f32))(left @ right)
        chosen = jax.lax.cond(summed[0, 0] > 0, lambda value: value + 1, lambda value: value * 2, jax.nn.silu(summed))
        taken = jnp.take(chosen, rows, axis=0, mode="clip")
        gathered = ffi.ffi_call("llmcompile_all_gather_1", jax.ShapeDtypeStruct((2, 12), f32))(taken)
        return jax.nn.softmax(gathered), jax.lax.dynamic_update_slice(cache, taken, (rows[0], 0))

    shapes = (((4, 8), f32), ((8, 6), f32), ((2,), s32), ((5, 6), f32))
    lowered = jax.jit(function, keep_unused=True, donate_argnums=(3,)).lower(
        *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)
    )
    sys.stdout.buffer.write(lowered.compiler_ir("hlo").as_serialized_hlo_module_proto())


if __name__ == "__main__":
    main()
