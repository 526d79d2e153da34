#!/usr/bin/env bash
# Lower a decoder for two NeuronCores on a machine without the Neuron SDK, and prove the graphs right before compiling.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

python "$examples/tiny_llama.py" tiny-llama

# The spelling of optimum-cli export neuron. Both ranks run on the CPU, with their all-reduces, before lowered appears:
# prompts through every graph for prompts, then 32 greedy tokens with the caches carried over.
llmcompile export neuron --model tiny-llama --batch_size 1 --sequence_length 128 --num_cores 2 --instance_type trn1 \
    --stop-after lower lowered

# What the compiler will be given, and the weights that the runtime will.
find lowered/graphs lowered/weights lowered/compile.sh | sort
python - <<'EOF'
import json

signature = json.load(open("lowered/graphs/token_generation.json"))
for part in ("inputs", "states", "outputs"):
    for value in signature[part]:
        print(f"{part:8} {value['name']:14} {value['dtype']} {value['shape']}")
print(len(signature["weights"]), "weights, the first of them", signature["weights"][0]["name"])
EOF
grep '^neuronx-cc' lowered/compile.sh

# What --auto_cast would cost is measured on the same graphs, and held against --atol before the compiler is paid.
llmcompile export neuron --model tiny-llama --batch_size 1 --sequence_length 128 --torch_dtype float32 \
    --instance_type trn1 --auto_cast all --auto_cast_type bf16 --atol 0.000001 --stop-after lower --quiet \
    too-coarse 2>/dev/null || echo "exit code $?"

# Every option is checked before any work: which sizes are missing, and what to type.
llmcompile export neuron --model tiny-llama --stop-after lower nothing 2>&1 || true
