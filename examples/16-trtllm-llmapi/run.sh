#!/usr/bin/env bash
# Make the folder that TensorRT-LLM 1.3 serves, which has no engines: FP8 weights, activations and cache, without a GPU.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

python "$examples/tiny_llama.py" tiny-llama

# The model runs on a text, layer by layer, and its activations are measured. What is written is compared with the model
# tensor by tensor, and as a whole, before the folder appears.
llmcompile build trtllm --model tiny-llama --target llmapi --quantization fp8 --kv-cache fp8 --tp 2 --max-batch-size 8 \
    tiny-llama-fp8

# A Hugging Face folder, and what trtllm-serve is told.
ls tiny-llama-fp8
cat tiny-llama-fp8/model.yaml
python - <<'EOF'
from safetensors import safe_open

with safe_open("tiny-llama-fp8/model.safetensors", "pt") as opened:
    for name in sorted(opened.keys()):
        if ".layers.0.self_attn." in name:
            tensor = opened.get_slice(name)
            print(tensor.get_dtype(), tensor.get_shape(), name)
EOF

# What the release does not load is refused before any work, with what to type.
llmcompile build trtllm --model tiny-llama --target llmapi --quantization int8_sq smooth || echo "exit code $?"

# For Ray Serve, whose vLLM loads the same format.
llmcompile package ray-serve tiny-llama-fp8 served --quiet
ls served

# Later, or on the GPU host: is every byte still what the manifest says? With --deep and --model, the numbers too.
llmcompile verify tiny-llama-fp8
