"""The words of vLLM 0.29.0 that engine_kwargs may hold; Ray Serve refuses every other key when the engine starts.

Source: the wheel vllm 0.29.0 of PyPI (vllm-project/vllm@v0.29.0): vllm/engine/arg_utils.py (EngineArgs,
AsyncEngineArgs), vllm/entrypoints/launchers/cli_args.py (FrontendArgs),
vllm/model_executor/model_loader/__init__.py, vllm/model_executor/layers/quantization/__init__.py,
vllm/config/model.py, vllm/model_executor/models/registry.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

VERSION = "0.29.0"

_ENGINE = """
    additional_config aggregate_engine_logging all2all_backend allow_deprecated_quantization
    allowed_local_media_path allowed_media_domains async_scheduling attention_backend attention_config block_size
    code_revision collect_detailed_traces compilation_config config_format convert cp_kv_cache_interleave_size
    cpu_distributed_timeout_seconds cpu_offload_gb cpu_offload_params cudagraph_capture_sizes cudagraph_metrics
    data_parallel_address data_parallel_backend data_parallel_external_lb data_parallel_hybrid_lb
    data_parallel_multi_port_external_lb data_parallel_rank data_parallel_rpc_port data_parallel_size
    data_parallel_size_local data_parallel_start_rank dbo_decode_token_threshold dbo_prefill_token_threshold
    dcp_comm_backend dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size default_mm_loras
    device_ids diffusion_config disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce
    disable_hybrid_kv_cache_manager disable_log_stats disable_nccl_for_dp_synchronization disable_sliding_window
    distributed_executor_backend distributed_timeout_seconds download_dir dtype ec_manager_config ec_transfer_config
    enable_batch_sharded_sampling enable_bf16x3_router_gemm enable_chunked_prefill enable_cumem_allocator enable_dbo
    enable_elastic_ep enable_ep_weight_filter enable_eplb enable_expert_parallel enable_fault_tolerance
    enable_flashinfer_autotune enable_layerwise_nvtx_tracing enable_log_requests enable_logging_iteration_details
    enable_lora enable_mamba_cache_stochastic_rounding enable_mfu_metrics enable_mixed_moe_lora_format
    enable_mm_embeds enable_mm_processor_stats enable_moe_shared_loras enable_prefix_caching enable_prompt_embeds
    enable_return_routed_experts enable_sleep_mode enable_tower_connector_lora enable_trace_replay enforce_eager
    eplb_config expert_placement_strategy fail_on_environ_validation fault_tolerance_config fully_sharded_loras
    gdn_prefill_backend generation_config gpu_memory_utilization hf_config_path hf_overrides hf_token
    ignore_patterns interleave_mm_strings io_processor_plugin ir_op_priority jit_monitor_mode jit_monitor_verbose
    kda_prefill_backend kernel_config kv_cache_dtype kv_cache_dtype_skip_layers kv_cache_memory_bytes
    kv_cache_metrics kv_cache_metrics_sample kv_events_config kv_offloading_backend kv_offloading_size
    kv_sharing_fast_prefill kv_transfer_config language_model_only limit_mm_per_prompt linear_backend load_format
    logits_processors logprobs_mode long_prefill_token_threshold lora_dtype lora_target_modules mamba_backend
    mamba_block_size mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds mamba_config mamba_ssm_cache_dtype
    mamba_ssu_algorithm master_addr master_port max_cpu_loras max_cudagraph_capture_size max_logprobs max_lora_rank
    max_loras max_model_len max_num_batched_tokens max_num_queued_reqs max_num_queued_tokens
    max_num_scheduled_tokens max_num_seqs max_parallel_loading_workers media_io_kwargs mm_device_do_normalize
    mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin
    mm_encoder_fp8_scale_save_path mm_encoder_only mm_encoder_tp_mode mm_hasher_algorithm mm_ipc_gpu_memory_gb
    mm_processor_cache_gb mm_processor_cache_type mm_processor_device mm_processor_kwargs
    mm_shm_cache_max_object_size_mb mm_tensor_ipc model model_class_overrides model_impl model_loader_extra_config
    model_weights moe_backend nnodes node_rank num_gpu_blocks_override numa_bind numa_bind_cpus numa_bind_nodes
    offload_backend offload_group_size offload_num_in_group offload_params offload_prefetch_step optimization_level
    otlp_traces_endpoint override_generation_config per_request_spec_decode_metrics performance_mode
    pipeline_parallel_size pooler_config prefill_context_parallel_size prefill_schedule_interval
    prefix_cache_retention_interval prefix_caching_hash_algo prefix_match_unit profiler_config pt_load_map_location
    quantization quantization_config ray_workers_use_nsight reasoning_config reasoning_parser
    reasoning_parser_plugin renderer_num_workers replayssm_buffer_len return_sampling_mask revision runner
    safetensors_load_strategy safetensors_prefetch_block_size safetensors_prefetch_num_threads scheduler_cls
    scheduler_reserve_full_isl scheduling_policy seed served_model_name show_hidden_metrics_for_version
    shutdown_timeout skip_mm_profiling skip_tokenizer_init spec_method spec_model spec_tokens specialize_active_lora
    speculative_config stream_interval structured_outputs_config tensor_parallel_size tokenizer tokenizer_mode
    tokenizer_revision tokens_only trust_remote_code ubatch_size use_fp64_gumbel use_replayssm use_tqdm_on_load
    video_pruning_method video_pruning_rate watermark weight_transfer_config worker_cls worker_extension_cls
"""
ENGINE: frozenset[str] = frozenset(_ENGINE.split())
_FRONTEND = """
    allow_credentials allowed_headers allowed_methods allowed_origins api_key chat_template
    chat_template_content_format cohere_format cohere_is_reasoning_model data_parallel_supervisor_port
    default_chat_template_kwargs disable_access_log_for_endpoints disable_fastapi_docs disable_uvicorn_access_log
    dp_supervisor_probe_failure_threshold dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s
    enable_auto_tool_choice enable_flash_late_interaction enable_force_include_usage enable_log_deltas
    enable_log_outputs enable_offline_docs enable_per_request_metrics enable_prompt_tokens_details
    enable_request_id_headers enable_server_load_tracking enable_ssl_refresh enable_tokenizer_info_endpoint
    exclude_tools_when_tool_choice_none fingerprint_mode fingerprint_value h11_max_header_count
    h11_max_incomplete_event_size host log_config_file log_error_stack lora_modules max_log_len middleware port
    response_role return_tokens_as_token_ids root_path sse_keep_alive_interval ssl_ca_certs ssl_cert_reqs
    ssl_certfile ssl_ciphers ssl_keyfile tokens_only tool_call_parser tool_parser_plugin tool_server
    trust_request_chat_template uds uvicorn_log_level
"""
FRONTEND: frozenset[str] = frozenset(_FRONTEND.split())
RESERVED: Mapping[str, str] = MappingProxyType(
    {
        "model": "model_loading_config.model_source",
        "served_model_name": "model_loading_config.model_id",
    }
)
"""Keys that Ray Serve sets itself, and refuses -> where they are said."""
DTYPES: tuple[str, ...] = ("auto", "half", "float16", "bfloat16", "float", "float32")
LOAD_FORMATS: tuple[str, ...] = (
    "auto",
    "hf",
    "dummy",
    "fastsafetensors",
    "instanttensor",
    "mistral",
    "modelexpress",
    "npcache",
    "pt",
    "runai_streamer",
    "runai_streamer_sharded",
    "safetensors",
    "sharded_state",
    "tensorizer",
)
STREAMING: frozenset[str] = frozenset({"runai_streamer", "runai_streamer_sharded", "tensorizer"})
"""Formats with which Ray Serve downloads nothing and vLLM reads the bucket itself."""
_QUANTIZATIONS = """
    awq auto_awq fp8 fbgemm_fp8 fp_quant modelopt modelopt_fp4 modelopt_mxfp8 modelopt_mixed auto_gptq gptq gptq_marlin
    awq_marlin humming compressed-tensors experts_int8 quark moe_wna16 torchao inc mxfp4 gpt_oss_mxfp4 deepseek_v4_fp8
    online fp8_per_tensor fp8_per_block fp8_per_channel int8_per_channel_weight_only nvfp4_per_token mxfp8
"""
QUANTIZATIONS: frozenset[str] = frozenset(_QUANTIZATIONS.split())
FAMILIES: tuple[frozenset[str], ...] = (
    frozenset({"awq", "auto_awq", "awq_marlin", "moe_wna16", "humming"}),
    frozenset({"gptq", "auto_gptq", "gptq_marlin", "moe_wna16", "humming"}),
    frozenset({"modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed", "mxfp8"}),
    frozenset({"mxfp4", "gpt_oss_mxfp4"}),
    frozenset({"fp8", "deepseek_v4_fp8"}),
)
"""Methods that read each other's checkpoints: vLLM picks the kernel, whichever of them is asked for."""
LENGTH_KEYS: tuple[str, ...] = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Keys of config.json whose least is the model's length: vllm/transformers_utils/model_arch_config_convertor.py."""
UNSCALED: frozenset[str] = frozenset({"su", "longrope", "llama3", "default"})
"""rope types whose factor does not lengthen the model: `_get_and_verify_max_len` of vllm/config/model.py."""

_ARCHITECTURES = """
AXK1ForCausalLM AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM AriaForConditionalGeneration
AudioFlamingo3ForConditionalGeneration BagelForConditionalGeneration BailingMoeForCausalLM BailingMoeV2ForCausalLM
BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM BeeForConditionalGeneration BertForMaskedLM
BertForSequenceClassification BertForTokenClassification BertModel BertSpladeSparseEmbeddingModel BgeM3EmbeddingModel
Blip2ForConditionalGeneration BloomForCausalLM CLIPModel ChatGLMForConditionalGeneration ChatGLMModel
Cohere2ForCausalLM Cohere2MoeForCausalLM Cohere2VisionForConditionalGeneration CohereAsrForConditionalGeneration
CohereForCausalLM ColBERTJinaRobertaModel ColBERTLfm2Model ColBERTModernBertModel ColModernVBertForRetrieval
ColPaliForRetrieval ColQwen3 ColQwen3_5 Cosmos3EdgeForConditionalGeneration Cosmos3ForConditionalGeneration
CwmForCausalLM DbrxForCausalLM DeciLMForCausalLM DeepseekForCausalLM DeepseekOCR2ForCausalLM DeepseekOCRForCausalLM
DeepseekV2ForCausalLM DeepseekV32ForCausalLM DeepseekV3BidirectionalModel DeepseekV3ForCausalLM DeepseekV4ForCausalLM
DeepseekVLV2ForCausalLM DiffusionGemmaForBlockDiffusion Dots3NoteForCausalLM DotsOCRForCausalLM
Eagle2_5_VLForConditionalGeneration Emu3ForConditionalGeneration Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM
Ernie4_5_VLMoeForConditionalGeneration Exaone4ForCausalLM Exaone4_5_ForConditionalGeneration ExaoneForCausalLM
ExaoneMoeForCausalLM FalconForCausalLM FalconH1ForCausalLM FalconMambaForCausalLM FireRedASR2ForConditionalGeneration
FlexOlmoForCausalLM FunASRForConditionalGeneration FunAudioChatForConditionalGeneration GLM4VForCausalLM
GPT2ForSequenceClassification GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM GPTNeoXForCausalLM
Gemma2ForCausalLM Gemma2Model Gemma3ForCausalLM Gemma3ForConditionalGeneration Gemma3TextModel Gemma3nForCausalLM
Gemma3nForConditionalGeneration Gemma4ForCausalLM Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration
GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM Glm4vForConditionalGeneration
Glm4vMoeForConditionalGeneration GlmAsrForConditionalGeneration GlmForCausalLM GlmMoeDsaForCausalLM
GlmOcrForConditionalGeneration GptOssForCausalLM Granite4VisionForConditionalGeneration GraniteForCausalLM
GraniteMoeForCausalLM GraniteMoeHybridForCausalLM GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM
GraniteSWAForCausalLM GraniteSpeechForConditionalGeneration GraniteSpeechPlusForConditionalGeneration GteModel
GteNewForSequenceClassification GteNewModel H2OVLChatModel HCXVisionV2ForCausalLM HF_ColBERT HYV3ForCausalLM
HYV4ForCausalLM HfMoondream HrmTextForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM
HunYuanVLForConditionalGeneration HyperCLOVAXForCausalLM IQuestCoderForCausalLM IQuestLoopCoderForCausalLM
Idefics3ForConditionalGeneration InklingForCausalLM InklingForConditionalGeneration InternLM2ForCausalLM
InternLM2ForRewardModel InternLM3ForCausalLM InternS1ForConditionalGeneration InternS1ProForConditionalGeneration
InternS2MobiusForConditionalGeneration InternS2PreviewForConditionalGeneration InternVLChatModel
InternVLForConditionalGeneration IsaacForConditionalGeneration Jais2ForCausalLM JambaForCausalLM
JambaForSequenceClassification JinaEmbeddingsV5Model JinaForRanking JinaVLForRanking KananaVForConditionalGeneration
KeyeForConditionalGeneration KeyeVL1_5ForConditionalGeneration KimiK25ForConditionalGeneration
KimiK3ForConditionalGeneration KimiLinearForCausalLM KimiVLForConditionalGeneration LLaMAForCausalLM LagunaForCausalLM
Lfm2ForCausalLM Lfm2MoeForCausalLM Lfm2VlForConditionalGeneration LightOnOCRForConditionalGeneration Llama4ForCausalLM
Llama4ForConditionalGeneration LlamaBidirectionalForSequenceClassification LlamaBidirectionalModel LlamaForCausalLM
LlamaModel LlamaNemotronVLForSequenceClassification LlamaNemotronVLModel Llama_Nemotron_Nano_VL
LlavaForConditionalGeneration LlavaNextForConditionalGeneration LlavaNextVideoForConditionalGeneration
LlavaOnevision2ForConditionalGeneration LlavaOnevisionForConditionalGeneration LongcatFlashForCausalLM
LongcatFlashNgramForCausalLM Mamba2ForCausalLM MambaForCausalLM MellumForCausalLM MiDashengLMModel MiMoForCausalLM
MiMoV2FlashForCausalLM MiMoV2ForCausalLM MiMoV2OmniForCausalLM MiniCPM3ForCausalLM MiniCPMForCausalLM MiniCPMO
MiniCPMV MiniCPMV4_6ForConditionalGeneration MiniMaxM2ForCausalLM MiniMaxM3SparseForCausalLM
MiniMaxM3SparseForConditionalGeneration Ministral3ForCausalLM Mistral3ForConditionalGeneration MistralForCausalLM
MistralLarge3ForCausalLM MistralModel MixtralForCausalLM ModernBertForSequenceClassification
ModernBertForTokenClassification ModernBertModel Molmo2ForConditionalGeneration MolmoForCausalLM Moondream3ForCausalLM
MoonshotKimiaForCausalLM MossAudioModel MossTranscribeDiarizeForConditionalGeneration MuseGlimmerForCausalLM
MuseGlimmerForConditionalGeneration NVLM_D NemotronForCausalLM NemotronHForCausalLM NemotronHPuzzleForCausalLM
NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3 NemotronH_Super_Omni_Reasoning_V3
NemotronParseForConditionalGeneration NomicBertModel OPTForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM
OlmoHybridForCausalLM OlmoeForCausalLM OpenAIPrivacyFilterForTokenClassification OpenCUAForConditionalGeneration
OpenPanguVLForConditionalGeneration OpenVLAForActionPrediction OpsColQwen3Model OrionForCausalLM Ovis Ovis2_5
Ovis2_6ForCausalLM Ovis2_6_MoeForCausalLM PaddleOCRVLForConditionalGeneration PaliGemmaForConditionalGeneration
PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM Param2MoEForCausalLM Phi3ForCausalLM
Phi3VForCausalLM Phi4ForCausalLMV Phi4MMForCausalLM PhiForCausalLM PhiMoEForCausalLM PixtralForConditionalGeneration
Plamo3ForCausalLM QianfanOCRForConditionalGeneration Qwen2AudioForConditionalGeneration Qwen2ForCausalLM
Qwen2ForProcessRewardModel Qwen2ForRewardModel Qwen2Model Qwen2MoeForCausalLM Qwen2VLForConditionalGeneration
Qwen2_5OmniForConditionalGeneration Qwen2_5OmniModel Qwen2_5_VLForConditionalGeneration
Qwen3ASRForConditionalGeneration Qwen3ASRForcedAlignerForTokenClassification Qwen3ASRRealtimeGeneration
Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3OmniMoeForConditionalGeneration
Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Qwen3VLNemotronEmbedModel Qwen3_5ForCausalLM
Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration Qwen4ExpForCausalLM
Qwen4ExpForConditionalGeneration RForConditionalGeneration Rnj1ForCausalLM RobertaForMaskedLM
RobertaForSequenceClassification RobertaForTokenClassification RobertaModel SarvamMLAForCausalLM SarvamMoEForCausalLM
SeedOssForCausalLM SiglipModel SkyworkR1VChatModel SmolLM3ForCausalLM SmolVLMForConditionalGeneration SolarForCausalLM
StableLmForCausalLM Starcoder2ForCausalLM Step1ForCausalLM Step3TextForCausalLM Step3VLForConditionalGeneration
Step3p5ForCausalLM Step3p7ForConditionalGeneration StepVLForConditionalGeneration TeleChat2ForCausalLM
TeleChat3ForCausalLM TeleFLMForCausalLM Terratorch TransformersEmbeddingModel TransformersForCausalLM
TransformersForSequenceClassification TransformersMoEEmbeddingModel TransformersMoEForCausalLM
TransformersMoEForSequenceClassification TransformersMultiModalEmbeddingModel TransformersMultiModalForCausalLM
TransformersMultiModalForSequenceClassification TransformersMultiModalMoEForCausalLM UltravoxModel
UnlimitedOCRForCausalLM VaultGemmaForCausalLM VibeVoiceAsrForConditionalGeneration VoxtralForConditionalGeneration
VoxtralRealtimeGeneration VoyageQwen3BidirectionalEmbedModel WhisperForConditionalGeneration
XLMRobertaForSequenceClassification XLMRobertaForTokenClassification XLMRobertaModel Zamba2ForCausalLM
"""
ARCHITECTURES: frozenset[str] = frozenset(_ARCHITECTURES.split())
"""Classes of config.json that vLLM has code of its own for: vllm/model_executor/models/registry.py. For others it falls
back on Transformers' code where that allows it."""
REMOVED: Mapping[str, str] = MappingProxyType(
    {
        "AquilaForCausalLM": "0.24.0",
        "AquilaModel": "0.24.0",
        "ArcticForCausalLM": "0.28.0",
        "AyaVisionForConditionalGeneration": "0.24.0",
        "BaiChuanForCausalLM": "0.23.0",
        "BaichuanForCausalLM": "0.23.0",
        "BambaForCausalLM": "0.23.0",
        "ChameleonForConditionalGeneration": "0.28.0",
        "Cheers": "0.28.0",
        "CheersForConditionalGeneration": "0.28.0",
        "DonutForConditionalGeneration": "0.10.2",
        "Dots1ForCausalLM": "0.23.0",
        "ErnieForSequenceClassification": "0.23.0",
        "ErnieForTokenClassification": "0.23.0",
        "ErnieModel": "0.23.0",
        "Fairseq2LlamaForCausalLM": "0.28.0",
        "FireRedLIDForConditionalGeneration": "0.28.0",
        "FuyuForCausalLM": "0.25.0",
        "GritLM": "0.28.0",
        "Grok1ForCausalLM": "0.24.0",
        "Grok1ModelForCausalLM": "0.24.0",
        "HCXVisionForCausalLM": "0.28.0",
        "InternLM2VEForCausalLM": "0.23.0",
        "InternLMForCausalLM": "0.23.0",
        "JAISLMHeadModel": "0.22.0",
        "MPTForCausalLM": "0.28.0",
        "MantisForConditionalGeneration": "0.24.0",
        "MiniMaxForCausalLM": "0.23.0",
        "MiniMaxM1ForCausalLM": "0.23.0",
        "MiniMaxText01ForCausalLM": "0.23.0",
        "MiniMaxVL01ForConditionalGeneration": "0.23.0",
        "MllamaForConditionalGeneration": "0.10.2",
        "MotifForCausalLM": "0.10.2",
        "MptForCausalLM": "0.28.0",
        "MusicFlamingoForConditionalGeneration": "0.24.0",
        "OuroForCausalLM": "0.26.0",
        "PersimmonForCausalLM": "0.25.0",
        "Phi3SmallForCausalLM": "0.9.2",
        "Phi4FlashForCausalLM": "0.10.2",
        "Phi4MultimodalForCausalLM": "0.12.0",
        "Plamo2ForCausalLM": "0.26.0",
        "PrithviGeoSpatialMAE": "0.28.0",
        "QWenLMHeadModel": "0.23.0",
        "QwenVLForConditionalGeneration": "0.23.0",
        "RWForCausalLM": "0.28.0",
        "StableLMEpochForCausalLM": "0.28.0",
        "Tarsier2ForConditionalGeneration": "0.23.0",
        "TarsierForConditionalGeneration": "0.24.0",
        "TeleChatForCausalLM": "0.25.0",
        "XverseForCausalLM": "0.23.0",
    }
)
"""Classes that are gone -> the last version of vLLM that had them: as above."""
PLUGINS: frozenset[str] = frozenset(
    {"BartForConditionalGeneration", "BartModel", "Florence2ForConditionalGeneration", "MBartForConditionalGeneration"}
)
"""Classes that need a plug-in of vLLM's: as above."""
