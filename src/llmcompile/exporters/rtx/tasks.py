"""Which task a model was saved for, how long its sequences may be, and the models that were tried; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.errors import Problem
from llmcompile.exporters.rtx.options import DECODER_TASK, ENCODER_TASKS, SEQ2SEQ_TASK

DECODERS = frozenset(
    {
        "bloom",
        "falcon",
        "gemma",
        "gemma2",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "llama",
        "mistral",
        "mpt",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "starcoder2",
    }
)
"""Model types whose decoders were tried."""
ENCODER_DECODERS = frozenset({"bart", "mt5", "t5"})
"""Model types with encoder and decoder that were tried."""
_HEADS: tuple[tuple[str, str], ...] = (
    ("ForMaskedLM", "fill-mask"),
    ("ForPreTraining", "fill-mask"),
    ("ForNextSentencePrediction", "feature-extraction"),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMultipleChoice", "multiple-choice"),
    ("ForCausalLM", DECODER_TASK),
    ("LMHeadModel", DECODER_TASK),
    ("ForConditionalGeneration", SEQ2SEQ_TASK),
    ("EncoderModel", "feature-extraction"),
    ("Model", "feature-extraction"),
)
"""Ends of class names -> the task; the first that fits."""
_AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)
"""Model types whose positions are counted from pad_token_id + 1."""
_RELATIVE = frozenset({"bloom", "longt5", "mt5", "switch_transformers", "t5", "umt5"})
"""Model types without a table of positions."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
LONGEST: Mapping[str, int] = MappingProxyType({DECODER_TASK: 2048})
"""Tokens an artifact is for, where neither the user nor the model says less; 512 for other tasks."""


def infer_task(config: Mapping[str, Any]) -> str | None:
    """The task a model was saved for, by the class that config.json names; None where it names none we know."""
    named = config.get("architectures")
    if not isinstance(named, list) or len(named) == 0 or not isinstance(named[0], str):
        return None
    if named[0] in ("WhisperForConditionalGeneration", "LlavaForConditionalGeneration"):
        return None
    return next((task for end, task in _HEADS if named[0].endswith(end)), None)


def positions(config: Mapping[str, Any]) -> int | None:
    """Most tokens of a sequence that the model has positions for; None if config.json sets no limit."""
    kind = str(config.get("model_type", ""))
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    given = next((config[key] for key in names if key in config), None)
    if kind in _RELATIVE or not isinstance(given, int) or isinstance(given, bool) or given < 1:
        return None
    if kind in _AFTER_PADDING:
        padding = config.get("pad_token_id")
        return given - (padding if isinstance(padding, int) else 1) - 1
    return given


def refusals(config: Mapping[str, Any], task: str) -> Iterator[Problem]:
    """Why a model cannot be exported, as far as config.json tells."""
    kind, named = str(config.get("model_type", "unknown")), config.get("architectures")
    label = str(named[0]) if isinstance(named, list) and len(named) > 0 else kind
    experts = [config.get(name) for name in _EXPERTS]
    if any(isinstance(count, int) and count > 1 for count in experts):
        found = "sends each token to some of its experts: which ones run depends on values, and ONNX has no such graph"
        yield Problem(label, found, "a dense model", "llmcompile build trtllm")
    if kind == "falcon" and config.get("alibi") is True:
        found = "ALiBi, which transformers computes in bfloat16 whatever the model's type, and adds twice"
        yield Problem(label, found, "a Falcon with rotary positions", "llmcompile build trtllm")
    if "quantization_config" in config:
        yield Problem(label, "quantized weights", "a float checkpoint", "use the model it was quantized from")
    if task in ENCODER_TASKS and kind == "nystromformer":
        found = "cuts sequences into segments whose number is fixed when it is traced"
        yield Problem(label, found, "a model that takes sequences of any length", "llmcompile export neuron")


def tried(kind: str, task: str) -> bool:
    """Whether models of this type were exported and validated for this task; encoders are many and much alike."""
    return task in ENCODER_TASKS or kind in (DECODERS if task == DECODER_TASK else ENCODER_DECODERS)
