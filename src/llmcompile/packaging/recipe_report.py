"""quantize.json, what `llmcompile quantize` found out, and what of it people are told in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmcompile.packaging.manifest import Quality, Tool

_AS_SMALL, _AS_CLOSE = 1.02, 1.1
"""Bytes beside bytes, and KL divergence beside KL divergence, that make no difference to a choice."""
_SCHEMA_ID = "urn:llmcompile:quantize:1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Outcome(_Strict):
    """One checkpoint: what it takes, and what it costs in accuracy."""

    recipe: str | None = Field(description="As --quantization takes it; null for the unquantized checkpoint.")
    algorithm: str | None = Field(description="quant_algo in its config.json.")
    passed: bool = Field(description="Whether the bytes compute what the recipe says; accuracy rejects nothing.")
    problems: tuple[str, ...] = Field(description="Why not.")
    checkpoint_bytes: int = Field(description="Of its tensor files.")
    weights_bytes: int = Field(
        description="Of its weights on the GPU: those of its tensor files, but where trtllm-build quantizes them."
    )
    share: float | None = Field(description="weights_bytes beside the unquantized checkpoint's; null without that.")
    calibrated: bool = Field(description="Whether it needs data.")
    oldest_gpu: int = Field(description="Compute capability, times ten, of the oldest that this release runs it on.")
    first_release: str = Field(description="Of TensorRT-LLM.")
    quality: Quality | None = Field(
        description="Null for one that failed; figures of five significant digits, perplexities of six."
    )
    checkpoint: str | None = Field(description="Its folder here; null where it was not kept.")
    notes: tuple[str, ...] = Field(description="What to know before deploying it.")


class LeftOut(_Strict):
    """A recipe this model cannot have, and why."""

    recipe: str
    reason: str


class Data(_Strict):
    """What the scales of calibrated recipes were measured on."""

    data: str
    sha256: str
    samples: int
    tokens: int = Field(description="Of each sample.")


class Standing(_Strict):
    """Recipes that stand out; each name is one of the outcomes'."""

    smallest: str | None = Field(description="Fewest bytes of weights.")
    closest: str | None = Field(description="Least KL divergence from the model.")
    unbeaten: tuple[str, ...] = Field(
        description="Those beside which no other is as small and as close; 2 % and 10 % are no difference."
    )


class RecipeReport(_Strict):
    """Recipes of one model side by side."""

    schema_version: Literal[1] = 1
    tool: Tool
    model: str
    architecture: str
    dtype: str = Field(description="Of what is not quantized.")
    kv_cache: str | None
    group_size: int
    target: str = Field(description="As in build trtllm: engine, or llmapi.")
    trtllm_version: str
    vocabulary: int
    text: str | None = Field(description="What was scored; null where nothing was.")
    tokens: int
    perplexity: float | None = Field(description="The model's, in float32.")
    calibration: Data | None
    outcomes: tuple[Outcome, ...] = Field(description="The unquantized checkpoint first.")
    left_out: tuple[LeftOut, ...]
    standing: Standing
    remarks: tuple[str, ...] = Field(description="How to read the figures.")


def to_bytes(report: RecipeReport) -> bytes:
    """The report as it is stored: indented JSON with a final newline."""
    return (json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def schema() -> dict[str, Any]:
    """The JSON Schema of the report, as published in docs/quantize.schema.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _SCHEMA_ID,
        **RecipeReport.model_json_schema(),
    }


def standing(outcomes: Sequence[Outcome]) -> Standing:
    """Which recipes stand out, among those that passed and make something smaller; `share` is known by then."""
    passed = [outcome for outcome in outcomes if outcome.recipe is not None and outcome.passed and _smaller(outcome)]
    smallest = min(passed, key=lambda outcome: outcome.weights_bytes, default=None)
    scored = [(outcome, kl) for outcome in passed if (kl := divergence(outcome)) is not None]
    closest = min(scored, key=lambda pair: pair[1], default=None)
    unbeaten = [
        str(outcome.recipe)
        for outcome, kl in scored
        if not any(_beats((other.weights_bytes, less), (outcome.weights_bytes, kl)) for other, less in scored)
    ]
    return Standing(
        smallest=None if smallest is None else smallest.recipe,
        closest=None if closest is None else closest[0].recipe,
        unbeaten=tuple(unbeaten),
    )


def _beats(first: tuple[int, float], second: tuple[int, float]) -> bool:
    """Whether size and KL divergence of the first are as good, and one is better by what counts; or both are better."""
    (size, kl), (other_size, other_kl) = first, second
    as_good = size <= _AS_SMALL * other_size and kl <= _AS_CLOSE * other_kl
    better = other_size > _AS_SMALL * size or other_kl > _AS_CLOSE * kl
    return (as_good and better) or (size < other_size and kl < other_kl)


def _smaller(outcome: Outcome) -> bool:
    return outcome.share is None or outcome.share < 1


def divergence(outcome: Outcome) -> float | None:
    """Its KL divergence from the model, nats per token."""
    return None if outcome.quality is None else outcome.quality.kl


def ordered(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """As people are shown them: the unquantized one, then from large to small, then those that failed."""
    return sorted(
        outcomes, key=lambda outcome: (not outcome.passed, outcome.recipe is not None, -outcome.weights_bytes)
    )


def remarks(
    quality: Quality,
    *,
    vocabulary: int,
    calibrated: bool,
    built_in: bool,
    dtype: str,
    kv_cache: str | None,
    deferred: Sequence[str],
) -> Iterator[str]:
    """How to read the figures, and what they do not say.

    Args:
        quality: Of any outcome.
        vocabulary: Tokens the model knows.
        calibrated: Whether a recipe was calibrated.
        built_in: Whether the text that was scored is also the one they were calibrated on.
        dtype: Of what is not quantized.
        kv_cache: Of every recipe.
        deferred: Recipes whose weights are quantized by trtllm-build.
    """
    yield (
        f"{quality.tokens} tokens of {quality.text} were scored: so few make perplexity noisy, and one below the "
        "model's is chance, not gain. KL divergence compares whole distributions, and is steadier"
    )
    if quality.perplexity_model > vocabulary / 2:
        yield (
            f"the model's own perplexity, {quality.perplexity_model:.4g} with a vocabulary of {vocabulary}, is that of "
            "guessing: its weights look random, and these figures say nothing of a trained model"
        )
    if calibrated and built_in:
        yield (
            "calibrated and scored on the same built-in text, which flatters calibrated recipes: give --calib-dataset "
            "and --eval-text texts like yours"
        )
    if kv_cache is not None:
        yield f"every recipe has a KV cache of {kv_cache}, which costs accuracy too; the unquantized checkpoint has not"
    if len(deferred) > 0:
        yield (
            f"{' and '.join(deferred)}: the checkpoint holds {dtype}, and trtllm-build quantizes it; the size is that "
            "of the quantized weights"
        )
    yield "speed is not measured: it needs the GPU"


def size_text(size_bytes: float) -> str:
    """Bytes in words."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def name_of(outcome: Outcome, report: RecipeReport) -> str:
    """Its recipe, or the element type of the unquantized checkpoint."""
    return report.dtype if outcome.recipe is None else outcome.recipe


def change(outcome: Outcome) -> float | None:
    """Its perplexity beside the model's: 0.01 is one percent more."""
    quality = outcome.quality
    return None if quality is None else quality.perplexity / quality.perplexity_model - 1


def change_text(outcome: Outcome) -> str:
    """The same in words: "+1.2%"; "" where nothing was scored."""
    share = change(outcome)
    if share is None:
        return ""
    return f"{share:+.1e}" if share >= 10 else f"{100 * share:+.2f}%" if abs(share) < 1 else f"{100 * share:+.0f}%"


def cells(outcome: Outcome, report: RecipeReport) -> Mapping[str, str]:
    """What a table says of an outcome that passed, by column."""
    quality = outcome.quality
    return {
        "recipe": name_of(outcome, report),
        "size": size_text(outcome.weights_bytes),
        "share": "" if outcome.share is None else f"{outcome.share:.0%}",
        "perplexity": "" if quality is None else f"{quality.perplexity:#.5g}",
        "change": change_text(outcome),
        "KL": "" if quality is None or quality.kl is None else f"{quality.kl:.1e}",
        "top-1": "" if quality is None else f"{quality.top1:.1%}",
        "error": "" if quality is None else f"{quality.largest_error:.2g}",
        "GPU": f"SM{outcome.oldest_gpu}",
        "release": outcome.first_release,
        "data": "yes" if outcome.calibrated else "no",
    }


def standing_lines(report: RecipeReport) -> Iterator[tuple[str, str]]:
    """What stands out: a word, and a sentence."""
    by_name = {outcome.recipe: outcome for outcome in report.outcomes}
    found = report.standing
    if found.smallest is not None:
        outcome = by_name[found.smallest]
        of = "" if outcome.share is None else f", {outcome.share:.0%} of {report.dtype}"
        yield "smallest", f"{found.smallest}: {size_text(outcome.weights_bytes)}{of}"
    if found.closest is not None:
        outcome = by_name[found.closest]
        assert outcome.quality is not None
        top1 = f"same top-1 token {outcome.quality.top1:.1%}"
        yield "closest", f"{found.closest}: KL {outcome.quality.kl:.1e} nats/token from the model, {top1}"
    if len(found.unbeaten) > 0:
        yield (
            "choose of",
            f"{', '.join(found.unbeaten)}: none of the others is as small and as close",
        )


_HEADS: Mapping[str, str] = MappingProxyType(
    {
        "recipe": "recipe",
        "size": "weights",
        "share": "of {dtype}",
        "perplexity": "perplexity",
        "change": "change",
        "KL": "KL, nats/token",
        "top-1": "same top-1",
        "error": "largest error of a logit",
        "GPU": "oldest GPU",
        "release": "first release",
        "data": "needs data",
    }
)


def markdown(report: RecipeReport, plot: str | None) -> str:
    """The report as a page; `plot` is the file of the plot, where there is one."""
    cache = report.dtype if report.kv_cache is None else report.kv_cache
    beside = "" if report.perplexity is None else f" The model itself, in float32: perplexity {report.perplexity:.5g}."
    lines = [
        f"# Quantization of {report.model}",
        "",
        f"{report.architecture}, {report.dtype}, KV cache {cache}, for TensorRT-LLM "
        f"{report.trtllm_version}. Every row is a checkpoint that was built and run.{beside}",
        "",
    ]
    heads = [head.format(dtype=report.dtype) for head in _HEADS.values()]
    rows = [heads, ["---"] + ["---:"] * 7 + ["---"] * 3]
    for outcome in ordered(report.outcomes):
        if outcome.passed:
            rows.append(list(cells(outcome, report).values()))
        else:
            rows.append([name_of(outcome, report), "FAILED"] + [""] * (len(heads) - 2))
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines.append("")
    lines += [f"- {word}: {text}" for word, text in standing_lines(report)]
    lines += [f"- {name_of(each, report)} FAILED: {each.problems[0]}" for each in report.outcomes if not each.passed]
    lines += [f"- {name_of(each, report)}: {note}" for each in report.outcomes for note in each.notes if each.passed]
    lines += [f"- not made: {left.recipe}: {left.reason}" for left in report.left_out]
    lines.append("")
    if plot is not None:
        lines += [f"![KL divergence against size]({plot})", ""]
    lines += [f"{remark[0].upper()}{remark[1:]}.\n" for remark in report.remarks]
    if report.calibration is not None:
        data = report.calibration
        lines.append(f"Calibrated on {data.samples} samples of {data.tokens} tokens of {data.data}.\n")
    return "\n".join(lines)
