#!/usr/bin/env bash
# Build an engine of TensorRT for RTX on a machine without a GPU, from an ONNX model that was proved right before.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

python "$examples/tiny_llama.py" tiny-llama

# Where a GPU of sm86 or sm89 is, the engine would be run too; this example is of a machine without one.
export CUDA_VISIBLE_DEVICES=

# What would be built: profiles, targets, memory of the builder. Reads config.json and headers alone.
llmcompile build tensorrt-rtx --model tiny-llama --dtype fp16 --sequence-length 1,64,256 --dry-run tiny-llama-rtx

# One graph for prompts and tokens, its weights in int4. It is run in ONNX Runtime beside the Hugging Face model, with 32
# greedy tokens, before the builder sees it.
llmcompile build tensorrt-rtx --model tiny-llama --dtype fp16 --quantization int4 --sequence-length 1,64,256 \
    --compute-capability 86 --compute-capability 89 tiny-llama-rtx 2>/dev/null

# An engine cannot be opened without a GPU: what a runtime must know is in the manifest.
python - <<'PYTHON'
import json

made = json.load(open("tiny-llama-rtx/llmcompile.json"))["rtx"]
print(made["executed"], "for", made["compute_capabilities"])
for value in (*made["graphs"][0]["inputs"][:4], made["graphs"][0]["outputs"][0]):
    print(f"{value['name']:22} {value['dtype']:6} {value['shape']}")
for profile in made["graphs"][0]["profiles"]:
    print(f"{profile['name']:8} past_key_values.0.key", *profile["shapes"]["past_key_values.0.key"])
PYTHON

# The ONNX model was kept: its numbers can be proved again, long after.
llmcompile verify --deep tiny-llama-rtx 2>/dev/null

# The same model serves where there is no GPU.
python "$examples/14-tensorrt-rtx/generate.py" tiny-llama-rtx/onnx/model.onnx

# What a GPU lacks is known before any work.
llmcompile build tensorrt-rtx --model tiny-llama --quantization fp8 --compute-capability 86 nothing 2>&1 || echo "exit code $?"
llmcompile build tensorrt-rtx --model tiny-llama --compute-capability 90 nothing 2>&1 || echo "exit code $?"
