"""What --target llmapi takes of the options: those of an engine are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmcompile.errors import Problem
from llmcompile.exporters.trtllm import versions

if TYPE_CHECKING:
    from llmcompile.exporters.trtllm.options import TrtllmOptions

LIMITS = ("--max_batch_size", "--max_seq_len", "--max_num_tokens", "--max_beam_width")
"""Flags of trtllm-build that arguments of tensorrt_llm.LLM are called after.
Source: NVIDIA/TensorRT-LLM@fcd3f316:tensorrt_llm/llmapi/llm_args.py (BaseLlmArgs)."""


def unfit(options: TrtllmOptions) -> Iterator[Problem]:
    """Every option that has no place in a checkpoint without an engine."""
    default = type(options)
    given = (
        ("--stop-after", options.stop_after is not None),
        ("--from-checkpoint", options.from_checkpoint is not None),
        ("--keep-checkpoint", options.keep_checkpoint),
        ("--wo-layout", options.wo_layout != default.wo_layout),
        ("--use-parallel-embedding", options.use_parallel_embedding),
        ("--embedding-sharding-dim", options.embedding_sharding_dim != default.embedding_sharding_dim),
        ("--use-embedding-sharing", options.use_embedding_sharing),
        ("--max-position-embeddings", options.max_position_embeddings is not None),
        ("--builder", options.builder != default.builder),
        ("--toolchain-python", options.toolchain_python is not None),
        ("--trtllm-build", options.trtllm_build is not None),
        ("--build-timeout", options.build_timeout_seconds is not None),
        ("--build-workers", options.build_workers != default.build_workers),
        ("--input-timing-cache", options.input_timing_cache is not None),
        ("--output-timing-cache", options.output_timing_cache is not None),
        *((name, True) for name in dict.fromkeys(name for name, _ in options.engine) if name not in LIMITS),
    )
    for flag, is_given in given:
        if is_given:
            yield Problem(flag, "given with --target llmapi, which has no engine", "--target engine", f"drop {flag}")
    for name, values in versions.grouped(options.engine).items():
        if name in LIMITS and not (values[-1].isdecimal() and int(values[-1]) > 0):
            yield Problem(name, repr(values[-1]), "a whole number above 0")
    if options.dtype == "float32":
        yield Problem("--dtype", "float32 with --target llmapi", "float16 or bfloat16", "--dtype bfloat16")
    if options.kv_cache not in (None, "fp8"):
        found = f"{options.kv_cache} with --target llmapi: the PyTorch backend's attention has no such cache"
        yield Problem("--kv-cache", found, "fp8", "--kv-cache fp8")
    if options.shard_size < 1:
        yield Problem("--shard-size", f"{options.shard_size} bytes", "1 or more", "--shard-size 5GB")
    yield from _groups(options)


def _groups(options: TrtllmOptions) -> Iterator[Problem]:
    from llmcompile.exporters.trtllm.llmapi.recipes import RECIPES

    recipe = None if options.quantization is None else RECIPES.get(options.quantization)
    if options.group_size != type(options).group_size and (recipe is None or recipe.groups is not None):
        expected = " or ".join(name for name, other in RECIPES.items() if other.groups is None)
        found = f"{options.group_size} without groups: --quantization {options.quantization}"
        yield Problem("--group-size", found, f"--quantization {expected}", "drop --group-size")


def unserved(options: TrtllmOptions) -> Problem | None:
    """Why the release does not load the recipe; None where it does, or there is none."""
    from llmcompile.exporters.trtllm.llmapi.recipes import RECIPES, UNSERVED

    name = options.quantization
    if name is None or name in RECIPES:
        return None
    reason, instead = UNSERVED.get(name, ("which does not load it", f"--quantization {next(iter(RECIPES))}"))
    hint = f"{instead}, or --target engine --trtllm-version {versions.LAST_VERSION}"
    return Problem("--quantization", f"{name} for the PyTorch backend, {reason}", " or ".join(RECIPES), hint)


def first_release(recipe: str) -> versions.Release:
    """The first release whose LLM API loads a recipe that is served."""
    from llmcompile.exporters.trtllm.llmapi.recipes import RECIPES

    return RECIPES[recipe].first
