"""Validates a TensorRT-LLM checkpoint: the model, as it is and as the network must see it, against the rank files.

Two references are run. The *model* is what transformers computes in float32. The *model as stored* differs from it only
by what the checkpoint cannot help: weights rounded to its element type or quantized by its recipe, and what
TensorRT-LLM's networks have compiled in. The executor must agree with the latter to float32 accuracy; its distance from
the former is measured and reported. For a quantized checkpoint the run with quantized activations, and perplexity and
top-1 agreement on a text, are reported beside: how much quality a recipe costs is for people to judge, and whether the
bytes are right is not.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from llmcompile.errors import (
    CheckpointError,
    LlmCompileError,
    MismatchError,
    Problem,
    ToolchainError,
    collected,
)
from llmcompile.validation.calibrated import (
    ALL,
    OTHER,
    PART,
    Calibration,
    Seen,
    batches,
    place_of,
    scale_differences,
    siblings,
)
from llmcompile.validation.checks import Check, Finding, Quality, StoredWeights
from llmcompile.validation.compare import compare, scale, without_overflow
from llmcompile.validation.reference import (
    EmbeddingTable,
    Reference,
    StoredAs,
    Weights,
    embedding_tables,
    fixed_tokens,
    parameter_sources,
    prompt_tokens,
    run_reference,
)
from llmcompile.validation.sample_text import SAMPLE
from llmcompile.validation.scoring import Likelihood, divergence, not_finite, read_text
from llmcompile.validation.sources import MetaWeights, QuantizedWeights
from llmcompile.validation.tensorrt_llm import (
    Inputs,
    check_checkpoint,
    embedding_table,
    execute,
    experts,
    position_table,
    relative_tables,
    stack_table,
)
from llmcompile.validation.tensorrt_llm.linears import fake_quantized
from llmcompile.validation.tensorrt_llm.scales import Scales
from llmcompile.validation.tolerances import Dtype, Tolerance, tolerance

ARTIFACT = "TensorRT-LLM checkpoint"
EXECUTOR = "TensorRT-LLM's context phase, all ranks, in float32 on CPU"
PROMPT = "The quick brown fox jumps over the lazy dog, and then the engine starts."
_BATCH, _SEQUENCE, _DECODER_SEQUENCE = 2, 16, 8
_WINDOW, _WINDOWS = 256, 8
"""Tokens of a text that are fed at once, and how often, at most."""
_MULTIPLICATIONS, _FEWEST_TOKENS = 5 * 10**12, 32
"""What scoring the built-in text may cost for each of the two runs, and the least that is scored all the same."""
_TORCH: Mapping[str, torch.dtype] = MappingProxyType(
    {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
)
_SHORT: Mapping[str, Dtype] = MappingProxyType({"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"})
_COMPILED_EPSILON = 1e-5
_NOISE: Mapping[str, tuple[float, str]] = MappingProxyType(
    {
        "FP8": (0.35, "8-bit floats with 3 mantissa bits, one scale for each tensor of weights and activations"),
        "FP8_PER_CHANNEL_PER_TOKEN": (0.35, "8-bit floats with 3 mantissa bits, a scale for each row and token"),
        "W8A16": (0.2, "8-bit weights, a scale for each output"),
        "W4A16": (1.5, "4-bit weights, a scale for each output"),
        "W4A16_AWQ": (1.0, "4-bit weights, a scale for each group of inputs"),
        "W4A16_GPTQ": (1.0, "4-bit weights, a scale and a zero for each group of inputs"),
        "W4A8_AWQ": (1.0, "4-bit weights, a scale for each group of inputs, and 8-bit floats of one scale for inputs"),
        "NVFP4": (1.0, "4-bit floats with 1 mantissa bit, a scale for each 16 inputs of weights and activations"),
        "W8A8_SQ_PER_CHANNEL": (0.35, "8-bit integers, a scale for each output and one for all inputs"),
    }
)
"""Recipe -> how far a run as on the GPU may be from the float32 model, as a fraction of its largest output, and why."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is validated.

    Attributes:
        folder: The checkpoint: config.json and rank files, or encoder/ and decoder/.
        checkpoint: Folder of the model it was made from.
        weight_files: Its files of weights.
        family: Name of the architecture.
        sizes: Its axes.
        activation: The model's activation function.
        norm_eps: The model's normalisation epsilon.
        stored_dtype: The one float type of the model's files; "mixed" when there are several.
        source_quantization: How the model comes quantized: "gptq", "awq", "fp8", or "".
        group_size: Inputs that share a scale in it.
        eval_text: Text for perplexity and top-1 agreement; None for a built-in one.
        overflow_accepted: Whether infinities made by the cast were accepted.
        calibration: What its scales were measured on; None where they were not, or that is not known.
        scored: Whether a text is scored although nothing is quantized.
    """

    folder: Path
    checkpoint: Path
    weight_files: tuple[Path, ...]
    family: str
    sizes: Mapping[str, int]
    activation: str
    norm_eps: float
    stored_dtype: str
    source_quantization: str
    group_size: int
    eval_text: Path | None
    overflow_accepted: bool
    calibration: Calibration | None = None
    scored: bool = False

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json of the checkpoint; the decoder's of two.

        Raises:
            MismatchError: It is not a JSON object.
        """
        return _read_config(self.folder)

    @property
    def dtype(self) -> str:
        """float16, bfloat16 or float32."""
        return str(self.config["dtype"])

    @property
    def algorithm(self) -> str | None:
        """The recipe."""
        found = _inside(self.config, "quantization").get("quant_algo")
        return None if found is None else str(found)

    @property
    def kv_cache(self) -> str | None:
        """The recipe of the cache."""
        found = _inside(self.config, "quantization").get("kv_cache_quant_algo")
        return None if found is None else str(found)

    @cached_property
    def model_config(self) -> Mapping[str, Any]:
        """config.json of the model; empty for Meta's files, which have none.

        Raises:
            CheckpointError: It is not a JSON object.
        """
        path = self.checkpoint / "config.json"
        return _json_object(path, CheckpointError, "the model's config") if path.is_file() else {}

    @property
    def window(self) -> int | None:
        """Tokens a layer of the model attends to at most; None without such a limit.

        TensorRT-LLM is told when an engine runs (max_attention_window), so no checkpoint holds it.
        """
        found = self.model_config.get("sliding_window")
        if self.family.startswith(("qwen2", "qwen3")) and self.model_config.get("use_sliding_window") is not True:
            return None
        return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None

    @property
    def two_stacks(self) -> bool:
        """Whether there is an encoder and a decoder."""
        return (self.folder / "encoder").is_dir()

    @property
    def layers(self) -> int:
        """Layers an output has passed through."""
        return self.sizes["layers"] + (self.sizes["decoder_layers"] if self.two_stacks else 0)


def ranks(folder: Path) -> int:
    """Rank files of a checkpoint.

    Raises:
        MismatchError: Its config.json is not a JSON object, or world_size is no whole number above 0.
    """
    mapping = _read_config(folder).get("mapping")
    world = mapping.get("world_size", 1) if isinstance(mapping, dict) else mapping
    if mapping is None or world is None:
        return 1
    if not isinstance(world, int) or isinstance(world, bool) or world < 1:
        subject = f"{_config_path(folder)}: mapping{': world_size' if isinstance(mapping, dict) else ''}"
        expected = "a whole number >= 1" if isinstance(mapping, dict) else "an object"
        raise MismatchError(subject, repr(world), expected, "build the checkpoint again")
    return world


def _config_path(folder: Path) -> Path:
    path = folder / "config.json"
    return path if path.is_file() else folder / "decoder" / "config.json"


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = _config_path(folder)
    return _json_object(path if path.is_file() else folder / "config.json", MismatchError, "a checkpoint's config")


def _json_object(path: Path, kind: type[LlmCompileError], expected: str) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise kind(str(path), f"unreadable: {error}", expected, _HINTS[kind]) from error
    if not isinstance(content, dict):
        raise kind(str(path), f"a JSON {type(content).__name__}", "an object", _HINTS[kind])
    return content


_HINTS: Mapping[type[LlmCompileError], str] = MappingProxyType(
    {MismatchError: "build the checkpoint again", CheckpointError: "get the model again"}
)


def _inside(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under `key`; empty where it is absent or null. `check_checkpoint` has refused anything else."""
    found = config.get(key)
    return {} if found is None else found


def _count(config: Mapping[str, Any], key: str, default: int) -> int:
    found = config.get(key)
    return default if found is None else int(found)


def validate(subject: Subject, *, atol: float | None, rtol: float | None, trust_remote_code: bool) -> Iterator[Finding]:
    """Compare the checkpoint with the model, one check at a time.

    Args:
        subject: What to validate.
        atol: The user's absolute tolerance against the model as it is; None for one that is measured.
        rtol: The user's relative tolerance likewise.
        trust_remote_code: Let transformers run the checkpoint's own code.

    Yields:
        A `Check` for each comparison, a sentence for each thing left out, and the `Quality` of a quantized checkpoint.

    Raises:
        MismatchError: A tensor is missing, misshapen or unknown; config.json is about another model; an embedding or an
            activation scale is not the model's.
        CheckpointError: The model's weights do not fit its config.json.
        OptionsError: The text to score on cannot be read, or is empty.
    """
    if subject.eval_text is not None:
        read_text(subject.eval_text)
    problems = check_checkpoint(subject.folder)
    if len(problems) == 0:
        problems = list(_contradictions(subject))
    if len(problems) > 0:
        raise collected(MismatchError, problems)
    window = subject.window
    if window is not None and window < min(_WINDOW, subject.sizes.get("positions", _WINDOW)):
        yield (
            f"the model attends to {window} tokens at most, which TensorRT-LLM is told when it runs "
            "(max_attention_window); no longer sequence was compared"
        )
    with _oracle(subject, trust_remote_code) as oracle:
        passed = True
        for name, tokens in _inputs(subject, oracle):
            if tokens is None:
                yield name
                continue
            for item in _checks(subject, oracle, name, tokens, atol, rtol):
                passed &= isinstance(item, str) or not item.decisive or item.comparison.passed
                yield item
        problems = (
            [
                *_table_differences(subject, oracle),
                *_expert_differences(subject, oracle),
                *_scale_differences(subject, oracle),
            ]
            if passed
            else []
        )
        if len(problems) > 0:
            raise collected(MismatchError, problems)
        quality = list(_quality(subject, oracle)) if subject.algorithm is not None or subject.scored else []
        far = list(_far_scales(subject, oracle)) if passed else []
        if len(far) > 0:
            raise collected(MismatchError, far)
        yield from quality


# What the model is


@dataclass(frozen=True)
class _Oracle:
    """The model for transformers: its config, its weights as meant, and as a checkpoint keeps them."""

    subject: Subject
    config: Path
    weights: Weights
    as_stored: Weights
    trust_remote_code: bool
    seen: Seen
    """What has gone through the model so far."""

    def run(self, tokens: Tensor, *, stored: bool, decoder_tokens: Tensor | None = None) -> Reference:
        """Run the model; `stored`: as the checkpoint and the runtime make it; a decoder on its tokens or fixed ones."""
        subject = self.subject
        if decoder_tokens is None:
            decoder_tokens = _decoder_tokens(subject, tokens.shape[0])
        return run_reference(
            self.config,
            self.as_stored if stored else self.weights,
            tokens=tokens,
            decoder_tokens=decoder_tokens,
            encoder_only=False,
            stored_as=_stored_as(subject, self.as_stored, self.trust_remote_code) if stored else None,
            prepare=_as_runtime(subject) if stored else self.seen.watch,
            attention=_attention(subject),
            trust_remote_code=self.trust_remote_code,
        )


@contextmanager
def _oracle(subject: Subject, trust_remote_code: bool) -> Iterator[_Oracle]:
    seen = Seen(two_stacks=subject.two_stacks)
    if subject.family == "meta_llama":
        meta = MetaWeights(subject.weight_files, subject.checkpoint / "params.json")
        with tempfile.TemporaryDirectory(prefix="llmcompile-") as folder:
            meta.write_config(Path(folder))
            yield _Oracle(subject, Path(folder), meta, meta, trust_remote_code, seen)
        return
    if subject.source_quantization == "":
        weights = StoredWeights(subject.weight_files)
        yield _Oracle(subject, subject.checkpoint, weights, weights, trust_remote_code, seen)
        return
    method, group = subject.source_quantization, subject.group_size
    meant = QuantizedWeights(subject.weight_files, method, group_size=group)
    kept = QuantizedWeights(subject.weight_files, method, group_size=group, stored_dtype=_TORCH[subject.dtype])
    yield _Oracle(subject, subject.checkpoint, meant, kept, trust_remote_code, seen)


def _attention(subject: Subject) -> str:
    """Eager Falcon adds its ALiBi twice in transformers 4.57 (in the mask, and once more in the layer)."""
    return (
        "sdpa" if subject.family == "falcon" and "alibi" in str(subject.config["position_embedding_type"]) else "eager"
    )


def _decoder_tokens(subject: Subject, batch: int) -> Tensor | None:
    if not subject.two_stacks:
        return None
    length = min(_DECODER_SEQUENCE, _longest(subject))
    return fixed_tokens(subject.sizes["vocab"], batch=batch, sequence=length, seed=1)


# What storing and the runtime make of it

_ROW_PARALLEL = re.compile(
    r"\.(o_proj|out_proj|c_proj|dense|dense_4h_to_h|down_proj|fc2|fc_out|w2|o|wo|attention\.dense)\.weight$"
)
"""Linear layers whose inputs are divided among the ranks, by their names in transformers."""
_FLOAT = re.compile(r"(lm_head|embed_out|block_sparse_moe\.gate|mlp\.gate|shared_expert_gate)\.weight$")
"""Linear layers that no recipe touches: heads, routers, and the gate of a shared expert."""
_ROUTER = re.compile(r"(block_sparse_moe|mlp)\.gate\.weight$")
_LAYER = re.compile(r"\.(\d+)\.")


def _stored_as(subject: Subject, weights: Weights, trust_remote_code: bool) -> StoredAs:
    """What a parameter of the model is after it was cast and quantized, in float32, with no packing in between."""
    dtype, algorithm = _TORCH[subject.dtype], _written_recipe(subject)
    of_data = _OfData(subject, weights, trust_remote_code) if algorithm in _CALIBRATED else None
    mapping = _inside(subject.config, "mapping")
    tp = _count(mapping, "tp_size", 1)
    moe_tp = _count(mapping, "moe_tp_size", tp // _count(mapping, "moe_ep_size", 1))
    group = _count(_inside(subject.config, "quantization"), "group_size", 128)
    adds_one = subject.family in ("gemma", "gemma2")

    def stored(name: str, tensor: Tensor, module: nn.Module) -> Tensor:
        if _ROUTER.search(name) is not None and "experts" in subject.sizes:
            return tensor.float()
        if isinstance(weights, QuantizedWeights) and weights.is_quantized(name):
            return tensor
        cast = tensor.to(dtype)
        if adds_one and tensor.dim() == 1:
            return (1 + cast).float() - 1
        if algorithm is None or not _is_quantized(subject, name, module, algorithm):
            return cast.float()
        in_first = type(module).__name__ == "Conv1D"
        parts = 1
        if _ROW_PARALLEL.search(name) is not None:
            parts = moe_tp if ".experts." in name else tp
        matrix = cast.T.contiguous() if in_first else cast
        columns, largest = (None, None) if of_data is None else of_data.of(name, dtype, in_first=in_first)
        quantized = fake_quantized(
            matrix, algorithm, group_size=group, column_parts=parts, columns=columns, largest=largest
        )
        return quantized.T.contiguous() if in_first else quantized

    return stored


_CALIBRATED = ("FP8", "W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "W4A8_AWQ", "NVFP4")


class _OfData:
    """What the weights of a calibrated checkpoint were quantized with, as far as it does not follow from themselves.

    Factors of input channels are the checkpoint's: integers made with others would not stand for the model's weights.
    """

    def __init__(self, subject: Subject, weights: Weights, trust_remote_code: bool) -> None:
        self._weights = weights
        self._two_stacks = subject.two_stacks
        self._scales = Scales(subject.folder)
        self._stored = _parameter_sources(subject, weights, trust_remote_code)
        self._largest: dict[str, float] = {}

    def of(self, name: str, dtype: torch.dtype, *, in_first: bool) -> tuple[Tensor | None, float]:
        """Factors of the input channels, and the largest divided weight of all that share a scale.

        Raises:
            MismatchError: Ranks have other factors.
        """
        place = place_of(name.removesuffix(".weight"), two_stacks=self._two_stacks)
        assert place is not None, name
        columns = self._scales.columns(*place)
        members = [member for member in siblings(name) if member in self._stored]
        key = members[0]
        if key not in self._largest:
            largest = 0.0
            for member in members:
                weight = self._weights.read(self._stored[member])
                floats = (weight.T if in_first else weight).to(dtype).abs().amax(0).float()
                largest = max(largest, float((floats if columns is None else floats / columns).amax()))
            self._largest[key] = largest
        return columns, self._largest[key]


def _parameter_sources(subject: Subject, weights: Weights, trust_remote_code: bool) -> Mapping[str, str]:
    """Names of transformers' parameters in the checkpoint; Meta's files are read by transformers' names already."""
    if subject.family == "meta_llama":
        return {name: name for name in weights.names()}
    return parameter_sources(subject.checkpoint, weights, trust_remote_code=trust_remote_code)


def _written_recipe(subject: Subject) -> str | None:
    """The recipe by which weights were quantized when they were written; None where they are plain, or came so."""
    algorithm = subject.algorithm
    if algorithm in ("W8A16", "W4A16"):
        return algorithm if _integers_inside(subject.folder) else None
    if subject.source_quantization != "":
        return None
    return algorithm if algorithm in (*_CALIBRATED, "FP8_PER_CHANNEL_PER_TOKEN") else None


def _integers_inside(folder: Path) -> bool:
    path = folder / "rank0.safetensors"
    with safe_open(path if path.is_file() else folder / "decoder" / "rank0.safetensors", framework="pt") as opened:
        return any(name.endswith(".per_channel_scale") for name in opened.keys())  # noqa: SIM118 -- no dict


def _is_quantized(subject: Subject, name: str, module: nn.Module, algorithm: str) -> bool:
    linear = isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "FalconLinear")
    if not linear or not name.endswith(".weight") or _FLOAT.search(name) is not None:
        return False
    if algorithm != "FP8_PER_CHANNEL_PER_TOKEN":
        return True
    layer = _LAYER.search(name)
    return ".mlp." in name and layer is not None and 0 < int(layer[1]) < subject.sizes["layers"] - 1


def _as_runtime(subject: Subject) -> Any:
    """What TensorRT-LLM's networks have compiled in: one formula for GELU, and an epsilon in some norms.

    Source: NVIDIA/TensorRT-LLM:tensorrt_llm/functional.py (gelu), layers/attention.py (norms of queries and keys).
    """

    def prepare(model: nn.Module) -> None:
        for path, module in list(model.named_modules()):
            for name, child in list(module.named_children()):
                if _is_exact_gelu(child):
                    setattr(module, name, nn.GELU(approximate="tanh"))
            if subject.family in ("qwen3", "qwen3_moe") and path.endswith(("q_norm", "k_norm")):
                module.variance_epsilon = _COMPILED_EPSILON

    return prepare


def _is_exact_gelu(module: nn.Module) -> bool:
    return (isinstance(module, nn.GELU) and module.approximate == "none") or type(module).__name__ == "GELUActivation"


def _changes(subject: Subject) -> list[str]:
    """What distinguishes the model as stored from the model, in words."""
    changes = []
    if subject.dtype != {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}.get(subject.stored_dtype):
        changes.append(f"weights rounded to {subject.dtype}")
    recipe = _written_recipe(subject)
    if recipe is not None:
        changes.append(f"weights quantized by {recipe}")
    if subject.source_quantization != "":
        changes.append("scales and zeros as stored")
    if subject.activation in ("gelu", "gated-gelu") and subject.family not in ("gemma", "t5", "bloom"):
        changes.append("the runtime's tanh formula for GELU")
    if subject.family in ("gemma", "gemma2"):
        changes.append("one added to norms before rounding")
    if subject.family in ("qwen3", "qwen3_moe") and subject.norm_eps != _COMPILED_EPSILON:
        changes.append(f"the runtime's epsilon {_COMPILED_EPSILON:g} in norms of queries and keys")
    return changes


# Checks

_SIZES = (
    ("vocab_size", "vocab"),
    ("hidden_size", "hidden"),
    ("num_attention_heads", "heads"),
    ("num_key_value_heads", "kv_heads"),
)
_AS_MODEL = "write the model's own"
_AGAIN = "convert the model again"
_OTHER_MODEL = "check --model: the checkpoint seems to be made from another one"


def _contradictions(subject: Subject) -> Iterator[Problem]:
    """Where config.json speaks of another model, so that nothing can be compared, or numbers are too coarse to tell."""
    config = subject.config
    if subject.two_stacks != ("decoder_layers" in subject.sizes):
        found = "an encoder and a decoder" if subject.two_stacks else "one stack of layers"
        yield Problem(str(subject.folder), found, f"those of {subject.family}", _OTHER_MODEL)
        return
    layers = "decoder_layers" if subject.two_stacks else "layers"
    for key, axis in (*_SIZES, ("num_hidden_layers", layers)):
        if axis in subject.sizes and config.get(key, subject.sizes[axis]) != subject.sizes[axis]:
            expected = f"{subject.sizes[axis]}, as in the model's config"
            yield Problem(f"config.json: {key}", str(config[key]), expected, _OTHER_MODEL)
    # An epsilon ten times too large moves the outputs of a lively model by less than float32 arithmetic may, and no run
    # is as long as the model allows.
    wanted: dict[str, object] = {"norm_epsilon": subject.norm_eps}
    if "positions" in subject.sizes and subject.family != "meta_llama":
        wanted["max_position_embeddings"] = subject.sizes["positions"]
    if subject.family == "t5":
        wanted["max_distance"] = subject.model_config.get("relative_attention_max_distance", 128)
    for part in ("encoder/", "decoder/") if subject.two_stacks else ("",):
        given = json.loads((subject.folder / part / "config.json").read_text(encoding="utf-8"))
        for key, value in wanted.items():
            if given.get(key) != value:
                yield Problem(
                    f"{part}config.json: {key}", str(given.get(key)), f"{value}, as in the model's config", _AS_MODEL
                )


def _longest(subject: Subject) -> int:
    return _allowed(subject, 32)


def _allowed(subject: Subject, length: int) -> int:
    """`length`, or as many tokens as the model has positions for and attends to."""
    positions, window = subject.sizes.get("positions", length), subject.window
    return min(length, positions, length if window is None else window)


def _inputs(subject: Subject, oracle: _Oracle) -> Iterator[tuple[str, Tensor | None]]:
    """Names and tokens to run; a sentence and None for what was left out."""
    length = min(_SEQUENCE, _longest(subject))
    yield "fixed tokens", fixed_tokens(subject.sizes["vocab"], batch=_BATCH, sequence=length)
    prompt = prompt_tokens(subject.checkpoint, PROMPT, 32, trust_remote_code=oracle.trust_remote_code)
    if prompt.tokens is None:
        yield f"no prompt was tried: {prompt.reason}", None
    else:
        yield "a prompt", prompt.tokens[:, : _longest(subject)]


def _checks(
    subject: Subject, oracle: _Oracle, name: str, tokens: Tensor, atol: float | None, rtol: float | None
) -> Iterator[Check | str]:
    given = atol is not None or rtol is not None
    changes = _changes(subject)
    model = oracle.run(tokens, stored=False)
    stored = model if len(changes) == 0 else oracle.run(tokens, stored=True)
    inputs = Inputs(tokens=tokens, decoder_tokens=_decoder_tokens(subject, tokens.shape[0]))
    found = execute(subject.folder, inputs)
    if subject.overflow_accepted:
        outputs, found, masked = without_overflow(stored.outputs, found)
        stored = replace(stored, outputs=outputs)
        yield from masked
    tight = {output: _tight(subject, values) for output, values in stored.outputs.items()}
    if len(changes) == 0:
        limits = {output: _given(limit, atol, rtol) for output, limit in tight.items()}
        comparison = compare(model.outputs, found, limits)
        yield Check(input=name, reference="the model in float32", comparison=comparison, decisive=True)
        return
    limits = {
        output: _measured(model.outputs[output], values, tight[output], changes, atol, rtol)
        for output, values in stored.outputs.items()
    }
    comparison = compare(model.outputs, found, limits)
    yield Check(input=name, reference="the model in float32", comparison=comparison, decisive=given)
    words = f"the model with {' and '.join(changes)}"
    comparison = compare(stored.outputs, found, tight)
    yield Check(input=name, reference=words, comparison=comparison, decisive=not given)


def _tight(subject: Subject, expected: Tensor) -> Tolerance:
    return tolerance(
        _SHORT[subject.dtype],
        layers=subject.layers,
        scale=scale(expected),
        approximate=False,
        reference_rounded=True,
    )


def _measured(
    model: Tensor, stored: Tensor, tight: Tolerance, changes: Sequence[str], atol: float | None, rtol: float | None
) -> Tolerance:
    """What the changes alone do to the model's outputs, and the tight tolerance on top."""
    moved = scale(stored - model)
    reason = f"{' and '.join(changes)} alone move this output of the model by up to {moved:.3g}"
    return _given(Tolerance(atol=moved + tight.atol, rtol=tight.rtol, reason=reason), atol, rtol)


def _given(limit: Tolerance, atol: float | None, rtol: float | None) -> Tolerance:
    if atol is None and rtol is None:
        return limit
    flags = " and ".join(flag for flag, value in (("--atol", atol), ("--rtol", rtol)) if value is not None)
    return Tolerance(atol=0.0 if atol is None else atol, rtol=0.0 if rtol is None else rtol, reason=f"given by {flags}")


def _table_differences(subject: Subject, oracle: _Oracle) -> Iterator[Problem]:
    """Where a table is not the model's, cast: rows of tokens, positions and distances that no run is fed."""
    tables = embedding_tables(
        oracle.config, oracle.weights, encoder_only=False, trust_remote_code=oracle.trust_remote_code
    )
    for table in tables:
        if not subject.two_stacks:
            blocks = embedding_table(subject.folder) if table.kind == "tokens" else position_table(subject.folder)
            yield from _different_rows(subject, oracle, table, blocks, f"the table of {table.kind}")
            continue
        for stack in ("encoder", "decoder"):
            if table.stack in ("", stack):
                blocks = stack_table(subject.folder, table.kind, decoder=stack == "decoder")
                yield from _different_rows(subject, oracle, table, blocks, f"the {stack}'s table of {table.kind}")
    if subject.two_stacks:
        yield from _different_distances(subject, oracle)


def _different_distances(subject: Subject, oracle: _Oracle) -> Iterator[Problem]:
    """Relative position biases of distances that no run has, by T5's names; of a model without them, none."""
    for stack in ("encoder", "decoder"):
        stored = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        if stored not in oracle.weights.names():
            continue
        wanted = oracle.weights.read(stored).T.to(_TORCH[subject.dtype]).float()
        for name, found in relative_tables(subject.folder, decoder=stack == "decoder"):
            if not torch.equal(found, wanted):
                yield Problem(name, f"not {stored}, transposed", "the model's, cast", _AGAIN)


def _different_rows(
    subject: Subject, oracle: _Oracle, table: EmbeddingTable, blocks: Iterator[Tensor], name: str
) -> Iterator[Problem]:
    expected, row = oracle.weights.read(table.stored), table.skip
    for block in blocks:
        wanted = expected[row : row + len(block)].to(_TORCH[subject.dtype]).float()
        same = _same(block, wanted)
        if not bool(same.all()):
            at = int((~same).any(dim=1).nonzero()[0])
            text = f"row {row + at - table.skip} is not row {row + at} of {table.stored}"
            yield Problem(name, text, "the model's, cast", _AGAIN)
            return
        row += len(block)
    if row != len(expected):
        found, wanted_rows = f"{row - table.skip} rows", f"{len(expected) - table.skip}, as {table.stored}"
        yield Problem(name, found, wanted_rows, _AGAIN)


_EXPERT_NAMES = {
    "mixtral": ("block_sparse_moe.experts", {"gate": "w1", "up": "w3", "down": "w2"}),
    "qwen2_moe": ("mlp.experts", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
    "qwen3_moe": ("mlp.experts", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
}
"""Where transformers keeps the experts of a family, and what it calls their parts."""


def _expert_differences(subject: Subject, oracle: _Oracle) -> Iterator[Problem]:
    """Where an expert is not the model's, cast and quantized: a run only feels those its tokens were routed to."""
    if subject.family not in _EXPERT_NAMES:
        return
    parent, parts = _EXPERT_NAMES[subject.family]
    stored = _stored_as(subject, oracle.as_stored, oracle.trust_remote_code)
    empty = nn.Linear(1, 1, device="meta")
    for matrix in experts(subject.folder):
        name = f"model.layers.{matrix.layer}.{parent}.{matrix.expert}.{parts[matrix.part]}.weight"
        wanted = stored(name, oracle.as_stored.read(name), empty).float()
        fits = matrix.weight.shape == wanted.shape
        if not fits or not bool(_same(matrix.weight, wanted).all()):
            where = f"layer {matrix.layer}, expert {matrix.expert}, {matrix.part}"
            found = f"off by up to {scale(matrix.weight - wanted):.3g}" if fits else f"{tuple(matrix.weight.shape)}"
            yield Problem(where, found, f"{name} as stored", _AGAIN)
            return


def _same(found: Tensor, wanted: Tensor) -> Tensor:
    return (found == wanted) | (found.isnan() & wanted.isnan())


_FP8_LAYERS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}


def _scale_differences(subject: Subject, oracle: _Oracle) -> Iterator[Problem]:
    """Activation scales that are not the model's: a float run does not feel them."""
    weights, config = oracle.weights, subject.config
    yield from _impossible_scales(subject)
    yield from _calibration_differences(subject, oracle)
    if not isinstance(weights, QuantizedWeights) or weights.method != "fp8":
        return
    mapping = _inside(config, "mapping")
    tp, pp = _count(mapping, "tp_size", 1), _count(mapping, "pp_size", 1)
    layers, start = subject.sizes["layers"], 0
    for stage in range(pp):
        count = layers // pp + (stage < layers % pp)
        for rank in range(stage * tp, (stage + 1) * tp):
            path = subject.folder / f"rank{rank}.safetensors"
            with safe_open(path, framework="pt") as opened:
                for local in range(count):
                    for module, parts in _FP8_LAYERS.items():
                        name = f"transformer.layers.{local}.{module}.activation_scaling_factor"
                        found = float(opened.get_tensor(name).float().reshape(()))
                        if not 0 < found < math.inf:
                            yield Problem(f"{name} in {path.name}", str(found), "a finite number above 0", _AGAIN)
                            continue
                        layer = f"model.layers.{start + local}"
                        wanted = max(weights.input_scale(f"{layer}.{part}") for part in parts)
                        if found != wanted:
                            yield Problem(f"{name} in {path.name}", str(found), f"{wanted}, the model's input_scale")
        start += count


def _impossible_scales(subject: Subject) -> Iterator[Problem]:
    """Scales of activations and caches that nothing can be divided by."""
    if subject.algorithm is None and subject.kv_cache is None:
        return
    scales = Scales(subject.folder)
    singles = [single for layer, group in scales.places for single in scales.activations(layer, group)]
    if subject.kv_cache is not None:
        singles += [single for layer in range(subject.sizes["layers"]) for single in scales.cache(layer)]
    for single in dict.fromkeys(singles):
        if not 0 < single.value < math.inf:
            yield Problem(f"{single.name} in {single.file}", str(single.value), "a finite number above 0", _AGAIN)


def _calibration_differences(subject: Subject, oracle: _Oracle) -> Iterator[Problem]:
    """Scales that are not those of the model's activations on the calibration data, as far as they can be afforded."""
    calibration = subject.calibration
    if calibration is None:
        return
    samples = max(1, _affordable(subject) // calibration.tokens.shape[1])
    seen = Seen(two_stacks=subject.two_stacks)
    for tokens in batches(calibration.tokens[:samples]):
        run_reference(
            oracle.config,
            oracle.weights,
            tokens=tokens,
            decoder_tokens=_behind_start(subject, tokens) if subject.two_stacks else None,
            encoder_only=False,
            prepare=seen.watch,
            attention=_attention(subject),
            positions=torch.zeros(len(tokens), 1, dtype=torch.int64),
            trust_remote_code=oracle.trust_remote_code,
        )
    yield from scale_differences(
        Scales(subject.folder),
        seen,
        algorithm=subject.algorithm,
        cache=subject.kv_cache,
        cache_measured=calibration.cache_measured,
        span=ALL if samples >= len(calibration.tokens) else PART,
    )


def _far_scales(subject: Subject, oracle: _Oracle) -> Iterator[Problem]:
    """Without calibration data: scales far from what the model's activations need on what it was run on.

    Those of inputs that came with the model are compared with its own.
    """
    if subject.calibration is None and (subject.algorithm, subject.kv_cache) != (None, None):
        yield from scale_differences(
            Scales(subject.folder),
            oracle.seen,
            algorithm=subject.algorithm if subject.source_quantization == "" else None,
            cache=subject.kv_cache,
            cache_measured=True,
            span=OTHER,
        )


def _behind_start(subject: Subject, tokens: Tensor) -> Tensor:
    """What a decoder reads when it gives back some tokens: the start token, and all of them but the last."""
    start = json.loads((subject.folder / "decoder" / "config.json").read_text(encoding="utf-8"))
    first = torch.full((len(tokens), 1), int(start["decoder_start_token_id"]))
    return torch.cat((first, tokens[:, :-1]), 1)


# What a recipe costs


def _quality(subject: Subject, oracle: _Oracle) -> Iterator[Finding]:
    """Perplexity and top-1 agreement on a text, of the checkpoint as the GPU will run it, beside the float32 model.

    A decoder with an encoder gives back what that reads. Of logits that are not finite there is only a sentence.
    """
    text, windows, reason = _text_windows(subject, oracle)
    if reason != "":
        yield reason
    expected, found = Likelihood(), Likelihood()
    agreed = total = 0
    largest = worst = nats = 0.0
    for tokens in windows:
        read = _behind_start(subject, tokens) if subject.two_stacks else None
        model = oracle.run(tokens, stored=False, decoder_tokens=read).outputs["logits"]
        inputs = Inputs(tokens=tokens, decoder_tokens=read)
        logits = execute(subject.folder, inputs, activations=True, quantize=True)["logits"]
        broken = not_finite(model, logits)
        if broken != "":
            yield f"{text} was not scored: {broken}"
            return
        expected.add(model, tokens if read is None else read)
        found.add(logits, tokens if read is None else read)
        nats += divergence(model, logits)
        agreed += int((model.argmax(-1) == logits.argmax(-1)).sum())
        total += tokens.numel()
        largest, worst = max(largest, scale(model)), max(worst, scale(model - logits))
    yield Quality(
        text=text,
        recipe=subject.dtype if subject.algorithm is None else subject.algorithm,
        tokens=total,
        perplexity_model=expected.perplexity,
        perplexity=found.perplexity,
        kl=nats / total,
        top1=agreed / total,
        largest_error=worst,
        largest_logit=largest,
    )


def _text_windows(subject: Subject, oracle: _Oracle) -> tuple[str, list[Tensor], str]:
    """What is fed and its name; a sentence where the text could not be."""
    text = SAMPLE if subject.eval_text is None else read_text(subject.eval_text)
    name = "a sample text" if subject.eval_text is None else subject.eval_text.name
    window = _allowed(subject, _WINDOW)
    most = window * _WINDOWS if subject.eval_text is not None else min(window * _WINDOWS, _affordable(subject))
    prompt = prompt_tokens(subject.checkpoint, text, most, trust_remote_code=oracle.trust_remote_code)
    if window < 2 or prompt.tokens is None or prompt.tokens.shape[1] < 2:
        tokens = fixed_tokens(subject.sizes["vocab"], batch=1, sequence=min(window, 64), seed=2)
        few = "no token follows another" if window < 2 else "too few tokens in it"
        reason = few if prompt.tokens is not None else prompt.reason
        return "a fixed sequence", [tokens], f"no text was scored: {reason}"
    windows = [part for part in torch.split(prompt.tokens, window, 1) if part.shape[1] > 1]
    return name, windows, ""


def _affordable(subject: Subject) -> int:
    """Tokens of the built-in text that a CPU scores in minutes: hundreds for 7 B parameters, dozens for 70 B."""
    elements = sum(path.stat().st_size for path in subject.weight_files) // 2
    return max(_FEWEST_TOKENS, _MULTIPLICATIONS // max(1, elements))


# The engine itself, where there is a GPU


def engine_prompts(subject: Subject) -> list[list[int]]:
    """Token ids to run an engine on."""
    tokens = fixed_tokens(subject.sizes["vocab"], batch=_BATCH, sequence=min(_SEQUENCE, _longest(subject)))
    return [[int(token) for token in row] for row in tokens]


def _logits(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        lines = str(error).splitlines()
        raise ToolchainError(str(path), lines[0], "logits as .npy", "see the runtime's log above") from error


def end_token(subject: Subject) -> int:
    """The token an engine stops at; any will do where the model names none, since one token is generated."""
    found = subject.model_config.get("eos_token_id")
    found = found[0] if isinstance(found, list) and len(found) > 0 else found
    return found if isinstance(found, int) else 0


def engine_checks(
    subject: Subject, prompts: Sequence[Sequence[int]], files: Sequence[Path], trust_remote_code: bool
) -> Iterator[Check]:
    """Compare logits an engine gave, as .npy of (tokens, vocabulary), with the model's.

    Args:
        subject: The checkpoint the engine was built from.
        prompts: What the engine was run on.
        files: What it gave.
        trust_remote_code: As in `validate`.
    """
    with _oracle(subject, trust_remote_code) as oracle:
        for number, (prompt, path) in enumerate(zip(prompts, files, strict=True)):
            expected = oracle.run(torch.tensor([list(prompt)]), stored=True).outputs["logits"]
            found = torch.from_numpy(_logits(path)).float()[None]
            share, why = _NOISE.get(str(subject.algorithm), (0.0, ""))
            limit = tolerance(
                _SHORT[subject.dtype],
                layers=subject.layers,
                scale=scale(expected),
                approximate=False,
                arithmetic=_SHORT[subject.dtype],
                reference_rounded=True,
            )
            if share > 0:
                reason = f"{limit.reason}, and {why}"
                limit = Tolerance(atol=limit.atol + share * scale(expected), rtol=limit.rtol, reason=reason)
            comparison = compare({"logits": expected}, {"logits": found}, {"logits": limit})
            where = f"prompt {number} on the GPU"
            yield Check(input=where, reference="the model as stored", comparison=comparison, decisive=True)
