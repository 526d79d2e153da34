"""What neuronx-cc's log and its end mean: how far it is, why it failed, and what to do then.

Source: aws-neuron/aws-neuron-sdk@81ce03ae:compiler/error-codes/index.rst; F and X codes by the logs in
aws-neuron/aws-neuron-sdk#706, #1000, #1003 and #1014.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmcompile.exporters.processes import Stages, shortened, stage

_CODE = re.compile(r"\[(?:NCC_)?[A-Z]+\d+\]")
_ERROR = re.compile(r"^(?:\S+ )?ERROR \d+ \[[\w.-]+\]:\s*")
"""How a line of the log begins that says what went wrong."""
_STAGES: Stages = (
    (re.compile(r"\bRunning (\w+)$"), "{0}"),
    (re.compile(r"\[root/(?:\w+/)*\w+\]: (\w+) finished after ([\d.]+) seconds"), "{0} done in {1} s"),
    (re.compile(r"estimate #instances=(\d+)"), "{0} instructions estimated"),
    (re.compile(r"\[job\.(\w+)\.\d+\]: Job #\d+ finished"), "{0} done"),
    (re.compile(r"Compiler status PASS"), "passed"),
)
"""Lines that tell how far a compilation is. Source: the logs in aws-neuron/aws-neuron-sdk#803, #948 and #819."""


def progress(text: str) -> str | None:
    """What a line of the compiler's log says of how far it is; None for most."""
    return stage(_STAGES, text)


_LESS = "a smaller --batch-size, --sequence-length or --buckets"
_REPORT = "report it with the log: https://github.com/aws-neuron/aws-neuron-sdk/issues"
_CAUSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"\[F137\]|forcibly killed"),
        "this machine's memory ran out: --compile-workers 1, -O1, "
        f"{_LESS}, or a machine with more memory (--stop-after lower here, --from-lowered there)",
    ),
    (
        re.compile(r"\[(?:XCG815|(?:NCC_)?(?:EOOM001|EOOM002|EVRF009|EXSP001))\]"),
        f"it does not fit a core's memory: more --num-cores, {_LESS}, or --torch-dtype bfloat16",
    ),
    (
        re.compile(r"\[(?:XTP003|(?:NCC_)?(?:EVRF007|EXTP004|EBVF030))\]|[Tt]oo many instructions"),
        f"it has more instructions than a program may: -O1, {_LESS}, or more --num-cores",
    ),
    (
        re.compile(r"\[(?:NCC_)?(?:EUOC002|EVRF001|EHCA005|EVRF015)\]"),
        "this version lacks an operator: try a newer one; `neuronx-cc list-operators --framework XLA` says what it has",
    ),
    (
        re.compile(r"\[(?:NCC_)?(?:ESPP004|ESPP047|EVRF004|EVRF005|EVRF051)\]"),
        "the target has no such element type: --torch-dtype float32 or bfloat16",
    ),
    (
        re.compile(r"\[(?:NCC_)?EVRF056\]"),
        "an index lies outside its table: --sequence-length up to max_position_embeddings of config.json",
    ),
    (
        re.compile(r"\[(?:NCC_)?EARG001\]"),
        "the target has other logical cores: check --instance-type, and --lnc in NEURON_CC_FLAGS",
    ),
    (
        re.compile(r"\[(?:NCC_)?EARG002\]|unrecognized arguments|invalid choice|arguments are required"),
        "this version does not know a flag: unset NEURON_CC_FLAGS if it is from there, or try a newer neuronx-cc",
    ),
    (re.compile(r"\[F1(?:34|39)\]"), f"it crashed: -O1, or another version of neuronx-cc; {_REPORT}"),
)
"""What a line says -> what to do. The first that fits any line counts."""
_KILLED = (-9, 137)


def has_code(text: str) -> bool:
    """Whether a line names an error: "[NCC_EVRF001]", "[XCG815]"."""
    return _CODE.search(text) is not None


def explain(code: int, lines: Sequence[str]) -> tuple[str, str]:
    """What a failed compilation said, and what to do about it.

    Args:
        code: Its exit code, or less than zero the signal that ended it.
        lines: Those of its log that hold an error code, and the last.

    Returns:
        The line that says most, empty where none does; the advice, one sentence.
    """
    for pattern, advice in _CAUSES:
        for text in lines:
            if pattern.search(text) is not None:
                return shortened(_message(text)), advice
    if code in _KILLED:
        return "", _CAUSES[0][1]
    if code == 0:
        return "", f"try again in another --compiler-workdir, or with another version; {_REPORT}"
    coded = [text for text in lines if has_code(text)]
    errors = [text for text in lines if _ERROR.search(text) is not None]
    said = coded[0] if len(coded) > 0 else errors[-1] if len(errors) > 0 else ""
    return shortened(_message(said)), f"an error inside the compiler: -O1, or another version of neuronx-cc; {_REPORT}"


def _message(text: str) -> str:
    """A line without time, level and process: from its error code on, or behind the name of the program."""
    match = _CODE.search(text)
    return _ERROR.sub("", text) if match is None else text[match.start() :]
