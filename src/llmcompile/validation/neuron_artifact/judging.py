"""What a graph gave against what the model gives, and how far the two may be apart.

In float32 an artifact is compared with the model itself. In 16 bits three things happen to a model, and each is
compared apart from the others:

    its weights are rounded         against the model in float32: informs, and says what rounding alone does
    its graph is lowered            the graph in float32 arithmetic, against the model with rounded weights: tight
    its arithmetic is rounded       the graph as it is, against the same; the limit is what 16-bit arithmetic does to
                                    the model in transformers

A router sends a token to other experts where its favourites are nearly equal, and 16-bit arithmetic decides that anew.
Of models with experts most tokens must be within the limit, and the graph in float32 arithmetic proves the rest.

A limit that the user gives is the only one that decides, and is held against the model in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from llmcompile.validation.checks import Check
from llmcompile.validation.compare import Comparison, compare, scale
from llmcompile.validation.tolerances import Dtype, Tolerance, tolerance

MODEL: Final = "the model in float32"
_MARGIN: Final = 8.0
"""How many times farther than transformers' own 16-bit arithmetic the graph's may be from exact arithmetic."""
_REROUTED: Final = 0.5
"""Share of tokens that may be sent to other experts."""
_TORCH: Final[Mapping[str, torch.dtype]] = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What limits are made from.

    Attributes:
        dtype: Element type of the artifact's weights and arithmetic.
        stored_dtype: Element type of the checkpoint's weights; the same one means that nothing was rounded.
        layers: Transformer layers.
        routed: Whether tokens are sent to some of several experts.
        constants: Whether the model's code rounds constants to its weights' type.
        atol: The user's absolute tolerance; None for one that is measured.
        rtol: The user's relative tolerance likewise.
    """

    dtype: Dtype
    stored_dtype: str
    layers: int
    routed: bool
    constants: bool
    atol: float | None
    rtol: float | None

    @property
    def narrow(self) -> torch.dtype | None:
        """The artifact's type if it has 16 bits."""
        return _TORCH.get(self.dtype)

    @property
    def rounds(self) -> bool:
        """Whether the artifact's type changed the weights, or constants of the model."""
        return self.narrow is not None and (self.dtype != self.stored_dtype or self.constants)

    @property
    def reroutes(self) -> bool:
        """Whether arithmetic alone may send a token to other experts."""
        return self.narrow is not None and self.routed

    @property
    def given(self) -> bool:
        """Whether the user gave a limit."""
        return self.atol is not None or self.rtol is not None

    def tight(self, expected: Tensor) -> Tolerance:
        """For float32 arithmetic with the same weights."""
        return tolerance("fp32", layers=self.layers, scale=scale(expected), approximate=False)

    def derived(self, expected: Tensor, arithmetic: Dtype) -> Tolerance:
        """For other arithmetic with the same weights."""
        return tolerance("fp32", layers=self.layers, scale=scale(expected), approximate=False, arithmetic=arithmetic)

    def asked(self) -> Tolerance:
        """The user's own limit."""
        flags = [flag for flag, value in (("--atol", self.atol), ("--rtol", self.rtol)) if value is not None]
        atol, rtol = (0.0 if value is None else value for value in (self.atol, self.rtol))
        return Tolerance(atol=atol, rtol=rtol, reason=f"given by {' and '.join(flags)}")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the model gives for one set of inputs, output by output.

    Attributes:
        model: The model as it is, in float32.
        stored: With its weights as the artifact keeps them, in float32.
        narrow: With the same weights, in the artifact's own arithmetic; None in float32, or where it was not run.
        moved: Where it was not run, how far that arithmetic moves outputs, as a fraction of the largest; None in
            float32.
    """

    model: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]
    narrow: Mapping[str, Tensor] | None
    moved: float | None = None


def as_it_is(judge: Judge, name: str, expected: Expected, found: Mapping[str, Tensor]) -> Iterator[Check]:
    """Judge what a graph gave as it was lowered."""
    limits = {output: _limit(judge, expected, output) for output in expected.stored}
    if judge.rounds:
        moved = {
            output: _moved(judge, expected, output, limits[output]) if not judge.given else judge.asked()
            for output in expected.stored
        }
        yield Check(input=name, reference=MODEL, comparison=compare(expected.model, found, moved), decisive=judge.given)
    elif judge.given:
        limits = {output: judge.asked() for output in expected.stored}
    reference = f"the model with weights rounded to {judge.dtype}" if judge.rounds else MODEL
    decisive = not judge.rounds or not judge.given
    yield Check(
        input=name,
        reference=reference,
        comparison=compare(expected.stored, found, limits),
        decisive=decisive and not judge.reroutes,
    )
    if decisive and judge.reroutes:
        yield Check(input=name, reference=reference, comparison=_shares(expected, found, limits), decisive=True)


def _shares(expected: Expected, found: Mapping[str, Tensor], limits: Mapping[str, Tolerance]) -> Comparison:
    """How many tokens are beyond the limit, as a fraction."""
    shares = {}
    for output, values in expected.stored.items():
        if output in found and found[output].shape == values.shape:
            limit = limits[output].atol + limits[output].rtol * values.abs()
            within = ((found[output] - values).abs() <= limit).all(-1)
            shares[f"share of {output} beyond the limit"] = 1.0 - within.float().mean()
    reason = "16-bit arithmetic sends some tokens to other experts"
    most = Tolerance(atol=_REROUTED, rtol=0.0, reason=reason)
    return compare({name: torch.zeros(()) for name in shares}, shares, dict.fromkeys(shares, most))


def in_float32(judge: Judge, name: str, expected: Expected, found: Mapping[str, Tensor]) -> Check:
    """Judge what a 16-bit graph gave in float32 arithmetic."""
    return Check(
        input=f"{name}, the graph in float32 arithmetic",
        reference=f"the model with weights rounded to {judge.dtype}" if judge.rounds else MODEL,
        comparison=compare(
            expected.stored, found, {output: judge.tight(values) for output, values in expected.stored.items()}
        ),
        decisive=not judge.given,
    )


def predicted(
    judge: Judge, name: str, kind: Dtype, flags: str, expected: Expected, found: Mapping[str, Tensor]
) -> Check:
    """Judge what a graph gave as --auto-cast would compute it; informs unless the user gave a limit.

    Args:
        judge: Makes the limits.
        name: What was fed.
        kind: Type with the mantissa that was rounded to.
        flags: What the compiler will be told.
        expected: What the model gives.
        found: What the cast graph gave.
    """
    limits = {
        output: judge.asked() if judge.given else judge.derived(values, kind)
        for output, values in expected.model.items()
    }
    return Check(
        input=f"{name}, as {flags} will compute it",
        reference=MODEL,
        comparison=compare(expected.model, found, limits),
        decisive=judge.given,
    )


def _limit(judge: Judge, expected: Expected, output: str) -> Tolerance:
    values = expected.stored[output]
    if judge.narrow is None:
        return judge.tight(values)
    derived = judge.derived(values, judge.dtype)
    moved = 0.0 if expected.moved is None else _MARGIN * expected.moved * scale(values)
    if expected.narrow is not None:
        moved = _MARGIN * scale(expected.narrow[output] - values)
    if moved <= derived.atol:
        return derived
    reason = f"{_MARGIN:g} times what {judge.dtype} arithmetic does to this output of the model in transformers"
    return replace(derived, atol=moved, reason=reason)


def _moved(judge: Judge, expected: Expected, output: str, limit: Tolerance) -> Tolerance:
    moved = scale(expected.stored[output] - expected.model[output])
    reason = f"weights rounded to {judge.dtype} alone move this output of the model by up to {moved:.3g}"
    return Tolerance(atol=moved + limit.atol, rtol=limit.rtol, reason=reason)
