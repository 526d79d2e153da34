#!/usr/bin/env bash
# Package a model for LMI (DJLServing), look at what it is told, break it in a common way, and pack it for SageMaker.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

# A checkpoint. An artifact of `llmcompile build`, `export` or `partition` is packaged in the same way.
python "$examples/tiny_llama.py" tiny-llama

# Before tiny-llama-lmi appears, every rule of the lint is asked. Weights are shared with the model, not copied.
llmcompile package lmi tiny-llama tiny-llama-lmi --tensor-parallel-degree 2 --option option.max_model_len=128
ls tiny-llama-lmi
cat tiny-llama-lmi/serving.properties

# What each release can load differs. What it cannot is refused, with those that can.
llmcompile package lmi tiny-llama another --lmi-version 0.30 2>&1 || echo "exit code $?"
llmcompile package lmi tiny-llama another --option option.max_modellen=128 2>&1 || echo "exit code $?"

# Partitioned for FasterTransformer, this model is not what the loader in LMI's image reads.
llmcompile partition ft --model tiny-llama --tp 2 --no-validate --quiet tiny-llama-ft
llmcompile package lmi tiny-llama-ft another 2>&1 || echo "exit code $?"

# Somebody adds an environment file, and spells a key wrong. The server would start, and do something else.
echo OPTION_MAX_MODEL_LEN=4096 > tiny-llama-lmi/.env
echo option.max_roling_batch_size=8 >> tiny-llama-lmi/serving.properties
llmcompile lint tiny-llama-lmi || echo "exit code $?"

# One archive, with its members at the root, as SageMaker unpacks it.
llmcompile package lmi tiny-llama tiny-llama-tar --tar --quiet
tar -tzf tiny-llama-tar/model.tar.gz
llmcompile lint tiny-llama-tar/model.tar.gz --quiet
