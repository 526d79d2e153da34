"""Tensors of the models in TensorRT-LLM's repository for Triton, and how its ensemble joins them, by generation.

A line is: name, type, dimensions, then "r" for ragged batches, "s" for a shape without the batch's one, "o" for
optional ("." for none of these), then the generations it is in, first to first-not; none for all.

Source: triton-inference-server/tensorrtllm_backend@v0.9.0 to v0.19.0 (every tag), and @c2e65b88 for 0.20:
all_models/inflight_batcher_llm/*/config.pbtxt. NVIDIA/TensorRT-LLM@2a9abd95:triton_backend/all_models has every one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmcompile.packaging.triton.generations import has


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model.

    Attributes:
        name: Its name.
        type: Its type, like TYPE_INT32.
        dims: Its dimensions after the batch; -1 is any.
        ragged: Whether requests of different lengths go into one batch.
        scalar: Whether the model takes it without its dimension of 1.
        optional: Whether a request may leave it out.
    """

    name: str
    type: str
    dims: tuple[int, ...]
    ragged: bool
    scalar: bool
    optional: bool


def inputs(model: str, generation: str) -> tuple[Tensor, ...]:
    """The inputs of a model."""
    return tuple(_tensors(_INPUTS[model], generation))


def outputs(model: str, generation: str) -> tuple[Tensor, ...]:
    """The outputs of a model."""
    return tuple(_tensors(_OUTPUTS[model], generation))


def wires(generation: str) -> tuple[tuple[str, Mapping[str, str], Mapping[str, str]], ...]:
    """The ensemble's steps: model, its inputs and its outputs -> the ensemble's name for them."""
    made: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for words in _current(_WIRES, generation):
        model, direction, tensor, name = words
        side = made.setdefault(model, ({}, {}))[0 if direction == "in" else 1]
        side[tensor] = name
    return tuple((model, taken, given) for model, (taken, given) in made.items())


def _current(table: str, generation: str) -> Iterator[tuple[str, ...]]:
    """The words of a table's lines that hold for a generation, without the span."""
    for line in table.strip().splitlines():
        *words, last = line.split(" ")
        if len(words) < 4:
            yield (*words, last)
            continue
        first, _, end = last.partition("-")
        if (first == "" or has(generation, first)) and (end == "" or not has(generation, end)):
            yield tuple(words)


def _tensors(table: str, generation: str) -> Iterator[Tensor]:
    for words in _current(table, generation):
        yield tensor(" ".join(words))


def tensor(line: str) -> Tensor:
    """The tensor of a table's line without a span."""
    name, kind, dims, marks = line.split(" ")
    sizes = tuple(int(size) for size in dims.split(","))
    return Tensor(name, f"TYPE_{kind}", sizes, "r" in marks, "s" in marks, "o" in marks)


_ENGINE_IN = """
input_ids INT32 -1 r -0.15
input_ids INT32 -1 ro 0.15-
encoder_input_features FP32 -1,-1 ro 0.15-
encoder_output_lengths INT32 1 so 0.15-
input_lengths INT32 1 s
request_output_len INT32 1 . -0.12
request_output_len INT32 1 s 0.12-
num_return_sequences INT32 1 so 0.14-
draft_input_ids INT32 -1 ro
decoder_input_ids INT32 -1 ro 0.11-
decoder_input_lengths INT32 1 so 0.11-
draft_logits FP32 -1,-1 ro
draft_acceptance_threshold FP32 1 so 0.10-
end_id INT32 1 so
pad_id INT32 1 so
stop_words_list INT32 2,-1 ro
bad_words_list INT32 2,-1 ro
embedding_bias FP32 -1 ro
beam_width INT32 1 so
temperature FP32 1 so
runtime_top_k INT32 1 so
runtime_top_p FP32 1 so
runtime_top_p_min FP32 1 so 0.10-
runtime_top_p_decay FP32 1 so 0.10-
runtime_top_p_reset_ids INT32 1 so 0.10-
len_penalty FP32 1 so
early_stopping BOOL 1 so 0.10-
repetition_penalty FP32 1 so
min_tokens INT32 1 so 0.20-
beam_search_diversity_rate FP32 1 so 0.10-
presence_penalty FP32 1 so
frequency_penalty FP32 1 so
seed UINT64 1 so 0.20-
return_log_probs BOOL 1 so
return_context_logits BOOL 1 so
return_generation_logits BOOL 1 so
return_perf_metrics BOOL 1 so 0.19-
exclude_input_in_output BOOL 1 so 0.14-
stop BOOL 1 o -0.12
stop BOOL 1 so 0.12-
streaming BOOL 1 o -0.12
streaming BOOL 1 so 0.12-
prompt_embedding_table FP16 -1,-1 ro
prompt_table_extra_ids UINT64 -1 ro 0.13-
prompt_vocab_size INT32 1 so
cross_attention_mask BOOL -1,-1 ro 0.15-
mrope_rotary_cos_sin FP32 -1 o 0.19-
mrope_position_deltas INT64 1 o 0.19-
lora_task_id UINT64 1 so
lora_weights FP16 -1,-1 ro
lora_config INT32 -1,3 ro
context_phase_params UINT8 -1 ro 0.14-
skip_cross_attn_blocks BOOL 1 ro 0.16-
retention_token_range_starts INT32 -1 ro 0.17-
retention_token_range_ends INT32 -1 ro 0.17-
retention_token_range_priorities INT32 -1 ro 0.17-
retention_token_range_durations_ms INT32 -1 ro 0.17-
retention_decode_priority INT32 1 ro 0.17-
retention_decode_duration_ms INT32 1 ro 0.17-
guided_decoding_guide_type STRING 1 ro 0.19-
guided_decoding_guide STRING 1 ro 0.19-
lookahead_window_size INT32 1 ro 0.19-
lookahead_ngram_size INT32 1 ro 0.19-
lookahead_verification_set_size INT32 1 ro 0.19-
min_length INT32 1 so -0.20
random_seed UINT64 1 so -0.20
return_kv_cache_reuse_stats BOOL 1 so 0.16-0.19
"""
_ENGINE_OUT = """
output_ids INT32 -1,-1 .
sequence_length INT32 -1 .
cum_log_probs FP32 -1 .
output_log_probs FP32 -1,-1 .
context_logits FP32 -1,-1 .
generation_logits FP32 -1,-1,-1 .
batch_index INT32 1 . 0.12-
sequence_index INT32 1 . 0.14-
context_phase_params UINT8 -1 . 0.14-
kv_cache_alloc_new_blocks INT32 1 . 0.16-
kv_cache_reused_blocks INT32 1 . 0.16-
kv_cache_alloc_total_blocks INT32 1 . 0.16-
arrival_time_ns INT64 1 . 0.19-
first_scheduled_time_ns INT64 1 . 0.19-
first_token_time_ns INT64 1 . 0.19-
last_token_time_ns INT64 1 . 0.19-
acceptance_rate FP32 1 . 0.19-
total_accepted_draft_tokens INT32 1 . 0.19-
total_draft_tokens INT32 1 . 0.19-
"""
_BEFORE_IN = """
QUERY STRING -1 . -0.12
QUERY STRING 1 . 0.12-
DECODER_QUERY STRING -1 o 0.11-0.12
DECODER_QUERY STRING 1 o 0.12-
IMAGE_BYTES UINT8 -1,-1,-1,-1 o 0.15-
IMAGE_URL STRING 1 o 0.15-
VIDEO_BYTES UINT8 -1,-1,-1,-1 o 0.16-
REQUEST_OUTPUT_LEN INT32 -1 . -0.12
REQUEST_OUTPUT_LEN INT32 1 . 0.12-
BAD_WORDS_DICT STRING -1 o
STOP_WORDS_DICT STRING -1 o
EMBEDDING_BIAS_WORDS STRING -1 o
EMBEDDING_BIAS_WEIGHTS FP32 -1 o
END_ID INT32 -1 o -0.12
END_ID INT32 1 o 0.12-
PAD_ID INT32 -1 o -0.12
PAD_ID INT32 1 o 0.12-
PROMPT_TABLE_EXTRA_ID UINT64 1 o 0.13-
IMAGE FP16 3,224,224 o 0.12-0.13
PROMPT_EMBEDDING_TABLE FP16 -1,-1 ro 0.12-0.13
"""
_BEFORE_OUT = """
INPUT_ID INT32 -1 .
REQUEST_INPUT_LEN INT32 1 .
DECODER_INPUT_ID INT32 -1 . 0.11-
REQUEST_DECODER_INPUT_LEN INT32 1 . 0.11-
BAD_WORDS_IDS INT32 2,-1 .
STOP_WORDS_IDS INT32 2,-1 .
EMBEDDING_BIAS FP32 -1 .
REQUEST_OUTPUT_LEN INT32 -1 .
OUT_END_ID INT32 -1 . -0.12
OUT_END_ID INT32 1 . 0.12-
OUT_PAD_ID INT32 -1 . -0.12
OUT_PAD_ID INT32 1 . 0.12-
OUT_PROMPT_TABLE_EXTRA_IDS UINT64 -1 . 0.13-
PIXEL_VALUES FP16 -1,-1,-1,-1 . 0.15-
ASPECT_RATIO_IDS INT64 -1 . 0.15-
ASPECT_RATIO_MASK INT64 -1,-1 . 0.15-
CROSS_ATTENTION_MASK INT64 -1,-1,-1 . 0.15-
IMAGE_SIZES INT64 2 . 0.16-
IS_VIDEO_INPUT BOOL 1 . 0.16-
ATTENTION_MASK INT64 -1 . 0.19-
IMAGE_GRID_THW INT64 3 . 0.19-
VISION_INPUT_ID INT32 -1 . 0.19-
OUT_PROMPT_EMBEDDING_TABLE FP16 -1,-1 . 0.12-0.13
"""
_AFTER_IN = """
TOKENS_BATCH INT32 -1,-1 .
SEQUENCE_LENGTH INT32 -1 .
CUM_LOG_PROBS FP32 -1 o -0.14
OUTPUT_LOG_PROBS FP32 -1,-1 o -0.14
CONTEXT_LOGITS FP32 -1,-1 o -0.14
GENERATION_LOGITS FP32 -1,-1,-1 o -0.14
BATCH_INDEX INT32 1 o 0.12-0.14
"""
_AFTER_OUT = """
OUTPUT STRING -1 .
OUT_CUM_LOG_PROBS FP32 -1 . -0.14
OUT_OUTPUT_LOG_PROBS FP32 -1,-1 . -0.14
OUT_CONTEXT_LOGITS FP32 -1,-1 . -0.14
OUT_GENERATION_LOGITS FP32 -1,-1,-1 . -0.14
OUT_BATCH_INDEX INT32 1 . 0.12-0.14
"""
_ENSEMBLE_IN = """
text_input STRING -1 . -0.12
text_input STRING 1 . 0.12-
decoder_text_input STRING -1 o 0.11-0.12
decoder_text_input STRING 1 o 0.12-
max_tokens INT32 -1 . -0.12
max_tokens INT32 1 . 0.12-
num_return_sequences INT32 1 o 0.14-
bad_words STRING -1 o
stop_words STRING -1 o
exclude_input_in_output BOOL 1 o 0.16-
end_id INT32 1 o
pad_id INT32 1 o
top_k INT32 1 o
top_p FP32 1 o
temperature FP32 1 o
length_penalty FP32 1 o
repetition_penalty FP32 1 o
min_tokens INT32 1 o 0.20-
presence_penalty FP32 1 o
frequency_penalty FP32 1 o
seed UINT64 1 o 0.20-
return_log_probs BOOL 1 o
return_context_logits BOOL 1 o
return_generation_logits BOOL 1 o
return_perf_metrics BOOL 1 o 0.19-
beam_width INT32 1 o
stream BOOL 1 o
prompt_embedding_table FP16 -1,-1 o
prompt_table_extra_id UINT64 1 o 0.13-
prompt_vocab_size INT32 1 o
embedding_bias_words STRING -1 o
embedding_bias_weights FP32 -1 o
lora_task_id UINT64 1 o 0.15-
lora_weights FP16 -1,-1 ro 0.15-
lora_config INT32 -1,3 ro 0.15-
guided_decoding_guide_type STRING 1 ro 0.19-
guided_decoding_guide STRING 1 ro 0.19-
min_length INT32 1 o -0.20
random_seed UINT64 1 o -0.20
return_kv_cache_reuse_stats BOOL 1 o 0.16-0.19
image_input FP16 3,224,224 o 0.12-0.13
"""
_ENSEMBLE_OUT = """
text_output STRING -1 .
cum_log_probs FP32 -1 .
output_log_probs FP32 -1,-1 .
context_logits FP32 -1,-1 .
generation_logits FP32 -1,-1,-1 .
batch_index INT32 1 . 0.12-
sequence_index INT32 1 . 0.14-
kv_cache_alloc_new_blocks INT32 1 . 0.16-
kv_cache_reused_blocks INT32 1 . 0.16-
kv_cache_alloc_total_blocks INT32 1 . 0.16-
arrival_time_ns INT64 1 . 0.19-
first_scheduled_time_ns INT64 1 . 0.19-
first_token_time_ns INT64 1 . 0.19-
last_token_time_ns INT64 1 . 0.19-
acceptance_rate FP32 1 . 0.19-
total_accepted_draft_tokens INT32 1 . 0.19-
total_draft_tokens INT32 1 . 0.19-
"""
_BLS_IN = """
text_input STRING -1 . -0.12
text_input STRING 1 . 0.12-
decoder_text_input STRING -1 o 0.11-0.12
decoder_text_input STRING 1 o 0.12-
image_input FP16 3,224,224 o 0.12-0.13
image_input FP16 3,-1,-1 o 0.13-0.15
image_input FP16 -1,3,-1,-1 o 0.15-
image_bytes_input UINT8 -1,-1,-1,-1 o 0.16-
image_url_input STRING 1 o 0.16-
video_bytes_input UINT8 -1,-1,-1,-1 o 0.16-
max_tokens INT32 -1 . -0.12
max_tokens INT32 1 . 0.12-
bad_words STRING -1 o
stop_words STRING -1 o
exclude_input_in_output BOOL 1 o 0.16-
end_id INT32 1 o
pad_id INT32 1 o
top_k INT32 1 o
top_p FP32 1 o
temperature FP32 1 o
length_penalty FP32 1 o
repetition_penalty FP32 1 o
min_tokens INT32 1 o 0.20-
presence_penalty FP32 1 o
frequency_penalty FP32 1 o
seed UINT64 1 o 0.20-
return_log_probs BOOL 1 so
return_context_logits BOOL 1 so
return_generation_logits BOOL 1 so
num_return_sequences INT32 1 so 0.14-
beam_width INT32 1 o
stream BOOL 1 o
prompt_embedding_table FP16 -1,-1 o
prompt_vocab_size INT32 1 o
prompt_table_extra_id UINT64 1 o 0.13-
embedding_bias_words STRING -1 o
embedding_bias_weights FP32 -1 o
num_draft_tokens INT32 1 o
use_draft_logits BOOL 1 so
lora_task_id UINT64 1 so 0.15-
lora_weights FP16 -1,-1 ro 0.15-
lora_config INT32 -1,3 ro 0.15-
return_perf_metrics BOOL 1 so 0.19-
guided_decoding_guide_type STRING 1 o 0.19-
guided_decoding_guide STRING 1 o 0.19-
min_length INT32 1 o -0.20
random_seed UINT64 1 o -0.20
return_kv_cache_reuse_stats BOOL 1 so 0.16-0.19
"""
_BLS_OUT = """
text_output STRING -1 .
cum_log_probs FP32 -1 .
output_log_probs FP32 -1,-1 .
context_logits FP32 -1,-1 .
generation_logits FP32 -1,-1,-1 .
batch_index INT32 1 . 0.12-
sequence_index INT32 1 . 0.14-
kv_cache_alloc_new_blocks INT32 1 . 0.16-
kv_cache_reused_blocks INT32 1 . 0.16-
kv_cache_alloc_total_blocks INT32 1 . 0.16-
arrival_time_ns INT64 1 . 0.19-
first_scheduled_time_ns INT64 1 . 0.19-
first_token_time_ns INT64 1 . 0.19-
last_token_time_ns INT64 1 . 0.19-
acceptance_rate FP32 1 . 0.19-
total_accepted_draft_tokens INT32 1 . 0.19-
total_draft_tokens INT32 1 . 0.19-
"""
_WIRES = """
preprocessing in BAD_WORDS_DICT bad_words
preprocessing in DECODER_QUERY decoder_text_input 0.11-
preprocessing in EMBEDDING_BIAS_WEIGHTS embedding_bias_weights
preprocessing in EMBEDDING_BIAS_WORDS embedding_bias_words
preprocessing in END_ID end_id
preprocessing in IMAGE image_input 0.12-0.13
preprocessing in PAD_ID pad_id
preprocessing in PROMPT_EMBEDDING_TABLE prompt_embedding_table 0.12-0.13
preprocessing in PROMPT_TABLE_EXTRA_ID prompt_table_extra_id 0.13-
preprocessing in QUERY text_input
preprocessing in REQUEST_OUTPUT_LEN max_tokens
preprocessing in STOP_WORDS_DICT stop_words
preprocessing out BAD_WORDS_IDS _BAD_WORDS_IDS
preprocessing out DECODER_INPUT_ID _DECODER_INPUT_ID 0.11-
preprocessing out EMBEDDING_BIAS _EMBEDDING_BIAS
preprocessing out INPUT_ID _INPUT_ID
preprocessing out OUT_END_ID _PREPROCESSOR_END_ID
preprocessing out OUT_PAD_ID _PREPROCESSOR_PAD_ID
preprocessing out OUT_PROMPT_EMBEDDING_TABLE out_prompt_embedding_table 0.12-0.13
preprocessing out OUT_PROMPT_TABLE_EXTRA_IDS _OUT_PROMPT_TABLE_EXTRA_IDS 0.13-
preprocessing out REQUEST_DECODER_INPUT_LEN _REQUEST_DECODER_INPUT_LEN 0.11-
preprocessing out REQUEST_INPUT_LEN _REQUEST_INPUT_LEN
preprocessing out REQUEST_OUTPUT_LEN _REQUEST_OUTPUT_LEN
preprocessing out STOP_WORDS_IDS _STOP_WORDS_IDS
tensorrt_llm in bad_words_list _BAD_WORDS_IDS
tensorrt_llm in beam_width beam_width
tensorrt_llm in decoder_input_ids _DECODER_INPUT_ID 0.11-
tensorrt_llm in decoder_input_lengths _REQUEST_DECODER_INPUT_LEN 0.11-
tensorrt_llm in embedding_bias _EMBEDDING_BIAS
tensorrt_llm in end_id _PREPROCESSOR_END_ID
tensorrt_llm in exclude_input_in_output exclude_input_in_output 0.16-
tensorrt_llm in frequency_penalty frequency_penalty
tensorrt_llm in guided_decoding_guide guided_decoding_guide 0.19-
tensorrt_llm in guided_decoding_guide_type guided_decoding_guide_type 0.19-
tensorrt_llm in input_ids _INPUT_ID
tensorrt_llm in input_lengths _REQUEST_INPUT_LEN
tensorrt_llm in len_penalty length_penalty
tensorrt_llm in lora_config lora_config 0.15-
tensorrt_llm in lora_task_id lora_task_id 0.15-
tensorrt_llm in lora_weights lora_weights 0.15-
tensorrt_llm in min_length min_length -0.20
tensorrt_llm in min_tokens min_tokens 0.20-
tensorrt_llm in num_return_sequences num_return_sequences 0.14-
tensorrt_llm in pad_id _PREPROCESSOR_PAD_ID
tensorrt_llm in presence_penalty presence_penalty
tensorrt_llm in prompt_embedding_table prompt_embedding_table -0.12
tensorrt_llm in prompt_embedding_table prompt_embedding_table 0.13-
tensorrt_llm in prompt_embedding_table out_prompt_embedding_table 0.12-0.13
tensorrt_llm in prompt_table_extra_ids _OUT_PROMPT_TABLE_EXTRA_IDS 0.13-
tensorrt_llm in prompt_vocab_size prompt_vocab_size
tensorrt_llm in random_seed random_seed -0.20
tensorrt_llm in repetition_penalty repetition_penalty
tensorrt_llm in request_output_len _REQUEST_OUTPUT_LEN
tensorrt_llm in return_context_logits return_context_logits
tensorrt_llm in return_generation_logits return_generation_logits
tensorrt_llm in return_kv_cache_reuse_stats return_kv_cache_reuse_stats 0.16-0.19
tensorrt_llm in return_log_probs return_log_probs
tensorrt_llm in return_perf_metrics return_perf_metrics 0.19-
tensorrt_llm in runtime_top_k top_k
tensorrt_llm in runtime_top_p top_p
tensorrt_llm in seed seed 0.20-
tensorrt_llm in stop_words_list _STOP_WORDS_IDS
tensorrt_llm in streaming stream
tensorrt_llm in temperature temperature
tensorrt_llm out acceptance_rate acceptance_rate 0.19-
tensorrt_llm out arrival_time_ns arrival_time_ns 0.19-
tensorrt_llm out batch_index _BATCH_INDEX 0.12-0.14
tensorrt_llm out batch_index batch_index 0.14-
tensorrt_llm out context_logits _CONTEXT_LOGITS -0.14
tensorrt_llm out context_logits context_logits 0.14-
tensorrt_llm out cum_log_probs _CUM_LOG_PROBS -0.14
tensorrt_llm out cum_log_probs cum_log_probs 0.14-
tensorrt_llm out first_scheduled_time_ns first_scheduled_time_ns 0.19-
tensorrt_llm out first_token_time_ns first_token_time_ns 0.19-
tensorrt_llm out generation_logits _GENERATION_LOGITS -0.14
tensorrt_llm out generation_logits generation_logits 0.14-
tensorrt_llm out kv_cache_alloc_new_blocks kv_cache_alloc_new_blocks 0.16-
tensorrt_llm out kv_cache_alloc_total_blocks kv_cache_alloc_total_blocks 0.16-
tensorrt_llm out kv_cache_reused_blocks kv_cache_reused_blocks 0.16-
tensorrt_llm out last_token_time_ns last_token_time_ns 0.19-
tensorrt_llm out output_ids _TOKENS_BATCH
tensorrt_llm out output_log_probs _OUTPUT_LOG_PROBS -0.14
tensorrt_llm out output_log_probs output_log_probs 0.14-
tensorrt_llm out sequence_index sequence_index 0.14-
tensorrt_llm out sequence_length _SEQUENCE_LENGTH
tensorrt_llm out total_accepted_draft_tokens total_accepted_draft_tokens 0.19-
tensorrt_llm out total_draft_tokens total_draft_tokens 0.19-
postprocessing in BATCH_INDEX _BATCH_INDEX 0.12-0.14
postprocessing in CONTEXT_LOGITS _CONTEXT_LOGITS -0.14
postprocessing in CUM_LOG_PROBS _CUM_LOG_PROBS -0.14
postprocessing in GENERATION_LOGITS _GENERATION_LOGITS -0.14
postprocessing in OUTPUT_LOG_PROBS _OUTPUT_LOG_PROBS -0.14
postprocessing in SEQUENCE_LENGTH _SEQUENCE_LENGTH
postprocessing in TOKENS_BATCH _TOKENS_BATCH
postprocessing out OUTPUT text_output
postprocessing out OUT_BATCH_INDEX batch_index 0.12-0.14
postprocessing out OUT_CONTEXT_LOGITS context_logits -0.14
postprocessing out OUT_CUM_LOG_PROBS cum_log_probs -0.14
postprocessing out OUT_GENERATION_LOGITS generation_logits -0.14
postprocessing out OUT_OUTPUT_LOG_PROBS output_log_probs -0.14
"""

_INPUTS: Mapping[str, str] = MappingProxyType(
    {
        "tensorrt_llm": _ENGINE_IN,
        "preprocessing": _BEFORE_IN,
        "postprocessing": _AFTER_IN,
        "ensemble": _ENSEMBLE_IN,
        "tensorrt_llm_bls": _BLS_IN,
    }
)
_OUTPUTS: Mapping[str, str] = MappingProxyType(
    {
        "tensorrt_llm": _ENGINE_OUT,
        "preprocessing": _BEFORE_OUT,
        "postprocessing": _AFTER_OUT,
        "ensemble": _ENSEMBLE_OUT,
        "tensorrt_llm_bls": _BLS_OUT,
    }
)
