#!/bin/sh
# The two halves of a build. `checkpoint` needs neither a GPU nor TensorRT-LLM; `engine` is for the GPU host, and needs both.
# Options come as arguments or from the environment: LLMCOMPILE_MODEL, LLMCOMPILE_TP, LLMCOMPILE_MAX_BATCH_SIZE, ...
set -eu
cd "${WORK:-/work}"
stage=$1
shift
case $stage in
checkpoint) exec llmcompile build trtllm --stop-after checkpoint "$@" model ;;
engine) exec llmcompile build trtllm --from-checkpoint model "$@" model-engine ;;
*) exec llmcompile "$stage" "$@" ;;
esac
