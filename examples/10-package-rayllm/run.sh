#!/usr/bin/env bash
# Package a model for RayLLM: registry entry, serve config, and the mirror for the bucket. Break the entry, and lint it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "${WORK:-$(mktemp -d)}"

# A checkpoint with a chat template. An engine of `llmcompile build trtllm` is packaged in the same way, with
# --runtime-version and the TensorRT-LLM of the image.
python "$here/tiny_chat.py" org--tiny-chat chatml

# prompt_format is derived from the chat template, and both are rendered to prove it.
llmcompile package rayllm org--tiny-chat tiny-rayllm --bucket-uri s3://models/tiny-chat --accelerator-type a10 \
    --commit 0123456789abcdef0123456789abcdef01234567
find tiny-rayllm -type f | sort
cat tiny-rayllm/org--tiny-chat-*.yaml
cat tiny-rayllm/serve.yaml

# A template that refuses system messages, which RayLLM takes from everybody: it asks what to do with them.
python "$here/tiny_chat.py" org--alternating alternating
llmcompile package rayllm org--alternating alternating --bucket-uri s3://models/alternating 2>&1 || echo "exit code $?"
llmcompile package rayllm org--alternating alternating --model-local-path /models/alternating --prepend-system --quiet
grep -A 4 prompt_format: alternating/org--alternating-*.yaml

# Somebody scales out, limits the answer by a key of another system, and changes the user's text.
sed -i -e 's/num_workers: 1/num_workers: 3/' -e 's/^scaling_config:/&\n  max_model_len: 128/' \
    -e 's/user: "<|im_start|>user/user: "<|im_start|>human/' tiny-rayllm/org--tiny-chat-*.yaml
llmcompile lint tiny-rayllm || echo "exit code $?"
