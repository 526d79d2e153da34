"""How well a quantized artifact predicts a text: likelihood, divergence, and the user's own text."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from llmcompile.errors import OptionsError


def divergence(model: Tensor, logits: Tensor) -> float:
    """Kullback-Leibler divergence from the model's next-token distributions, in nats, summed over positions."""
    wanted, found = (torch.log_softmax(values.double(), -1) for values in (model, logits))
    return float(nn.functional.kl_div(found, wanted, reduction="sum", log_target=True))


def not_finite(model: Tensor, logits: Tensor) -> str:
    """Why logits cannot be scored, in words; "" if they can: of NaN and infinities there is no likelihood."""
    for whose, values in (("the model's", model), ("the checkpoint's", logits)):
        count = int((~values.isfinite()).sum())
        if count > 0:
            return f"{count} of {values.numel()} of {whose} logits are NaN or infinite"
    return ""


class Likelihood:
    """Negative log-likelihood of the tokens that follow, summed over windows."""

    def __init__(self) -> None:
        self._nats = 0.0
        self._tokens = 0

    def add(self, logits: Tensor, tokens: Tensor) -> None:
        """Count one window: logits (1, tokens, vocab)."""
        losses = nn.functional.cross_entropy(logits[0, :-1].double(), tokens[0, 1:], reduction="sum")
        self._nats += float(losses)
        self._tokens += tokens.shape[1] - 1

    @property
    def perplexity(self) -> float:
        """E to the mean."""
        return math.exp(min(700.0, self._nats / max(1, self._tokens)))


def read_text(path: Path) -> str:
    """The user's text to score on.

    Raises:
        OptionsError: It cannot be read, or there is nothing in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionsError("--eval-text", f"{path}: {error}", "a text file in UTF-8", "check the path") from error
    if text.strip() == "":
        raise OptionsError("--eval-text", f"{path} is empty", "some sentences", "leave the flag out for a sample text")
    return text
