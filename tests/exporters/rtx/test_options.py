"""What may be asked of a build for TensorRT for RTX."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcompile.errors import OptionsError
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.rtx import capabilities, profiles
from llmcompile.exporters.rtx.options import CAPABILITIES, Range, RtxOptions, as_range

BUILD = BuildOptions(model="model", output=Path("out"))


@pytest.mark.parametrize(
    ("text", "found"), [("8", Range(1, 8, 8)), ("1,4,32", Range(1, 4, 32)), (" 2, 2,2 ", Range(2, 2, 2))]
)
def test_a_range_is_three_numbers_or_the_most(text: str, found: Range) -> None:
    """One number is both the best and the most."""
    assert as_range("--batch-size", text) == found


@pytest.mark.parametrize("text", ["", "a", "1,2", "4,2,8", "0,1,1", "1,2,3,4", "-1"])
def test_what_is_no_range_is_refused_by_its_flag(text: str) -> None:
    """The hint can be typed."""
    with pytest.raises(OptionsError) as caught:
        as_range("--batch-size", text)

    assert caught.value.problems[0].subject == "--batch-size"
    assert caught.value.problems[0].hint == "--batch-size 1,8,32"


@pytest.mark.parametrize(("capability", "words"), [(90, "H100"), (100, "B200"), (87, "Jetson"), (61, "61")])
def test_a_capability_the_builder_lacks_is_refused_with_the_list(capability: int, words: str) -> None:
    """Data-centre GPUs are named, and what to use for them."""
    with pytest.raises(OptionsError) as caught:
        RtxOptions(build=BUILD, compute_capabilities=(86, capability))

    (problem,) = caught.value.problems
    assert words in problem.found
    assert problem.expected == "one of 75, 80, 86, 89, 120, 121"
    assert ("build trtllm" in problem.hint) == (capability in (90, 100, 87))


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--dtype", {"dtype": "fp8"}),
        ("--quantization", {"quantization": "int3"}),
        ("--task", {"task": "image-classification"}),
        ("--stop-after", {"stop_after": "engine"}),
        ("--opset", {"opset": 20}),
        ("--no-keep-onnx", {"stop_after": "onnx", "keep_onnx": False}),
    ],
)
def test_a_word_that_is_none_is_refused_by_its_flag(flag: str, named: dict[str, object]) -> None:
    """Each names the flag as it is typed."""
    with pytest.raises(OptionsError) as caught:
        RtxOptions(build=BUILD, **named)  # type: ignore[arg-type]

    assert [problem.subject for problem in caught.value.problems] == [flag]


@pytest.mark.parametrize(
    ("dtype", "quantization", "lacking"),
    [
        ("fp32", None, {75}),
        ("bf16", None, {75}),
        ("fp16", "int4", {75}),
        ("fp16", "fp8", {75, 80, 86}),
        ("fp16", "int8", set()),
    ],
)
def test_types_a_gpu_lacks_are_refused(dtype: str, quantization: str | None, lacking: set[int]) -> None:
    """As the builder says: fp8 begins with Ada, bf16 and int4 with Ampere, and Turing has no FP32 GEMM."""
    found = list(capabilities.refusals(tuple(CAPABILITIES), dtype, quantization))

    assert {int(problem.found.split()[0]) for problem in found} == lacking
    assert all("--dtype fp16" in problem.hint or "--quantization int8" in problem.hint for problem in found)


def test_the_default_leaves_out_what_lacks_a_type() -> None:
    """A flag that was given is never dropped."""
    assert capabilities.chosen((), "fp16", "fp8") == (89, 120)
    assert capabilities.chosen((86,), "fp16", "fp8") == (86,)


def test_a_decoder_has_a_profile_for_prompts_and_one_for_tokens() -> None:
    """Caches of a prompt are empty; then one token at a time meets caches of 1 up to one less than all."""
    prefill, decode = profiles.of_decoder(Range(1, 2, 4), Range(1, 16, 64))

    assert prefill.shapes(("batch", "total")) == ((1, 1), (2, 16), (4, 64))
    assert prefill.shapes(("batch", 2, "past", 8)) == ((1, 2, 0, 8), (2, 2, 0, 8), (4, 2, 0, 8))
    assert decode.shapes(("batch", "sequence")) == ((1, 1), (2, 1), (4, 1))
    assert decode.shapes(("batch", 2, "past", 8)) == ((1, 2, 1, 8), (2, 2, 16, 8), (4, 2, 63, 8))
    assert decode.shapes(("total",)) == ((2,), (17,), (64,))
