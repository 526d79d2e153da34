#!/usr/bin/env bash
# The half of a CI job that needs no Neuron SDK, as workflow.yml and Dockerfile run it. Their other half compiles.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export WORK="${WORK:-$(mktemp -d)}"
cd "$WORK"

python "$here/../tiny_llama.py" tiny-llama

# The variables of Hugging Face's containers are options; so is LLMCOMPILE_<NAME> for each of them.
export LLMCOMPILE_MODEL=tiny-llama MAX_BATCH_SIZE=1 MAX_TOTAL_TOKENS=64 HF_NUM_CORES=2 HF_AUTO_CAST_TYPE=bf16
export LLMCOMPILE_INSTANCE_TYPE=inf2
"$here/entrypoint.sh" lower

# What the job uploads.
find lowered -type f | sort

# What the manifest proves to the next job.
python - <<'EOF'
import json

manifest = json.load(open("lowered/llmcompile.json"))
print("validated:", manifest["validation"]["passed"], "by", manifest["validation"]["executor"])
EOF
