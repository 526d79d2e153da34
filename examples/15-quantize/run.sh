#!/usr/bin/env bash
# Which quantization? Every recipe's checkpoint is built, run on the CPU beside the model, measured, and taken away again.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

python "$examples/tiny_llama.py" tiny-llama

# What would be done, for every recipe that this model can have, and why the others are not made. Reads headers alone.
llmcompile quantize --model tiny-llama --dry-run compared

# Four of them. Give --calib-dataset and --eval-text texts like yours; without them a short built-in one is both.
llmcompile quantize --model tiny-llama --recipes w8a16,fp8,w4a16,int4_awq compared 2>/dev/null
ls compared

# The choice as a rule of a CI job: the smallest that changes less than one next token in five.
python - <<'EOF'
import json

found = json.load(open("compared/quantize.json"))
good = [each for each in found["outcomes"] if each["passed"] and each["quality"]["top1"] > 0.8 and each["recipe"]]
best = min(good, key=lambda each: each["weights_bytes"])
print(f"{best['recipe']}: {best['share']:.0%} of {found['dtype']}, from SM{best['oldest_gpu']} on")
EOF

# A recipe that the model cannot have ends the command before any work.
llmcompile quantize --model tiny-llama --recipes fp8,w4a16_gptq nothing 2>&1 || echo "exit code $?"
