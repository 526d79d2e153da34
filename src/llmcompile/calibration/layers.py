"""A model taken apart at its layers: what goes into the first, and each of them by itself on any hidden states.

Nothing here knows a family: a layer is called as the model itself calls it, with other hidden states. No more than one
module's parameters are in memory. Of a model with two stacks, either is taken apart by itself.

Shape suffixes: B samples of a batch, S tokens of each, E tokens of each in the encoder, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
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
    """How the model calls one of its layers, but for the hidden states.

    Attributes:
        tokens: How many of each sample went in.
        arguments: Behind the hidden states.
        keywords: Those with a name.
    """

    tokens: int
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class Layers:
    """The layers of a model with next-token logits, or of one of its stacks, in float32.

    Attributes:
        stack: "encoder" or "decoder" of a model with both; "" for one of a single stack.
        modules: Each layer.
        stored: Name of each parameter, counted from the model -> its tensor in the checkpoint.
    """

    def __init__(
        self,
        config_dir: Path,
        weights: Weights,
        *,
        stack: str = "",
        layers: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Build the model without parameters.

        Args:
            config_dir: Holds config.json.
            weights: The checkpoint.
            stack: As the attribute.
            layers: How many there are in the stack; None for what config.json says first.
            trust_remote_code: Run the model's own code.

        Raises:
            CheckpointError: config.json or the weights are not a model's.
            UnsupportedError: transformers does not know the model, or has no list of layers for it.
        """
        facts = describe(config_dir, trust_remote_code=trust_remote_code)
        whole, self.stored = streamed_model(
            config_dir, weights, attention=facts.attention, trust_remote_code=trust_remote_code
        )
        model: Any = whole
        self.stack = stack
        if stack != "":
            model = model.get_encoder() if stack == "encoder" else model.get_decoder()
        self._model = model
        wanted = facts.layers if layers is None else layers
        found = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == wanted
        ]
        if len(found) == 0:
            raise UnsupportedError(facts.kind, f"no list of {wanted} layers in transformers' model")
        self.modules: nn.ModuleList = found[0][1]
        self._prefix = next(name for name, module in whole.named_modules() if module is self.modules)
        self._calls: dict[int, list[_Call]] = {}
        self._endings: dict[int, tuple[Any, ...] | None] = {}
        """Samples of a batch -> what a layer gives behind its hidden states; None where it gives these alone."""

    def name(self, layer: int, parameter: str) -> str:
        """The whole name of a layer's parameter."""
        return f"{self._prefix}.{layer}.{parameter}"

    @torch.inference_mode()
    def embed(self, tokens_BS: Tensor, encoded_BEH: Tensor | None = None) -> Tensor:
        """What the first layer is given for some tokens: shape (B, S, H), float32.

        Args:
            tokens_BS: The stack's own tokens, int64.
            encoded_BEH: What the encoder gave, for a decoder that reads it.
        """
        first: list[Tensor] = []
        calls: list[_Call] = []
        batch = tokens_BS.shape[0]

        def called(layer: int, *arguments: Any, **keywords: Any) -> Any:
            hidden, rest, keywords = _taken(arguments, keywords)
            calls.append(
                _Call(
                    hidden.shape[1],
                    tuple(_marked(value, encoded_BEH) for value in rest),
                    {name: _marked(value, encoded_BEH) for name, value in keywords.items()},
                )
            )
            first[:] = first or [hidden]
            if batch not in self._endings:
                result = type(self.modules[layer]).forward(
                    self.modules[layer], *arguments, **_restored(keywords, arguments, hidden)
                )
                self._endings[batch] = None if isinstance(result, Tensor) else tuple(result[1:])
            if layer == len(self.modules) - 1:
                raise _LastLayerError
            return self._given(hidden)

        with suppress(_LastLayerError):
            self._call(tokens_BS, encoded_BEH, called)
        values = [value for call in calls for value in (*call.arguments, *call.keywords.values())]
        if encoded_BEH is not None and not any(isinstance(value, _Encoded) for value in values):
            kind = type(self._model).__name__
            raise UnsupportedError(kind, "hands its layers something else than what the encoder gave")
        self._calls[batch] = calls
        return first[0]

    @torch.inference_mode()
    def finish(self, tokens_BS: Tensor, hidden_BSH: Tensor) -> Tensor:
        """What an encoder gives for some tokens, of what its last layer gave: shape (B, S, H)."""

        def called(layer: int, *arguments: Any, **keywords: Any) -> Any:
            return self._given(hidden_BSH)

        result: Tensor = self._call(tokens_BS, None, called).last_hidden_state
        return result

    def _given(self, hidden_BSH: Tensor) -> Any:
        """Hidden states as a layer gives them."""
        ending = self._endings[hidden_BSH.shape[0]]
        return hidden_BSH if ending is None else (hidden_BSH, *ending)

    def _call(self, tokens_BS: Tensor, encoded_BEH: Tensor | None, called: Callable[..., Any]) -> Any:
        """Run the model on some tokens with `called` in the place of every layer, whose number it is told."""
        given: dict[str, Any] = {"input_ids": tokens_BS}
        if encoded_BEH is not None:
            mask = torch.ones(encoded_BEH.shape[:2], dtype=torch.int64)
            given |= {"encoder_hidden_states": encoded_BEH, "encoder_attention_mask": mask}
        given["attention_mask"] = torch.ones_like(tokens_BS)
        if self.stack != "encoder":
            given["use_cache"] = False
        for layer, module in enumerate(self.modules):
            module.forward = partial(called, layer)
        try:
            return self._model(**given)
        finally:
            for module in self.modules:
                del module.forward

    @torch.inference_mode()
    def run(self, layer: int, hidden_BSH: Tensor) -> Tensor:
        """One layer on hidden states of as many samples as some batch that was embedded: shape (B, S, H).

        A decoder's are followed by what its encoder gave: (B, S + E, H).
        """
        call = self._calls[hidden_BSH.shape[0]][layer]
        own_BSH = hidden_BSH[:, : call.tokens] if self.stack == "decoder" else hidden_BSH
        encoded_BEH = hidden_BSH[:, call.tokens :] if self.stack == "decoder" else None
        arguments = [_filled(value, encoded_BEH) for value in call.arguments]
        keywords = {name: _filled(value, encoded_BEH) for name, value in call.keywords.items()}
        found = self.modules[layer](own_BSH, *arguments, **keywords)
        result: Tensor = found if isinstance(found, Tensor) else found[0]
        return result


class _Encoded:
    """Stands in a call for what the encoder gave."""


def _marked(value: Any, encoded_BEH: Tensor | None) -> Any:
    return _Encoded() if encoded_BEH is not None and value is encoded_BEH else value


def _filled(value: Any, encoded_BEH: Tensor | None) -> Any:
    return encoded_BEH if isinstance(value, _Encoded) else value


def _taken(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states of a call, and the rest of it."""
    if len(arguments) > 0:
        return arguments[0], arguments[1:], dict(keywords)
    rest = dict(keywords)
    return rest.pop("hidden_states"), (), rest


def _restored(keywords: Mapping[str, Any], arguments: tuple[Any, ...], hidden: Tensor) -> dict[str, Any]:
    """The keywords with the hidden states among them, where those were no argument."""
    return dict(keywords) if len(arguments) > 0 else {**keywords, "hidden_states": hidden}
