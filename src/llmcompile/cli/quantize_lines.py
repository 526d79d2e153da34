"""What a person, or a program, is told of recipes side by side: text and JSON, made of data alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmcompile.exporters.trtllm.options import TrtllmOptions

if TYPE_CHECKING:
    from llmcompile.exporters.trtllm.comparison import QuantizeOptions
    from llmcompile.packaging.recipe_report import RecipeReport
    from llmcompile.pipeline.quantizing import Candidate, Compared, Comparison

Size = Callable[[float], str]
"""Bytes in words."""

_COLUMNS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "recipe": ("", "recipe"),
        "size": ("", "weights"),
        "share": ("of", "{dtype}"),
        "perplexity": ("perplex-", "ity"),
        "change": ("", "change"),
        "KL": ("KL,", "nats"),
        "top-1": ("same", "top-1"),
        "error": ("logit", "error"),
        "GPU": ("from", "GPU"),
        "took": ("", "took"),
    }
)
"""Columns of the table, 80 characters in all, with two lines of heads each."""
_SHORT = MappingProxyType({"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"})


def plan_lines(comparison: Comparison, size: Size) -> list[str]:
    """The plan: what is built, and what each build takes."""
    first = comparison.candidates[0].job if len(comparison.candidates) > 0 else None
    if first is None:
        return [f"{comparison.located.label}: no recipe"]
    recipes = [candidate for candidate in comparison.candidates if candidate.recipe is not None]
    build = comparison.options.build
    lines = [
        f"{comparison.located.label}: {first.architecture.name}, {first.dims.sizes['layers']} layers, "
        f"{len(recipes)} recipe{'' if len(recipes) == 1 else 's'}, for TensorRT-LLM "
        f"{comparison.options.trtllm_version}",
        *(_aligned([("", "weights", "calibration", "memory"), *(_work(each, size) for each in comparison.candidates)])),
        *(f"not made: {left.recipe}: {left.reason}" for left in comparison.left_out),
    ]
    kept = "checkpoints are kept" if comparison.options.keep else "one checkpoint at a time"
    needs = first.resources
    lines.append(
        f"memory of {size(needs.memory_available)}; disk {size(comparison.disk)}, {kept}, of "
        f"{size(needs.disk_available)} free"
    )
    drawn = ", quantize.svg and quantize.png" if comparison.options.plot else ""
    lines.append(f"write  {build.output}: quantize.json, quantize.md{drawn}")
    return lines


def _work(candidate: Candidate, size: Size) -> tuple[str, ...]:
    job = candidate.job
    needs, calibration = job.resources, job.calibration
    most = max(needs.memory, needs.memory_validation, needs.memory_calibration)
    work = "none"
    if calibration is not None:
        data = f"{calibration.samples} x {calibration.tokens} tokens"
        work = f"{data}, {calibration.operations / 1e12:.2g} x 10^12 operations"
    return candidate.name, size(candidate.weights_bytes), work, f"about {size(most)}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as columns: the second to the right, the others to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if n == 1 else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()


def plan_json(comparison: Comparison, problems: list[dict[str, str]]) -> dict[str, Any]:
    """The plan, for programs."""
    return {
        "model": comparison.located.label,
        "recipes": [_candidate_json(candidate) for candidate in comparison.candidates],
        "left_out": [left.model_dump(mode="json") for left in comparison.left_out],
        "disk_bytes": comparison.disk,
        "problems": problems,
    }


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    needs, calibration = candidate.job.resources, candidate.job.calibration
    return {
        "recipe": candidate.recipe,
        "checkpoint_bytes": candidate.job.plan.output_bytes,
        "weights_bytes": candidate.weights_bytes,
        "memory_bytes": needs.memory,
        "memory_validation_bytes": needs.memory_validation,
        "memory_calibration_bytes": needs.memory_calibration,
        "calibration": None
        if calibration is None
        else {
            "samples": calibration.samples,
            "tokens": calibration.tokens,
            "operations": calibration.operations,
        },
    }


def result_json(compared: Compared) -> dict[str, Any]:
    """The report, and how long each recipe took."""
    return {**compared.report.model_dump(mode="json"), "seconds": dict(compared.seconds)}


def table_lines(compared: Compared) -> list[str]:
    """The table: two lines of heads, a rule, a line for each checkpoint."""
    from llmcompile.packaging.recipe_report import cells, name_of, ordered

    report = compared.report
    passed = [outcome for outcome in ordered(report.outcomes) if outcome.passed]
    rows = [[head[line].format(dtype=_SHORT[report.dtype]) for head in _COLUMNS.values()] for line in (0, 1)]
    for outcome in passed:
        found = {**cells(outcome, report), "took": _seconds(compared, outcome.recipe)}
        rows.append([found[column] for column in _COLUMNS])
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(2, "─" * max(len(line) for line in lines))
    failed = [outcome for outcome in ordered(report.outcomes) if not outcome.passed]
    lines += [f"{name_of(outcome, report).ljust(widths[0])} FAILED: {outcome.problems[0]}" for outcome in failed]
    return lines


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """The first column to the left, the others to the right."""
    first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    return " ".join([row[0].ljust(len(first)), *rest]).rstrip()


def _seconds(compared: Compared, recipe: str | None) -> str:
    spent = compared.seconds.get("unquantized" if recipe is None else recipe)
    if spent is None:
        return ""
    return f"{spent:.1f}s" if spent < 100 else f"{spent / 60:.0f}min" if spent < 6000 else f"{spent / 3600:.1f}h"


def rows(report: RecipeReport, options: QuantizeOptions) -> Iterator[tuple[str, str]]:
    """What stands out, what was left out, how to read it, what to type next."""
    from llmcompile.packaging.recipe_report import standing_lines

    if report.perplexity is not None:
        yield "model", f"perplexity {report.perplexity:.5g} in float32, on {report.tokens} tokens of {report.text}"
    yield from standing_lines(report)
    for left in report.left_out:
        yield "not made", f"{left.recipe}: {left.reason}"
    for remark in report.remarks:
        yield "note", remark
    page = shlex.quote(f"{options.build.output}/quantize.md")
    standing = report.standing
    chosen = standing.closest if standing.closest in standing.unbeaten else next(iter(standing.unbeaten), None)
    if chosen is None:
        yield "next", f"read {page}"
        return
    calibrated = next(outcome.calibrated for outcome in report.outcomes if outcome.recipe == chosen)
    yield "next", f"read {page}; then, say:"
    yield "", _build_command(options, chosen, calibrated=calibrated)


def _build_command(options: QuantizeOptions, recipe: str, *, calibrated: bool) -> str:
    """The command that builds a recipe as it was measured, beside the report."""
    made = options.build_options(recipe, options.build, calibrated=calibrated)
    given = {
        "--quantization": recipe,
        "--dtype": made.dtype,
        "--kv-cache": made.kv_cache,
        "--group-size": made.group_size if made.group_size != TrtllmOptions.group_size else None,
        "--calib-dataset": made.calib_dataset,
        "--trtllm-version": made.trtllm_version if made.trtllm_version != TrtllmOptions.trtllm_version else None,
    }
    if made.calib_dataset is not None:
        given |= {
            "--calib-column": made.calib_column if made.calib_column != TrtllmOptions.calib_column else None,
            "--calib-size": made.calib_size if made.calib_size != TrtllmOptions.calib_size else None,
            "--calib-seq-len": made.calib_seq_len if made.calib_seq_len != TrtllmOptions.calib_seq_len else None,
        }
    if made.calibrator != TrtllmOptions.calibrator:
        given["--calibrator"] = made.calibrator
    words = ["llmcompile", "build", "trtllm", "--model", options.build.model]
    words += [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    words += ["--target", "llmapi"] if made.target == "llmapi" else ["--stop-after", "checkpoint"]
    return shlex.join([*words, f"{options.build.output}-{recipe}"])
