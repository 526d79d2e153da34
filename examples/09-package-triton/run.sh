#!/usr/bin/env bash
# Package models for Triton Inference Server: FasterTransformer's backend, and TensorRT-LLM's that loads checkpoints.
# Then lint the repository of an engine that somebody filled in by hand.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

# A model for FasterTransformer, on two GPUs. Its configuration says what the weights say.
python "$examples/tiny_llama.py" tiny-llama
llmcompile partition ft --model tiny-llama --tp 2 --no-validate --quiet tiny-llama-ft
llmcompile package triton tiny-llama-ft repository-ft
grep '^parameters' repository-ft/fastertransformer/config.pbtxt

# A checkpoint runs in code of NVIDIA's, which is not in the package: it is asked for, with where it is.
llmcompile package triton tiny-llama repository 2>&1 || echo "exit code $?"

# In the server's image that is /app/all_models. Here two empty programs stand for it.
mkdir -p all_models/llmapi/tensorrt_llm/1
echo '# model.py' > all_models/llmapi/tensorrt_llm/1/model.py
echo '# helpers.py' > all_models/llmapi/tensorrt_llm/1/helpers.py
llmcompile package triton tiny-llama repository --model-py all_models --tensor-parallel 2 --streaming --quiet
(cd repository && find . -type f | sort)
cat repository/tensorrt_llm/1/model.yaml

# Two instances want two GPUs each, and a degree must divide the heads.
llmcompile package triton tiny-llama another --model-py all_models --tensor-parallel 2 --gpu-ids '0;1' 2>&1 || echo "exit code $?"
llmcompile package triton tiny-llama another --model-py all_models --tensor-parallel 3 2>&1 || echo "exit code $?"

# An engine for at most 4 requests, built by TensorRT-LLM 0.17 for two GPUs. One rank was not copied.
mkdir -p by-hand/tensorrt_llm/1
cat > by-hand/tensorrt_llm/1/config.json <<'JSON'
{"version": "0.17.0", "pretrained_config": {"logits_dtype": "float16", "mapping": {"tp_size": 2, "pp_size": 1}},
 "build_config": {"max_batch_size": 4, "max_beam_width": 1}}
JSON
echo engine > by-hand/tensorrt_llm/1/rank0.engine
cat > by-hand/tensorrt_llm/config.pbtxt <<'PBTXT'
name: "tensorrt_llm" backend: "tensorrtllm" max_batch_size: 8
input [ { name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true },
        { name: "input_lengths" data_type: TYPE_INT32 dims: [ 1 ] reshape { shape: [ ] } },
        { name: "request_output_len" data_type: TYPE_INT32 dims: [ 1 ] reshape { shape: [ ] } } ]
output [ { name: "output_ids" data_type: TYPE_INT32 dims: [ -1, -1 ] },
         { name: "sequence_length" data_type: TYPE_INT32 dims: [ -1 ] },
         { name: "context_logits" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]
parameters { key: "gpt_model_type" value { string_value: "${batching_strategy}" } }
parameters { key: "gpt_model_path" value { string_value: "/models/tensorrt_llm/1" } }
PBTXT
llmcompile lint by-hand --target-version 0.19 2>&1 > /dev/null || echo "exit code $?"
