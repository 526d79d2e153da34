"""Validates a unified checkpoint: its tensors against the model's, and what the model computes with them.

Every tensor is compared with the model's own, rounded as the recipe says; then transformers runs the model twice, with
the model's weights as they should be stored and with what the checkpoint's stand for. What quantization costs is
measured on a text, with inputs and cache rounded as TensorRT-LLM's kernels do, and reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llmcompile.errors import MismatchError, Problem, collected
from llmcompile.validation.calibrated import (
    ALL,
    OTHER,
    PART,
    Calibration,
    Seen,
    Span,
    batches,
    place_of,
    scale_differences,
)
from llmcompile.validation.checks import Check, Finding, Quality, StoredWeights
from llmcompile.validation.compare import compare, scale, without_overflow
from llmcompile.validation.reference import (
    Reference,
    Weights,
    fixed_tokens,
    prompt_tokens,
    run_reference,
    streamed_model,
)
from llmcompile.validation.sample_text import SAMPLE
from llmcompile.validation.scoring import Likelihood, divergence, not_finite, read_text
from llmcompile.validation.tensorrt_llm.scales import Single
from llmcompile.validation.tolerances import Dtype, Tolerance, tolerance
from llmcompile.validation.unified.folder import AGAIN, Folder, contradictions, open_folder, read_object
from llmcompile.validation.unified.linears import (
    Layer,
    difference,
    folded_difference,
    form_of,
    misfit,
    misfits,
    row_blocks,
)

ARTIFACT = "checkpoint for the LLM API"
EXECUTOR = "transformers on what the checkpoint's tensors stand for, in float32 on CPU"
PROMPT = "The quick brown fox jumps over the lazy dog, and then the server starts."
_BATCH, _SEQUENCE = 2, 16
_WINDOW, _WINDOWS = 256, 8
"""Tokens of a text that are fed at once, and how often, at most."""
_MULTIPLICATIONS, _FEWEST_TOKENS = 5 * 10**12, 32
"""What scoring the built-in text may cost for each of the two runs, and the least that is scored all the same."""
_SHORT: Mapping[str, Dtype] = MappingProxyType({"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"})
_MARGINS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}
"""How far rounding to a type moves a number, relatively."""
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Layers that TensorRT-LLM joins."""
_READERS = (
    ("input_layernorm", re.compile(r"\.self_attn\.(q|k|v)_proj$")),
    ("post_attention_layernorm", re.compile(r"\.mlp\.(gate_proj|up_proj|c_fc)$")),
)
"""Norm -> linear layers that read its output."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is validated.

    Attributes:
        folder: The checkpoint.
        checkpoint: Folder of the model it was made from.
        weight_files: Its files of weights.
        sizes: Its axes.
        stored_dtype: The one float type of the model's files; "mixed" when there are several.
        eval_text: Text for perplexity and top-1 agreement; None for a built-in one.
        overflow_accepted: Whether infinities made by the cast were accepted.
        calibration: What its scales were measured on; None where they were not, or that is not known.
        scored: Whether a text is scored although nothing is quantized.
    """

    folder: Path
    checkpoint: Path
    weight_files: tuple[Path, ...]
    sizes: Mapping[str, int]
    stored_dtype: str
    eval_text: Path | None
    overflow_accepted: bool
    calibration: Calibration | None = None
    scored: bool = False


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
        MismatchError: A tensor is missing, misshapen, unknown or not the model's; the texts contradict it.
        CheckpointError: The model's weights do not fit its config.json.
        OptionsError: The text to score on cannot be read, or is empty.
    """
    if subject.eval_text is not None:
        read_text(subject.eval_text)
    oracle = _Oracle(subject, open_folder(subject.folder), trust_remote_code)
    for problems in (
        contradictions(oracle.folder, read_object(subject.checkpoint / "config.json")),
        _misfits(oracle),
        _differences(oracle),
        _scale_differences(oracle),
        _calibration_differences(oracle),
    ):
        found = list(problems)
        if len(found) > 0:
            raise collected(MismatchError, found)
    passed = True
    for name, tokens in _inputs(subject, trust_remote_code):
        if tokens is None:
            yield name
            continue
        for item in _checks(oracle, name, tokens, atol, rtol):
            passed &= isinstance(item, str) or not item.decisive or item.comparison.passed
            yield item
    stated = oracle.folder.quantization
    scored = stated.algorithm is not None or stated.cache is not None or subject.scored
    quality = list(_quality(oracle)) if scored else []
    far = list(_far_scales(oracle)) if passed else []
    if len(far) > 0:
        raise collected(MismatchError, far)
    yield from quality


@dataclass(frozen=True)
class _Oracle:
    """The model, and the checkpoint made from it, both for transformers."""

    subject: Subject
    folder: Folder
    trust_remote_code: bool
    seen: Seen = field(default_factory=Seen)
    """What has gone through the model so far."""

    @cached_property
    def weights(self) -> StoredWeights:
        """The model's tensors."""
        return StoredWeights(self.subject.weight_files)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The checkpoint's type."""
        found: torch.dtype = getattr(torch, self.folder.dtype)
        return found

    @cached_property
    def _model(self) -> tuple[nn.Module, Mapping[str, str]]:
        config = self.subject.checkpoint
        return streamed_model(config, self.weights, trust_remote_code=self.trust_remote_code)

    @property
    def sources(self) -> Mapping[str, str]:
        """Each parameter of transformers' model and its tensor in the model's files."""
        return self._model[1]

    @cached_property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every parameter that is stored: a tied head is not."""
        return {name: tuple(parameter.shape) for name, parameter in self._model[0].named_parameters()}

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """The linear layers that are quantized, by name."""
        quantization = self.folder.quantization
        if quantization.algorithm is None:
            return {}
        form = form_of(quantization.algorithm)
        return {
            name: Layer(self.folder, name, form, module.out_features, module.in_features)
            for name, module in self._model[0].named_modules()
            if isinstance(module, nn.Linear) and not self.is_excluded(name)
        }

    def is_excluded(self, name: str) -> bool:
        """Whether a module is left as it is."""
        return any(fnmatchcase(name, pattern) for pattern in self.folder.quantization.excluded)

    @cached_property
    def attentions(self) -> tuple[str, ...]:
        """The paths of the modules with keys and values, in the order of the layers."""
        return tuple(name for name, _ in self._model[0].named_modules() if name.endswith(".self_attn"))

    @cached_property
    def folded(self) -> Mapping[str, Tensor]:
        """Norm -> about what it multiplies the inputs of the layers behind by, in a recipe with such factors."""
        if not any(kept.ending == "pre_quant_scale" for layer in self.layers.values() for kept in layer.form.beside):
            return {}
        found = {}
        for norm in {name for layer in self.layers if (name := _norm_of(layer)) is not None}:
            own = self.model_weight(f"{norm}.weight").to(self.dtype).float()
            stored = self.folder.weights.read(f"{norm}.weight").float()
            found[norm] = torch.where(own == 0, 0.0, stored / torch.where(own == 0, 1.0, own))
        return found

    def model_weight(self, name: str) -> Tensor:
        """A parameter as the model's files have it."""
        return self.weights.read(self.sources[name])

    def run(self, tokens: Tensor, weights: Weights, prepare: Callable[[nn.Module], None] | None = None) -> Reference:
        """Run transformers' model on some weights."""
        return run_reference(
            self.subject.checkpoint,
            weights,
            tokens=tokens,
            decoder_tokens=None,
            encoder_only=False,
            prepare=prepare,
            trust_remote_code=self.trust_remote_code,
        )


# The tensors


def _wanted(oracle: _Oracle) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """Every tensor that is no part of a quantized layer."""
    for name, shape in oracle.parameters.items():
        if name.removesuffix(".weight") not in oracle.layers or not name.endswith(".weight"):
            yield name, shape, oracle.dtype
    if oracle.folder.quantization.cache is not None:
        for attention in oracle.attentions:
            for part in ("k", "v"):
                yield f"{attention}.{part}_proj.{part}_scale", (), torch.float32


def _misfits(oracle: _Oracle) -> Iterator[Problem]:
    """Tensors that are missing, unknown, or of another shape or type."""
    stored, known = oracle.folder.weights, set[str]()
    for name, shape, dtype in _wanted(oracle):
        known.add(name)
        if name not in stored.names():
            yield Problem(name, "missing", f"{dtype} of shape {shape}".removeprefix("torch."), AGAIN)
        else:
            yield from misfit(name, stored.read(name), shape, dtype)
    for layer in oracle.layers.values():
        known.update(name for name, *_ in layer.tensors())
        yield from misfits(layer, stored)
        factors = f"{layer.name}.pre_quant_scale"
        grouped = any(kept.ending == "pre_quant_scale" for kept in layer.form.beside)
        alone = _norm_of(layer.name) is None
        if grouped and alone and factors not in stored.names():
            yield Problem(factors, "missing", "factors: no norm comes before", AGAIN)
        if grouped and not alone and factors in stored.names():
            yield Problem(factors, "there", "factors in the norm before: here they are not read", AGAIN)
    for name in sorted(set(stored.names()) - known):
        yield Problem(name, "a tensor that the recipe does not have", "no such tensor", AGAIN)


def _norm_of(name: str) -> str | None:
    """The norm whose output a linear layer reads; None for none."""
    for norm, reader in _READERS:
        match = reader.search(name)
        if match is not None:
            return f"{name[: match.start()]}.{norm}"
    return None


def _differences(oracle: _Oracle) -> Iterator[Problem]:
    """Tensors that are not the model's, cast or rounded by the recipe."""
    folded = oracle.folded
    for name in oracle.parameters:
        layer = oracle.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        weight = oracle.model_weight(name)
        if layer is not None:
            norm = str(_norm_of(layer.name))
            if norm in folded:
                margin = _MARGINS[oracle.folder.dtype]
                found = folded_difference(weight, layer, oracle.dtype, folded[norm], margin)
            else:
                found = difference(weight, layer, oracle.dtype)
        else:
            stored = oracle.folder.weights.read(name)
            norm = name.rpartition(".")[0]
            found = _plain_difference(weight, stored, folded.get(norm), _MARGINS[oracle.folder.dtype])
            if norm in folded and name.endswith(".weight"):
                dead = weight.to(oracle.dtype) == 0
                found = found if torch.equal(dead, stored == 0) else "0 in other channels than the model's"
        if found != "":
            yield Problem(name, found, f"{oracle.sources[name]} of the model, as it is stored", AGAIN)


def _plain_difference(weight: Tensor, stored: Tensor, factors: Tensor | None, margin: float) -> str:
    """Why a tensor is not the model's, cast; "" if it is. Of a norm with factors they must be finite and above 0."""
    if factors is not None:
        wanted = weight.to(stored.dtype).float() * factors
        live = factors != 0
        if not bool((factors[live].isfinite() & (factors[live] > 0)).all()):
            return "not the model's times factors above 0"
        off = (stored.float() - wanted).abs() > 2 * margin * wanted.abs()
        return f"off by up to {scale(stored.float() - wanted):.3g}" if bool((off & live).any()) else ""
    worst, wrong = 0.0, False
    rows = weight.reshape(len(weight), -1) if weight.dim() > 0 else weight.reshape(1, 1)
    found = stored.reshape(rows.shape)
    for block in row_blocks(*rows.shape):
        wanted = rows[block].to(stored.dtype)
        same = (found[block] == wanted) | (found[block].isnan() & wanted.isnan())
        if not bool(same.all()):
            wrong, worst = True, max(worst, scale(found[block].float() - wanted.float()))
    return f"off by up to {worst:.3g}" if wrong else ""


def _scale_differences(oracle: _Oracle) -> Iterator[Problem]:
    """Scales that nothing can be divided by, that would clip weights, or that layers fused at run time do not share."""
    for layer in oracle.layers.values():
        for kept in layer.form.beside:
            if kept.shape == "":
                value = float(layer.beside(kept.ending))
                if not 0 < value < math.inf:
                    yield Problem(f"{layer.name}.{kept.ending}", str(value), "a finite number above 0", AGAIN)
        yield from _largest_difference(oracle, layer)
        yield from _unshared(oracle, layer)
    if oracle.folder.quantization.cache is not None:
        yield from _cache_differences(oracle)


_LARGEST = {"FP8": ("weight_scale", 448), "W4A8_AWQ": ("weight_scale_2", 448), "NVFP4": ("weight_scale_2", 448 * 6)}
"""Recipe -> the scale that the largest weight decides, and what it becomes."""


def _largest_difference(oracle: _Oracle, layer: Layer) -> Iterator[Problem]:
    """A scale of weights must bring the largest of the layer, or of those it is fused with, to the end of its range.

    With factors in a norm, these are known to within rounding alone.
    """
    algorithm = str(oracle.folder.quantization.algorithm)
    if algorithm not in _LARGEST:
        return
    ending, steps = _LARGEST[algorithm]
    family = [oracle.layers[name] for name in _siblings(layer.name) if name in oracle.layers]
    own, most = _largest(oracle, layer), max(_largest(oracle, other) for other in family)
    found = float(layer.beside(ending))
    margin = 2 * _MARGINS[oracle.folder.dtype] if layer.form.outputs == 2 else 1e-6
    wanted = [value / steps if value > 0 else 1.0 for value in (own, most)]
    if not any(abs(found / value - 1) <= margin for value in wanted):
        yield Problem(f"{layer.name}.{ending}", f"{found:.6g}", f"{wanted[1]:.6g}, by the largest weight", AGAIN)


def _largest(oracle: _Oracle, layer: Layer) -> float:
    weight, factors = oracle.model_weight(f"{layer.name}.weight"), layer.factors()
    norm = _norm_of(layer.name)
    if factors is None and layer.form.outputs == 2 and norm is not None:
        factors = oracle.folded[norm]
    largest = 0.0
    for rows in row_blocks(*weight.shape):
        floats = weight[rows].to(oracle.dtype).float()
        if factors is not None:
            floats = torch.where(factors != 0, floats / torch.where(factors != 0, factors, 1.0), 0.0)
        largest = max(largest, float(floats.abs().max()))
    return largest


def _unshared(oracle: _Oracle, layer: Layer) -> Iterator[Problem]:
    """TensorRT-LLM asserts that fused W4A8 layers have equal scalars, and joins inputs' scales of others."""
    first = next(name for name in _siblings(layer.name) if name in oracle.layers)
    for ending in ("input_scale", "weight_scale_2"):
        if layer.has(ending) and first != layer.name:
            found, wanted = float(layer.beside(ending)), float(oracle.layers[first].beside(ending))
            if found != wanted:
                yield Problem(f"{layer.name}.{ending}", str(found), f"{wanted}, as {first}: they are fused", AGAIN)


def _siblings(name: str) -> Sequence[str]:
    """The layers that are fused with one, itself among them."""
    stem, _, last = name.rpartition(".")
    for parts in _SIBLINGS:
        if last in parts:
            return [f"{stem}.{part}" for part in parts]
    return [name]


def _cache_differences(oracle: _Oracle) -> Iterator[Problem]:
    """Scales of the cache: finite numbers not below one; and one with a recipe that measures nothing."""
    kept = {kept.ending for layer in oracle.layers.values() for kept in layer.form.beside}
    measured = oracle.subject.calibration is not None or not kept.isdisjoint({"input_scale", "pre_quant_scale"})
    for attention in oracle.attentions:
        for part in ("k", "v"):
            name = f"{attention}.{part}_proj.{part}_scale"
            found = float(oracle.folder.weights.read(name))
            if not 1 <= found < math.inf or (not measured and found != 1):
                yield Problem(name, str(found), "1" if not measured else "a finite number, 1 or more", AGAIN)


class _Scales:
    """The checkpoint's scales, by layer and group."""

    def __init__(self, oracle: _Oracle) -> None:
        self._oracle = oracle
        self._folded = oracle.folded
        self._places: dict[tuple[int, str], list[Layer]] = {}
        for name, layer in oracle.layers.items():
            place = place_of(name)
            if place is not None:
                self._places.setdefault(place, []).append(layer)

    def columns(self, layer: int, group: str) -> Tensor | None:
        """What each input channel is multiplied by, here or in the norm before."""
        for found in self._places.get((layer, group), ()):
            factors = found.factors()
            return self._folded.get(str(_norm_of(found.name))) if factors is None else factors
        return None

    def activations(self, layer: int, group: str) -> Iterator[Single]:
        """`input_scale` of each module."""
        for found in self._places.get((layer, group), ()):
            if found.has("input_scale"):
                yield Single(f"{found.name}.input_scale", "the checkpoint", float(found.beside("input_scale")))

    def cache(self, layer: int) -> Iterator[Single]:
        """`k_scale` and `v_scale`."""
        for part in ("k", "v"):
            name = f"{self._oracle.attentions[layer]}.{part}_proj.{part}_scale"
            yield Single(name, "the checkpoint", float(self._oracle.folder.weights.read(name)))


def _calibration_differences(oracle: _Oracle) -> Iterator[Problem]:
    """Scales that are not those of the model's activations on the calibration data, as far as they can be afforded."""
    calibration = oracle.subject.calibration
    if calibration is None:
        return
    samples = max(1, _affordable(oracle.subject) // calibration.tokens.shape[1])
    seen = Seen()
    for tokens in batches(calibration.tokens[:samples]):
        run_reference(
            oracle.subject.checkpoint,
            oracle.weights,
            tokens=tokens,
            decoder_tokens=None,
            encoder_only=False,
            prepare=seen.watch,
            positions=torch.zeros(len(tokens), 1, dtype=torch.int64),
            trust_remote_code=oracle.trust_remote_code,
        )
    span = ALL if samples >= len(calibration.tokens) else PART
    yield from _unlike(oracle, seen, span, cache_measured=calibration.cache_measured)


def _far_scales(oracle: _Oracle) -> Iterator[Problem]:
    """Without calibration data: scales far from what the model's activations need on what it was run on."""
    if oracle.subject.calibration is None:
        yield from _unlike(oracle, oracle.seen, OTHER, cache_measured=True)


def _unlike(oracle: _Oracle, seen: Seen, span: Span, *, cache_measured: bool) -> Iterator[Problem]:
    stated = oracle.folder.quantization
    yield from scale_differences(
        _Scales(oracle),
        seen,
        algorithm=stated.algorithm,
        cache=stated.cache,
        cache_measured=cache_measured,
        span=span,
        slack=2e-3 + 2 * _MARGINS[oracle.folder.dtype],
    )


# What the model computes with them


class _StandsFor:
    """The checkpoint's tensors as floats, by the names of transformers' parameters."""

    def __init__(self, oracle: _Oracle) -> None:
        self._oracle = oracle

    def names(self) -> Collection[str]:
        return self._oracle.parameters.keys()

    def read(self, name: str) -> Tensor:
        layer = self._oracle.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return self._oracle.folder.weights.read(name) if layer is None else layer.weight()


def _as_kernels(oracle: _Oracle) -> Callable[[nn.Module], None]:
    """What rounds the inputs of linear layers, and the cache, as the kernels do."""

    def prepare(model: nn.Module) -> None:
        for name, layer in oracle.layers.items():
            rounding = layer.rounding()
            if rounding is not None:
                model.get_submodule(name).register_forward_pre_hook(_rounded_input(rounding))
        if oracle.folder.quantization.cache is not None:
            model.register_forward_pre_hook(_with_cache, with_kwargs=True)

    return prepare


def _rounded_input(rounding: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, arguments: (rounding(arguments[0]), *arguments[1:])


def _with_cache(module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return arguments, {**keywords, "past_key_values": _Fp8Cache(), "use_cache": True}


class _Fp8Cache(DynamicCache):
    """Keys, as they are after rotation, and values in float8_e4m3, at TensorRT-LLM's scale of 1."""

    def update(self, key_states: Tensor, value_states: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """Round, and keep."""
        rounded = [
            states.clamp(-448, 448).to(torch.float8_e4m3fn).to(states.dtype) for states in (key_states, value_states)
        ]
        kept: tuple[Tensor, Tensor] = super().update(rounded[0], rounded[1], *rest, **more)
        return kept


def _length(subject: Subject, length: int) -> int:
    return min(length, subject.sizes.get("positions", length))


def _inputs(subject: Subject, trust_remote_code: bool) -> Iterator[tuple[str, Tensor | None]]:
    """Names and tokens to run; a sentence and None for what was left out."""
    length = _length(subject, _SEQUENCE)
    yield "fixed tokens", fixed_tokens(subject.sizes["vocab"], batch=_BATCH, sequence=length)
    prompt = prompt_tokens(subject.checkpoint, PROMPT, 32, trust_remote_code=trust_remote_code)
    if prompt.tokens is None:
        yield f"no prompt was tried: {prompt.reason}", None
    else:
        yield "a prompt", prompt.tokens[:, : _length(subject, 32)]


def _checks(
    oracle: _Oracle, name: str, tokens: Tensor, atol: float | None, rtol: float | None
) -> Iterator[Check | str]:
    subject, given = oracle.subject, atol is not None or rtol is not None
    model = oracle.run(tokens, oracle.weights, oracle.seen.watch)
    found = oracle.run(tokens, _StandsFor(oracle)).outputs
    changes = _changes(oracle)
    if len(changes) == 0:
        tight = {output: _tight(subject, oracle, values) for output, values in model.outputs.items()}
        limits = {output: _given(limit, atol, rtol) for output, limit in tight.items()}
        comparison = compare(model.outputs, found, limits)
        yield Check(input=name, reference="the model in float32", comparison=comparison, decisive=True)
        return
    stored = oracle.run(tokens, _AsStored(oracle))
    if subject.overflow_accepted:
        outputs, found, masked = without_overflow(stored.outputs, found)
        stored = replace(stored, outputs=outputs)
        yield from masked
    tight = {output: _tight(subject, oracle, values) for output, values in stored.outputs.items()}
    limits = {}
    for output, values in stored.outputs.items():
        moved = scale(values - model.outputs[output])
        reason = f"{' and '.join(changes)} alone move this output of the model by up to {moved:.3g}"
        limit = Tolerance(atol=moved + tight[output].atol, rtol=tight[output].rtol, reason=reason)
        limits[output] = _given(limit, atol, rtol)
    comparison = compare(model.outputs, found, limits)
    yield Check(input=name, reference="the model in float32", comparison=comparison, decisive=given)
    words = f"the model with {' and '.join(changes)}"
    yield Check(input=name, reference=words, comparison=compare(stored.outputs, found, tight), decisive=not given)


class _AsStored:
    """The model's tensors, rounded to the checkpoint's type and by its recipe, with no packing in between.

    A norm that holds factors is the model's again, and the layers behind it are multiplied by them: their integers are
    the checkpoint's, which were judged one by one.
    """

    def __init__(self, oracle: _Oracle) -> None:
        self._oracle = oracle
        self._folded = oracle.folded

    def names(self) -> Collection[str]:
        return self._oracle.parameters.keys()

    def read(self, name: str) -> Tensor:
        oracle = self._oracle
        module = name.rpartition(".")[0]
        layer = oracle.layers.get(module) if name.endswith(".weight") else None
        weight = oracle.model_weight(name).to(oracle.dtype)
        if name.endswith(".bias") and module in self._folded:
            factors = self._folded[module]
            kept = oracle.folder.weights.read(name).float() / torch.where(factors != 0, factors, 1.0)
            return torch.where(factors != 0, kept, weight.float())
        if layer is None:
            return weight
        behind = self._folded.get(str(_norm_of(module)))
        return layer.rounded(weight) if behind is None else layer.weight() * behind


def _changes(oracle: _Oracle) -> list[str]:
    """What distinguishes the model as stored from the model, in words."""
    changes = []
    if oracle.folder.dtype != {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}.get(
        oracle.subject.stored_dtype
    ):
        changes.append(f"weights rounded to {oracle.folder.dtype}")
    if oracle.folder.quantization.algorithm is not None:
        changes.append(f"weights quantized by {oracle.folder.quantization.algorithm}")
    return changes


def _tight(subject: Subject, oracle: _Oracle, expected: Tensor) -> Tolerance:
    return tolerance(
        _SHORT[oracle.folder.dtype],
        layers=subject.sizes["layers"],
        scale=scale(expected),
        approximate=False,
        reference_rounded=True,
    )


def _given(limit: Tolerance, atol: float | None, rtol: float | None) -> Tolerance:
    if atol is None and rtol is None:
        return limit
    flags = " and ".join(flag for flag, value in (("--atol", atol), ("--rtol", rtol)) if value is not None)
    return Tolerance(atol=0.0 if atol is None else atol, rtol=0.0 if rtol is None else rtol, reason=f"given by {flags}")


# What a recipe costs


def _quality(oracle: _Oracle) -> Iterator[Finding]:
    """Perplexity and top-1 agreement on a text, of the checkpoint as the GPU will run it, beside the float32 model.

    Of logits that are not finite there is only a sentence.
    """
    text, windows, reason = _windows(oracle)
    if reason != "":
        yield reason
    expected, found = Likelihood(), Likelihood()
    agreed = total = 0
    largest = worst = nats = 0.0
    for tokens in windows:
        model = oracle.run(tokens, oracle.weights, oracle.seen.watch).outputs["logits"]
        logits = oracle.run(tokens, _StandsFor(oracle), _as_kernels(oracle)).outputs["logits"]
        broken = not_finite(model, logits)
        if broken != "":
            yield f"{text} was not scored: {broken}"
            return
        expected.add(model, tokens)
        found.add(logits, tokens)
        nats += divergence(model, logits)
        agreed += int((model.argmax(-1) == logits.argmax(-1)).sum())
        total += tokens.numel()
        largest, worst = max(largest, scale(model)), max(worst, scale(model - logits))
    stated = oracle.folder.quantization
    cache = None if stated.cache is None else f"{stated.cache} key and value cache"
    yield Quality(
        text=text,
        recipe=" and ".join(part for part in (stated.algorithm, cache) if part is not None),
        tokens=total,
        perplexity_model=expected.perplexity,
        perplexity=found.perplexity,
        kl=nats / total,
        top1=agreed / total,
        largest_error=worst,
        largest_logit=largest,
    )


def _windows(oracle: _Oracle) -> tuple[str, list[Tensor], str]:
    """What is fed and its name; a sentence where the text could not be."""
    subject = oracle.subject
    text = SAMPLE if subject.eval_text is None else read_text(subject.eval_text)
    name = "a sample text" if subject.eval_text is None else subject.eval_text.name
    window = _length(subject, _WINDOW)
    most = window * _WINDOWS if subject.eval_text is not None else min(window * _WINDOWS, _affordable(subject))
    prompt = prompt_tokens(subject.checkpoint, text, most, trust_remote_code=oracle.trust_remote_code)
    if window < 2 or prompt.tokens is None or prompt.tokens.shape[1] < 2:
        tokens = fixed_tokens(subject.sizes["vocab"], batch=1, sequence=min(window, 64), seed=2)
        few = "no token follows another" if window < 2 else "too few tokens in it"
        reason = few if prompt.tokens is not None else prompt.reason
        return "a fixed sequence", [tokens], f"no text was scored: {reason}"
    return name, [part for part in torch.split(prompt.tokens, window, 1) if part.shape[1] > 1], ""


def _affordable(subject: Subject) -> int:
    """Tokens that a CPU runs in minutes: hundreds for 7 B parameters, dozens for 70 B."""
    elements = sum(path.stat().st_size for path in subject.weight_files) // 2
    return max(_FEWEST_TOKENS, _MULTIPLICATIONS // max(1, elements))
