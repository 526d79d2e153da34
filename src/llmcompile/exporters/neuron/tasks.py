"""Tasks: which one a model was saved for, which it can be exported for, and the static shapes each needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures import lookup
from llmcompile.errors import Problem, UnsupportedError
from llmcompile.exporters.neuron.families import FAMILIES
from llmcompile.exporters.neuron.optimum_registry import (
    DIFFUSERS,
    PIPELINES,
    SHAPES,
    SUPPORTED,
    TRANSFORMERS,
    optimum_tasks,
)
from llmcompile.exporters.neuron.options import ENCODER_TASKS, TASKS, Shapes

_WORDS = ("feature-extraction", "fill-mask", "text-classification", "token-classification")
ENCODERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "albert",
                "bert",
                "camembert",
                "convbert",
                "data2vec-text",
                "deberta-v2",
                "distilbert",
                "electra",
                "ernie",
                "flaubert",
                "megatron-bert",
                "mobilebert",
                "modernbert",
                "mpnet",
                "nystromformer",
                "rembert",
                "roberta",
                "roberta-prelayernorm",
                "roformer",
                "squeezebert",
                "xlm",
                "xlm-roberta",
                "xlm-roberta-xl",
            ),
            ENCODER_TASKS,
        ),
        "deberta": ENCODER_TASKS[:-1],
        "esm": _WORDS,
    }
)
"""Model types whose encoders our own lowering was tried on, and the tasks transformers has classes for."""

TOKEN_TYPES = frozenset(
    {
        "albert",
        "bert",
        "convbert",
        "deberta",
        "deberta-v2",
        "electra",
        "flaubert",
        "mobilebert",
        "roformer",
        "xlm",
        # Unknown to optimum-neuron, and with more than one type:
        "ernie",
        "megatron-bert",
        "nystromformer",
        "rembert",
        "squeezebert",
    }
)
"""Model types that take token_type_ids.

Source: optimum-neuron 0.4.5:optimum/exporters/neuron/model_configs.py (the properties `inputs`), but for the last ones.
"""

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

_RELATIVE = frozenset({"longt5", "mt5", "switch_transformers", "t5", "umt5"})
"""Model types without a table of positions, whatever their config.json says."""

_HEADS: tuple[tuple[str, str], ...] = (
    ("ForMaskedLM", "fill-mask"),
    ("XLMWithLMHeadModel", "fill-mask"),
    ("FlaubertWithLMHeadModel", "fill-mask"),
    ("ForAudioClassification", "audio-classification"),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForQuestionAnsweringSimple", "question-answering"),
    ("ForMultipleChoice", "multiple-choice"),
    ("ForCausalLM", "text-generation"),
    ("MetaLlama", "text-generation"),  # what `checkpoint.meta` calls Meta's own files
    ("LMHeadModel", "text-generation"),
    ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
    ("ForConditionalGeneration", "text2text-generation"),
    ("ForImageClassification", "image-classification"),
    ("ForImageClassificationWithTeacher", "image-classification"),
    ("ForCTC", "automatic-speech-recognition"),
    ("EncoderModel", "feature-extraction"),
    ("Model", "feature-extraction"),
)
"""Ends of class names -> the task; the first that fits."""

_ENCODER_LENGTH, _DECODER_LENGTH = 512, 4096
"""Longest sequences that are proposed: BERT's, and what optimum-neuron takes for a decoder."""
_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "batch_size": 1,
        "text_batch_size": 1,
        "image_batch_size": 1,
        "num_choices": 4,
        "num_beams": 4,
        "num_channels": 3,
        "audio_sequence_length": 16000,
    }
)
"""What is proposed for sizes that config.json does not tell; a second of audio at 16 kHz."""


def infer_task(config: Mapping[str, Any]) -> str | None:
    """The task a model was saved for, by the class named in config.json, or in a pipeline's model_index.json.

    Returns:
        One of `TASKS`; None where the class has no head we know, or none is named.
    """
    if "_class_name" in config:
        tasks = PIPELINES.get(str(config["_class_name"]), ())
        return tasks[0] if len(tasks) > 0 else None
    named = config.get("architectures")
    if not isinstance(named, list) or len(named) == 0 or not isinstance(named[0], str):
        return None
    task = next((task for end, task in _HEADS if named[0].endswith(end)), None)
    audio = "audio-classification" in SUPPORTED.get(model_type(config), ())
    return "audio-classification" if audio and task == "text-classification" else task


def without_head(task: str, config: Mapping[str, Any]) -> bool:
    """Whether an encoder was saved without the head of a task: for another task, or bare.

    Args:
        task: One of `TASKS`.
        config: config.json; where it does not say what the model was saved for, the weights decide later.
    """
    saved = infer_task(config)
    return task in ENCODER_TASKS[1:] and saved in ENCODER_TASKS and saved != task


def supported_tasks(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Tasks that a model's type can be exported for, each with a way: "xla" or "optimum"; in the order of `TASKS`."""
    if "_class_name" in config:
        optimum = optimum_tasks(str(config["_class_name"]), DIFFUSERS)
    else:
        optimum = optimum_tasks(model_type(config), TRANSFORMERS)
    own = (*ENCODERS.get(model_type(config), ()), *(("text-generation",) if _is_decoder(config) else ()))
    ways = (("xla", own), ("optimum", optimum))
    return tuple((task, way) for task in TASKS for way, tasks in ways if task in tasks)


def model_type(config: Mapping[str, Any]) -> str:
    """`model_type` of config.json; "" where it has none."""
    return str(config.get("model_type", ""))


def _is_decoder(config: Mapping[str, Any]) -> bool:
    if "model_type" not in config and "architectures" not in config:
        return False
    try:
        return lookup(config).name in FAMILIES
    except UnsupportedError:
        return False


def positions(config: Mapping[str, Any]) -> int | None:
    """Most tokens of a sequence that the model has positions for; None if config.json sets no limit."""
    given = next((config[key] for key in ("max_position_embeddings", "n_positions") if key in config), None)
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        return None
    rotary = model_type(config) == "esm" and config.get("position_embedding_type") == "rotary"
    if rotary or model_type(config) in _RELATIVE:
        return None
    padding = config.get("pad_token_id")
    if model_type(config) in _AFTER_PADDING:
        return given - (padding if isinstance(padding, int) else 1) - 1
    return given


def missing_shapes(task: str, shapes: Shapes, config: Mapping[str, Any]) -> list[Problem]:
    """A problem for each static size that the task needs and that was not given, with the flag to type.

    Args:
        task: One of `TASKS`.
        shapes: Those that were given.
        config: config.json, which proposes values; of a pipeline, model_index.json.
    """
    given = shapes.given()
    return [
        Problem(
            flag := f"--{name.replace('_', '-')}",
            "not given",
            f"a static size, since {task} is compiled for one",
            f"add {flag} {_proposal(name, task, config)}",
        )
        for name in _needed(task, config)
        if name not in given
    ]


def _needed(task: str, config: Mapping[str, Any]) -> Iterator[str]:
    if task in (*ENCODER_TASKS, "text-generation"):
        yield from ("batch_size", "sequence_length")
        if task == "multiple-choice":
            yield "num_choices"
        return
    kind = str(config["_class_name"]) if "_class_name" in config else model_type(config)
    yield from SHAPES.get((kind, task), ("batch_size",))


def _proposal(name: str, task: str, config: Mapping[str, Any]) -> int:
    if name in _SIZES:
        return _SIZES[name]
    if name in ("width", "height"):
        vision = config.get("vision_config")
        side = vision.get("image_size") if isinstance(vision, Mapping) else config.get("image_size")
        if isinstance(side, int):
            return side
        return 1024 if "XL" in str(config.get("_class_name", "")) else 512
    longest = _DECODER_LENGTH if task == "text-generation" else _ENCODER_LENGTH
    limit = positions(config)
    return longest if limit is None else min(limit, longest)
