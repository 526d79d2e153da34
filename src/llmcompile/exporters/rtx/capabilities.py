"""Which element types each GPU has, as the builder says, so that it need not be asked.

Source: tensorrt_rtx 1.7.1.116, asked on a machine without a GPU: "Cannot compile for target(s) sm86, because the model
contains HW-specific datatypes: fp8_e4m3"; the same for int4 and bf16 on sm75, and "FP32 GEMM is not supported" there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from llmcompile.errors import Problem
from llmcompile.exporters.rtx.options import CAPABILITIES, DEFAULT_CAPABILITIES

LACKS: Mapping[str, frozenset[int]] = MappingProxyType(
    {
        "fp32": frozenset({75}),
        "bf16": frozenset({75}),
        "int4": frozenset({75}),
        "fp8": frozenset({75, 80, 86}),
    }
)
"""Element type -> compute capabilities that the builder refuses it for."""
_INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "fp32": "--dtype fp16",
        "bf16": "--dtype fp16",
        "int4": "--quantization int8",
        "fp8": "--quantization int8",
    }
)


def chosen(asked: tuple[int, ...], dtype: str, quantization: str | None) -> tuple[int, ...]:
    """What an engine is built for: what was asked, or the default without those that lack a type; ascending."""
    if len(asked) > 0:
        return tuple(sorted(set(asked)))
    lacking = LACKS.get(dtype, frozenset()) | LACKS.get(str(quantization), frozenset())
    return tuple(capability for capability in DEFAULT_CAPABILITIES if capability not in lacking)


def refusals(capabilities: tuple[int, ...], dtype: str, quantization: str | None) -> Iterator[Problem]:
    """Why an engine of these types cannot be built for some of the capabilities."""
    for flag, kind in (("--dtype", dtype), ("--quantization", quantization)):
        lacking = [capability for capability in capabilities if capability in LACKS.get(str(kind), frozenset())]
        for capability in lacking:
            yield Problem(
                "--compute-capability",
                f"{capability} with {flag} {kind}, which {CAPABILITIES[capability].partition(':')[0]} "
                f"(sm{capability}) {'has no kernels' if kind == 'fp32' else 'has no arithmetic'} for",
                f"one of {', '.join(str(one) for one in CAPABILITIES if one not in LACKS[str(kind)])}",
                f"{_INSTEAD[str(kind)]}, or leave --compute-capability {capability} out",
            )
