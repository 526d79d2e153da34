"""What every validation is made of: a checkpoint's tensors read independently, comparisons, and what failed in them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor

from llmcompile.errors import Problem
from llmcompile.validation.compare import Comparison

_MAPPED_BYTES = 256 << 20
"""Bytes read through memory maps before they are dropped and opened anew."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison of a whole set of outputs.

    Attributes:
        input: What was fed.
        reference: What it was compared with.
        comparison: The verdict per output.
        decisive: Whether a failure rejects the artifact; otherwise it informs.
    """

    input: str
    reference: str
    comparison: Comparison
    decisive: bool


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a quantized artifact costs on a text, beside the float32 model; informs, and rejects nothing.

    Attributes:
        text: What was scored.
        recipe: How weights, and activations where the recipe has it, were quantized.
        tokens: Tokens scored.
        perplexity_model: e to the mean negative log-likelihood of the next token, by the model.
        perplexity: Likewise by the artifact.
        kl: Kullback-Leibler divergence from the model's distribution of the next token, nats per token.
        top1: Share of positions at which both prefer the same token.
        largest_error: Largest difference of a logit.
        largest_logit: Largest logit of the model, by magnitude.
    """

    text: str
    recipe: str
    tokens: int
    perplexity_model: float
    perplexity: float
    kl: float
    top1: float
    largest_error: float
    largest_logit: float

    def __str__(self) -> str:
        """One line for people."""
        percent = 100 * (self.perplexity / self.perplexity_model - 1)
        return (
            f"{self.recipe} on {self.tokens} tokens of {self.text}: perplexity {self.perplexity:.4g}, {percent:+.3g}% "
            f"beside the model's {self.perplexity_model:.4g}; KL {self.kl:.2g} nats/token, "
            f"same top-1 token {self.top1:.1%}; largest error {self.largest_error:.2g} in logits as large as "
            f"{self.largest_logit:.3g}"
        )


Finding: TypeAlias = Check | Quality | str
"""What a validation yields: a comparison, what a recipe costs, or a sentence about what was left out."""


class StoredWeights:
    """A checkpoint's tensors through the libraries that wrote them, not through our own reader.

    Both libraries map files into memory, and pages that were read count as ours until the mapping is dropped, which is
    done every so often.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._opened: dict[Path, Any] = {}
        self._mapped_bytes = 0
        self._where = {name: path for path in files for name in self._names(path)}

    def _names(self, path: Path) -> list[str]:
        return list(self._open(path).keys())

    def _open(self, path: Path) -> Any:
        if path not in self._opened:
            if path.suffix == ".safetensors":
                self._opened[path] = safe_open(path, framework="pt", device="cpu")
            else:
                self._opened[path] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return self._opened[path]

    def names(self) -> Collection[str]:
        """Every tensor in the checkpoint."""
        return self._where.keys()

    def drop(self) -> None:
        """Let go of the memory maps; what is read later opens them anew."""
        self._opened.clear()
        self._mapped_bytes = 0

    def read(self, name: str) -> Tensor:
        """One tensor as stored."""
        if self._mapped_bytes > _MAPPED_BYTES:
            self.drop()
        opened = self._open(self._where[name])
        tensor: Tensor = opened[name] if isinstance(opened, dict) else opened.get_tensor(name)
        self._mapped_bytes += tensor.nbytes
        return tensor


_NON_FINITE = "look for NaN in the checkpoint; --no-validate writes the artifact all the same"


def problems_of(checks: Sequence[Check]) -> list[Problem]:
    """One problem per failed output of the decisive checks, naming the worst position."""
    problems = []
    for check in checks:
        if not check.decisive or check.comparison.passed:
            continue
        if not check.comparison.names_match:
            found, expected = check.comparison.names_found, check.comparison.names_expected
            problems.append(Problem("outputs", ", ".join(found), ", ".join(expected)))
        for verdict in check.comparison.verdicts:
            if verdict.passed:
                continue
            limit = f"within atol {verdict.atol:.3g} and rtol {verdict.rtol:.3g} of {verdict.worst_expected!r}"
            where = f"{verdict.name}{list(verdict.worst) if verdict.worst is not None else ''}"
            if verdict.non_finite_expected > 0:
                text = f"{verdict.non_finite_expected} elements of the model's own output are NaN or infinite"
                problems.append(Problem(f"{verdict.name}, {check.input}", text, "finite numbers", _NON_FINITE))
                continue
            problems.append(
                Problem(
                    f"{where}, {check.input}, against {check.reference}",
                    f"{verdict.worst_found!r} (max abs {verdict.max_abs!r})"
                    if verdict.shape_found == verdict.shape_expected
                    else f"shape {verdict.shape_found}",
                    limit if verdict.shape_found == verdict.shape_expected else f"shape {verdict.shape_expected}",
                )
            )
    return problems
