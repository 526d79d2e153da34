"""Every configuration that we generate, as Triton's own schema reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc", reason="tritonclient is installed for the serving tests alone")

from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2

from llmcompile.packaging.triton import ensemble
from llmcompile.packaging.triton.engine import engine_config
from llmcompile.packaging.triton.fastertransformer import MODEL_TYPES, fastertransformer_config
from llmcompile.packaging.triton.generations import GENERATIONS
from llmcompile.packaging.triton.llmapi import llmapi_config
from llmcompile.packaging.triton.pbtxt import Message, parse, render
from llmcompile.packaging.triton.tensors import inputs, outputs

WRITTEN = sorted(Path(os.environ.get("SERVING_PACKAGES", "/nonexistent")).glob("**/config.pbtxt"))


def read(message: Message) -> Any:
    """A configuration as protobuf reads it; it refuses unknown fields and wrong types."""
    return text_format.Parse(render(message), model_config_pb2.ModelConfig())


def typed(tensor: Any) -> tuple[str, str, tuple[int, ...]]:
    """A tensor as protobuf has it: name, type, dimensions."""
    return tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims)


@pytest.mark.skipif(WRITTEN == [], reason="SERVING_PACKAGES names no packages")
@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_what_was_written(path: Path) -> None:
    """Every file of every package is read by protobuf, and to what we read."""
    text = path.read_text()

    theirs = text_format.Parse(text, model_config_pb2.ModelConfig())

    ours = text_format.Parse(render(parse(text)), model_config_pb2.ModelConfig())
    assert MessageToDict(theirs) == MessageToDict(ours)
    assert theirs.name == path.parent.name


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_engine(generation: str) -> None:
    """An engine's configuration has the values that it was made with, in every generation."""
    made = read(
        engine_config(
            generation=generation,
            max_batch_size=4,
            gpt_model_path="/models/tensorrt_llm/1",
            decoupled=True,
            instances=2,
            max_queue_delay_microseconds=7,
            parameters={"gpu_device_ids": "0,1;2,3"},
        )
    )

    assert (made.name, made.backend, made.max_batch_size) == ("tensorrt_llm", "tensorrtllm", 4)
    assert made.model_transaction_policy.decoupled is True
    assert list(made.dynamic_batching.preferred_batch_size) == [4]
    assert made.dynamic_batching.max_queue_delay_microseconds == 7
    assert [(g.count, g.kind) for g in made.instance_group] == [(2, model_config_pb2.ModelInstanceGroup.KIND_CPU)]
    assert made.parameters["gpt_model_path"].string_value == "/models/tensorrt_llm/1"
    assert made.parameters["gpu_device_ids"].string_value == "0,1;2,3"
    assert [typed(t) for t in made.input] == [(t.name, t.type, t.dims) for t in inputs("tensorrt_llm", generation)]
    assert [typed(t) for t in made.output] == [(t.name, t.type, t.dims) for t in outputs("tensorrt_llm", generation)]
    ids = next(t for t in made.input if t.name == "input_ids")
    assert ids.allow_ragged_batch is True
    end = next(t for t in made.input if t.name == "end_id")
    assert end.optional is True
    assert end.HasField("reshape")
    assert list(end.reshape.shape) == []


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_ensemble(generation: str) -> None:
    """An ensemble's steps name each other's tensors, and every tensor that they name exists."""
    common: dict[str, Any] = {"generation": generation, "max_batch_size": 4}
    made = {
        "preprocessing": read(ensemble.preprocessing_config(**common, tokenizer="/t", engine="/e")),
        "tensorrt_llm": read(engine_config(**common, gpt_model_path="/e", decoupled=False)),
        "postprocessing": read(ensemble.postprocessing_config(**common, tokenizer="/t", logits_dtype="fp32")),
    }

    whole = read(ensemble.ensemble_config(**common, logits_dtype="fp32"))

    assert whole.platform == "ensemble"
    flowing = {tensor.name: tensor.data_type for tensor in whole.input}
    for step in whole.ensemble_scheduling.step:
        part = made[step.model_name]
        taken, given = {t.name: t for t in part.input}, {t.name: t for t in part.output}
        assert {t.name for t in part.input if not t.optional} <= set(step.input_map) <= set(taken)
        assert {key: flowing[name] for key, name in step.input_map.items()} == {
            key: taken[key].data_type for key in step.input_map
        }
        flowing |= {name: given[key].data_type for key, name in step.output_map.items()}
    assert {tensor.name: tensor.data_type for tensor in whole.output}.items() <= flowing.items()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_bls(generation: str) -> None:
    """The model that calls the others streams where it was told to."""
    made = read(ensemble.bls_config(generation=generation, max_batch_size=4, decoupled=True, logits_dtype="fp16"))

    assert made.backend == "python"
    assert made.model_transaction_policy.decoupled is True
    assert made.parameters["tensorrt_llm_model_name"].string_value == "tensorrt_llm"


@pytest.mark.parametrize("model_type", [*sorted(set(MODEL_TYPES.values())), "T5-Encoder"])
def test_fastertransformer(model_type: str) -> None:
    """A FasterTransformer model's parameters are strings, its tensors typed."""
    made = read(fastertransformer_config(model_type=model_type, path="/m/1/2-gpu", tp=2, pp=1, dtype="fp16"))

    assert made.backend == "fastertransformer"
    assert made.parameters["tensor_para_size"].string_value == "2"
    assert all(tensor.data_type != model_config_pb2.TYPE_INVALID for tensor in (*made.input, *made.output))


def test_a_checkpoint() -> None:
    """The python backend's model has neither a batch size nor a policy of its own."""
    made = read(llmapi_config(instances=2, gpu_ids="0;1"))

    assert made.backend == "python"
    assert made.max_batch_size == 0
    assert not made.HasField("model_transaction_policy")
    assert made.instance_group[0].count == 2
