"""What optimum-neuron exports: model types, their tasks, and the static shapes each needs.

Source: optimum-neuron 0.4.5, the classes registered in optimum/exporters/neuron/model_configs.py with the INPUT_ARGS of
optimum/exporters/neuron/config.py, and optimum/neuron/models/inference/auto_models.py;
tests/golden/neuron/optimum/ holds what was read of each release.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

TRANSFORMERS, DIFFUSERS, SENTENCE_TRANSFORMERS = "transformers", "diffusers", "sentence_transformers"
"""optimum's names of the libraries a model is loaded with."""

_WORDS = ("feature-extraction", "fill-mask", "text-classification", "token-classification")
_SPANS = (*_WORDS, "question-answering")
_TEXT = (*_SPANS, "multiple-choice")
_IMAGE = ("feature-extraction", "image-classification")
_SPEECH = ("feature-extraction", "automatic-speech-recognition", "audio-classification")
_SPEAKERS = (*_SPEECH, "audio-frame-classification", "audio-xvector")
_DECODER = ("text-generation",)

SUPPORTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "albert",
                "bert",
                "camembert",
                "convbert",
                "distilbert",
                "electra",
                "flaubert",
                "mobilebert",
                "mpnet",
                "roberta",
                "roformer",
                "xlm",
                "xlm-roberta",
            ),
            _TEXT,
        ),
        **dict.fromkeys(("deberta", "deberta-v2"), _SPANS),
        **dict.fromkeys(("esm", "modernbert"), _WORDS),
        "phi": ("feature-extraction", "text-classification", "token-classification"),
        **dict.fromkeys(
            ("granite", "llama", "llama4_text", "mixtral", "phi3", "qwen2", "qwen3_moe", "smollm3"), _DECODER
        ),
        "qwen3": ("text-generation", "feature-extraction"),
        "t5": ("text2text-generation",),
        "whisper": ("automatic-speech-recognition",),
        **dict.fromkeys(("beit", "convnext", "convnextv2", "cvt", "deit", "levit", "swin", "vit"), _IMAGE),
        **dict.fromkeys(("donut-swin", "dpt"), ("feature-extraction",)),
        "mobilenet_v2": (*_IMAGE, "semantic-segmentation"),
        "mobilevit": (*_IMAGE, "semantic-segmentation", "image-segmentation"),
        "yolos": ("feature-extraction", "object-detection"),
        "clip": (*_IMAGE, "zero-shot-image-classification"),
        **dict.fromkeys(("unispeech-sat", "wav2vec2", "wavlm"), _SPEAKERS),
        **dict.fromkeys(("hubert", "unispeech"), _SPEECH),
        "audio-spectrogram-transformer": ("feature-extraction", "audio-classification"),
    }
)
"""Tasks of each model type of transformers; upstream registers t5 and whisper as an encoder and a decoder each.

sew, sew-d, wav2vec2-bert and wav2vec2-conformer are commented out upstream: XLA fails on them (pytorch/xla#6398).
"""

PIPELINES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    dict.fromkeys(
        (
            "StableDiffusionPipeline",
            "StableDiffusionXLPipeline",
            "LatentConsistencyModelPipeline",
            "PixArtAlphaPipeline",
            "PixArtSigmaPipeline",
            "FluxPipeline",
        ),
        ("text-to-image",),
    )
)
"""Tasks of each pipeline of diffusers, by `_class_name` of its model_index.json.

Source: optimum-neuron 0.4.5:optimum/neuron/modeling_diffusion.py (NeuronDiffusionPipelineBase's subclasses).
"""

FIRST_RELEASE: Mapping[tuple[str, str], tuple[int, int, int]] = MappingProxyType(
    {
        ("llama4_text", "text-generation"): (0, 4, 0),
        ("qwen3_moe", "text-generation"): (0, 4, 0),
        ("smollm3", "text-generation"): (0, 4, 0),
        ("qwen3", "feature-extraction"): (0, 4, 2),
    }
)
"""The release that brought a model type's task, where that is later than 0.3.0."""

DECODERS = tuple(name for name, tasks in SUPPORTED.items() if "text-generation" in tasks)
"""Model types that optimum-neuron rewrites for neuronx-distributed; all their tasks go that way."""
ENCODER_DECODERS = ("t5", "whisper")

_TOKENS = ("batch_size", "sequence_length")
_WAVE = ("batch_size", "audio_sequence_length")
_TEXT_AND_IMAGE = ("text_batch_size", "image_batch_size", "sequence_length", "num_channels", "width", "height")
_PIPELINE = ("batch_size", "height", "width")


def _shapes(model_type: str, task: str) -> tuple[str, ...]:
    if model_type == "clip":
        return _TEXT_AND_IMAGE
    if model_type == "t5":
        return (*_TOKENS, "num_beams")
    if model_type == "audio-spectrogram-transformer" or SUPPORTED[model_type][: len(_SPEECH)] == _SPEECH:
        return _WAVE
    if task == "multiple-choice":
        return (*_TOKENS, "num_choices")
    if "image-classification" in SUPPORTED[model_type] or model_type in ("donut-swin", "dpt", "yolos"):
        return ("batch_size",)  # channels and size are the config's
    return _TOKENS


SHAPES: Mapping[tuple[str, str], tuple[str, ...]] = MappingProxyType(
    {
        **{(name, task): _shapes(name, task) for name, tasks in SUPPORTED.items() for task in tasks},
        **{(name, task): _PIPELINE for name, tasks in PIPELINES.items() for task in tasks},
    }
)
"""Names of `Shapes` that must be given, by model type (or pipeline) and task.

A pipeline also takes num_images_per_prompt (1 if absent) and sequence_length (the tokenizer's if absent).
"""


def optimum_tasks(model_type: str, library: str = TRANSFORMERS) -> tuple[str, ...]:
    """The tasks that optimum-neuron exports a model for; none if it does not know the model.

    Args:
        model_type: `model_type` of config.json, or for diffusers `_class_name` of model_index.json.
        library: `TRANSFORMERS`, `DIFFUSERS` or `SENTENCE_TRANSFORMERS`; the last takes any text model.
    """
    if library == DIFFUSERS:
        return PIPELINES.get(model_type, ())
    if library == SENTENCE_TRANSFORMERS:
        return ("feature-extraction",)
    return SUPPORTED.get(model_type, ())


_TOKEN_TYPES = frozenset(
    ("albert", "bert", "convbert", "deberta", "deberta-v2", "electra", "flaubert", "mobilebert", "roformer", "xlm")
)
_POOLED = frozenset(("albert", "bert", "camembert", "esm", "mobilebert", "mpnet", "roberta", "xlm-roberta"))


def traced_inputs(model_type: str, config: Mapping[str, Any], library: str = TRANSFORMERS) -> tuple[str, ...]:
    """What a traced text encoder takes, in this order; int64 of the static shape.

    Source: optimum-neuron 0.4.5:optimum/exporters/neuron/model_configs.py (the properties `inputs`).
    """
    typed = model_type in _TOKEN_TYPES and library == TRANSFORMERS
    if model_type == "deberta" and config.get("type_vocab_size", 0) == 0:
        typed = False
    return ("input_ids", "attention_mask", *(("token_type_ids",) if typed else ()))


def traced_outputs(model_type: str, task: str, library: str = TRANSFORMERS) -> tuple[str, ...]:
    """What a traced text encoder answers, in this order; the module itself may give a tuple without names.

    Source: optimum-neuron 0.4.5:optimum/exporters/neuron/model_configs.py and base.py (the properties `outputs`).
    """
    if library == SENTENCE_TRANSFORMERS:
        return ("token_embeddings", "sentence_embedding")
    if task == "question-answering":
        return ("start_logits", "end_logits")
    if task != "feature-extraction":
        return ("logits",)
    return ("last_hidden_state", *(("pooler_output",) if model_type in _POOLED else ()))
