"""What the compiler's log means; the lines are from the vendor's pages and from public logs."""

from __future__ import annotations

import pytest

import neuronx_cc_standin as standin
from llmcompile.exporters.neuron.diagnosis import explain, progress


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2024-08-15T14:51:04Z INFO 3835 [sg0000/Tensorizer/BirCodeGenLoop]: Running BirCodeGenLoop", "BirCodeGenLoop"),
        ("2023-12-12T17:28:24Z Running birverifier", "birverifier"),
        (
            "2024-08-15T14:51:19Z USER 3835 [root/Tensorizer/Tensorizer]: Tensorizer finished after 288.153 seconds",
            "Tensorizer done in 288.153 s",
        ),
        (
            "2024-08-15T14:51:17Z INFO 3835 [Tensorizer]: BirCodeGen estimate #instances=665013 in sg0000",
            "665013 instructions estimated",
        ),
        ("2024-08-15T14:51:38Z INFO 3835 [job.Frontend.0]: Job #0 finished", "Frontend done"),
        ("2024-02-01T05:54:36Z Compiler status PASS", "passed"),
        ("  NumPy version 1.21.6", None),
        ("2024-08-15T14:51:19Z INFO 3835 [job.Frontend.0]: Network input: input0", None),
        ("2024-08-15T14:51:04Z INFO 3835 [sg0000/Tensorizer/X]: X finished after 0.539 seconds", None),
    ],
)
def test_some_lines_say_how_far_it_is(text: str, words: str | None) -> None:
    """Stages and their ends, but not every pass of every stage twice."""
    assert progress(text) == words


@pytest.mark.parametrize(
    ("code", "text", "said", "advice"),
    [
        (70, standin.MESSAGES["F137"], "[F137] neuronx-cc was forcibly killed", "--compile-workers 1"),
        (70, standin.MESSAGES["F134"], "[F134]", "another version"),
        (70, standin.MESSAGES["XCG815"], "[XCG815] Estimated peak HBM usage (17.28)", "more --num-cores"),
        (70, standin.MESSAGES["NCC_EOOM001"], "[NCC_EOOM001]", "more --num-cores"),
        (70, "[NCC_EVRF009] Size of total input and output tensors exceeds", "[NCC_EVRF009]", "more --num-cores"),
        (70, standin.MESSAGES["XTP003"], "[XTP003]", "-O1"),
        (70, standin.MESSAGES["NCC_EVRF007"], "[NCC_EVRF007]", "more instructions than a program may: -O1"),
        (70, standin.MESSAGES["NCC_EXTP004"], "[NCC_EXTP004]", "--num-cores"),
        (1, "Compiler generated too many instructions (6888787).", "Compiler generated", "-O1"),
        (70, standin.MESSAGES["NCC_EVRF001"], "[NCC_EVRF001]", "list-operators"),
        (70, standin.MESSAGES["NCC_EUOC002"], "[NCC_EUOC002]", "list-operators"),
        (70, "[NCC_EHCA005] a custom call", "[NCC_EHCA005]", "list-operators"),
        (70, "[NCC_ESPP004] a data type", "[NCC_ESPP004]", "--torch-dtype"),
        (70, "[NCC_EVRF056] out of bound", "[NCC_EVRF056]", "max_position_embeddings"),
        (70, "[NCC_EARG001] Unsupported", "[NCC_EARG001]", "--instance-type"),
        (70, "[NCC_EARG002] Illegal argument(s)", "[NCC_EARG002]", "NEURON_CC_FLAGS"),
        (2, "error: argument --optlevel: invalid choice: '4'", "error: argument", "NEURON_CC_FLAGS"),
        (70, standin.MESSAGES["TEN404"], "[TEN404]", "an error inside the compiler"),
        (70, "[NCC_ISMP902] anything", "[NCC_ISMP902]", "aws-neuron-sdk/issues"),
        (70, "An Internal Compiler Error has occurred", "", "aws-neuron-sdk/issues"),
        (-9, "", "", "this machine's memory ran out"),
        (137, "", "", "this machine's memory ran out"),
        (0, "Compiler status PASS", "", "--compiler-workdir"),
    ],
)
def test_every_documented_failure_has_a_way_on(code: int, text: str, said: str, advice: str) -> None:
    """By the code wherever in the line it is; by how it ended where there is none."""
    line = f"2026-11-21T12:00:00Z ERROR 85724 [neuronx-cc]: {text}" if text.startswith("[") else text

    found = explain(code, ["something else", line])

    assert found[0].startswith(said) if said != "" else found[0] == ""
    assert advice in found[1]


def test_an_error_without_a_code_is_said_as_it_stands() -> None:
    """The last line of the level, without time, level and process."""
    lines = [
        "2023-06-15T12:11:12Z ERROR 85724 [neuronx-cc]: first",
        "    ERROR 227874 [neuronx-cc]: indented",
        "ERROR 227874 [neuronx-cc]: module 'numpy' has no attribute 'asscalar'",
        "2023-06-15T12:11:12Z INFO 85724 [neuronx-cc]: no error",
    ]

    assert explain(1, lines)[0] == "module 'numpy' has no attribute 'asscalar'"


def test_the_cause_counts_and_not_what_follows_from_it() -> None:
    """A process that was killed for want of memory leaves errors of those that waited for it."""
    lines = ["[TEN404] Internal tensorizer error", standin.MESSAGES["F137"]]

    assert explain(70, lines)[0].startswith("[F137]")
