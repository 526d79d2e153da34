"""Found outputs against expected ones: numbers, a verdict, and the lines of a report. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from llmcompile.validation.tolerances import Tolerance

Array: TypeAlias = "torch.Tensor | npt.NDArray[Any]"
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_CHUNK: Final = 2**20
"""Elements turned to float64 at once."""

_LOGITS: Final = "logits"
"""The output whose last axis is a distribution over the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one output compares with the reference.

    Attributes:
        name: The output's name.
        shape_expected: Shape of the reference's output.
        shape_found: Shape of the artifact's output. Where the two differ nothing was compared, and every
            number below is None or 0.
        max_abs: Largest |found - expected| where both are finite; None where no element is.
        max_rel: Largest |found - expected| / |expected| where both are finite and expected is not 0.
        worst: Position of the element furthest beyond, or nearest to, its limit; a non-finite one is further
            than any. None where no element was compared.
        worst_expected: The reference's value there.
        worst_found: The artifact's value there; may be NaN or infinite.
        non_finite_expected: Elements that are NaN or infinite in the reference; they are not compared, and
            fail the verdict.
        non_finite_found: Elements that are NaN or infinite in the artifact where the reference is finite.
        kl: Mean over tokens of KL(expected || found), nats/token; only for logits that are finite.
        top1: Fraction of tokens whose largest logit has the same id; only for logits that are finite.
        atol: The absolute part of the limit, in units of the output.
        rtol: The part of the limit relative to |expected|.
        reason: What the limit allows for.
        passed: The shapes are equal, everything is finite, and each element is within its limit.
    """

    name: str
    shape_expected: tuple[int, ...]
    shape_found: tuple[int, ...]
    max_abs: float | None
    max_rel: float | None
    worst: tuple[int, ...] | None
    worst_expected: float | None
    worst_found: float | None
    non_finite_expected: int
    non_finite_found: int
    kl: float | None
    top1: float | None
    atol: float
    rtol: float
    reason: str
    passed: bool

    def to_json(self) -> dict[str, Json]:
        """Give the fields as JSON values: numbers rounded to 3 significant digits, NaN and infinities as strings."""
        return {
            "name": self.name,
            "passed": self.passed,
            "shape_expected": list(self.shape_expected),
            "shape_found": list(self.shape_found),
            "max_abs": _rounded(self.max_abs),
            "max_rel": _rounded(self.max_rel),
            "worst": None if self.worst is None else list(self.worst),
            "worst_expected": _rounded(self.worst_expected),
            "worst_found": _rounded(self.worst_found),
            "non_finite_expected": self.non_finite_expected,
            "non_finite_found": self.non_finite_found,
            "kl_nats_per_token": _rounded(self.kl),
            "top1": _rounded(self.top1),
            "atol": _rounded(self.atol),
            "rtol": _rounded(self.rtol),
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a set of outputs compares with the reference's.

    Attributes:
        names_expected: The reference's outputs, in its order.
        names_found: The artifact's outputs, in its order.
        verdicts: One for each output that both have, in the reference's order.
    """

    names_expected: tuple[str, ...]
    names_found: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def names_match(self) -> bool:
        """Both have the same outputs, in whatever order."""
        return set(self.names_expected) == set(self.names_found)

    @property
    def passed(self) -> bool:
        """The names match and every verdict passed."""
        return self.names_match and all(verdict.passed for verdict in self.verdicts)

    def to_json(self) -> dict[str, Json]:
        """Give the fields as JSON values; the same comparison always gives the same text."""
        return {
            "passed": self.passed,
            "names_expected": list(self.names_expected),
            "names_found": list(self.names_found),
            "outputs": [verdict.to_json() for verdict in self.verdicts],
        }


def compare(
    expected: Mapping[str, Array], found: Mapping[str, Array], tolerances: Mapping[str, Tolerance]
) -> Comparison:
    """Compare an artifact's outputs with the reference's, each within its own limit.

    Args:
        expected: The reference's outputs by name; any shapes, any float dtype.
        found: The artifact's outputs by name.
        tolerances: The limit of each expected output.

    Raises:
        KeyError: An expected output has no limit.
    """
    return Comparison(
        names_expected=tuple(expected),
        names_found=tuple(found),
        verdicts=tuple(
            compare_output(name, expected[name], found[name], tolerances[name]) for name in expected if name in found
        ),
    )


def compare_output(name: str, expected: Array, found: Array, tolerance: Tolerance) -> Verdict:
    """Compare one output, element by element, in float64.

    Args:
        name: "logits" have a vocabulary as last axis, so KL divergence and top-1 agreement are computed.
        expected: The reference's output, any shape.
        found: The artifact's output; another shape is a verdict, not an error.
        tolerance: An element passes if |found - expected| <= atol + rtol * |expected|.
    """
    wanted, given = _array(expected), _array(found)
    same = wanted.shape == given.shape
    elements = _elements(wanted.reshape(-1), given.reshape(-1), tolerance) if same else _Elements()
    finite = same and elements.non_finite_expected == 0 and elements.non_finite_found == 0
    kl, top1 = _distributions(wanted, given) if finite and name == _LOGITS and wanted.size > 0 else (None, None)
    at = elements.worst
    return Verdict(
        name=name,
        shape_expected=wanted.shape,
        shape_found=given.shape,
        max_abs=elements.max_abs,
        max_rel=elements.max_rel,
        worst=None if at is None else tuple(int(index) for index in np.unravel_index(at, wanted.shape)),
        worst_expected=None if at is None else float(wanted.reshape(-1)[at]),
        worst_found=None if at is None else float(given.reshape(-1)[at]),
        non_finite_expected=elements.non_finite_expected,
        non_finite_found=elements.non_finite_found,
        kl=kl,
        top1=top1,
        atol=tolerance.atol,
        rtol=tolerance.rtol,
        reason=tolerance.reason,
        passed=finite and elements.excess <= 0,
    )


def without_overflow(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    """Outputs with zeros wherever both sides are not finite, for a cast whose infinities were accepted.

    An output of which nothing would be left is as it was, and will fail.

    Returns:
        Those expected, those found, and a sentence for each output that was changed.
    """
    kept, given, notes = dict(expected), dict(found), []
    for name, values in expected.items():
        if name not in found or found[name].shape != values.shape:
            continue
        both = ~values.isfinite() & ~found[name].isfinite()
        if bool(both.any()) and not bool(both.all()):
            kept[name], given[name] = values.masked_fill(both, 0.0), found[name].masked_fill(both, 0.0)
            share = both.float().mean().item()
            notes.append(f"{share:.1%} of output {name} is not finite, here as in the model, and was not compared")
    return kept, given, notes


def scale(output: Array) -> float:
    """Find the largest |element| among the finite ones of `output`; 0.0 where there are none."""
    values = _array(output).reshape(-1)
    largest = 0.0
    for start in range(0, values.size, _CHUNK):
        chunk = np.abs(values[start : start + _CHUNK].astype(np.float64))
        largest = max(largest, float(np.max(chunk, initial=0.0, where=np.isfinite(chunk))))
    return largest


def lines(result: Verdict | Comparison) -> list[str]:
    """Write the report of one output, or of a whole comparison, for a terminal; no line ends in a newline."""
    if isinstance(result, Verdict):
        return _verdict_lines(result)
    expected = ", ".join(result.names_expected)
    if result.names_match:
        report = [f" -{_mark(True)} output names match reference ({expected})"]
    else:
        names = ", ".join(result.names_found)
        report = [f" -{_mark(False)} output names ({names}) do not match reference ({expected})"]
    return report + [line for verdict in result.verdicts for line in _verdict_lines(verdict)]


def _verdict_lines(verdict: Verdict) -> list[str]:
    report = [f' - Validating output "{verdict.name}":']
    same = verdict.shape_expected == verdict.shape_found
    matches = "matches" if same else "does not match"
    report.append(f"   -{_mark(same)} {verdict.shape_found} {matches} {verdict.shape_expected}")
    if not same:
        return report

    limit = f"atol {_short(verdict.atol)}"
    if verdict.rtol > 0:
        limit += f", rtol {_short(verdict.rtol)}"
    largest = "no finite elements" if verdict.max_abs is None else f"max abs {_short(verdict.max_abs)}"
    if verdict.non_finite_expected > 0:
        count = _elements_count(verdict.non_finite_expected)
        report.append(f"   -{_mark(False)} the reference itself has {count} that are NaN or infinite")
    if verdict.non_finite_found > 0:
        count = _elements_count(verdict.non_finite_found)
        report.append(f"   -{_mark(False)} {count} NaN or infinite where the reference is finite")
    close = _within(verdict)
    report.append(
        f"   -{_mark(close)} {'all' if close else 'not all'} values close ({largest}, {limit}; {verdict.reason})"
    )
    if not close and verdict.worst is not None:
        assert verdict.worst_expected is not None  # both values come with `worst`
        assert verdict.worst_found is not None
        bound = verdict.atol + verdict.rtol * abs(verdict.worst_expected)
        report.append(
            f"       worst at {verdict.worst}: expected {verdict.worst_expected:.6g}, found {verdict.worst_found:.6g}, "
            f"difference {_short(abs(verdict.worst_found - verdict.worst_expected))}, limit {_short(bound)}"
        )
    if verdict.kl is not None and verdict.top1 is not None:
        report.append(f"   - KL divergence {_short(verdict.kl)} nats/token, same top-1 token {verdict.top1:.1%}")
    return report


def _within(verdict: Verdict) -> bool:
    """Each element that was compared is within its limit; the worst of them tells."""
    if verdict.worst_expected is None or verdict.worst_found is None:
        return True
    bound = verdict.atol + verdict.rtol * abs(verdict.worst_expected)
    return abs(verdict.worst_found - verdict.worst_expected) <= bound


def _mark(passed: bool) -> str:
    return "[✓]" if passed else "[x]"


def _short(number: float) -> str:
    return f"{number:.1e}"


def _elements_count(count: int) -> str:
    return "1 element" if count == 1 else f"{count} elements"


def _rounded(number: float | None) -> float | str | None:
    if number is None:
        return None
    return float(f"{number:.3g}") if isfinite(number) else str(number)


def _array(values: Array) -> npt.NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    tensor = values.detach().cpu()
    array: npt.NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


@dataclass(frozen=True, kw_only=True)
class _Elements:
    max_abs: float | None = None
    max_rel: float | None = None
    worst: int | None = None
    excess: float = 0.0
    """Largest |found - expected| - limit; positive if an element fails."""
    non_finite_expected: int = 0
    non_finite_found: int = 0


def _elements(expected: npt.NDArray[Any], found: npt.NDArray[Any], tolerance: Tolerance) -> _Elements:
    max_abs = max_rel = worst = None
    excess = -np.inf
    non_finite_expected = non_finite_found = 0
    for start in range(0, expected.size, _CHUNK):
        e = expected[start : start + _CHUNK].astype(np.float64)
        f = found[start : start + _CHUNK].astype(np.float64)
        comparable = np.isfinite(e)
        both = comparable & np.isfinite(f)
        non_finite_expected += int(np.count_nonzero(~comparable))
        non_finite_found += int(np.count_nonzero(comparable & ~both))

        magnitude = np.abs(np.where(both, e, 0.0))
        difference = np.abs(np.where(both, f, 0.0) - np.where(both, e, 0.0))
        beyond = np.where(both, difference - (tolerance.atol + tolerance.rtol * magnitude), np.inf)
        beyond[~comparable] = -np.inf
        if both.any():
            max_abs = max(float(difference.max()), 0.0 if max_abs is None else max_abs)
        relative = both & (magnitude > 0)
        if relative.any():
            ratio = float((difference[relative] / magnitude[relative]).max())
            max_rel = max(ratio, 0.0 if max_rel is None else max_rel)
        at = int(beyond.argmax())
        if comparable.any() and (worst is None or beyond[at] > excess):
            worst, excess = start + at, float(beyond[at])
    return _Elements(
        max_abs=max_abs,
        max_rel=max_rel,
        worst=worst,
        excess=excess,
        non_finite_expected=non_finite_expected,
        non_finite_found=non_finite_found,
    )


def _distributions(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean KL(expected || found) in nats/token, and the fraction of equal argmax; shape (..., vocab), finite."""
    vocab = expected.shape[-1]
    rows_expected, rows_found = expected.reshape(-1, vocab), found.reshape(-1, vocab)
    tokens = rows_expected.shape[0]
    divergence = 0.0
    agreeing = 0
    for chunk in _row_chunks(tokens, vocab):
        e = rows_expected[chunk].astype(np.float64)
        f = rows_found[chunk].astype(np.float64)
        log_e, log_f = _log_softmax(e), _log_softmax(f)
        divergence += float((np.exp(log_e) * (log_e - log_f)).sum())
        agreeing += int(np.count_nonzero(e.argmax(axis=-1) == f.argmax(axis=-1)))
    return max(divergence, 0.0) / tokens, agreeing / tokens  # rounding may leave a tiny negative sum


def _row_chunks(rows: int, width: int) -> Iterator[slice]:
    height = max(1, _CHUNK // width)
    for start in range(0, rows, height):
        yield slice(start, start + height)


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
