"""What a person, or a program, is told of a Neuron export: text and JSON, made of data alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcompile.packaging.manifest import Comparison, Manifest, Neuron, Validation
    from llmcompile.pipeline.job import Report
    from llmcompile.pipeline.neuron import Export, Lowering

Size = Callable[[float], str]
"""Bytes in words."""


def plan_lines(export: Export, size: Size) -> list[str]:
    """The plan of an export."""
    needs = export.resources
    return [
        f"{export.located.label}: {_model(export)} · {export.task}",
        f"lower  {', '.join(export.graphs)} of static shapes: {_shapes(export)}"
        if export.via == "xla"
        else f"export by optimum-neuron, in {export.sdk.python if export.sdk is not None else 'no interpreter'}",
        *_weights(export, size),
        f"build  {_build(export)}",
        f"memory about {size(needs.memory)} to {'lower and write' if export.via == 'xla' else 'compile, or more'}"
        + (f", about {size(needs.memory_validation)} to validate" if needs.memory_validation > 0 else "")
        + f", of {size(needs.memory_available)}; disk {size(needs.disk)} of {size(needs.disk_available)} free",
        *(f"note   {note}" for note in export.notes),
    ]


def _model(export: Export) -> str:
    if export.job is not None:
        sizes = export.job.dims.sizes
        return f"{export.job.architecture.name} · {sizes['layers']} layers · hidden {sizes['hidden']}"
    config = export.config
    words = [str(config.get("model_type", config.get("_class_name", "unknown")))]
    for key, word in (("num_hidden_layers", "layers"), ("hidden_size", "hidden")):
        if isinstance(config.get(key), int):
            words.append(f"{config[key]} layers" if word == "layers" else f"hidden {config[key]}")
    return " · ".join(words)


def _shapes(export: Export) -> str:
    given = ", ".join(f"{name} {value}" for name, value in export.options.shapes.given().items())
    return given if given != "" else "none given"


def _weights(export: Export, size: Size) -> Iterator[str]:
    if export.job is None or len(export.job.layout.refusals) > 0:
        return
    plan, cores = export.job.plan, export.options.num_cores
    yield (
        f"write  weights/: {size(plan.output_bytes)} of {export.job.layout.dtype.name} for {cores} "
        f"core{'' if cores == 1 else 's'}; {size(export.core_bytes)} a core with its caches, layout {export.layout}"
    )


def _build(export: Export) -> str:
    if export.via == "optimum":
        return f"for {export.target}, layout {export.layout}"
    if export.compiler is None:
        if export.options.stop_after is not None:
            return f"nothing, by --stop-after {export.options.stop_after}; compile.sh for {export.target}"
        return "no neuronx-cc found"
    return f"with neuronx-cc {export.compiler.version} for {export.target}"


def plan_json(export: Export) -> dict[str, Any]:
    """The plan of an export, for programs."""
    needs, job = export.resources, export.job
    return {
        "model": export.located.label,
        "task": export.task,
        "via": export.via,
        "layout": export.layout,
        "target": export.target,
        "ranks": export.options.num_cores,
        "options": dict(export.recorded),
        "graphs": list(export.graphs) if export.via == "xla" else [],
        "shapes": export.options.shapes.given(),
        "architecture": None if job is None else job.architecture.name,
        "dtype": None if job is None else job.layout.dtype.name,
        "files": {} if job is None else {job.layout.folder + file: count for file, count in job.plan.files.items()},
        "output_bytes": None if job is None else job.plan.output_bytes,
        "core_bytes": export.core_bytes,
        "compiler": None if export.compiler is None else export.compiler.version,
        "memory_bytes": needs.memory,
        "memory_validation_bytes": needs.memory_validation,
        "memory_available_bytes": needs.memory_available,
        "disk_bytes": needs.disk,
        "disk_available_bytes": needs.disk_available,
        "notes": list(export.notes),
        "problems": [
            {
                "category": error.category,
                "subject": item.subject,
                "found": item.found,
                "expected": item.expected,
                "hint": item.hint,
            }
            for error in export.errors
            for item in error.problems
        ],
    }


def lowering_lines(lowering: Lowering, size: Size) -> list[str]:
    """The plan of a build that starts at lowered graphs."""
    neuron = lowering.neuron
    return [
        f"{lowering.manifest.source.model}: {lowering.manifest.model.architecture} · {neuron.task}, lowered",
        f"read   {lowering.folder}: {', '.join(graph.name for graph in neuron.graphs)} for {neuron.ranks} "
        f"core{'' if neuron.ranks == 1 else 's'}; at most {size(max(g.core_bytes for g in neuron.graphs))} a core",
        f"build  the NEFFs beside the graphs are taken as they are, layout {neuron.layout}"
        if lowering.compiled
        else "build  no neuronx-cc found"
        if lowering.compiler is None
        else f"build  with neuronx-cc {lowering.compiler.version} for {neuron.target}, layout {neuron.layout}",
    ]


def kind(neuron: Neuron) -> str:
    """What the artifact is good for."""
    if neuron.status == "lowered":
        return "lowered and ready for neuronx-cc"
    return f"compiled for {neuron.target}"


def rows(manifest: Manifest, report: Report, took: str, size: Size) -> list[tuple[str, str]]:
    """What became of it: name and text of each line."""
    neuron = manifest.neuron
    assert neuron is not None
    files, total = len(manifest.files) + 1, sum(record.bytes for record in manifest.files)
    cores = f"{neuron.ranks} core{'' if neuron.ranks == 1 else 's'}"
    return [
        ("model", f"{manifest.source.model} · {manifest.model.architecture} · {neuron.task}"),
        ("artifact", f"layout {neuron.layout} · {cores} of {neuron.target} · {files} files, {size(total)}"),
        ("graphs", _graphs(neuron, size)),
        ("compiler", _compiler(neuron)),
        ("validated", _validated(manifest.validation)),
        ("casts", _casts(manifest.validation)),
        ("took", took),
        *_next(neuron, str(report.output)),
    ]


def _validated(validation: Validation | None) -> str:
    """The worst error of each output that was proved, and over how many runs."""
    if validation is None:
        return "no (--no-validate)"
    proved = [item for item in validation.comparisons if _CAST not in item.input]
    if len(proved) == 0:
        return "nothing was compared"
    runs = len({item.input for item in proved})
    return f"{_worst(proved)}, in {runs} run{'' if runs == 1 else 's'}"


def _casts(validation: Validation | None) -> str:
    """What the compiler's casts will cost, as it was measured."""
    cast = [item for item in (() if validation is None else validation.comparisons) if _CAST in item.input]
    if len(cast) == 0:
        return ""
    flags = cast[0].input[cast[0].input.index(_CAST) :].partition(" will")[0]
    return f"{flags} moves {_worst(cast)}"


_CAST = "--auto-cast"
"""In the input of a comparison that predicts what the compiler's casts will cost."""


def _worst(comparisons: Sequence[Comparison]) -> str:
    """The largest error of each output, beside the limit it was held to."""
    texts = []
    for output in dict.fromkeys(item.output for item in comparisons):
        measured = [item for item in comparisons if item.output == output and _is_number(item.details.get("max_abs"))]
        if len(measured) == 0:
            texts.append(output)
            continue
        worst = max(measured, key=lambda item: item.details["max_abs"] / max(item.details["atol"], 1e-30))
        error, limit = worst.details["max_abs"], worst.details["atol"]
        texts.append(f"{output} equal" if error == 0 else f"{output} {error:.1e} (limit {limit:.1e})")
    return "; ".join(texts)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _graphs(neuron: Neuron, size: Size) -> str:
    if len(neuron.graphs) == 0:
        return ""
    names = ", ".join(graph.name for graph in neuron.graphs)
    return f"{names}; at most {size(max(graph.core_bytes for graph in neuron.graphs))} a core"


def _compiler(neuron: Neuron) -> str:
    if neuron.compiler is None:
        return ""
    cached = sum(graph.cached is True for graph in neuron.graphs)
    found = f", {cached} of {len(neuron.graphs)} from the cache" if cached > 0 else ""
    return f"{' '.join(['neuronx-cc', neuron.compiler, *neuron.flags])}{found}"


def _next(neuron: Neuron, output: str) -> Iterator[tuple[str, str]]:
    folder = shlex.quote(output)
    if neuron.status == "compiled":
        yield "next", f"llmcompile verify {folder}"
        return
    compiled = shlex.quote(f"{output.rstrip('/')}-compiled")
    yield "next", f"where neuronx-cc is: llmcompile export neuron --from-lowered {folder} {compiled}"
    yield "or", f"without llmcompile: sh {shlex.quote(output + '/compile.sh')}"


def task_lines(model: str, tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a model and the ways that lead there."""
    if len(tasks) == 0:
        return [f"{model}: no task that Neuron runs"]
    ways = {"xla": "our own lowering", "optimum": "optimum-neuron"}
    width = max(len(task) for task in tasks)
    return [f"{task:<{width}}  {', '.join(ways[way] for way in found)}" for task, found in tasks.items()]
