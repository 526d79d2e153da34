"""Tasks inferred, listed and asked for their static shapes, from config.json alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from llmcompile.exporters.neuron.options import ENCODER_TASKS, TASKS, Shapes
from llmcompile.exporters.neuron.tasks import (
    ENCODERS,
    infer_task,
    missing_shapes,
    positions,
    supported_tasks,
    without_head,
)

BERT = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}


@pytest.mark.parametrize(
    ("model_type", "name", "task"),
    [
        ("bert", "BertForMaskedLM", "fill-mask"),
        ("xlm", "XLMWithLMHeadModel", "fill-mask"),
        ("flaubert", "FlaubertWithLMHeadModel", "fill-mask"),
        ("roberta", "RobertaForSequenceClassification", "text-classification"),
        ("bert", "BertForTokenClassification", "token-classification"),
        ("distilbert", "DistilBertForQuestionAnswering", "question-answering"),
        ("xlm", "XLMForQuestionAnsweringSimple", "question-answering"),
        ("bert", "BertForMultipleChoice", "multiple-choice"),
        ("llama", "LlamaForCausalLM", "text-generation"),
        ("gpt2", "GPT2LMHeadModel", "text-generation"),
        ("t5", "T5ForConditionalGeneration", "text2text-generation"),
        ("bart", "BartForConditionalGeneration", "text2text-generation"),
        ("whisper", "WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("wav2vec2", "Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("wav2vec2", "Wav2Vec2ForSequenceClassification", "audio-classification"),
        ("audio-spectrogram-transformer", "ASTForAudioClassification", "audio-classification"),
        ("vit", "ViTForImageClassification", "image-classification"),
        ("deit", "DeiTForImageClassificationWithTeacher", "image-classification"),
        ("bert", "BertModel", "feature-extraction"),
        ("t5", "T5EncoderModel", "feature-extraction"),
    ],
)
def test_task_follows_from_the_class(model_type: str, name: str, task: str) -> None:
    """That config.json names; every task is one we know."""
    assert infer_task({"model_type": model_type, "architectures": [name]}) == task
    assert task in TASKS


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"])
def test_pipeline_makes_images(name: str) -> None:
    """By the class that model_index.json names."""
    assert infer_task({"_class_name": name}) == "text-to-image"
    assert supported_tasks({"_class_name": name}) == (("text-to-image", "optimum"),)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": None},
        {"architectures": []},
        {"architectures": [7]},
        {"architectures": ["BertForPreTraining"]},
        {"_class_name": "AnotherPipeline"},
        {"_class_name": 3},
    ],
)
def test_task_is_not_guessed(config: dict[str, Any]) -> None:
    """Where no class or one without a head of ours is named, there is none."""
    assert infer_task(config) is None


def test_encoder_has_tasks_by_both_ways() -> None:
    """In the order of the tasks; by our own lowering first."""
    expected = [(task, way) for task in ENCODER_TASKS for way in ("xla", "optimum")]

    assert supported_tasks(BERT) == tuple(expected)


def test_own_lowering_knows_encoders_that_optimum_does_not() -> None:
    """And says so by the way."""
    assert {way for _, way in supported_tasks({"model_type": "ernie"})} == {"xla"}


@pytest.mark.parametrize(
    ("config", "tasks"),
    [
        (LLAMA, (("text-generation", "xla"), ("text-generation", "optimum"))),
        ({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}, (("text-generation", "xla"),)),
        ({"model_type": "granite"}, (("text-generation", "optimum"),)),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, (("text2text-generation", "optimum"),)),
        ({"model_type": "vit"}, (("feature-extraction", "optimum"), ("image-classification", "optimum"))),
        ({"model_type": "martian", "architectures": ["MartianModel"]}, ()),
        ({}, ()),
    ],
)
def test_tasks_of_other_models(config: dict[str, Any], tasks: tuple[tuple[str, str], ...]) -> None:
    """Decoders of our tables by our lowering, the rest through optimum-neuron, or none."""
    assert supported_tasks(config) == tasks


@pytest.mark.parametrize(
    ("task", "name", "lacks"),
    [
        ("fill-mask", "BertForMaskedLM", False),
        ("fill-mask", "BertModel", True),
        ("text-classification", "BertForMaskedLM", True),
        ("feature-extraction", "BertForMaskedLM", False),
        ("feature-extraction", "BertModel", False),
        ("fill-mask", "BertForPreTraining", False),
        ("text-generation", "BertForMaskedLM", False),
        ("fill-mask", "LlamaForCausalLM", False),
        ("image-classification", "ViTModel", False),
    ],
)
def test_a_head_is_missing_where_another_was_saved(task: str, name: str, lacks: bool) -> None:
    """The bare states are in every encoder; where config.json names no head that is known, the weights decide."""
    assert without_head(task, {"model_type": "bert", "architectures": [name]}) == lacks


def test_every_encoder_task_is_ours() -> None:
    """The table names no task that the lowering does not have."""
    assert {task for tasks in ENCODERS.values() for task in tasks} == set(ENCODER_TASKS)


def test_missing_shapes_are_named_with_a_value() -> None:
    """Each with the flag to type."""
    problems = missing_shapes("multiple-choice", Shapes(), BERT)

    assert [(problem.subject, problem.found, problem.hint) for problem in problems] == [
        ("--batch-size", "not given", "add --batch-size 1"),
        ("--sequence-length", "not given", "add --sequence-length 512"),
        ("--num-choices", "not given", "add --num-choices 4"),
    ]


def test_given_shapes_are_not_missing() -> None:
    """Nothing is asked for that was given, and nothing that the task does not need."""
    assert missing_shapes("fill-mask", Shapes(batch_size=1, sequence_length=128), BERT) == []
    assert missing_shapes("image-classification", Shapes(batch_size=1), {"model_type": "vit"}) == []


@pytest.mark.parametrize(
    ("task", "config", "hints"),
    [
        ("text-generation", LLAMA, ["--batch-size 1", "--sequence-length 2048"]),
        ("text-generation", {**LLAMA, "max_position_embeddings": 131072}, ["--batch-size 1", "--sequence-length 4096"]),
        (
            "feature-extraction",
            {"model_type": "modernbert", "max_position_embeddings": 8192},
            ["--batch-size 1", "--sequence-length 512"],
        ),
        (
            "text2text-generation",
            {"model_type": "t5"},
            ["--batch-size 1", "--sequence-length 512", "--num-beams 4"],
        ),
        ("audio-classification", {"model_type": "wav2vec2"}, ["--batch-size 1", "--audio-sequence-length 16000"]),
        (
            "text-to-image",
            {"_class_name": "StableDiffusionXLPipeline"},
            ["--batch-size 1", "--height 1024", "--width 1024"],
        ),
        (
            "text-to-image",
            {"_class_name": "StableDiffusionPipeline"},
            ["--batch-size 1", "--height 512", "--width 512"],
        ),
        (
            "image-classification",
            {"model_type": "clip", "vision_config": {"image_size": 224}},
            [
                "--text-batch-size 1",
                "--image-batch-size 1",
                "--sequence-length 512",
                "--num-channels 3",
                "--width 224",
                "--height 224",
            ],
        ),
    ],
)
def test_proposals_come_from_the_config(task: str, config: dict[str, Any], hints: list[str]) -> None:
    """Capped at what is usual for the kind of model."""
    assert [problem.hint for problem in missing_shapes(task, Shapes(), config)] == [f"add {hint}" for hint in hints]


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "esm", "max_position_embeddings": 1026, "pad_token_id": 1}, 1024),
        ({"model_type": "esm", "max_position_embeddings": 1026, "position_embedding_type": "rotary"}, None),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, None),
        ({"model_type": "bert", "max_position_embeddings": "512"}, None),
        ({"model_type": "bert", "max_position_embeddings": True}, None),
    ],
)
def test_positions_of_a_model(config: dict[str, Any], limit: int | None) -> None:
    """RoBERTa and its kin begin after the padding; rotary and relative positions have no end."""
    assert positions(config) == limit


def test_tasks_are_told_without_torch() -> None:
    """`--list-tasks` reads config.json only."""
    code = "import sys, llmcompile.exporters.neuron.tasks; print('torch' in sys.modules, 'jax' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]
