#!/usr/bin/env bash
# See what a partition would write, and every problem it would meet, before any work is done.
set -euo pipefail
examples=$(cd "$(dirname "$0")/.." && pwd)
cd "${WORK:-$(mktemp -d)}"

python "$examples/tiny_llama.py" tiny-llama

# The plan, from config.json and the file headers alone. Nothing is written.
llmcompile partition ft --model tiny-llama --tp 2 --dtype fp16 --dry-run tiny-llama-ft

# A degree that does not divide the model: all reasons at once, and the degrees that would work.
code=0
llmcompile partition ft --model tiny-llama --tp 3 --dry-run --quiet tiny-llama-ft 2>&1 || code=$?
echo "exit code $code"

# The same plan for a program.
llmcompile partition ft --model tiny-llama --tp 2 --dtype fp16 --dry-run --json tiny-llama-ft |
    python -c 'import json, sys; plan = json.load(sys.stdin)["plan"]; print(len(plan["files"]), "files,", plan["output_bytes"], "bytes")'

# Only the model is here.
ls
