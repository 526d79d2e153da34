"""What a person, or a program, is told of a build for TensorRT for RTX: text and JSON, made of data alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcompile.packaging.manifest import Comparison, Manifest, Rtx, Validation
    from llmcompile.pipeline.job import Report
    from llmcompile.pipeline.rtx import Build

Size = Callable[[float], str]
"""Bytes in words."""


def plan_lines(build: Build, size: Size) -> list[str]:
    """The plan of a build."""
    needs = build.resources
    return [
        f"{build.located.label}: {_model(build)} · {build.task}",
        f"export onnx/: {', '.join(build.profiles)}, about {size(build.onnx_bytes)} of {_elements(build)}, "
        f"opset {build.options.opset}",
        *(f"shapes {line}" for line in _shapes(build)),
        f"build  {_build(build)}",
        *(f"run    {line}" for line in _run(build)),
        f"memory about {size(needs.memory)} to export, about {size(needs.memory_validation)} to validate"
        + (f", about {size(build.builder_bytes)} to build" if build.builder_bytes > 0 else "")
        + f", of {size(needs.memory_available)}; disk {size(needs.disk)} of {size(needs.disk_available)} free",
        *(f"note   {note}" for note in build.notes),
    ]


def _model(build: Build) -> str:
    config = build.config
    words = [str(config.get("model_type", "unknown"))]
    for keys, word in (
        (("num_hidden_layers", "n_layer", "num_layers", "n_layers"), "{} layers"),
        (("hidden_size", "n_embd", "d_model", "dim"), "hidden {}"),
    ):
        found = next((config[key] for key in keys if isinstance(config.get(key), int)), None)
        if found is not None:
            words.append(word.format(found))
    return " · ".join(words)


def _elements(build: Build) -> str:
    quantized = build.options.quantization
    return build.dtype if quantized is None else f"{build.dtype} with {quantized} weights"


def _shapes(build: Build) -> Iterator[str]:
    for graph, profiles in build.profiles.items():
        for profile in profiles:
            sizes = ", ".join(
                f"{name} {each.most if each.least == each.most else f'{each.least} to {each.most} (best {each.best})'}"
                for name, each in profile.sizes.items()
                if name != "choices" or build.task == "multiple-choice"
            )
            yield f"{graph}, {profile.name}: {sizes}"


def _build(build: Build) -> str:
    if build.options.stop_after is not None:
        return f"nothing, by --stop-after {build.options.stop_after}"
    if build.builder is None:
        return "no TensorRT for RTX that works"
    targets = ", ".join(f"sm{each}" for each in build.capabilities)
    return f"engine/ with TensorRT for RTX {build.builder.version} for {targets}"


def _run(build: Build) -> Iterator[str]:
    gpu = None if build.machine is None else build.machine.fitting(build.capabilities)
    if gpu is not None:
        yield f"the engine on {gpu}, beside ONNX Runtime"


def plan_json(build: Build) -> dict[str, Any]:
    """The plan of a build, for programs."""
    needs = build.resources
    return {
        "model": build.located.label,
        "task": build.task,
        "dtype": build.dtype,
        "quantization": build.options.quantization,
        "options": dict(build.recorded),
        "profiles": {
            graph: {
                profile.name: {name: [each.least, each.best, each.most] for name, each in profile.sizes.items()}
                for profile in profiles
            }
            for graph, profiles in build.profiles.items()
        },
        "compute_capabilities": list(build.capabilities),
        "builder": None if build.builder is None else build.builder.version,
        "gpus": [str(gpu) for gpu in build.machine.gpus] if build.machine is not None else [],
        "onnx_bytes": build.onnx_bytes,
        "memory_bytes": needs.memory,
        "memory_validation_bytes": needs.memory_validation,
        "memory_builder_bytes": build.builder_bytes,
        "memory_available_bytes": needs.memory_available,
        "disk_bytes": needs.disk,
        "disk_available_bytes": needs.disk_available,
        "notes": list(build.notes),
        "problems": [
            {
                "category": error.category,
                "subject": item.subject,
                "found": item.found,
                "expected": item.expected,
                "hint": item.hint,
            }
            for error in build.errors
            for item in error.problems
        ],
    }


def kind(rtx: Rtx) -> str:
    """What the artifact is good for."""
    if rtx.status == "onnx":
        return "a validated ONNX model"
    targets = ", ".join(f"sm{each}" for each in rtx.compute_capabilities)
    return f"built for TensorRT for RTX {rtx.tensorrt_rtx} on {targets}, {_executed(rtx)}"


def _executed(rtx: Rtx) -> str:
    done = rtx.execution
    return (
        "not executed" if done is None or done.gpu is None else f"executed on {done.gpu} (sm{done.compute_capability})"
    )


def rows(manifest: Manifest, report: Report, took: str, size: Size) -> list[tuple[str, str]]:
    """What became of it: name and text of each line."""
    rtx = manifest.rtx
    assert rtx is not None
    files, total = len(manifest.files) + 1, sum(record.bytes for record in manifest.files)
    listed = {record.path: record.bytes for record in manifest.files}
    quantized = "" if rtx.quantization is None else f" with {len(rtx.quantized)} weights of {rtx.quantization}"
    graphs = [
        " and ".join(f"{path} {size(_bytes(listed, path))}" for path in (graph.onnx, graph.engine) if path is not None)
        for graph in rtx.graphs
    ]
    return [
        ("model", f"{manifest.source.model} · {manifest.model.architecture} · {rtx.task}"),
        ("artifact", f"{rtx.dtype}{quantized} · opset {rtx.opset} · {files} files, {size(total)}"),
        ("graphs", "; ".join(graphs)),
        ("validated", _validated(manifest.validation)),
        *(("executed", line) for line in _ran(rtx, manifest.validation)),
        ("took", took),
        ("next", f"llmcompile verify {shlex.quote(str(report.output))}"),
    ]


def _bytes(listed: dict[str, int], path: str) -> int:
    return listed.get(path, 0) + listed.get(f"{path}.data", 0)


def _validated(validation: Validation | None) -> str:
    """The worst error of each output beside its limit, where that decides, and how far it is from float32."""
    if validation is None or len(validation.comparisons) == 0:
        return "nothing was compared"
    comparisons = [item for item in validation.comparisons if item.reference != _ONNX]
    changed = [item for item in comparisons if item.reference != _MODEL]
    proved = [item for item in (changed if len(changed) > 0 else comparisons) if "cosine" not in item.output]
    runs = len({item.input for item in proved})
    text = f"ONNX {_worst(proved)}, in {runs} run{'' if runs == 1 else 's'}"
    whole = [
        item
        for item in comparisons
        if item.reference == _MODEL and "cosine" not in item.output and _is_number(item.details.get("max_abs"))
    ]
    if len(changed) > 0 and len(whole) > 0:
        text += f"; {max(item.details['max_abs'] for item in whole):.1e} from float32"
    cosines = [item.details["max_abs"] for item in comparisons if "cosine" in item.output]
    if len(cosines) > 0:
        text += f", cosine of embeddings {1 - max(cosines):.5f}"
    return text


def _ran(rtx: Rtx, validation: Validation | None) -> Iterator[str]:
    """How far engines that ran are from the ONNX model."""
    compared = [] if validation is None else [item for item in validation.comparisons if item.reference == _ONNX]
    if rtx.execution is not None and rtx.execution.gpu is not None:
        runs = len({item.input for item in compared})
        yield f"{_worst(compared)} from the ONNX model, in {runs} run{'' if runs == 1 else 's'} on {rtx.execution.gpu}"


_MODEL = "the model in float32"
_ONNX = "the ONNX model, by ONNX Runtime"


def _worst(comparisons: Sequence[Comparison]) -> str:
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
