"""The keys of serving.properties, and the environment variables that stand for them.

Source: deepjavalibrary/djl-serving@7e13b081:plugins/secure-mode/src/main/java/ai/djl/serving/plugins/securemode/
SecureModeAllowList.java, wlm/.../ModelInfo.java (loadServingProperties, configPerModelSettings), engines/python/.../
PyModel.java (load), engines/python/setup/djl_python/properties_manager; @3d6ad832 for those of Neuron, @7fa3694c for
those of FasterTransformer; serving/docs/lmi/deployment_guide/configurations.md for the aliases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

_SERVER = (
    "engine batch_size max_batch_delay max_dynamic_batch_size max_idle_time job_queue_size minWorkers maxWorkers"
    " gpu.minWorkers gpu.maxWorkers load_on_devices required_memory_mb reserved_memory_mb gpu.required_memory_mb"
    " gpu.reserved_memory_mb retry_threshold log_model_metric metrics_aggregation"
)
_OPTIONS = (
    # every handler
    "entryPoint handler model_id model_dir revision trust_remote_code task dtype data_type batch_size rolling_batch"
    " max_rolling_batch_size max_rolling_batch_prefill_tokens tensor_parallel_degree pipeline_parallel_degree mpi_mode"
    " async_mode env pythonExecutable enable_venv predict_timeout model_loading_timeout parallel_loading"
    " output_formatter input_formatter enable_streaming waiting_steps tgi_compat bedrock_compat quantize load_format"
    " s3url save_mp_checkpoint_path cluster_size enable_lora max_loras max_lora_rank lora_extra_vocab_size"
    " max_cpu_loras adapters disable_flash_attn low_cpu_mem_usage load_in_8bit load_in_4bit device_map"
    " draft_model_id spec_length decoding_strategy enable_stateful_sessions chat_template"
    # TensorRT-LLM
    " backend max_input_len max_output_len max_seq_len max_num_tokens max_beam_width max_batch_size tokenizer"
    " tokenizer_mode tokenizer_revision pipeline_parallel_size context_parallel_size moe_tensor_parallel_size"
    " moe_expert_parallel_size enable_attention_dp enable_chunked_prefill guided_decoding_backend enable_build_cache"
    " normalize_log_probs gather_generation_logits enable_block_reuse free_gpu_memory_fraction host_cache_size"
    " tokens_per_block batch_scheduler_policy kv_cache_free_gpu_mem_fraction max_num_sequences enable_trt_overlap"
    " enable_kv_cache_reuse use_custom_all_reduce multi_block_mode use_fused_mlp rotary_base rotary_dim"
    " rotary_scaling_type rotary_scaling_factor logits_dtype trtllm_checkpoint_path num_checkpoint_workers"
    " num_engine_workers load_by_shard smoothquant_alpha smoothquant_per_token smoothquant_per_channel"
    " multi_query_mode awq_format awq_calib_size awq_block_size q_format calib_size calib_batch_size"
    " use_fp8_context_fmha baichuan_model_version chatglm_model_version gpt_model_version"
    # Neuron
    " n_positions unroll amp load_split_model compiled_graph_path context_length_estimate neuron_optimize_level"
    " enable_mixed_precision_accumulation enable_saturate_infinity group_query_attention model_loader"
    " partition_schema rolling_batch_strategy fuse_qkv fuse_mlp fused_rmsnorm_qkv qkv_tiling weight_tiling"
    " mlp_out_weight_transpose attention_layout collectives_layout cache_layout all_reduce_dtype cast_logits_dtype"
    " sequence_parallel_norm_threshold on_device_embedding on_device_generation shard_over_sequence"
    " compilation_worker_count sequence_parallel multi_node neuron_cc_pipeline_factor neuron_quant"
    " speculative_draft_model speculative_length draft_model_tp_size draft_model_compiled_path"
    # vLLM
    " max_model_len max_num_seqs max_num_batched_tokens gpu_memory_utilization enforce_eager enable_prefix_caching"
    " disable_sliding_window cpu_offload_gb_per_gpu quantization kv_cache_dtype block_size swap_space seed"
    " served_model_name limit_mm_per_prompt hf_overrides enable_auto_tool_choice tool_call_parser enable_reasoning"
    " reasoning_parser chat_template_content_format speculative_config compilation_config record_acceptance_rate"
    " long_lora_scaling_factors use_v2_block_manager device preloaded_model override_neuron_config"
)
KEYS: frozenset[str] = frozenset([*_SERVER.split(), *(f"option.{name}" for name in _OPTIONS.split())])
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "HF_MODEL_ID": "option.model_id",
        "HF_REVISION": "option.revision",
        "HF_MODEL_TRUST_REMOTE_CODE": "option.trust_remote_code",
        "TENSOR_PARALLEL_DEGREE": "option.tensor_parallel_degree",
        "PIPELINE_PARALLEL_DEGREE": "option.pipeline_parallel_degree",
        "MAX_BATCH_SIZE": "option.max_rolling_batch_size",
        "MAX_CONCURRENT_REQUESTS": "job_queue_size",
    }
)
"""Environment variables that stand for a key beside those that begin with OPTION_."""
_NEAR = 0.93
_SECRET_NAME = re.compile(
    r"(?:hf|hub|auth|api|access|session|bearer)_?token(?![a-z])|secret|password|(?:api|access)_?key", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"hf_[A-Za-z0-9]{20,}|A[KS]IA[0-9A-Z]{16}|://[^/@\s]+:[^/@\s]+@")


def key_of(variable: str) -> str | None:
    """The key that an environment variable stands for; None for one that LMI does not read as such."""
    if variable in ALIASES:
        return ALIASES[variable]
    if not variable.startswith("OPTION_") or variable == "OPTION_":
        return None
    name = variable.removeprefix("OPTION_").lower()
    return {"entrypoint": "option.entryPoint", "engine": "engine"}.get(name, f"option.{name}")


def meant(key: str) -> str | None:
    """The known key that an unknown one is nearly; None for a known one, and for one that resembles none."""
    import difflib

    if key in KEYS:
        return None
    plain = {known.lower(): known for known in KEYS}
    same = plain.get(key.lower().replace("-", "_"))
    if same is not None:
        return same
    bare = key.removeprefix("option.")
    if f"option.{bare}" in KEYS:
        return f"option.{bare}"
    if bare in KEYS:
        return bare
    near = difflib.get_close_matches(bare, [known.removeprefix("option.") for known in sorted(KEYS)], 1, _NEAR)
    if near == []:
        return None
    return f"option.{near[0]}" if f"option.{near[0]}" in KEYS else near[0]


def is_credential(key: str, value: str) -> bool:
    """Whether an entry looks like a token, a key or a password, which a file of a package must not hold."""
    if _SECRET_VALUE.search(value) is not None:
        return True
    names = [part.partition("=")[0] for part in value.split(",")] if key == "option.env" else []
    return (key not in KEYS and _SECRET_NAME.search(key) is not None) or any(map(_SECRET_NAME.search, names))
