"""config.pbtxt for Triton's FasterTransformer backend.

Sources: triton-inference-server/fastertransformer_backend@c6936c39 (the last one): src/libfastertransformer.cc, which
parameters are read, and all_models/*/fastertransformer/config.pbtxt; LLaMA is in void-main/fastertransformer_backend@
01c793eb alone. Tensors are not ragged here: that wants a batch_input beside each, and one batch of equal lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmcompile.packaging.triton.engine import declaration, strings
from llmcompile.packaging.triton.pbtxt import Message
from llmcompile.packaging.triton.tensors import tensor

NAME = "fastertransformer"
MODEL_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "gpt2": "GPT",
        "opt": "GPT",
        "bloom": "GPT",
        "gptj": "GPT-J",
        "gpt_neox": "GPT-NeoX",
        "t5": "T5",
        "mt5": "T5",
        "bert": "bert",
        "llama": "Llama",
    }
)
"""model_type of config.json -> model_type of the backend."""
FORK = "void-main/fastertransformer_backend@01c793eb"
"""The one backend that knows LLaMA."""
MAX_BATCH_SIZE = 1024
"""Nothing is built for a batch: memory is taken as requests come. It is that of the vendor's own configurations."""
_DECODER = """
input_ids UINT32 -1 .
input_lengths UINT32 1 s
request_output_len UINT32 -1 .
"""
_SAMPLING = """
runtime_top_k UINT32 1 so
runtime_top_p FP32 1 so
beam_search_diversity_rate FP32 1 so
temperature FP32 1 so
len_penalty FP32 1 so
repetition_penalty FP32 1 so
random_seed UINT64 1 so
is_return_log_probs BOOL 1 so
beam_width UINT32 1 so
start_id UINT32 1 so
end_id UINT32 1 so
stop_words_list INT32 2,-1 o
bad_words_list INT32 2,-1 o
prompt_learning_task_name_ids UINT32 1 so
top_p_decay FP32 1 so
top_p_min FP32 1 so
top_p_reset_ids UINT32 1 so
"""
_GPT = """
is_return_context_embeddings BOOL 1 so
request_prompt_embedding FP16 -1,-1 o
request_prompt_lengths UINT32 1 so
request_prompt_type UINT32 1 so
"""
_T5 = """
input_ids UINT32 -1 .
sequence_length UINT32 1 s
max_output_len UINT32 1 s
"""
_T5_MORE = """
request_prompt_lengths UINT32 1 so
request_prompt_embedding FP16 -1,-1 o
ia3_tasks INT32 1 so
"""
_T5_ENCODER = """
input_ids UINT32 -1 .
sequence_length UINT32 1 s
is_return_attentions BOOL 1 so
ia3_tasks INT32 1 so
"""
_BERT = """
input_hidden_state FP32 -1,-1 .
sequence_lengths INT32 1 s
"""
_TOKENS = """
output_ids UINT32 -1,-1 .
sequence_length UINT32 -1 .
cum_log_probs FP32 -1 .
output_log_probs FP32 -1,-1 .
"""
_GPT_OUT = """
response_input_lengths INT32 -1 .
context_embeddings FP32 -1,-1 .
"""
_T5_OUT = """
output_ids INT32 -1,-1 .
sequence_length INT32 -1 .
cum_log_probs FP32 -1 .
output_log_probs FP32 -1,-1 .
"""
_T5_ENCODER_OUT = """
output_hidden_state FP32 -1,-1 .
output_attentions FP32 -1,-1,-1,-1 .
"""
_BERT_OUT = """
output_hidden_state FP32 -1,-1 .
"""
_TENSORS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "GPT": (_DECODER + _SAMPLING + _GPT, _TOKENS + _GPT_OUT),
        "GPT-J": (_DECODER + _SAMPLING, _TOKENS),
        "GPT-NeoX": (_DECODER + _SAMPLING, _TOKENS),
        "Llama": (_DECODER + _SAMPLING, _TOKENS),
        "T5": (_T5 + _SAMPLING + _T5_MORE, _T5_OUT),
        "T5-Encoder": (_T5_ENCODER, _T5_ENCODER_OUT),
        "bert": (_BERT, _BERT_OUT),
    }
)
_COMPUTED = ("input_hidden_state", "output_hidden_state", "output_attentions")
"""These have the type that the model computes in."""
_TYPES = MappingProxyType({"fp16": "TYPE_FP16", "fp32": "TYPE_FP32", "bf16": "TYPE_BF16"})
_INT8 = ("GPT", "bert", "Llama")


def fastertransformer_config(
    *,
    model_type: str,
    path: str,
    tp: int,
    pp: int,
    dtype: str,
    int8_mode: int = 0,
    max_batch_size: int = MAX_BATCH_SIZE,
    instances: int = 1,
    decoupled: bool = False,
) -> Message:
    """Make the configuration of a FasterTransformer model.

    Args:
        model_type: One of the values of `MODEL_TYPES`, or T5-Encoder.
        path: Folder with config.ini and the weights, as the server will see it.
        tp: Ranks that each layer is split over.
        pp: Pipeline stages.
        dtype: fp16, fp32 or bf16: what the server computes in.
        int8_mode: 1 for weights alone, 2 for SmoothQuant; 0 for none.
        max_batch_size: Requests in a batch.
        instances: How many times the model is loaded.
        decoupled: Whether a request may have more than one answer: streaming.
    """
    taken, given = _TENSORS[model_type]
    parameters = {
        "model_type": model_type,
        # BERT's loader joins folder and file without a slash.
        "model_checkpoint_path": f"{path}/",
        "tensor_para_size": str(tp),
        "pipeline_para_size": str(pp),
        "data_type": dtype,
        "enable_custom_all_reduce": "0",
    }
    if model_type in _INT8:
        parameters["int8_mode"] = str(int8_mode)
    if model_type == "bert":
        parameters |= {"is_sparse": "0", "is_remove_padding": "1"}
    message: Message = {
        "name": NAME,
        "backend": "fastertransformer",
        "max_batch_size": max_batch_size,
        "input": _declared(taken, dtype),
        "output": _declared(given, dtype),
        "instance_group": [{"count": instances, "kind": "KIND_CPU"}],
        "default_model_filename": path.rpartition("/")[2],
        "parameters": strings(parameters),
    }
    return {**message, "model_transaction_policy": {"decoupled": True}} if decoupled else message


def _declared(table: str, dtype: str) -> list[Message]:
    lines = [tensor(line) for line in table.split("\n") if line != ""]
    return [declaration(line, _TYPES[dtype] if line.name in _COMPUTED else None) for line in lines]
