"""What each graph computes: transformers' model with its caches as plain inputs and outputs.

    an encoder           input_ids, attention_mask, ... -> what the head of its task gives
    a decoder            input_ids, attention_mask, position_ids, past_key_values.* -> logits, present.*
    an encoder-decoder   encoder: input_ids, attention_mask -> encoder_hidden_states, cross.*
                         decoder: decoder_input_ids, encoder_attention_mask, past_key_values.*, cross.* -> logits,
                         present.*

One decoder graph reads a prompt, with caches of length 0, and goes on token by token. Keys and values that cross from
an encoder are computed once, by the graph of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from llmcompile.errors import UnsupportedError
from llmcompile.exporters.rtx.options import DECODER_TASK, SEQ2SEQ_TASK
from llmcompile.exporters.rtx.profiles import BATCH, CHOICES, PAST, SEQUENCE, SOURCE, TOTAL
from llmcompile.exporters.rtx.source import Source, takes

SIZES = {BATCH: 2, SEQUENCE: 3, PAST: 5, TOTAL: 8, SOURCE: 7, CHOICES: 4}
"""Sizes of the example a graph is traced with: no two alike, none 0 or 1, which torch.export takes for constants."""
MODEL, ENCODER, DECODER = "model", "encoder", "decoder"
"""Names of graphs: the only one, or the two of an encoder-decoder."""
OF = "of"
"""What a network calls the model inside it."""


@dataclass(frozen=True)
class Given:
    """An input of a graph: its name, an example of it, and what its axes are called where they are not fixed."""

    name: str
    example: Tensor
    axes: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is exported as one graph.

    Attributes:
        name: `MODEL`, `ENCODER` or `DECODER`.
        module: Takes tensors in the order of `inputs`, and gives a tuple in that of `outputs`.
        inputs: In order.
        outputs: Names, in order.
    """

    name: str
    module: nn.Module
    inputs: tuple[Given, ...]
    outputs: tuple[str, ...]


def networks(source: Source, task: str, *, all_logits: bool) -> Iterator[Network]:
    """The graphs of a model, each made when it is asked for.

    Args:
        source: The model.
        task: What the graphs do.
        all_logits: Whether a decoder gives logits at every position, rather than at the last.

    Raises:
        UnsupportedError: It keeps something else than keys and values, or cannot be run.
    """
    if task == DECODER_TASK:
        yield _decoder(source.model, all_logits)
    elif task == SEQ2SEQ_TASK:
        yield from _encoder_decoder(source.model, all_logits)
    else:
        yield _encoder(source, task)


def _ids(*axes: str) -> Tensor:
    return torch.ones([SIZES[axis] for axis in axes], dtype=torch.int64)


def _caches(layers: Sequence[tuple[Tensor, Tensor]], name: str, axis: str) -> list[Given]:
    """Inputs for the keys and values of every layer: (batch, heads, axis, head size)."""
    given = []
    for index, pair in enumerate(layers):
        for word, found in zip(("key", "value"), pair, strict=True):
            shape = (SIZES[BATCH], found.shape[1], SIZES[axis], found.shape[3])
            given.append(Given(f"{name}.{index}.{word}", found.new_zeros(shape), (BATCH, None, axis, None)))
    return given


def _names(name: str, layers: int) -> tuple[str, ...]:
    return tuple(f"{name}.{index}.{word}" for index in range(layers) for word in ("key", "value"))


def _layers(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer of a cache of transformers, or of the tuples it had before."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    if hasattr(cache, "key_cache"):
        return list(zip(cache.key_cache, cache.value_cache, strict=True))
    return [(layer[0], layer[1]) for layer in cache]


def _filled(flat: Sequence[Tensor]) -> Any:
    cache = DynamicCache()
    for index in range(len(flat) // 2):
        cache.update(flat[2 * index], flat[2 * index + 1], index)
    return cache


def _flat(cache: Any) -> tuple[Tensor, ...]:
    return tuple(tensor for layer in _layers(cache) for tensor in layer)


def _probed(model: Any, **given: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values a model makes of a few tokens: how many there are, and of which shapes."""
    with torch.no_grad():
        found = model(**given, use_cache=True, return_dict=True).past_key_values
    if found is None:
        raise UnsupportedError(type(model).__name__, "keeps no keys and values", "a decoder with a cache of them")
    cache = getattr(found, "self_attention_cache", found)
    layers = _layers(cache)
    if any(getattr(tensor, "ndim", 0) != 4 for layer in layers for tensor in layer):
        raise UnsupportedError(
            type(model).__name__, "keeps other states than keys and values", "a decoder with a cache of them"
        )
    return layers


# Encoders


class _Encoder(nn.Module):
    """A model with the head of a task; every tensor it gives but the states of inner layers."""

    def __init__(self, model: Any, pooler: bool) -> None:
        super().__init__()
        self.of = model
        self._left_out = () if pooler else ("pooler_output",)
        self.names: tuple[str, ...] = ()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.of(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **more)
        kept = {
            name: value for name, value in found.items() if isinstance(value, Tensor) and name not in self._left_out
        }
        self.names = tuple(kept)
        return tuple(kept.values())


def _encoder(source: Source, task: str) -> Network:
    model = source.model
    axes = (BATCH, CHOICES, SEQUENCE) if task == "multiple-choice" else (BATCH, SEQUENCE)
    names = ["input_ids", "attention_mask"]
    if takes(model, "token_type_ids") and int(getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        names.append("token_type_ids")
    examples = {name: _ids(*axes) if name != "token_type_ids" else _ids(*axes) * 0 for name in names}
    module = _Encoder(model, source.pooler)
    with torch.no_grad():
        # Of another length than the example's: ESM keeps the tables of the last length it saw, and the graph would too.
        module(*(torch.cat([example, example[..., :1]], -1) for example in examples.values()))
    inputs = tuple(Given(name, example, axes) for name, example in examples.items())
    return Network(name=MODEL, module=module, inputs=inputs, outputs=module.names)


# Decoders


class _Decoder(nn.Module):
    """A decoder whose keys and values come in and go out."""

    def __init__(self, model: Any, all_logits: bool) -> None:
        super().__init__()
        self.of = model
        self._all_logits = all_logits
        self._positions = takes(model, "position_ids")
        self._keeps = takes(model, "logits_to_keep") and not all_logits

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        more: dict[str, Any] = {"position_ids": position_ids} if self._positions else {}
        if self._keeps:
            more["logits_to_keep"] = 1
        found = self.of(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=_filled(past),
            use_cache=True,
            return_dict=True,
            **more,
        )
        logits = found.logits if self._all_logits else found.logits[:, -1:]
        return (logits, *_flat(found.past_key_values))


def _decoder(model: Any, all_logits: bool) -> Network:
    layers = _probed(model, input_ids=_ids(BATCH, SEQUENCE))
    positions = torch.arange(SIZES[PAST], SIZES[TOTAL])[None].repeat(SIZES[BATCH], 1)
    given = (
        Given("input_ids", _ids(BATCH, SEQUENCE), (BATCH, SEQUENCE)),
        Given("attention_mask", _ids(BATCH, TOTAL), (BATCH, TOTAL)),
        Given("position_ids", positions, (BATCH, SEQUENCE)),
        *_caches(layers, "past_key_values", PAST),
    )
    outputs = ("logits", *_names("present", len(layers)))
    return Network(name=MODEL, module=_Decoder(model, all_logits), inputs=given, outputs=outputs)


# Models with encoder and decoder


def _states(states: Any) -> Any:
    """What transformers takes for an encoder that has run."""
    return BaseModelOutput(last_hidden_state=states)


class _CrossEncoder(nn.Module):
    """An encoder, and the keys and values that all layers of its decoder make of its states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.of = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        states = self.of.get_encoder()(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True
        ).last_hidden_state
        # The decoder runs on one token to make them; what else it computes is not an output, and leaves the graph.
        caches = EncoderDecoderCache(DynamicCache(), DynamicCache())
        found = self.of(
            encoder_outputs=_states(states),
            attention_mask=attention_mask,
            decoder_input_ids=input_ids[:, :1] * 0,
            past_key_values=caches,
            use_cache=True,
            return_dict=True,
        )
        return (states, *_flat(found.past_key_values.cross_attention_cache))


class _CrossDecoder(nn.Module):
    """A decoder beside an encoder that has run."""

    def __init__(self, model: Any, all_logits: bool) -> None:
        super().__init__()
        self.of = model
        self._all_logits = all_logits

    def forward(
        self, decoder_input_ids: Tensor, encoder_attention_mask: Tensor, past: list[Tensor], cross: list[Tensor]
    ) -> tuple[Tensor, ...]:
        caches = EncoderDecoderCache(_filled(past), _filled(cross))
        for index in range(len(past) // 2):
            caches.is_updated[index] = True  # so that the keys and values are taken from it
        first = cross[0]
        # Only the shape of the encoder's states is looked at.
        states = first.new_zeros((first.shape[0], first.shape[2], self.of.config.hidden_size))
        found = self.of(
            encoder_outputs=_states(states),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=decoder_input_ids,
            past_key_values=caches,
            use_cache=True,
            return_dict=True,
        )
        logits = found.logits if self._all_logits else found.logits[:, -1:]
        return (logits, *_flat(found.past_key_values.self_attention_cache))


def _encoder_decoder(model: Any, all_logits: bool) -> Iterator[Network]:
    layers = _probed(model, input_ids=_ids(BATCH, SOURCE), decoder_input_ids=_ids(BATCH, SEQUENCE))
    yield Network(
        name=ENCODER,
        module=_CrossEncoder(model),
        inputs=(
            Given("input_ids", _ids(BATCH, SEQUENCE), (BATCH, SEQUENCE)),
            Given("attention_mask", _ids(BATCH, SEQUENCE), (BATCH, SEQUENCE)),
        ),
        outputs=("encoder_hidden_states", *_names("cross", len(layers))),
    )
    yield Network(
        name=DECODER,
        module=_CrossDecoder(model, all_logits),
        inputs=(
            Given("decoder_input_ids", _ids(BATCH, SEQUENCE), (BATCH, SEQUENCE)),
            Given("encoder_attention_mask", _ids(BATCH, SOURCE), (BATCH, SOURCE)),
            *_caches(layers, "past_key_values", PAST),
            *_caches(layers, "cross", SOURCE),
        ),
        outputs=("logits", *_names("present", len(layers))),
    )
