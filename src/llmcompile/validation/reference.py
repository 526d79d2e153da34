"""The oracle: the Hugging Face model on CPU in float32, one module's weights in memory at a time.

The model is built by transformers itself, with real buffers and without parameters. Each parameter is
read when the module that owns it runs and released when that module is done, so a model of any size
needs the memory of its largest module and its activations. Nothing here knows a family by name.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_parameter_registration_hook

from llmcompile.errors import CheckpointError, LlmCompileError, Problem, UnsupportedError, collected

BLOCK_BYTES: Final = 256 * 2**20
"""Default for `run_reference(block_bytes=...)`."""

_OTHER_NAMES: Final = (
    ("LayerNorm.weight", "LayerNorm.gamma"),  # BERT and others ported from TensorFlow
    ("LayerNorm.bias", "LayerNorm.beta"),
    ("lm_head.weight", "embed_out.weight"),  # GPT-NeoX: its head was renamed in transformers 5, its files were not
)

_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)


StoredAs: TypeAlias = Callable[[str, Tensor, nn.Module], Tensor]


class Weights(Protocol):
    """A checkpoint whose tensors are read one at a time, by the name they have in the file."""

    def names(self) -> Collection[str]:
        """Every tensor in the checkpoint."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, any float dtype, on CPU; never modified by the caller, who drops it after use."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the Hugging Face model computes from some tokens; every tensor is float32.

    Attributes:
        outputs: Causal model: `logits` (batch, sequence, vocab). Encoder and decoder:
            `encoder_hidden_states` (batch, sequence, hidden), after the encoder's final layer norm, and
            `logits` (batch, decoder sequence, vocab); its encoder alone: the former. BERT-like encoder:
            `last_hidden_state` (batch, sequence, hidden).
        hidden: BERT-like encoder: the embedding output (batch, sequence, hidden), after its layer norm,
            where FasterTransformer starts. None otherwise.
    """

    outputs: dict[str, Tensor]
    hidden: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text as token ids, or the reason why there are none; exactly one of the two is given.

    Attributes:
        tokens: Shape (1, n), int64, n at least 1; or None.
        reason: A clause for people, such as "there are no tokenizer files beside config.json"; "" with tokens.
        of_text: Whether the reason is the text: the tokenizer loads, and makes nothing of it.
    """

    tokens: Tensor | None
    reason: str
    of_text: bool = False


def run_reference(
    config_dir: Path,
    weights: Weights,
    *,
    tokens: Tensor,
    decoder_tokens: Tensor | None,
    encoder_only: bool,
    rounded_to: torch.dtype | None = None,
    overrides: Mapping[str, object] = MappingProxyType({}),
    stored_as: StoredAs | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
    attention: str = "eager",
    arithmetic: torch.dtype = torch.float32,
    positions: Tensor | None = None,
    trust_remote_code: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Reference:
    """Run the model that `config.json` describes, as `from_pretrained(...).float()` would.

    Dropout is off, attention is eager, every position is attended to whatever its token, and there is no
    network. The head is chosen by the kind of model: next-token logits where it has them, an encoder's
    bare states otherwise, whichever head the checkpoint was saved with.

    A parameter is looked up as transformers does: by its name, with or without the base model's prefix,
    under its older names, and, for tied parameters, under any name of the group. Where a tied head is
    stored as well, the input embedding is used unless config.json says `"tie_word_embeddings": false`;
    transformers 5 would use the stored head, transformers 4 would not.

    Args:
        config_dir: Holds `config.json`, and the model's own code where it has some.
        weights: The checkpoint.
        tokens: Shape (batch, sequence), int64, each in [0, vocab); the encoder's where there are two.
        decoder_tokens: Shape (batch, decoder sequence), int64, for a model with encoder and decoder; else None.
        encoder_only: Run only the encoder of a model that has both.
        rounded_to: Round each parameter to this dtype before use, as storing it in an artifact does; the
            arithmetic stays as it is. None: as stored in the checkpoint.
        overrides: Values of the config that a runtime has compiled in, such as another LayerNorm epsilon.
        stored_as: What a parameter becomes by being stored, beyond `rounded_to`: told its name in the model, its
            values and the module that owns it; of a linear layer it may be told some rows at a time.
        prepare: Changes the model before it runs, where a runtime differs in more than config values say.
        attention: Attention of transformers: "eager", or "sdpa" where eager is wrong.
        arithmetic: What the model computes in, and its parameters are converted to; for how much 16 bits cost.
        positions: Shape (batch, kept), int64: where in each row, of two stacks the decoder's, logits are wanted; None
            for everywhere. For a model with next-token logits only; of a large vocabulary they are the largest tensor
            by far.
        trust_remote_code: Run Python code found in `config_dir`.
        block_bytes: A linear layer larger than this in float32 bytes is computed in blocks of its rows, so
            this bounds what a vocabulary's head takes. Blocks may change results in the last bit.

    Raises:
        CheckpointError: `config.json` is absent or malformed, or parameters are missing (all of them are
            named) or have another shape than the model's.
        UnsupportedError: The installed transformers does not know this kind of model, or the model's output
            depends on a parameter that was read outside the module that owns it. Where such a parameter meets
            an activation first, torch's RuntimeError about the meta device comes through instead.
        ValueError: The tokens do not fit the arguments, the vocabulary or the positions the model has.
    """
    _check_tokens("tokens", tokens)
    if decoder_tokens is not None:
        _check_tokens("decoder_tokens", decoder_tokens)
    settings = _settings(config_dir)
    with _quiet(), torch.inference_mode():
        config = _config(config_dir, settings, trust_remote_code)
        for name, value in overrides.items():
            setattr(config, name, value)
        two, encodes = _kind(config)
        if (decoder_tokens is not None) != (two and not encoder_only):
            raise ValueError("decoder_tokens belong to a model with encoder and decoder, both of which run")
        if encoder_only and not (two or encodes):
            raise ValueError(f"encoder_only, but {type(config).__name__} describes no encoder")

        kind = _auto_class(config, two, encodes, encoder_only)
        model = _empty_model(kind, config, trust_remote_code, attention, arithmetic)
        if prepare is not None:
            prepare(model)
        stored = _stored_names(model, weights.names(), apart=settings.get("tie_word_embeddings") is False)
        reader = _Reader(
            weights=weights, stored=stored, rounded_to=rounded_to, stored_as=stored_as, arithmetic=arithmetic
        )
        _stream(model, reader, block_bytes)
        if positions is not None:
            if encoder_only or (encodes and not two):
                raise ValueError(f"positions, but {type(config).__name__} describes no model with next-token logits")
            _keep(model, positions)

        mask = torch.ones_like(tokens)
        if two and not encoder_only:
            found = model(input_ids=tokens, attention_mask=mask, decoder_input_ids=decoder_tokens, return_dict=True)
            outputs = {"encoder_hidden_states": found.encoder_last_hidden_state, "logits": found.logits}
            hidden = None
        elif two:
            found = model(input_ids=tokens, attention_mask=mask, return_dict=True)
            outputs = {"encoder_hidden_states": found.last_hidden_state}
            hidden = None
        elif encodes:
            found = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True, return_dict=True)
            outputs = {"last_hidden_state": found.last_hidden_state}
            hidden = found.hidden_states[0]
        else:
            found = model(input_ids=tokens, attention_mask=mask, return_dict=True)
            outputs = {"logits": found.logits}
            hidden = None
        if any(output.is_meta for output in outputs.values()):
            raise UnsupportedError(type(model).__name__, "reads a parameter outside the module that owns it")
    return Reference(
        outputs={name: _plain(output) for name, output in outputs.items()},
        hidden=None if hidden is None else _plain(hidden),
    )


TASKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "feature-extraction": "AutoModel",
        "fill-mask": "AutoModelForMaskedLM",
        "text-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
        "multiple-choice": "AutoModelForMultipleChoice",
    }
)
"""Tasks of an encoder, and the class of transformers that each is for."""


def run_task(
    config_dir: Path,
    weights: Weights,
    *,
    task: str,
    inputs: Mapping[str, Tensor],
    hidden_states: bool = False,
    attentions: bool = False,
    rounded_to: torch.dtype | None = None,
    stored_as: StoredAs | None = None,
    arithmetic: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Tensor]:
    """Run an encoder with the head of a task, as `AutoModelFor...from_pretrained(...).float()` would.

    Parameters are found and streamed as by `run_reference`; where modules of a model look into one another, all of them
    are in memory at once. A pooling layer is there if the checkpoint has one.

    Args:
        config_dir: Holds `config.json`.
        weights: The checkpoint.
        task: One of `TASKS`.
        inputs: What the model's forward takes by name: input_ids, attention_mask, perhaps token_type_ids; int64, shape
            (batch, sequence), for multiple-choice (batch, choices, sequence).
        hidden_states: Give the states after the embeddings and after every layer.
        attentions: Give every layer's attention weights.
        rounded_to: As for `run_reference`, like all that follow.
        stored_as: Likewise.
        arithmetic: Likewise.
        trust_remote_code: Likewise.
        block_bytes: Likewise.

    Returns:
        Every output by the name transformers gives it, float32; one that is a tuple gives one tensor each, called
        "hidden_states.0" and so on.

    Raises:
        CheckpointError: As for `run_reference`; above all, the checkpoint has no weights of the task's head.
        UnsupportedError: The installed transformers does not know this kind of model, or has no such head for it.
    """
    settings = _settings(config_dir)
    with _quiet(), torch.inference_mode():
        config = _config(config_dir, settings, trust_remote_code)
        auto_class = _task_class(config, task)

        def build() -> tuple[Any, _Reader]:
            pooler = any("pooler." in name for name in weights.names())
            model = _empty_model(auto_class, config, trust_remote_code, "eager", arithmetic, pooler)
            stored = _stored_names(model, weights.names(), apart=settings.get("tie_word_embeddings") is False)
            reader = _Reader(
                weights=weights, stored=stored, rounded_to=rounded_to, stored_as=stored_as, arithmetic=arithmetic
            )
            return model, reader

        def run(model: Any) -> dict[str, Tensor]:
            found = model(**inputs, output_hidden_states=hidden_states, output_attentions=attentions, return_dict=True)
            return dict(_flat(found))

        model, reader = build()
        _stream(model, reader, block_bytes)
        try:
            outputs = run(model)
        except RuntimeError:
            # A parameter on the meta device met a tensor that is not; where something else failed, it fails again.
            outputs = {}
        if outputs == {} or any(output.is_meta for output in outputs.values()):
            model, reader = build()
            _fill_all(model, reader)
            outputs = run(model)
    return {name: _plain(output) for name, output in outputs.items()}


def _task_class(config: Any, task: str) -> Any:
    auto_class = getattr(transformers, TASKS[task])
    if type(config) not in auto_class._model_mapping and TASKS[task] not in getattr(config, "auto_map", {}):
        raise UnsupportedError(config.model_type, f"transformers has no class for {task}")
    return auto_class


def _flat(found: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in found.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple | list):
            yield from ((f"{name}.{index}", each) for index, each in enumerate(value))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model is, as transformers understands its `config.json`.

    Attributes:
        kind: The config's model_type.
        layers: Transformer layers.
        vocab: Ids it has an embedding for.
        pad: Id that fills rows up; 0 where the config has none.
        types: Ids for token_type_ids; 0 where the model knows none.
        heads: Query heads.
        rotary_switch: Tokens beyond which a sequence's rotary embedding is another (LongRoPE); None for a model whose
            first logits do not depend on how many tokens follow.
        attention: Attention that is right: "eager", but for a model whose eager attention is not.
        routed: Whether tokens are sent to some of several experts, so that a rounding error may send one elsewhere.
    """

    kind: str
    layers: int
    vocab: int
    pad: int
    types: int
    heads: int
    rotary_switch: int | None
    attention: str
    routed: bool


def describe(config_dir: Path, *, trust_remote_code: bool = False) -> Facts:
    """What the model in `config_dir` is.

    Raises:
        CheckpointError: `config.json` is absent, malformed or lacks a size.
        UnsupportedError: The installed transformers does not know this kind of model.
    """
    settings = _settings(config_dir)
    with _quiet():
        config = _config(config_dir, settings, trust_remote_code)

    def size(name: str) -> int:
        value = getattr(config, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{config_dir / 'config.json'}: {name}", repr(value), "a whole number above 0")
        return value

    # Eager Falcon adds its ALiBi twice in transformers 4.57, in the mask and once more in the layer.
    attention = "sdpa" if config.model_type == "falcon" and getattr(config, "alibi", False) is True else "eager"
    pad, types = getattr(config, "pad_token_id", None), getattr(config, "type_vocab_size", None)
    experts = [getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")]
    return Facts(
        kind=config.model_type,
        layers=size("num_hidden_layers"),
        vocab=size("vocab_size"),
        pad=pad if isinstance(pad, int) and pad >= 0 else 0,
        types=types if isinstance(types, int) else 0,
        heads=size("num_attention_heads"),
        rotary_switch=_rotary_switch(config),
        attention=attention,
        routed=any(isinstance(count, int) and count > 1 for count in experts),
    )


def lean_attention(config_dir: Path, *, trust_remote_code: bool = False) -> str:
    """Attention of transformers that makes no matrix of all scores, "sdpa", where it computes the same; else "eager".

    It has no place for a cap of the scores.

    Raises:
        CheckpointError, UnsupportedError: As for `describe`.
    """
    settings = _settings(config_dir)
    with _quiet():
        config = _config(config_dir, settings, trust_remote_code)
        causal: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        fused = type(config) in causal and getattr(causal[type(config)], "_supports_sdpa", False)
    return "sdpa" if fused and getattr(config, "attn_logit_softcapping", None) is None else "eager"


def _rotary_switch(config: Any) -> int | None:
    scaling = getattr(config, "rope_scaling", None)
    if not isinstance(scaling, Mapping) or scaling.get("rope_type", scaling.get("type")) not in ("longrope", "su"):
        return None
    original = getattr(config, "original_max_position_embeddings", None)
    return original if isinstance(original, int) else int(config.max_position_embeddings)


@dataclass(frozen=True, kw_only=True)
class EmbeddingTable:
    """A table that a model looks rows up in.

    Attributes:
        kind: "tokens" or "positions".
        stored: Name of the tensor in the checkpoint, shape (skip + rows, width).
        skip: Rows before the first that is used.
        stack: "encoder" or "decoder" for a table of positions of a model that has both; "" otherwise.
        names: What the model calls it, by all names where it is tied.
    """

    kind: str
    stored: str
    skip: int
    stack: str = ""
    names: tuple[str, ...] = ()


def embedding_tables(
    config_dir: Path,
    weights: Weights,
    *,
    encoder_only: bool,
    task: str | None = None,
    trust_remote_code: bool = False,
) -> list[EmbeddingTable]:
    """The model's tables of tokens and, where it has learned ones, of positions.

    A run only sees the rows of the tokens it is fed; with these, the rest can be compared directly.

    Args:
        config_dir: Holds `config.json`.
        weights: The checkpoint.
        encoder_only: As for `run_reference`.
        task: One of `TASKS`, for the class that is for it; None for the one `run_reference` chooses.
        trust_remote_code: As for `run_reference`.

    Raises:
        CheckpointError, UnsupportedError: As for `run_reference`.
    """
    settings = _settings(config_dir)
    with _quiet():
        config = _config(config_dir, settings, trust_remote_code)
        own = _auto_class(config, *_kind(config), encoder_only) if task is None else _task_class(config, task)
        model = _empty_model(own, config, trust_remote_code)
    stored = _stored_names(model, weights.names(), apart=settings.get("tie_word_embeddings") is False)
    inputs = model.get_input_embeddings()
    two = _kind(config)[0] and not encoder_only
    tables: dict[str, EmbeddingTable] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        source = stored[f"{name}.weight"]
        names = tuple(other for other, tensor in stored.items() if tensor == source)
        if module is inputs:
            tables["tokens"] = EmbeddingTable(kind="tokens", stored=source, skip=0, names=names)
        elif name.endswith(("wpe", "embed_positions", "position_embeddings")):
            skip = int(getattr(module, "offset", 0))
            stack = ("decoder" if "decoder." in name else "encoder") if two else ""
            found = EmbeddingTable(kind="positions", stored=source, skip=skip, stack=stack, names=names)
            tables[f"positions {stack}"] = found
    return list(tables.values())


def parameter_sources(
    config_dir: Path, weights: Weights, *, task: str | None = None, trust_remote_code: bool = False
) -> dict[str, str]:
    """Each parameter that the model with next-token logits has, by its name there, and its tensor in the checkpoint.

    Args:
        config_dir: Holds `config.json`.
        weights: The checkpoint.
        task: One of `TASKS`, for the class that is for it instead.
        trust_remote_code: As for `run_reference`.

    Raises:
        CheckpointError, UnsupportedError: As for `run_reference`.
    """
    settings = _settings(config_dir)
    with _quiet():
        config = _config(config_dir, settings, trust_remote_code)
        own = _auto_class(config, *_kind(config), False) if task is None else _task_class(config, task)
        pooler = any("pooler." in name for name in weights.names())
        model = _empty_model(own, config, trust_remote_code, pooler=pooler)
    return _stored_names(model, weights.names(), apart=settings.get("tie_word_embeddings") is False)


def streamed_model(
    config_dir: Path, weights: Weights, *, attention: str = "eager", trust_remote_code: bool = False
) -> tuple[nn.Module, Mapping[str, str]]:
    """The model with next-token logits in float32, each module of which reads its parameters when it runs.

    Args:
        config_dir: Holds `config.json`.
        weights: The checkpoint.
        attention: As for `run_reference`.
        trust_remote_code: As for `run_reference`.

    Returns:
        The model, and each parameter's tensor in the checkpoint.

    Raises:
        CheckpointError, UnsupportedError: As for `run_reference`.
    """
    settings = _settings(config_dir)
    with _quiet(), torch.inference_mode():
        config = _config(config_dir, settings, trust_remote_code)
        model = _empty_model(_auto_class(config, *_kind(config), False), config, trust_remote_code, attention)
        stored = _stored_names(model, weights.names(), apart=settings.get("tie_word_embeddings") is False)
        _stream(model, _Reader(weights=weights, stored=stored, rounded_to=None), BLOCK_BYTES)
    return model, stored


def fixed_tokens(vocab: int, *, batch: int, sequence: int, seed: int = 0) -> Tensor:
    """Token ids that are the same on every machine and with every version of every library.

    Even positions are drawn from the whole vocabulary, odd ones from its first 256 ids; the first row
    starts with the largest id, so a truncated embedding table cannot pass.

    Args:
        vocab: Ids are in [0, vocab); at least 1.
        batch: Rows; no two are alike unless the vocabulary or the sequence is tiny.
        sequence: Ids per row.
        seed: Another seed gives other ids, such as for a decoder.

    Returns:
        Shape (batch, sequence), int64.

    Raises:
        ValueError: `vocab`, `batch` or `sequence` is below 1.

    Source: the multiplier and increment are Knuth's MMIX linear congruential generator (TAOCP 2, 3.3.4).
    """
    if min(vocab, batch, sequence) < 1:
        raise ValueError(f"vocab, batch and sequence must be at least 1, got {vocab}, {batch} and {sequence}")
    ids = []
    state = seed
    for index in range(batch * sequence):
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        span = vocab if (index % sequence) % 2 == 0 else min(vocab, 256)
        ids.append((state >> 32) * span >> 32)
    ids[0] = vocab - 1
    return torch.tensor(ids, dtype=torch.int64).reshape(batch, sequence)


def prompt_tokens(config_dir: Path, text: str, max_tokens: int, *, trust_remote_code: bool = False) -> Prompt:
    """As `text_tokens`, of one text."""
    return text_tokens(config_dir, [text], max_tokens, trust_remote_code=trust_remote_code)


def text_tokens(config_dir: Path, texts: Iterable[str], max_tokens: int, *, trust_remote_code: bool = False) -> Prompt:
    """Encode texts, one after the other, with the tokenizer beside the checkpoint, if there is one.

    Args:
        config_dir: Where the tokenizer's files would be; nothing is downloaded.
        texts: What to encode, each with the special tokens the tokenizer adds; no more are taken than needed.
        max_tokens: Ids beyond this many are dropped; at least 1.
        trust_remote_code: Run Python code found in `config_dir`.

    Returns:
        At most `max_tokens` ids, or why the prompt must be skipped: there is no tokenizer, it does not
        load, it does not take the text or gives nothing for it, or it gives ids the model has no embedding for.
    """
    if not any((config_dir / name).is_file() for name in _TOKENIZER_FILES):
        return Prompt(tokens=None, reason="there are no tokenizer files beside config.json")
    ids: list[int] = []
    with _quiet():
        try:
            auto: Any = transformers.AutoTokenizer
            tokenizer = auto.from_pretrained(config_dir, local_files_only=True, trust_remote_code=trust_remote_code)
        except Exception as error:  # the tokenizers library raises plain Exception for a malformed file
            return Prompt(tokens=None, reason=f"the tokenizer does not load ({_first_line(error)})")
        try:
            for text in texts:
                ids += list(tokenizer(text)["input_ids"])[: max_tokens - len(ids)]
                if len(ids) >= max_tokens:
                    break
        except LlmCompileError:  # of whoever gives the texts
            raise
        except Exception as error:  # TypeError for a lone surrogate, and whatever a model's own code raises
            return Prompt(
                tokens=None, reason=f"the tokenizer does not take the text ({_first_line(error)})", of_text=True
            )
    if ids == []:
        return Prompt(tokens=None, reason="the tokenizer gives no tokens for the prompt", of_text=True)
    vocab = _settings(config_dir).get("vocab_size")
    if isinstance(vocab, int) and max(ids) >= vocab:
        return Prompt(tokens=None, reason=f"the tokenizer gives id {max(ids)}, but vocab_size is {vocab}")
    return Prompt(tokens=torch.tensor([ids], dtype=torch.int64), reason="")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return type(error).__name__ if lines == [] else f"{type(error).__name__}: {lines[0]}"


def _check_tokens(name: str, tokens: Tensor) -> None:
    if tokens.dtype != torch.int64 or tokens.dim() != 2 or tokens.numel() == 0:
        raise ValueError(
            f"{name} must be int64 of shape (batch, sequence), got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )


def _settings(config_dir: Path) -> Mapping[str, Any]:
    path = config_dir / "config.json"
    if not path.is_file():
        raise CheckpointError(str(path), "no such file")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(str(path), f"a JSON {type(settings).__name__}", "an object")
    return settings


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing; its settings and Python's warning filters are as before afterwards."""
    logging: Any = transformers.utils.logging
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _config(config_dir: Path, settings: Mapping[str, Any], trust_remote_code: bool) -> Any:
    kind = settings.get("model_type")
    if not isinstance(kind, str):
        raise CheckpointError(str(config_dir / "config.json"), "no model_type", 'one such as "gpt2"')
    if kind not in transformers.CONFIG_MAPPING:
        if "auto_map" not in settings:
            version = transformers.__version__
            raise UnsupportedError(kind, f"unknown to transformers {version}", hint="Install a newer transformers.")
        if not trust_remote_code:
            raise UnsupportedError(
                kind,
                "the model is Python code beside the checkpoint",
                "leave to run it",
                hint="Read the code, then allow it with --trust-remote-code.",
            )
    try:
        config = transformers.AutoConfig.from_pretrained(
            config_dir, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # a value of another type than it expects breaks wherever it is first used
        lines = str(error).strip().splitlines()
        found = type(error).__name__ if lines == [] else f"{type(error).__name__}: {lines[0]}"
        raise CheckpointError(
            str(config_dir / "config.json"),
            f"transformers cannot read it ({found})",
            f"a config of {kind}",
            "compare it with the published one",
        ) from error
    config.use_cache = False
    return config


def _kind(config: Any) -> tuple[bool, bool]:
    """Whether the model has an encoder and a decoder, and whether it is an encoder alone."""
    return (
        type(config) in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING,
    )


def _auto_class(config: Any, two: bool, encodes: bool, encoder_only: bool) -> Any:
    if two and not encoder_only:
        return transformers.AutoModelForSeq2SeqLM
    if two:
        if type(config) not in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
            raise UnsupportedError(config.model_type, "transformers has no class for its encoder alone")
        return transformers.AutoModelForTextEncoding
    if encodes:
        return transformers.AutoModel
    remote = getattr(config, "auto_map", {})
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in remote:
        raise UnsupportedError(config.model_type, "transformers has no class that gives its logits")
    return transformers.AutoModelForCausalLM


def _empty_model(
    auto_class: Any,
    config: Any,
    trust_remote_code: bool,
    attention: str = "eager",
    arithmetic: torch.dtype = torch.float32,
    pooler: bool = False,
) -> Any:
    """Build the model in eval mode; its parameters are on the meta device, its buffers hold their values."""
    arguments: dict[str, Any] = {"attn_implementation": attention, "trust_remote_code": trust_remote_code}
    arguments["dtype" if hasattr(config, "dtype") else "torch_dtype"] = arithmetic  # named torch_dtype before 4.56
    if auto_class is transformers.AutoModel and type(config) in transformers.MODEL_MAPPING:
        model_class: Any = transformers.MODEL_MAPPING[type(config)]
        if "add_pooling_layer" in inspect.signature(model_class).parameters:
            arguments["add_pooling_layer"] = pooler

    # Returns Parameter or None; torch documents that what is returned replaces the parameter, but annotates None.
    def without_data(module: Any, name: str, parameter: nn.Parameter | None) -> Any:
        module._is_hf_initialized = True  # transformers draws no numbers for what comes from the checkpoint
        if parameter is None or parameter.is_meta:  # kept as it is, so that tied parameters stay one object
            return parameter
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(without_data)
    try:
        return auto_class.from_config(config, **arguments).eval()
    finally:
        hook.remove()


def _stored_names(model: Any, names: Collection[str], *, apart: bool) -> dict[str, str]:
    """Each parameter and persistent buffer of `model`, by its full name, and what the checkpoint calls it.

    Args:
        model: Parameters that are one object are tied.
        names: What the checkpoint has.
        apart: A tied parameter that is stored under its own name is read from there.

    Raises:
        CheckpointError: One problem per parameter, or per group of tied ones, that is not stored.
    """
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)

    prefix = model.base_model_prefix
    found: dict[str, str] = {}
    problems = []
    for group in groups.values():
        candidates = {name: _candidates(name, prefix, hasattr(model, prefix)) for name in group}
        own = {name: _first(candidates[name], names) for name in group}
        shared = next((stored for stored in own.values() if stored is not None), None)
        if shared is None:
            tried = [candidate for name in group for candidate in candidates[name]]
            problems.append(Problem(group[0], "not in the checkpoint", " or ".join(tried)))
            continue
        for name in group:
            stored = own[name]
            found[name] = stored if apart and stored is not None else shared
    if problems != []:
        raise collected(CheckpointError, problems)

    for name in model.state_dict():
        if name not in found:  # a buffer: one that is not stored keeps the value it was built with
            stored = _first(_candidates(name, prefix, hasattr(model, prefix)), names)
            if stored is not None:
                found[name] = stored
    return found


def _candidates(name: str, prefix: str, has_base: bool) -> list[str]:
    names = [name]
    if prefix != "":
        if not has_base:
            names.append(f"{prefix}.{name}")
        elif name.startswith(f"{prefix}."):
            names.append(name.removeprefix(f"{prefix}."))
    older = [
        candidate.removesuffix(now) + then
        for now, then in _OTHER_NAMES
        for candidate in names
        if candidate == now or candidate.endswith(f".{now}")
    ]
    return names + older


def _first(candidates: Sequence[str], names: Collection[str]) -> str | None:
    return next((candidate for candidate in candidates if candidate in names), None)


@dataclass(frozen=True, kw_only=True)
class _Reader:
    weights: Weights
    stored: Mapping[str, str]
    rounded_to: torch.dtype | None
    stored_as: StoredAs | None = None
    arithmetic: torch.dtype = torch.float32

    def read(self, name: str, shape: torch.Size) -> Tensor:
        """Read the parameter `name` in the dtype it is stored in, of the shape the model says."""
        tensor = self.weights.read(self.stored[name])
        if tensor.shape != shape:
            raise CheckpointError(self.stored[name], f"shape {tuple(tensor.shape)}", f"{tuple(shape)} by config.json")
        return tensor

    def kept(self, tensor: Tensor, name: str, module: nn.Module) -> Tensor:
        """What the artifact keeps of a parameter called `name` in the model, or of some of its rows."""
        rounded = tensor if self.rounded_to is None else tensor.to(self.rounded_to)
        return (rounded if self.stored_as is None else self.stored_as(name, rounded, module)).to(self.arithmetic)


def _stream(model: Any, reader: _Reader, block_bytes: int) -> None:
    """Make each module of `model` read its parameters when it runs; load the stored buffers now."""
    for name, buffer in model.named_buffers():
        if name in reader.stored:
            buffer.copy_(reader.read(name, buffer.shape))
    for path, module in model.named_modules():
        prefix = "" if path == "" else f"{path}."
        owned = {name: f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)}
        if owned == {}:
            continue
        kind = type(module)
        if kind.forward is nn.Linear.forward:
            module.forward = partial(_linear, module, owned, reader, block_bytes)
        elif kind.forward is nn.Embedding.forward and module.max_norm is None:
            module.forward = partial(_embedding, module, owned, reader)
        else:
            empty = dict(module.named_parameters(recurse=False, remove_duplicate=False))
            module.register_forward_pre_hook(partial(_fill, owned, reader))
            module.register_forward_hook(partial(_drop, empty))


def _keep(model: Any, positions: Tensor) -> None:
    """Let the head see these positions alone."""

    def gather(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = arguments
        return (hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[-1])), *rest)

    model.get_output_embeddings().register_forward_pre_hook(gather)


def _linear(module: nn.Linear, owned: Mapping[str, str], reader: _Reader, block_bytes: int, input: Tensor) -> Tensor:
    weight = reader.read(owned["weight"], module.weight.shape)
    bias = None
    if "bias" in owned:
        bias = reader.kept(reader.read(owned["bias"], module.bias.shape), owned["bias"], module)
    rows = max(1, block_bytes // (4 * module.in_features))
    if rows >= module.out_features:
        return functional.linear(input, reader.kept(weight, owned["weight"], module), bias)
    result = input.new_empty((*input.shape[:-1], module.out_features))
    for start in range(0, module.out_features, rows):
        block = slice(start, start + rows)
        result[..., block] = functional.linear(
            input, reader.kept(weight[block], owned["weight"], module), None if bias is None else bias[block]
        )
    return result


def _embedding(module: nn.Embedding, owned: Mapping[str, str], reader: _Reader, input: Tensor) -> Tensor:
    low, high = int(input.min()), int(input.max())
    if low < 0 or high >= module.num_embeddings:
        raise ValueError(
            f"{owned['weight']} has {module.num_embeddings} rows, but the tokens look up {low if low < 0 else high}"
        )
    rows = functional.embedding(input, reader.read(owned["weight"], module.weight.shape))
    return reader.kept(rows, owned["weight"], module)


def _fill(owned: Mapping[str, str], reader: _Reader, module: nn.Module, arguments: object) -> None:
    for name, path in owned.items():
        empty = module.get_parameter(name)
        tensor = reader.kept(reader.read(path, empty.shape), path, module)
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def _fill_all(model: Any, reader: _Reader) -> None:
    """Read every parameter now, for a model whose modules look into one another."""
    for path, module in model.named_modules():
        prefix = "" if path == "" else f"{path}."
        names = [name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)]
        _fill({name: f"{prefix}{name}" for name in names}, reader, module, ())
    for name, buffer in model.named_buffers():
        if name in reader.stored:
            buffer.copy_(reader.read(name, buffer.shape))


def _drop(empty: Mapping[str, nn.Parameter], module: nn.Module, arguments: object, output: object) -> None:
    for name, parameter in empty.items():
        module.register_parameter(name, parameter)


def _plain(tensor: Tensor) -> Tensor:
    """Copy to a float32 tensor that may be used outside inference mode."""
    with torch.inference_mode(False):
        return tensor.to(torch.float32).clone()
