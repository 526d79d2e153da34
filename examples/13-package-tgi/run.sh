#!/usr/bin/env bash
# Package a Neuron decoder for Text Generation Inference: what it asks, what is refused, what the lint catches later.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

# A decoder as optimum-neuron 0.3.0 exports it, for four NeuronCores, four sequences and 256 tokens.
python "$examples/tiny_llama.py" tiny-llama
python "$examples/tiny_neuron.py" tiny-llama 0.3.0 tiny-neuron

# The image is the one with the same optimum-neuron. Four NeuronCores are two devices.
llmcompile package tgi tiny-neuron served
cat served/.env served/docker-compose.yaml

# What the image would refuse when it starts is refused now.
llmcompile package tgi tiny-neuron another --max-batch-size 8 2>&1 || echo "exit code $?"
llmcompile package tgi tiny-neuron another --target-version 0.4.4 2>&1 || echo "exit code $?"

# Somebody takes over an older .env: names of 0.0.22, quotes, a token, and a batch that was not compiled.
cat > served/.env <<'ENV'
MODEL_ID='/data'
HF_BATCH_SIZE=8
MAX_BATCH_SIZE=8
MAX_TOTAL_TOKENS=256
HF_TOKEN=not-a-real-one
ENV
llmcompile lint served || echo "exit code $?"

# Two containers behind nginx, each with devices of its own.
llmcompile package tgi tiny-neuron replicas --replicas 2 --quiet
grep -A2 devices replicas/docker-compose.yaml
cat replicas/nginx.conf
llmcompile lint replicas --quiet
