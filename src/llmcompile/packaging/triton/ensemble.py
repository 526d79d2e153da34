"""config.pbtxt of the models around an engine: preprocessing, postprocessing, and the ensemble or BLS that joins them.

Both tokenizer models and BLS run 1/model.py of tensorrtllm_backend, which reads these parameters.
Source: triton-inference-server/tensorrtllm_backend@v0.9.0 to v0.19.0 and @c2e65b88:all_models/inflight_batcher_llm.
"""

from __future__ import annotations

from llmcompile.packaging.triton.engine import NAME, declared, strings
from llmcompile.packaging.triton.generations import has
from llmcompile.packaging.triton.pbtxt import Message
from llmcompile.packaging.triton.tensors import inputs, outputs, wires

BEFORE, AFTER, ENSEMBLE, BLS = "preprocessing", "postprocessing", "ensemble", "tensorrt_llm_bls"
_NEWEST = -1


def preprocessing_config(*, generation: str, max_batch_size: int, tokenizer: str, engine: str) -> Message:
    """The model that makes token ids of text.

    Args:
        generation: One of `generations.GENERATIONS`.
        max_batch_size: The engine's model's.
        tokenizer: Folder with the tokenizer, as the server will see it.
        engine: Folder with the engine, as the server will see it.
    """
    parameters = {"tokenizer_dir": tokenizer, "add_special_tokens": "True"}
    if has(generation, "0.12"):
        # Read without a default; empty is a model of text alone.
        parameters["gpt_model_path"] = engine
        parameters["multimodal_model_path" if has(generation, "0.19") else "visual_model_path"] = ""
    return _python(BEFORE, generation, max_batch_size, parameters)


def postprocessing_config(*, generation: str, max_batch_size: int, tokenizer: str, logits_dtype: str) -> Message:
    """The model that makes text of token ids; arguments as for `preprocessing_config`."""
    parameters = {"tokenizer_dir": tokenizer, "skip_special_tokens": "True"}
    return _python(AFTER, generation, max_batch_size, parameters, logits_dtype)


def bls_config(*, generation: str, max_batch_size: int, decoupled: bool, logits_dtype: str) -> Message:
    """The model that calls the three others itself, and so can give each word once it is whole."""
    parameters = {"tensorrt_llm_model_name": NAME, "accumulate_tokens": "True" if decoupled else "False"}
    made = _python(BLS, generation, max_batch_size, parameters, logits_dtype)
    return {**made, "model_transaction_policy": {"decoupled": decoupled}}


def ensemble_config(*, generation: str, max_batch_size: int, logits_dtype: str) -> Message:
    """The three models in a row, by their tensors; it has no code and no instances."""
    return {
        "name": ENSEMBLE,
        "platform": "ensemble",
        "max_batch_size": max_batch_size,
        "input": declared(inputs(ENSEMBLE, generation), generation, logits_dtype),
        "output": declared(outputs(ENSEMBLE, generation), generation, logits_dtype),
        "ensemble_scheduling": {
            "step": [
                {"model_name": model, "model_version": _NEWEST, "input_map": dict(taken), "output_map": dict(given)}
                for model, taken, given in wires(generation)
            ]
        },
    }


def _python(
    name: str, generation: str, max_batch_size: int, parameters: dict[str, str], logits_dtype: str = "fp32"
) -> Message:
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": max_batch_size,
        "input": declared(inputs(name, generation), generation, logits_dtype),
        "output": declared(outputs(name, generation), generation, logits_dtype),
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "parameters": strings(parameters),
    }
