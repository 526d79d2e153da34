#!/usr/bin/env bash
# Check a FasterTransformer folder that llmcompile did not write, against the model it was made from.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

python "$examples/tiny_llama.py" tiny-llama

# Somebody's folder: config.ini and .bin files, no manifest.
llmcompile partition ft --model tiny-llama --tp 2 --no-validate --quiet made
mv made/2-gpu .

# Run it as FasterTransformer would and compare with the model.
llmcompile verify --deep --model tiny-llama 2-gpu 2>&1

# A mistake that no file size shows: two matrices of the same shape have changed places.
cd 2-gpu
mv model.layers.0.mlp.gate_proj.weight.0.bin swap
mv model.layers.0.mlp.up_proj.weight.0.bin model.layers.0.mlp.gate_proj.weight.0.bin
mv swap model.layers.0.mlp.up_proj.weight.0.bin
cd ..
code=0
llmcompile verify --deep --model tiny-llama 2-gpu 2>&1 || code=$?
echo "exit code $code"
