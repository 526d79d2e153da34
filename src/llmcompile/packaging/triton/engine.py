"""config.pbtxt of the model that runs a TensorRT-LLM engine: Triton's tensorrtllm backend, written in C++.

Sources: triton-inference-server/tensorrtllm_backend@v0.19.0:inflight_batcher_llm/src/model_state.cc and
model_instance_state.cc, which parameters are read and which must be there; the templates named in `tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.packaging.triton.generations import has
from llmcompile.packaging.triton.pbtxt import Message
from llmcompile.packaging.triton.tensors import Tensor, inputs, outputs

NAME = "tensorrt_llm"
LOGITS: Mapping[str, str] = MappingProxyType({"fp32": "TYPE_FP32", "fp16": "TYPE_FP16"})
"""Type of the engine's logits -> the only types that the backend can return."""
_LOGITS_TENSORS = ("context_logits", "generation_logits", "draft_logits")
_GUIDED = ("guided_decoding_backend", "tokenizer_dir", "xgrammar_tokenizer_info_path")
"""Read without a default since 0.19: absent they end the start of the server, empty they are none."""


def engine_config(
    *,
    generation: str,
    max_batch_size: int,
    gpt_model_path: str | None,
    decoupled: bool,
    logits_dtype: str = "fp32",
    name: str = NAME,
    encoder_model_path: str | None = None,
    instances: int = 1,
    max_queue_delay_microseconds: int = 0,
    max_queue_size: int = 0,
    parameters: Mapping[str, str] | None = None,
) -> Message:
    """Make the configuration of an engine's model, to be written by `pbtxt.render`.

    Args:
        generation: One of `generations.GENERATIONS`, which is the engine's version of TensorRT-LLM.
        max_batch_size: Requests in a batch; at most what the engine was built for.
        gpt_model_path: Folder with the engine, or the decoder, as the server will see it; None for an encoder alone.
        decoupled: Whether a request may have more than one answer: streaming.
        logits_dtype: fp32 or fp16, `logits_dtype` of the engine; before 0.17 the backend returns fp32 alone.
        name: Name of the model, which is that of its folder.
        encoder_model_path: Folder with the encoder's engine; None for a model without one.
        instances: How many times the engine is loaded.
        max_queue_delay_microseconds: How long a request may wait for others.
        max_queue_size: How many requests may wait; 0 for any number.
        parameters: Further parameters by the backend's names, like batch_scheduler_policy.
    """
    given = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no", "gpt_model_type": "inflight_fused_batching"}
    if gpt_model_path is not None:
        given["gpt_model_path"] = gpt_model_path
    if encoder_model_path is not None:
        given["encoder_model_path"] = encoder_model_path
    if has(generation, "0.19"):
        given |= dict.fromkeys(_GUIDED, "")
    given |= {} if parameters is None else parameters
    return {
        "name": name,
        "backend": "tensorrtllm",
        "max_batch_size": max_batch_size,
        "input": declared(inputs(NAME, generation), generation, logits_dtype),
        "output": declared(outputs(NAME, generation), generation, logits_dtype),
        "dynamic_batching": {
            "preferred_batch_size": [max_batch_size],
            "max_queue_delay_microseconds": max_queue_delay_microseconds,
            "default_queue_policy": {"max_queue_size": max_queue_size},
        },
        # The executor owns the GPUs: a KIND_GPU instance group would load the engine once for each of them.
        "instance_group": [{"count": instances, "kind": "KIND_CPU"}],
        "parameters": strings(given),
        "model_transaction_policy": {"decoupled": decoupled},
    }


def declared(tensors: tuple[Tensor, ...], generation: str, logits_dtype: str) -> list[Message]:
    """Tensors as a configuration declares them; logits have the engine's type since 0.17."""
    made = []
    for tensor in tensors:
        typed = tensor.name.lower() in _LOGITS_TENSORS and has(generation, "0.17")
        made.append(declaration(tensor, LOGITS[logits_dtype] if typed else tensor.type))
    return made


def declaration(tensor: Tensor, kind: str | None = None) -> Message:
    """A tensor as a configuration declares it, of another type where `kind` is given."""
    message: Message = {
        "name": tensor.name,
        "data_type": tensor.type if kind is None else kind,
        "dims": list(tensor.dims),
    }
    if tensor.scalar:
        message["reshape"] = {"shape": []}
    if tensor.ragged:
        message["allow_ragged_batch"] = True
    if tensor.optional:
        message["optional"] = True
    return message


def strings(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Parameters as a configuration holds them."""
    return {key: {"string_value": value} for key, value in parameters.items()}
