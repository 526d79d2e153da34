"""What `llmcompile build tensorrt-rtx` may be asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from llmcompile.errors import OptionsError, Problem, collected
from llmcompile.exporters.options import BuildOptions

ENCODER_TASKS = (
    "feature-extraction",
    "fill-mask",
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
)
DECODER_TASK = "text-generation"
SEQ2SEQ_TASK = "text2text-generation"
TASKS = (*ENCODER_TASKS, DECODER_TASK, SEQ2SEQ_TASK)
DTYPES = ("fp32", "fp16", "bf16")
QUANTIZATIONS = ("int8", "int4", "fp8")
CAPABILITIES: Mapping[int, str] = MappingProxyType(
    {
        75: "Turing: GeForce RTX 20, T4",
        80: "Ampere: A100, A30",
        86: "Ampere: GeForce RTX 30, A10, A40",
        89: "Ada: GeForce RTX 40, L4, L40S",
        120: "Blackwell: GeForce RTX 50, RTX PRO 6000",
        121: "Blackwell: GB10",
    }
)
"""What the builder compiles for. Source: tensorrt_rtx 1.7.1 (ComputeCapability), and the support matrix of TensorRT for
RTX, which lists 7.5, 8.6, 8.9 and 12.0; docs/formats/tensorrt-rtx.md."""
_ELSEWHERE: Mapping[int, str] = MappingProxyType(
    {
        87: "Jetson Orin",
        90: "H100 and H200",
        100: "B200",
        103: "B300",
    }
)
"""Data-centre and embedded GPUs, which TensorRT for RTX is not made for."""
DEFAULT_CAPABILITIES = (86, 89, 120)
OPSETS = (21, 23)


@dataclass(frozen=True)
class Range:
    """A size at run time: the least, the one to be fastest at, and the most."""

    least: int
    best: int
    most: int

    def __str__(self) -> str:
        return f"{self.least},{self.best},{self.most}"


def as_range(flag: str, text: str) -> Range:
    """A size as it is written: "1,8,32", or "8" for 1 to 8, best at 8.

    Raises:
        OptionsError: It is neither.
    """
    words = [word.strip() for word in text.split(",")]
    hint = f"{flag} 1,8,32"
    if len(words) not in (1, 3) or not all(word.isdecimal() for word in words):
        raise OptionsError(flag, text, "MIN,OPT,MAX, or one number that is the most", hint)
    numbers = [int(word) for word in words]
    found = Range(1, numbers[0], numbers[0]) if len(numbers) == 1 else Range(*numbers)
    if not 1 <= found.least <= found.best <= found.most:
        raise OptionsError(flag, text, "1 <= MIN <= OPT <= MAX", hint)
    return found


@dataclass(frozen=True, kw_only=True)
class RtxOptions:
    """Options of the backend for TensorRT for RTX.

    Attributes:
        build: Those every build command has.
        task: One of `TASKS`; None to infer it from config.json.
        dtype: One of `DTYPES`, of weights and arithmetic; None for the checkpoint's own.
        quantization: One of `QUANTIZATIONS` for the weights of linear layers; None for none.
        batch_size: Sequences at once.
        sequence_length: Tokens; of a decoder, prompt and answer together; None for what the model has positions for,
            at most 512, of a decoder 2048.
        target_length: Tokens an encoder-decoder's decoder may write; None for as many as `sequence_length` has.
        num_choices: Answers of multiple-choice.
        compute_capabilities: Keys of `CAPABILITIES` the engine is for; () for `DEFAULT_CAPABILITIES`, or those of them
            that the element types allow.
        all_logits: Whether a decoder gives logits at every position, rather than at the last.
        opset: Version of ONNX's operators, one of `OPSETS`.
        stop_after: "onnx" to stop before the engine is built.
        keep_onnx: Whether the artifact keeps the ONNX model beside the engine.
        weight_streaming: Whether the engine may leave weights in host memory at run time.
        build_timeout_seconds: Longest time for one engine; None for no limit.
    """

    backend: ClassVar[Literal["tensorrt-rtx"]] = "tensorrt-rtx"

    build: BuildOptions
    task: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    batch_size: Range = Range(1, 1, 8)
    sequence_length: Range | None = None
    target_length: Range | None = None
    num_choices: int = 4
    compute_capabilities: tuple[int, ...] = ()
    all_logits: bool = False
    opset: int = 21
    stop_after: str | None = None
    keep_onnx: bool = True
    weight_streaming: bool = False
    build_timeout_seconds: float | None = None

    def __post_init__(self) -> None:
        problems = list(_contradictions(self))
        if len(problems) > 0:
            raise collected(OptionsError, problems)


def _contradictions(options: RtxOptions) -> Iterator[Problem]:
    words = (
        ("--task", options.task, TASKS),
        ("--dtype", options.dtype, DTYPES),
        ("--quantization", options.quantization, QUANTIZATIONS),
        ("--stop-after", options.stop_after, ("onnx",)),
    )
    for flag, value, allowed in words:
        if value is not None and value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.5)
            yield Problem(flag, value, f"one of {', '.join(allowed)}", f"{flag} {[*near, *allowed][0]}")
    for capability in options.compute_capabilities:
        if capability not in CAPABILITIES:
            yield Problem("--compute-capability", *_unknown(capability))
    if options.opset not in OPSETS:
        yield Problem("--opset", str(options.opset), f"one of {', '.join(map(str, OPSETS))}", "--opset 21")
    if options.stop_after is not None and not options.keep_onnx:
        yield Problem("--no-keep-onnx", "with --stop-after onnx", "one of them", "drop --no-keep-onnx")
    if options.num_choices < 1:
        yield Problem("--num-choices", str(options.num_choices), "1 or more")


def _unknown(capability: int) -> tuple[str, str, str]:
    """Found, expected and hint for a compute capability that TensorRT for RTX does not build for."""
    found = str(capability)
    hint = f"--compute-capability {min(CAPABILITIES, key=lambda known: abs(known - capability))}"
    if capability in _ELSEWHERE:
        found = f"{capability} ({_ELSEWHERE[capability]}), which TensorRT for RTX does not build for"
        hint = f"for {_ELSEWHERE[capability]}: llmcompile build trtllm"
    return found, f"one of {', '.join(map(str, CAPABILITIES))}", hint
