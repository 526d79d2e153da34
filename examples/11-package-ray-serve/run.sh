#!/usr/bin/env bash
# Package a checkpoint for Ray Serve, convert an entry of RayLLM, and lint what Ray Serve would take without a word.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

python "$examples/tiny_llama.py" org--tiny-llama

# A Serve config file with its LLMConfig, and the model's files beside it.
llmcompile package ray-serve org--tiny-llama package --ray-version 2.60 --accelerator-type A10G --tp 2 \
    --max-model-len 256 --max-replicas 4 --target-ongoing-requests 24
cat package/serve.yaml
ls package package/model

# For nodes that download from a bucket: the hash file, which Ray reads first, is to be uploaded last.
llmcompile package ray-serve org--tiny-llama mirrored --ray-version 2.60 --bucket-uri s3://bucket/tiny-llama --quiet
ls mirrored/mirror

# An entry of RayLLM's registry under today's names. What has no successor is said.
cat > entry.yaml <<'YAML'
deployment_config:
  autoscaling_config: {min_replicas: 1, max_replicas: 8, target_num_ongoing_requests_per_replica: 24, smoothing_factor: 0.6}
  max_concurrent_queries: 64
  ray_actor_options: {resources: {accelerator_type_a10: 0.01}}
engine_config:
  model_id: meta-llama/Llama-2-7b-chat-hf
  type: VLLMEngine
  max_total_tokens: 4096
  generation:
    prompt_format: {system: "{instruction}\n", assistant: "{instruction}", trailing_assistant: "", user: "{instruction}"}
    stopping_sequences: ["<unk>"]
scaling_config: {num_workers: 2, num_cpus_per_worker: 8, resources_per_worker: {accelerator_type_a10: 0.01}}
YAML
llmcompile package ray-serve --from-rayllm entry.yaml converted --ray-version 2.60
cat converted/meta-llama--Llama-2-7b-chat-hf.yaml

# Somebody writes RayLLM's names, and a degree that does not divide the heads. Ray Serve 2.60 loads this file.
sed -i 's/target_ongoing_requests/target_num_ongoing_requests_per_replica/; s/tensor_parallel_size: 2/tensor_parallel_size: 3/' \
    package/serve.yaml package/org--tiny-llama.yaml
code=0
llmcompile lint package || code=$?
echo "exit code $code"

# An engine of TensorRT-LLM has no successor in Ray Serve.
sed -i 's/VLLMEngine/TRTLLMEngine/' entry.yaml
code=0
llmcompile package ray-serve --from-rayllm entry.yaml engine --quiet 2>&1 || code=$?
echo "exit code $code"
