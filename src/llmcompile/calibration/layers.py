"""A model taken apart at its layers: what goes into the first, and each of them by itself on any hidden states.

Nothing here knows a family: a layer is called as the model itself calls it, with other hidden states. No more than one
module's parameters are in memory.

Shape suffixes: B samples of a batch, S tokens of each, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmcompile.errors import UnsupportedError
from llmcompile.validation.reference import Weights, describe, streamed_model


class _LastLayerError(Exception):
    """The last layer was called: what the model does behind it is not wanted."""


@dataclass
class _Call:
    """How the model calls one of its layers, but for the hidden states."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class Layers:
    """The layers of a model with next-token logits, in float32.

    Attributes:
        modules: Each layer.
        stored: Name of each parameter, counted from the model -> its tensor in the checkpoint.
    """

    def __init__(self, config_dir: Path, weights: Weights, *, trust_remote_code: bool = False) -> None:
        """Build the model without parameters.

        Raises:
            CheckpointError: config.json or the weights are not a model's.
            UnsupportedError: transformers does not know the model, or has no list of layers for it.
        """
        facts = describe(config_dir, trust_remote_code=trust_remote_code)
        self._model, self.stored = streamed_model(
            config_dir, weights, attention=facts.attention, trust_remote_code=trust_remote_code
        )
        found = [
            (name, module)
            for name, module in self._model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == facts.layers
        ]
        if len(found) == 0:
            raise UnsupportedError(facts.kind, f"no list of {facts.layers} layers in transformers' model")
        self._prefix, self.modules = found[0]
        self._calls: dict[int, list[_Call]] = {}
        self._ending: tuple[Any, ...] | None = None
        """What a layer gives behind its hidden states; None where it gives these alone."""
        self._known = False

    def name(self, layer: int, parameter: str) -> str:
        """The whole name of a layer's parameter."""
        return f"{self._prefix}.{layer}.{parameter}"

    @torch.inference_mode()
    def embed(self, tokens_BS: Tensor) -> Tensor:
        """What the first layer is given for some tokens: shape (B, S, H), float32."""
        first: list[Tensor] = []
        calls: list[_Call] = []

        def called(layer: int, *arguments: Any, **keywords: Any) -> Any:
            hidden, rest, keywords = _taken(arguments, keywords)
            calls.append(_Call(rest, keywords))
            first[:] = first or [hidden]
            if not self._known:
                self._learn(
                    type(self.modules[layer]).forward(
                        self.modules[layer], *arguments, **_restored(keywords, arguments, hidden)
                    )
                )
            if layer == len(self.modules) - 1:
                raise _LastLayerError
            return hidden if self._ending is None else (hidden, *self._ending)

        for layer, module in enumerate(self.modules):
            module.forward = partial(called, layer)
        try:
            self._model(input_ids=tokens_BS, attention_mask=torch.ones_like(tokens_BS), use_cache=False)
        except _LastLayerError:
            pass
        finally:
            for module in self.modules:
                del module.forward
        self._calls[tokens_BS.shape[0]] = calls
        return first[0]

    def _learn(self, result: Any) -> None:
        self._ending = None if isinstance(result, Tensor) else tuple(result[1:])
        self._known = True

    @torch.inference_mode()
    def run(self, layer: int, hidden_BSH: Tensor) -> Tensor:
        """One layer on hidden states of as many samples as some batch that was embedded: shape (B, S, H)."""
        call = self._calls[hidden_BSH.shape[0]][layer]
        found = self.modules[layer](hidden_BSH, *call.arguments, **call.keywords)
        result: Tensor = found if isinstance(found, Tensor) else found[0]
        return result


def _taken(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states of a call, and the rest of it."""
    if len(arguments) > 0:
        return arguments[0], arguments[1:], dict(keywords)
    rest = dict(keywords)
    return rest.pop("hidden_states"), (), rest


def _restored(keywords: Mapping[str, Any], arguments: tuple[Any, ...], hidden: Tensor) -> dict[str, Any]:
    """The keywords with the hidden states among them, where those were no argument."""
    return dict(keywords) if len(arguments) > 0 else {**keywords, "hidden_states": hidden}
