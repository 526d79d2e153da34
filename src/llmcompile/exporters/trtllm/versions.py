"""TensorRT-LLM from 0.8 to 1.2: which release has which builder flag, recipe and container, and where that is from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmcompile.errors import Problem

Release: TypeAlias = tuple[int, int]
"""Major and minor; patch releases of TensorRT-LLM do not change flags or the checkpoint."""
Setting: TypeAlias = tuple[str, str]
"""A flag of trtllm-build in its spelling, and its value; "" for a switch."""

DEFAULT_VERSION = "1.2.1"
LAST_VERSION = "1.2.1"
"""The last stable release with trtllm-build; later ones have no engines."""
LLMAPI_VERSION = "1.3.0"
"""What --target llmapi is for unless it is told."""
RELEASES: tuple[Release, ...] = (*((0, minor) for minor in range(8, 22)), (1, 0), (1, 1), (1, 2))
FIRST_SUPPORTED: Release = (0, 9)
FIRST_LLMAPI: Release = (1, 0)
"""First release whose LLM API serves Hugging Face checkpoints by default: release notes of 1.0."""
FIRST_FULLY_SUPPORTED: Release = (0, 12)
LAST_SUPPORTED: Release = RELEASES[-1]

_BUILD = "tensorrt_llm/commands/build.py and tensorrt_llm/plugin/plugin.py"
_NOTES = "NVIDIA/TensorRT-LLM@001eaece:docs/source/release-notes.md"
SOURCES: Mapping[Release, str] = {
    (0, 8): f"NVIDIA/TensorRT-LLM@v0.8.0: {_BUILD}",
    (0, 9): f"NVIDIA/TensorRT-LLM@v0.9.0: {_BUILD}",
    (0, 10): f"NVIDIA/TensorRT-LLM@v0.10.0: {_BUILD}",
    (0, 11): f"NVIDIA/TensorRT-LLM@9dbc5b38 (main, two weeks before the release): {_BUILD}; {_NOTES}",
    (0, 12): f"NVIDIA/TensorRT-LLM@be9cd719 (main, before the release): {_BUILD}; {_NOTES}",
    (0, 13): f"NVIDIA/TensorRT-LLM@78f5c293 (0.13.0.dev2024090300): {_BUILD}; {_NOTES}",
    (0, 14): f"NVIDIA/TensorRT-LLM@8681b3a4 (0.14.0.dev2024100800): {_BUILD}; {_NOTES}",
    (0, 15): f"NVIDIA/TensorRT-LLM@c629546c (0.15.0.dev2024111200): {_BUILD}; {_NOTES}",
    (0, 16): f"NVIDIA/TensorRT-LLM@aaacc9bd (0.16.0.dev2024121000): {_BUILD}; {_NOTES}",
    (0, 17): "the log in NVIDIA/TensorRT-LLM#2810 (0.17.0.post1) and build.py@008b2b8d",
    (0, 18): f"as 0.17: {_NOTES} name no change",
    (0, 19): f"{_NOTES}; first seen in a log of March 2025",
    (0, 20): f"between 0.19 and 0.21: {_NOTES} name no change",
    (0, 21): "NVIDIA/TensorRT-LLM@008b2b8d:tensorrt_llm/commands/build.py",
    (1, 0): f"as 1.2: {_NOTES} name no change",
    (1, 1): f"as 1.2: {_NOTES} name no change",
    (1, 2): "the newest stored build.py (no auto parallel) and plugin.py (pydantic) of NVIDIA/TensorRT-LLM",
}
"""Where each release's flags were read. 0.17 to 1.1 could not be read at their tags."""

CONTAINERS: Mapping[Release, str] = {
    (0, 9): "24.05",
    (0, 10): "24.06",
    (0, 11): "24.07",
    (0, 12): "24.08",
    (0, 13): "24.09",
    (0, 14): "24.10",
    (0, 15): "24.11",
    (0, 16): "24.12",
    (0, 17): "25.01",
    (0, 20): "25.06",
    (0, 21): "25.08",
    (1, 0): "25.09",
    (1, 1): "25.12",
}
"""Tag of nvcr.io/nvidia/tritonserver:<tag>-trtllm-python-py3 (NVIDIA's compatibility page); 1.0.3 is in 25.11."""
TENSORRT: Mapping[Release, str] = {
    (0, 9): "9.3",
    (0, 10): "10.0.1",
    (0, 11): "10.2",
    (0, 12): "10.3",
    (0, 13): "10.4",
    (0, 14): "10.4",
    (0, 15): "10.6",
    (0, 16): "10.7",
    (0, 17): "10.8",
    (0, 18): "10.9",
    (0, 20): "10.10",
    (0, 21): "10.11",
    (1, 0): "10.11",
    (1, 1): "10.13.3",
}
"""TensorRT of the wheel, by the release notes; a container may carry another: read it there, never infer it."""
DRIVERS: Mapping[Release, int] = {FIRST_SUPPORTED: 525, (1, 1): 580}
"""Oldest driver branch from a release on: of CUDA 12, and of CUDA 13 (base image 25.10)."""


@dataclass(frozen=True)
class Recipe:
    """A quantization: its name in a checkpoint's config.json, its first release, the oldest GPU it runs on."""

    algorithm: str
    first: Release
    sm: int


RECIPES: Mapping[str, Recipe] = {
    "w8a16": Recipe("W8A16", (0, 9), 75),
    "w4a16": Recipe("W4A16", (0, 9), 75),
    "w4a16_gptq": Recipe("W4A16_GPTQ", (0, 9), 80),
    "w4a16_awq": Recipe("W4A16_AWQ", (0, 9), 80),
    "fp8": Recipe("FP8", (0, 9), 89),
    "fp8_rowwise": Recipe("FP8_PER_CHANNEL_PER_TOKEN", (0, 12), 89),
    "int8_sq": Recipe("W8A8_SQ_PER_CHANNEL", (0, 9), 75),
    "int4_awq": Recipe("W4A16_AWQ", (0, 9), 80),
    "w4a8_awq": Recipe("W4A8_AWQ", (0, 9), 89),
    "nvfp4": Recipe("NVFP4", (0, 17), 100),
}
CALIBRATED = ("fp8", "int8_sq", "int4_awq", "w4a8_awq", "nvfp4")
"""Recipes that take calibration data where the weights come as floats."""
EXPERTS: Mapping[str, Release] = {
    "w8a16": (0, 9),
    "w4a16": (0, 9),
    "fp8": (0, 10),
    "int4_awq": (0, 19),
    "nvfp4": (0, 17),
}
"""Recipe -> first release that loads it of experts. Sources: NVIDIA/TensorRT-LLM@v0.9.0, v0.10.0:
tensorrt_llm/layers/moe.py; docs/source/release-notes.md (0.17.0: NVFP4 for Llama and Mixtral; 0.19.0: INT4-AWQ for MoE
models)."""
EXPERTS_LAST: Mapping[str, Release] = {"nvfp4": (0, 20)}
"""Recipe -> last release that is known to load it of experts, where a later one does not.

From 1.1.0rc6 on the loader unpacks the shape of scales of blocks as two axes; 0.21 and 1.0 were not seen. Source:
Ataraksia/TensorRT-LLM@a451bf93888e:tensorrt_llm/models/modeling_utils.py, a merge that shows 0.20.0 and 1.1.0rc6."""
_PADDED: Release = (1, 1)
"""First release known to round the interleaved scales of NVFP4 up to whole tiles. Source: as `EXPERTS_LAST`."""


def nvfp4_tile(release: Release) -> tuple[int, int]:
    """What one rank's outputs and inputs must be multiples of, as NVFP4.

    Scales are interleaved by 128 outputs and 4 blocks of 16 inputs. Before they were padded, whole tiles were needed;
    CUTLASS's kernels take 32 by 32 (sgl-project/sglang#17300, of those that FlashInfer has from TensorRT-LLM).
    """
    return (32, 32) if release >= _PADDED else (128, 64)


KV_CACHES = ("fp8", "int8")
KV_MEASURED: Release = (0, 17)
"""First release that uses the stored scale of an FP8 cache; older ones take 1. Source: NVIDIA/TensorRT-LLM@v0.13.0:
tensorrt_llm/models/modeling_utils.py, which overwrites it."""
CAPABILITIES = (70, 75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities times ten, of the GPUs that some release runs on; oldest first."""
_ROWWISE_ON_ADA: Release = (0, 15)
_SM80_LAYOUT = range(75, 90)
"""GPUs that read the byte layout of SM80: spec section 6.2."""

SWITCH, INTEGER, TEXT, CHOICE, WORDS = "switch", "integer", "text", "choice", "words"
_ENABLE = ("enable", "disable")
_TYPES_OLD = ("float16", "float32", "bfloat16", "disable")
_TYPES = ("auto", "float16", "float32", "bfloat16", "int32", "disable")
_TYPES_GEMM = ("auto", "float16", "float32", "bfloat16", "int32", "fp8", "disable")
_FP8 = ("fp8", "disable")


@dataclass(frozen=True)
class Flag:
    """One flag of trtllm-build over releases in which its meaning did not change.

    Attributes:
        name: As typed, with dashes.
        kind: SWITCH, INTEGER, TEXT, CHOICE, or WORDS for one or more values.
        first: First release that has it.
        last: Last one; None where 1.2 still has it.
        choices: Values of a CHOICE.
        instead: What took its place, or what it took the place of: words for the end of a message.
    """

    name: str
    kind: str
    first: Release = (0, 8)
    last: Release | None = None
    choices: tuple[str, ...] = ()
    instead: str = ""

    def has(self, release: Release) -> bool:
        """Whether `release` is in the row's range."""
        return self.first <= release and (self.last is None or release <= self.last)


def _switched(name: str, first: Release = (0, 8), last: Release | None = None, instead: str = "") -> Flag:
    return Flag(name, CHOICE, first, last, _ENABLE, instead)


def _typed(name: str, first: Release = (0, 8)) -> tuple[Flag, ...]:
    """A plugin whose value is a type: "auto" and int32 came with 0.11."""
    old = (Flag(name, CHOICE, first, (0, 10), _TYPES_OLD),) if first < (0, 11) else ()
    return (*old, Flag(name, CHOICE, max(first, (0, 11)), None, _TYPES))


_SEQUENCE = "--max_seq_len (input and output together)"
_KV = "--kv_cache_type paged or continuous"
_RUNTIME = "nothing at build time: it became an option of the runtime"
_MODES = ("draft_tokens_external", "medusa", "lookahead_decoding", "explicit_draft_tokens", "eagle")

FLAGS: tuple[Flag, ...] = (
    Flag("--checkpoint_dir", TEXT),
    Flag("--model_config", TEXT),
    Flag("--build_config", TEXT),
    Flag("--model_cls_file", TEXT),
    Flag("--model_cls_name", TEXT),
    Flag("--output_dir", TEXT),
    Flag("--workers", INTEGER),
    Flag("--log_level", TEXT),
    Flag("--profiling_verbosity", CHOICE, choices=("layer_names_only", "detailed", "none")),
    Flag("--enable_debug_output", SWITCH),
    Flag("--timing_cache", TEXT, last=(0, 8), instead="--input_timing_cache and --output_timing_cache"),
    Flag("--input_timing_cache", TEXT, (0, 9), instead="--timing_cache"),
    Flag("--output_timing_cache", TEXT, (0, 9), instead="--timing_cache"),
    Flag("--max_batch_size", INTEGER),
    Flag("--max_input_len", INTEGER),
    Flag("--max_output_len", INTEGER, last=(0, 11), instead=_SEQUENCE),
    Flag("--max_seq_len", INTEGER, (0, 11), instead="--max_output_len"),
    Flag("--max_decoder_seq_len", INTEGER, (0, 11), instead="--max_output_len"),
    Flag("--max_beam_width", INTEGER),
    Flag("--max_num_tokens", INTEGER),
    Flag("--opt_num_tokens", INTEGER, (0, 9)),
    Flag("--max_encoder_input_len", INTEGER, (0, 10)),
    Flag("--max_prompt_embedding_table_size", INTEGER),
    Flag("--max_multimodal_len", INTEGER),
    Flag("--max_draft_len", INTEGER, (0, 9)),
    Flag("--speculative_decoding_mode", CHOICE, (0, 10), (0, 10), _MODES[:2]),
    Flag("--speculative_decoding_mode", CHOICE, (0, 11), (0, 11), _MODES[:3]),
    Flag("--speculative_decoding_mode", CHOICE, (0, 12), (0, 14), _MODES[:4]),
    Flag("--speculative_decoding_mode", CHOICE, (0, 15), None, _MODES),
    # Also in main before 0.12.0 was released; whether that release has it could not be read.
    Flag("--kv_cache_type", TEXT, (0, 13), instead="--paged_kv_cache enable or disable"),
    _switched("--paged_kv_cache"),
    Flag("--gather_context_logits", SWITCH),
    Flag("--gather_generation_logits", SWITCH),
    Flag("--gather_all_token_logits", SWITCH),
    Flag("--logits_dtype", CHOICE, choices=("float16", "float32")),
    Flag("--strongly_typed", SWITCH, last=(0, 10), instead="nothing: networks are strongly typed"),
    Flag("--weight_only_precision", CHOICE, (0, 8), (0, 10), ("int8", "int4"), "the checkpoint's own quantization"),
    Flag("--builder_opt", INTEGER, last=(0, 13), instead="nothing: the optimization level is fixed"),
    Flag("--builder_force_num_profiles", INTEGER, (0, 12), (0, 14), instead="the variable BUILDER_FORCE_NUM_PROFILES"),
    Flag("--tp_size", INTEGER, (0, 9), (0, 11), instead="the checkpoint's mapping"),
    Flag("--pp_size", INTEGER, (0, 9), (0, 11), instead="the checkpoint's mapping"),
    Flag("--use_fused_mlp", SWITCH, last=(0, 12)),
    _switched("--use_fused_mlp", (0, 13)),
    Flag("--weight_sparsity", SWITCH, (0, 9)),
    Flag("--strip_plan", SWITCH, (0, 10)),
    Flag("--weight_streaming", SWITCH, (0, 10)),
    Flag("--fast_build", SWITCH, (0, 12)),
    Flag("--dry_run", SWITCH, (0, 10)),
    Flag("--visualize_network", SWITCH, (0, 10), (0, 16)),
    Flag("--visualize_network", TEXT, (0, 17)),
    Flag("--monitor_memory", SWITCH, (0, 15)),
    Flag("--auto_parallel", INTEGER, (0, 9), (0, 21), instead="tp and pp of the checkpoint"),
    Flag("--gpus_per_node", INTEGER, (0, 9), (0, 21), instead="nothing: it served --auto_parallel alone"),
    Flag("--cluster_key", TEXT, (0, 9), (0, 21), instead="nothing: it served --auto_parallel alone"),
    Flag("--lora_dir", WORDS, (0, 9)),
    Flag("--lora_ckpt_source", CHOICE, (0, 9), None, ("hf", "nemo")),
    Flag("--lora_target_modules", WORDS, (0, 9)),
    Flag("--max_lora_rank", INTEGER, (0, 9)),
    *_typed("--bert_attention_plugin"),
    *_typed("--gpt_attention_plugin"),
    Flag("--gemm_plugin", CHOICE, (0, 8), (0, 10), _TYPES_OLD),
    Flag("--gemm_plugin", CHOICE, (0, 11), (0, 16), _TYPES_GEMM),
    Flag("--gemm_plugin", CHOICE, (0, 17), None, (*_TYPES_GEMM[:-1], "nvfp4", "disable")),
    Flag("--gemm_swiglu_plugin", CHOICE, (0, 11), None, _FP8),
    *_typed("--fp8_rowwise_gemm_plugin", (0, 12)),
    Flag("--lookup_plugin", CHOICE, (0, 8), (0, 10), _TYPES_OLD),
    Flag("--lookup_plugin", CHOICE, (0, 11), (0, 14), _TYPES, "nothing: embeddings are shared without it"),
    *_typed("--lora_plugin"),
    _switched("--dora_plugin", (0, 19)),
    *_typed("--moe_plugin", (0, 9)),
    *_typed("--mamba_conv1d_plugin", (0, 9)),
    *_typed("--nccl_plugin", (0, 10)),
    Flag("--low_latency_gemm_plugin", CHOICE, (0, 13), None, _FP8),
    Flag("--low_latency_gemm_swiglu_plugin", CHOICE, (0, 15), None, _FP8),
    Flag("--gemm_allreduce_plugin", CHOICE, (0, 19), None, ("float16", "bfloat16", "disable")),
    _switched("--context_fmha"),
    _switched("--context_fmha_fp32_acc", last=(0, 11), instead="--bert_context_fmha_fp32_acc, or the runtime's option"),
    _switched("--bert_context_fmha_fp32_acc", (0, 12), instead="--context_fmha_fp32_acc"),
    _switched("--remove_input_padding"),
    _switched("--use_custom_all_reduce", last=(0, 11), instead="nothing: the strategy is chosen when it runs"),
    _switched("--multi_block_mode", last=(0, 11), instead=_RUNTIME),
    _switched("--enable_xqa", last=(0, 15), instead="nothing: it is always on"),
    _switched("--attention_qk_half_accumulation", last=(0, 10), instead="nothing"),
    _switched("--use_context_fmha_for_generation", last=(0, 10), instead="nothing"),
    Flag("--tokens_per_block", INTEGER),
    _switched("--use_paged_context_fmha"),
    _switched("--use_fp8_context_fmha", (0, 9)),
    _switched("--fuse_fp4_quant", (0, 19)),
    _switched("--multiple_profiles", (0, 9)),
    _switched("--paged_state", (0, 9)),
    _switched("--streamingllm", (0, 9)),
    _switched("--norm_quant_fusion", (0, 19)),
    _switched("--reduce_fusion", (0, 11)),
    _switched("--user_buffer", (0, 16)),
    _switched("--pp_reduce_scatter", (0, 15)),
)
"""Every flag of every release, ordered as trtllm-build --help groups them; a flag that changed has a row for each."""

_VERSION = re.compile(r"(?P<major>\d+)\.(?P<minor>\d+)(?:\.\w+)*(?:[.+-]\w+)*")


def release_of(version: str) -> Release | None:
    """Major and minor of "0.21.0", "1.3.0rc20" or "0.12.0.dev2024073000"; None of what is no version."""
    match = _VERSION.fullmatch(version.strip().removeprefix("v"))
    return None if match is None else (int(match["major"]), int(match["minor"]))


def text_of(release: Release) -> str:
    """A release as people write it: "0.21"."""
    return f"{release[0]}.{release[1]}"


def check_version(version: str) -> Problem | None:
    """Why an engine or checkpoint for `version` cannot be made; None where it can."""
    flag, release = "--trtllm-version", release_of(version)
    if release is None:
        return Problem(flag, f"{version[:40]!r}", f"a version, as in {DEFAULT_VERSION}", f"{flag} {DEFAULT_VERSION}")
    if release > LAST_SUPPORTED:
        return Problem(
            flag,
            f"{version}: TensorRT-LLM removed engines and trtllm-build in July 2026",
            f"{text_of(FIRST_SUPPORTED)} to {LAST_VERSION}, the last release that builds",
            f"{flag} {LAST_VERSION}; or --target llmapi, which 1.3 and later serve",
        )
    if release < FIRST_SUPPORTED:
        return Problem(
            flag,
            f"{version}: its quantization block and tensor names are others",
            f"{text_of(FIRST_SUPPORTED)} to {LAST_VERSION}",
            f"{flag} {DEFAULT_VERSION}",
        )
    return None


def check_llmapi_version(version: str) -> Problem | None:
    """Why a checkpoint for the LLM API of `version` cannot be made; None where it can."""
    flag, release = "--trtllm-version", release_of(version)
    if release is not None and release >= FIRST_LLMAPI:
        return None
    found = f"{version[:40]!r}" if release is None else f"{version}, whose LLM API builds engines"
    expected = f"{text_of(FIRST_LLMAPI)} or later with --target llmapi"
    return Problem(flag, found, expected, f"{flag} {LLMAPI_VERSION}, or --target engine")


def best_effort(release: Release) -> bool:
    """Whether a release is supported without being advertised: 0.9 to 0.11."""
    return FIRST_SUPPORTED <= release < FIRST_FULLY_SUPPORTED


def history(name: str) -> tuple[Flag, ...]:
    """The rows of a flag, oldest first; () of an unknown one."""
    return tuple(sorted((flag for flag in FLAGS if flag.name == name), key=lambda flag: flag.first))


def flags_of(release: Release) -> Mapping[str, Flag]:
    """Every flag of one release, by name."""
    return {flag.name: flag for flag in FLAGS if flag.has(release)}


def refuse_unknown(flags: Sequence[str], version: str) -> list[Problem]:
    """One problem for each flag, in order, that trtllm-build of `version` lacks; `version` is a supported one."""
    release = release_of(version)
    assert release is not None
    here = flags_of(release)
    return [_lacking(name, version) for name in dict.fromkeys(flags) if name not in here]


def _lacking(name: str, version: str) -> Problem:
    rows = history(name)
    if rows == ():
        near = _nearest(name)
        return Problem(
            name,
            f"trtllm-build of TensorRT-LLM {version} has no such flag",
            f"one of 0.8 to {text_of(LAST_SUPPORTED)}",
            f"did you mean {near}?" if near is not None else "drop it",
        )
    first, last = rows[0].first, rows[-1].last
    span = f"{text_of(first)} and later" if last is None else f"{text_of(first)} to {text_of(last)}"
    instead = rows[-1].instead
    return Problem(
        name,
        f"trtllm-build of TensorRT-LLM {version} lacks it",
        f"a version that has it: {span}",
        f"use {instead}" if instead not in ("", "nothing") and not instead.startswith("nothing") else f"drop {name}",
    )


def _nearest(name: str) -> str | None:
    import difflib

    near = difflib.get_close_matches(name, sorted({flag.name for flag in FLAGS}), n=1, cutoff=0.75)
    return near[0] if near != [] else None


def check_values(settings: Sequence[Setting], version: str) -> list[Problem]:
    """One problem for each value its flag does not take in `version`; flags it lacks are not repeated."""
    release = release_of(version)
    assert release is not None
    here, problems = flags_of(release), []
    for name, value in settings:
        flag = here.get(name)
        if flag is not None and not _fits(flag, value):
            problems.append(Problem(name, f"{value!r}" if value != "" else "no value", _wanted(flag)))
    return problems


def _fits(flag: Flag, value: str) -> bool:
    if flag.kind == SWITCH:
        return value in ("", *_ENABLE)
    if flag.kind == INTEGER:
        return re.fullmatch(r"\d{1,12}", value) is not None
    if flag.kind == CHOICE:
        return value in flag.choices or (value == "" and flag.choices == _ENABLE)
    return value != "" and not value.startswith("-")


def _wanted(flag: Flag) -> str:
    if flag.kind == SWITCH:
        return "no value: it is a switch"
    if flag.kind == INTEGER:
        return "a whole number"
    return " or ".join(flag.choices) if flag.kind == CHOICE else "a value"


def arguments(settings: Sequence[Setting], version: str) -> tuple[str, ...]:
    """The words to pass to trtllm-build of `version` for settings that `check_values` accepts.

    A switch that became enable/disable, or the other way round, is written as the release wants it.
    """
    release = release_of(version)
    assert release is not None
    here, words = flags_of(release), []
    for name, values in grouped(settings).items():
        flag = here[name]
        if flag.kind == SWITCH:
            words += [name] if values[-1] != "disable" else []
        elif flag.kind == WORDS:
            words += [name, *values]
        else:
            words += [name, values[-1] if values[-1] != "" else "enable"]
    return tuple(words)


def grouped(settings: Sequence[Setting]) -> Mapping[str, tuple[str, ...]]:
    """All values of each flag, in order of its first mention; the last one counts, but for WORDS."""
    found: dict[str, tuple[str, ...]] = {}
    for name, value in settings:
        found[name] = (*found.get(name, ()), value)
    return found


def image_of(version: str) -> str:
    """The container image whose TensorRT-LLM is `version`; the vendor publishes its own from 0.20."""
    release = release_of(version)
    assert release is not None
    tag = CONTAINERS.get(release)
    if tag is None or release >= (1, 0):
        return f"nvcr.io/nvidia/tensorrt-llm/release:{version}"
    return f"nvcr.io/nvidia/tritonserver:{tag}-trtllm-python-py3"


def driver_of(release: Release) -> int:
    """The oldest driver branch a release runs with."""
    return DRIVERS[max(first for first in DRIVERS if first <= max(release, FIRST_SUPPORTED))]


def check_recipe(recipe: str | None, version: str) -> Problem | None:
    """Why `version` cannot load a quantization; None where it can."""
    release = release_of(version)
    assert release is not None
    if recipe is None or RECIPES[recipe].first <= release:
        return None
    first = text_of(RECIPES[recipe].first)
    return Problem(
        "--quantization",
        f"{recipe} ({RECIPES[recipe].algorithm}) with TensorRT-LLM {version}",
        f"{first} or later",
        f"--trtllm-version {DEFAULT_VERSION}",
    )


def recipe_of(algorithm: object) -> str | None:
    """The recipe a checkpoint's `quant_algo` names; None for none of ours."""
    return next((name for name, recipe in RECIPES.items() if recipe.algorithm == algorithm), None)


SHARED_EXPERT_MOVED: Release = (0, 16)
"""First release whose Qwen2-MoE keeps the shared expert under `mlp.`.

0.15.0.dev2024111200 does not yet, 0.16.0.dev2024121000 does: tensorrt_llm/models/qwen/model.py.
"""
_WITH_EXPERTS = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
_NO_FP4_EXPERTS: Release = (0, 21)
META_RECIPE: Release = (0, 15)
"""First release with the key `use_meta_recipe`, without which it quantizes every linear layer."""


def check_portable(architecture: str, algorithm: str | None, made_for: str, target: str) -> Problem | None:
    """Why a checkpoint made for one release does not load in another; None where it does, as most do.

    Args:
        architecture: By its name in config.json.
        algorithm: Its quant_algo.
        made_for: The release it was made for.
        target: The release that shall build it.
    """
    before, after = release_of(made_for), release_of(target)
    assert after is not None
    borders = (
        (architecture == "Qwen2MoeForCausalLM", SHARED_EXPERT_MOVED, "its shared expert has another place"),
        (algorithm == "FP8_PER_CHANNEL_PER_TOKEN", META_RECIPE, "config.json has another key for the recipe"),
        (algorithm == "NVFP4" and after < _PADDED, _PADDED, "matrices need not be whole tiles of scales"),
        (algorithm == "NVFP4" and architecture in _WITH_EXPERTS, _NO_FP4_EXPERTS, "it loads no experts"),
    )
    for concerned, border, why in borders:
        if concerned and before is not None and (before < border) is not (after < border):
            found = f"made for TensorRT-LLM {made_for}: {why} from {text_of(border)} on"
            return Problem(
                "checkpoint", found, f"one for {target}", f"convert the model again with --trtllm-version {target}"
            )
    return None


def check_layers(layers: int, pp: int, version: str) -> Problem | None:
    """Why `layers` cannot be split into `pp` stages; older releases drop the remainder without a word."""
    release = release_of(version)
    assert release is not None
    if layers % pp == 0 or (release >= (1, 0) and layers >= pp):
        return None
    return Problem(
        "--pp",
        f"{layers} layers / {pp} stages = {layers / pp:.2f}",
        "a whole number" if release < (1, 0) else "a layer for each stage",
        f"TensorRT-LLM before 1.0 drops the last {layers % pp}; use a --pp that divides {layers}, "
        f"or --trtllm-version {DEFAULT_VERSION}"
        if release < (1, 0)
        else f"--pp {layers} at most",
    )


def check_gpu(
    sm: int, version: str, *, recipe: str | None, dtype: str, wo_layout: str, kv_cache: str | None
) -> list[Problem]:
    """What a GPU of compute capability sm / 10 cannot do with `version`; `dtype` is that of the checkpoint."""
    release = release_of(version)
    assert release is not None
    gpu, problems = f"GPU of SM{sm}", []
    if sm < (75 if release >= (0, 15) else 70):
        problems.append(Problem(gpu, f"too old for TensorRT-LLM {version}", "SM75 or later: 0.15 removed Volta"))
    if sm >= 100 and release < (0, 17):
        problems.append(Problem(gpu, f"too new for TensorRT-LLM {version}", "0.17 or later"))
    if dtype == "bfloat16" and sm < 80:
        problems.append(Problem(gpu, "without bfloat16", "SM80 or later", "--dtype float16"))
    if recipe is not None:
        oldest = 90 if recipe == "fp8_rowwise" and release < _ROWWISE_ON_ADA else RECIPES[recipe].sm
        if sm < oldest:
            problems.append(Problem(gpu, f"cannot run {recipe}", f"SM{oldest} or later", "--quantization w8a16"))
    if kv_cache == "fp8" and sm < 89:
        problems.append(Problem(gpu, "without an FP8 KV cache", "SM89 or later", "drop --kv-cache fp8"))
    laid_out = recipe == "w4a16_gptq" or (recipe in ("w8a16", "w4a16") and wo_layout == "sm80")
    if laid_out and sm not in _SM80_LAYOUT:
        hint = "--wo-layout deferred" if recipe != "w4a16_gptq" else "--quantization w4a16_awq of the original model"
        problems.append(Problem(gpu, f"reads other bytes than the sm80 layout of {recipe}", "SM75 to SM89", hint))
    return problems
