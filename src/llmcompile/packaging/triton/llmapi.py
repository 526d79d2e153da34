"""The model of Triton's python backend that loads a Hugging Face checkpoint through TensorRT-LLM's LLM class.

Source: NVIDIA/TensorRT-LLM@0a710573:triton_backend/all_models/llmapi/tensorrt_llm/config.pbtxt, @0ebb1536 its
1/model.yaml and @044a90d2 its 1/model.py, which reads triton_config of model.yaml for what config.pbtxt leaves out, and
gives the other keys to tensorrt_llm.LLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompile.packaging.triton.engine import declaration, strings
from llmcompile.packaging.triton.pbtxt import Message
from llmcompile.packaging.triton.tensors import tensor

NAME = "tensorrt_llm"
_IN = """
text_input STRING -1 .
streaming BOOL 1 o
sampling_param_best_of INT32 1 o
sampling_param_temperature FP32 1 o
sampling_param_top_k INT32 1 o
sampling_param_top_p FP32 1 o
sampling_param_frequency_penalty FP32 1 o
sampling_param_presence_penalty FP32 1 o
sampling_param_max_tokens INT32 1 o
sampling_param_stop STRING -1 o
sampling_param_seed UINT64 1 o
sampling_param_exclude_input_from_output BOOL 1 o
sampling_param_return_perf_metrics BOOL 1 o
return_finish_reason BOOL 1 o
return_stop_reason BOOL 1 o
return_cumulative_logprob BOOL 1 o
stop BOOL 1 o
"""
_OUT = """
text_output STRING -1 .
finish_reason STRING -1 .
stop_reason STRING -1 .
cumulative_logprob FP32 -1 .
kv_cache_reused_block INT32 -1 .
kv_cache_missed_block INT32 -1 .
kv_cache_alloc_new_blocks INT32 -1 .
kv_cache_alloc_total_blocks INT32 -1 .
kv_cache_hit_rate FP32 -1 .
arrival_time_ns INT64 1 .
first_scheduled_time_ns INT64 1 .
first_token_time_ns INT64 1 .
last_token_time_ns INT64 1 .
acceptance_rate FP32 1 .
total_accepted_draft_tokens INT32 1 .
total_draft_tokens INT32 1 .
"""


def llmapi_config(*, instances: int = 1, gpu_ids: str | None = None) -> Message:
    """Make the configuration: without max_batch_size and decoupled, which model.py takes from model.yaml.

    Args:
        instances: How many times the model is loaded.
        gpu_ids: GPUs of each instance, "0,1;2,3".
    """
    message: Message = {
        "name": NAME,
        "backend": "python",
        "input": _declared(_IN),
        "output": _declared(_OUT),
        "instance_group": [{"count": instances, "kind": "KIND_CPU"}],
    }
    return message if gpu_ids is None else {**message, "parameters": strings({"gpu_device_ids": gpu_ids})}


def model_yaml(*, model: str, tp: int, pp: int, decoupled: bool, further: Mapping[str, Any]) -> str:
    """Write model.yaml.

    Args:
        model: Folder of the checkpoint, as the server will see it.
        tp: Ranks that each layer is split over.
        pp: Pipeline stages.
        decoupled: Whether a request may have more than one answer: streaming.
        further: Further arguments of tensorrt_llm.LLM.
    """
    import yaml

    content = {
        "model": model,
        "backend": "pytorch",
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": pp,
        **further,
        # The backend does not batch: TensorRT-LLM does.
        "triton_config": {"max_batch_size": 0, "decoupled": decoupled},
    }
    written: str = yaml.safe_dump(content, sort_keys=False)
    return written


def _declared(table: str) -> list[Message]:
    return [declaration(tensor(line)) for line in table.split("\n") if line != ""]
