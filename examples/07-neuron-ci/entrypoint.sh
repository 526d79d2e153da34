#!/bin/sh
# The two halves of an export. `lower` needs neither the Neuron SDK nor a device; `compile` needs neuronx-cc, and neither
# torch nor the model. Options come as arguments or from the environment: LLMCOMPILE_MODEL, MAX_BATCH_SIZE, ...
set -eu
cd "${WORK:-/work}"
stage=$1
shift
case $stage in
lower) exec llmcompile export neuron --stop-after lower "$@" lowered ;;
compile) exec llmcompile export neuron --from-lowered lowered "$@" model-neuron ;;
*) exec llmcompile "$stage" "$@" ;;
esac
