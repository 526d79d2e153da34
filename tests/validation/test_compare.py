"""Each number of a verdict against arithmetic done by hand, and each way an output can fail."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from llmcompile.validation.compare import Verdict, compare, compare_output, lines, scale
from llmcompile.validation.tolerances import Tolerance

LIMIT = Tolerance(atol=0.1, rtol=0.01, reason="allows for nothing in particular")


def verdict(expected: object, found: object, *, name: str = "states", limit: Tolerance = LIMIT) -> Verdict:
    """Compare two nested lists as float32 arrays."""
    return compare_output(name, np.array(expected, np.float32), np.array(found, np.float32), limit)


def test_each_number_of_a_passing_verdict() -> None:
    """Largest differences are absolute and relative, and the worst element is the nearest to its own limit."""
    found = verdict([[1.0, -100.0], [0.5, 0.0]], [[1.0625, -100.5], [0.5, 0.09375]])

    assert found.passed
    assert found.shape_expected == found.shape_found == (2, 2)
    assert found.max_abs == 0.5
    assert found.max_rel == 0.0625
    assert found.worst == (1, 1)
    assert (found.worst_expected, found.worst_found) == (0.0, 0.09375)
    assert (found.atol, found.rtol, found.reason) == (0.1, 0.01, "allows for nothing in particular")
    assert (found.kl, found.top1) == (None, None)


def test_limit_is_absolute_plus_relative() -> None:
    """An element passes exactly up to atol + rtol * |expected|."""
    limit = Tolerance(atol=0.5, rtol=0.25, reason="powers of two")

    assert verdict([-4.0], [-5.5], limit=limit).passed
    assert not verdict([-4.0], [-5.5001], limit=limit).passed
    assert not verdict([-4.0], [-2.4999], limit=limit).passed


def test_worst_is_beyond_its_limit_though_not_the_largest_difference() -> None:
    """A small difference at a small value is worse than a large one that its value allows."""
    found = verdict([[1000.0, 0.0]], [[1009.0, 0.5]])

    assert not found.passed
    assert found.max_abs == 9.0
    assert found.worst == (0, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_where_the_reference_is_finite(value: float) -> None:
    """A NaN or infinity fails, is the worst, and leaves the other numbers to the finite elements."""
    found = verdict([[1.0, 2.0, 3.0]], [[1.0, value, 3.05]], name="logits")

    assert not found.passed
    assert found.non_finite_found == 1
    assert found.non_finite_expected == 0
    assert found.worst == (0, 1)
    assert found.max_abs == pytest.approx(0.05, rel=1e-5)
    assert (found.kl, found.top1) == (None, None)
    assert "   -[x] 1 element NaN or infinite where the reference is finite" in lines(found)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_reference(value: float) -> None:
    """A reference that is not finite vouches for nothing, even where the artifact has the same values."""
    found = verdict([value, 1.0, value], [value, 1.0, 5.0])

    assert not found.passed
    assert found.non_finite_expected == 2
    assert found.non_finite_found == 0
    assert found.max_abs == 0.0
    assert "   -[x] the reference itself has 2 elements that are NaN or infinite" in lines(found)


def test_other_shape() -> None:
    """Another shape is a failed verdict without numbers, not an exception."""
    found = verdict([[1.0, 2.0]], [1.0, 2.0])

    assert not found.passed
    assert (found.shape_expected, found.shape_found) == ((1, 2), (2,))
    assert (found.max_abs, found.worst) == (None, None)
    assert lines(found)[1:] == ["   -[x] (2,) does not match (1, 2)"]


def test_divergence_and_agreement_by_hand() -> None:
    """KL(expected || found) is in nats per token, and top-1 counts equal largest ids."""
    expected = np.log(np.array([[[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]]))
    found = np.log(np.array([[[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]]])) + 7.0

    result = compare_output("logits", expected, found, LIMIT)

    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    assert result.kl == pytest.approx(by_hand / 2, rel=1e-12)
    assert result.top1 == 0.5


def test_divergence_of_equal_logits_is_zero() -> None:
    """Equal logits, however large, diverge by nothing and agree on every token."""
    logits = np.array([[1e4, -1e4, 0.0], [3.0, 3.0, 3.0]], np.float32)

    found = compare_output("logits", logits, logits, LIMIT)

    assert (found.kl, found.top1, found.max_abs, found.max_rel) == (0.0, 1.0, 0.0, 0.0)


def test_chunks_find_what_a_single_pass_finds() -> None:
    """Outputs longer than a chunk give the numbers of one pass over all, wherever the worst element is."""
    generator = np.random.default_rng(3)
    expected = generator.normal(size=(2, 23, 50257)).astype(np.float32)
    found = expected + generator.normal(scale=1e-3, size=expected.shape).astype(np.float32)
    found[1, 22, 50000] += 1.0
    limit = Tolerance(atol=0.01, rtol=0.0, reason="")

    result = compare_output("logits", torch.from_numpy(expected), found, limit)

    wide_expected, wide_found = expected.astype(np.float64), found.astype(np.float64)
    assert result.worst == (1, 22, 50000)
    assert result.max_abs == np.abs(wide_found - wide_expected).max()
    assert result.max_rel == (np.abs(wide_found - wide_expected) / np.abs(wide_expected)).max()
    log_p, log_q = (
        torch.log_softmax(torch.from_numpy(values), dim=-1).numpy() for values in (wide_expected, wide_found)
    )
    assert result.kl == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-9)
    assert result.top1 == (expected.argmax(-1) == found.argmax(-1)).mean()
    assert scale(expected) == np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype(dtype: torch.dtype) -> None:
    """Outputs in any float dtype, from torch or numpy, compare by value."""
    found = compare_output("states", torch.tensor([1.5, -2.0]), torch.tensor([1.5, -2.25], dtype=dtype), LIMIT)

    assert found.max_abs == 0.25
    assert found.worst == (1,)


def test_scale_ignores_what_is_not_finite() -> None:
    """The scale is the largest finite magnitude, and 0 where there is none."""
    assert scale(np.array([1.0, -3.0, np.nan, np.inf])) == 3.0
    assert scale(torch.tensor([float("nan")])) == 0.0
    assert scale(np.zeros((0, 4))) == 0.0


def test_report_of_a_match() -> None:
    """A comparison that passed reads as the validators users know."""
    expected = {"logits": np.zeros((1, 2, 3), np.float32)}
    found = {"logits": np.full((1, 2, 3), 3.1e-6, np.float32)}
    limit = Tolerance(atol=1e-4, rtol=0.0, reason="given by --atol and --rtol")

    result = compare(expected, found, {"logits": limit})

    assert result.passed
    assert lines(result) == [
        " -[✓] output names match reference (logits)",
        ' - Validating output "logits":',
        "   -[✓] (1, 2, 3) matches (1, 2, 3)",
        "   -[✓] all values close (max abs 3.1e-06, atol 1.0e-04; given by --atol and --rtol)",
        "   - KL divergence 0.0e+00 nats/token, same top-1 token 100.0%",
    ]


def test_report_of_a_mismatch() -> None:
    """A failed output's lines name the worst position, both values, the difference and the limit."""
    result = verdict([[1.0, 2.0]], [[1.0, 2.5]])

    assert lines(result)[2:] == [
        "   -[x] not all values close (max abs 5.0e-01, atol 1.0e-01, rtol 1.0e-02; allows for nothing in particular)",
        "       worst at (0, 1): expected 2, found 2.5, difference 5.0e-01, limit 1.2e-01",
    ]


@pytest.mark.parametrize("found", [["a"], ["a", "b", "c"], ["a", "c"], []])
def test_other_names_fail(found: list[str]) -> None:
    """An output that is absent or not in the reference fails the comparison; what both have is compared."""
    one = np.ones(2, np.float32)

    result = compare({"a": one, "b": one}, dict.fromkeys(found, one), {"a": LIMIT, "b": LIMIT})

    assert not result.passed
    assert [verdict.name for verdict in result.verdicts] == [name for name in ("a", "b") if name in found]
    assert lines(result)[0] == f" -[x] output names ({', '.join(found)}) do not match reference (a, b)"


def test_order_of_names_does_not_matter() -> None:
    """The same outputs in another order match, and are reported in the reference's order."""
    one = np.ones(2, np.float32)

    result = compare({"a": one, "b": one}, {"b": one, "a": one}, {"a": LIMIT, "b": LIMIT})

    assert result.passed
    assert [verdict.name for verdict in result.verdicts] == ["a", "b"]


def test_json_is_plain_and_stable() -> None:
    """The record is strict JSON whose numbers have three significant digits."""
    found = verdict([[1.0, 2.0]], [[1.0001234, math.nan]])
    record = found.to_json()

    text = json.dumps(record, allow_nan=False)

    assert json.loads(text) == {
        "name": "states",
        "passed": False,
        "shape_expected": [1, 2],
        "shape_found": [1, 2],
        "max_abs": 0.000123,
        "max_rel": 0.000123,
        "worst": [0, 1],
        "worst_expected": 2.0,
        "worst_found": "nan",
        "non_finite_expected": 0,
        "non_finite_found": 1,
        "kl_nats_per_token": None,
        "top1": None,
        "atol": 0.1,
        "rtol": 0.01,
        "reason": "allows for nothing in particular",
    }


def test_json_of_a_comparison() -> None:
    """The record of a whole comparison holds the names and each output's record."""
    one = np.ones(2, np.float32)

    record = compare({"a": one}, {"a": one, "b": one}, {"a": LIMIT}).to_json()

    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["passed"] is False
    assert record["names_expected"] == ["a"]
    assert record["names_found"] == ["a", "b"]
    assert record["outputs"] == [verdict([1.0, 1.0], [1.0, 1.0], name="a").to_json()]
