#!/usr/bin/env bash
# Make a TensorRT-LLM checkpoint for two ranks with int8 weights, on a machine without a GPU, and prove it right.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

python "$examples/tiny_llama.py" tiny-llama

# Weights are quantized as they stream, and laid out for GPUs of SM75 to SM89 (T4, A100, L4, ...). Before tiny-llama-trtllm
# appears, both ranks are run on the CPU from their bytes and compared with the model. The last lines say what to type on
# the GPU host.
llmcompile build trtllm --model tiny-llama --tp 2 --quantization w8a16 --wo-layout sm80 --stop-after checkpoint \
    tiny-llama-trtllm

# What convert_checkpoint.py would have written, the tokenizer, and the manifest.
ls tiny-llama-trtllm tiny-llama-trtllm/checkpoint
python - <<'EOF'
from safetensors import safe_open

with safe_open("tiny-llama-trtllm/checkpoint/rank0.safetensors", "pt") as opened:
    for name in sorted(opened.keys()):
        if ".layers.0." in name:
            tensor = opened.get_slice(name)
            print(tensor.get_dtype(), tensor.get_shape(), name)
EOF

# For any GPU: leave --wo-layout out. The weights stay in 16 bits, and trtllm-build quantizes them for its own GPU.
llmcompile build trtllm --model tiny-llama --tp 2 --quantization w8a16 --stop-after checkpoint --quiet deferred
python -c 'import json; print(json.load(open("deferred/checkpoint/config.json"))["quantization"])'

# Later, or on the GPU host before the build: is every byte still what the manifest says?
llmcompile verify tiny-llama-trtllm
