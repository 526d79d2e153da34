#!/usr/bin/env bash
# Partition a model for two ranks of FasterTransformer, look at what came out, and check it again later.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

# A model: any folder that save_pretrained wrote, or a hub id. This one is made up on the spot.
python "$examples/tiny_llama.py" tiny-llama

# Split it. Before tiny-llama-ft appears, both ranks are run on the CPU and compared with the model.
llmcompile partition ft --model tiny-llama --tp 2 tiny-llama-ft

# What a server needs is all in one folder.
ls tiny-llama-ft
cat tiny-llama-ft/2-gpu/config.ini
ls tiny-llama-ft/2-gpu | grep layers.0

# Later, or on another machine: is every byte still what the manifest says?
llmcompile verify tiny-llama-ft
